//! Parsers that are fed with whatever comes: the same functions for tests, which mutate good inputs by dice, and for a
//! fuzzer, which is guided by what code they reach (`fuzz/`).

use fastrand::Rng;

/// The longest input that dice make, in bytes.
const LONGEST: usize = 8 << 10;

/// A parser, with inputs that it takes.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// What it is called.
    pub name: &'static str,
    /// Feeds it. A panic is a finding.
    pub run: fn(&[u8]),
    /// Good inputs to begin with.
    pub seeds: fn() -> Vec<Vec<u8>>,
}

/// Says which input a parser panicked at.
struct Fed<'i>(&'static str, &'i [u8]);

impl Drop for Fed<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{} panicked at: {}", self.0, self.1.escape_ascii());
        }
    }
}

impl Target {
    /// Feeds the good inputs, and so many made of them.
    pub fn withstands(&self, rounds: u32) {
        let seeds = (self.seeds)();
        let feed = |input: &[u8]| {
            let _fed = Fed(self.name, input);
            (self.run)(input);
        };
        seeds.iter().for_each(|seed| feed(seed));
        let mut rng = Rng::with_seed(0x5eed);
        for _ in 0..rounds {
            feed(&made(&seeds, &mut rng));
        }
    }
}

/// An input: noise, or good ones that are cut, joined and changed in places.
fn made(seeds: &[Vec<u8>], r: &mut Rng) -> Vec<u8> {
    if seeds.is_empty() || r.u8(..) < 16 {
        return (0..r.usize(0..256)).map(|_| r.u8(..)).collect();
    }
    let mut input = seeds[r.usize(..seeds.len())].clone();
    if r.u8(..) < 32 {
        let other = &seeds[r.usize(..seeds.len())];
        input.truncate(r.usize(..=input.len()));
        input.extend_from_slice(&other[r.usize(..=other.len())..]);
    }
    for _ in 0..1 + r.usize(..6) {
        let at = r.usize(..=input.len());
        let end = (at + r.usize(..16)).min(input.len());
        match r.u8(..7) {
            0 if at < input.len() => input[at] ^= 1 << r.u8(..8),
            1 if at < input.len() => {
                input[at] = [0, 1, 0x7f, 0x80, 0xff, b'"', b'-', b'\n'][r.usize(..8)]
            }
            2 if at < input.len() => input[at] = r.u8(..),
            3 => drop(input.drain(at..end)),
            4 => {
                let again = input[at..end].to_vec();
                input.splice(at..at, again);
            }
            5 => input.truncate(at),
            _ => input.insert(at, r.u8(..)),
        }
    }
    input.truncate(LONGEST);
    input
}
