//! Consistent hashing: the same key gets the same endpoint, and few keys move when endpoints come and go.
//!
//! Invariants: a table is made of names and weights only, so that every proxy makes the same one; what comes out is an
//! index of the list it was made of; tables are bounded whatever a user asks for.

use super::{fnv, mix};

/// The most places of a table: 4 MiB.
const MOST: u64 = 1 << 20;

/// The hash of a key, the same on every proxy and in every version.
pub fn hash_bytes(key: &[u8]) -> u64 {
    mix(fnv(key))
}

/// A ring: each endpoint has places by its weight, and a key belongs to the next place.
#[derive(Clone, Debug, Default)]
pub struct Ring {
    places: Box<[(u64, u32)]>,
}

impl Ring {
    /// A ring of at least `minimum` places, at most 2^20, for (name, weight).
    pub fn new(members: &[(&str, u32)], minimum: u64) -> Self {
        let sum: u64 = members.iter().map(|(_, w)| u64::from(*w)).sum();
        let size = minimum.max(members.len() as u64).clamp(1, MOST);
        let mut places = Vec::new();
        for (at, (name, weight)) in (0u32..).zip(members) {
            if *weight == 0 {
                continue;
            }
            // Rounded up, so that each endpoint with weight has a place.
            let count = (u128::from(*weight) * u128::from(size)).div_ceil(u128::from(sum.max(1)));
            let seed = hash_bytes(name.as_bytes());
            let place = |i: u64| (mix(seed ^ mix(i)), at);
            places.extend((0..count as u64).map(place));
        }
        places.sort_unstable();
        Self {
            places: places.into(),
        }
    }

    /// The endpoint of a key, the next usable one from its place on; `None` when none is usable.
    pub fn pick(&self, key: u64, usable: impl Fn(usize) -> bool) -> Option<usize> {
        let from = self.places.partition_point(|(place, _)| *place < key);
        let (before, after) = self.places.split_at(from);
        let mut last = None;
        after.iter().chain(before).find_map(|(_, at)| {
            // Neighbours are often the same endpoint.
            (last.replace(*at) != Some(*at) && usable(*at as usize)).then_some(*at as usize)
        })
    }
}

/// Maglev's table: each endpoint fills places in an order of its own, in turns by weight.
#[derive(Clone, Debug, Default)]
pub struct Maglev {
    places: Box<[u32]>,
}

impl Maglev {
    /// A table of so many places, for (name, weight); a size that is no prime becomes the next one, at most about 2^20.
    pub fn new(members: &[(&str, u32)], size: u64) -> Self {
        let most = members.iter().map(|(_, w)| *w).max().unwrap_or_default();
        if most == 0 {
            return Self::default();
        }
        let size = prime(size.max(members.len() as u64).clamp(2, MOST));
        let mut fills: Vec<Fill> = (0u32..)
            .zip(members)
            .filter(|(_, (_, weight))| *weight > 0)
            .map(|(at, (name, weight))| Fill::new(at, name, *weight, size))
            .collect();
        let mut places = vec![u32::MAX; size as usize];
        let mut free = places.len();
        // Whoever has weight for it takes a place in each turn; the heaviest in every turn.
        'turns: loop {
            for fill in &mut fills {
                fill.credit += u64::from(fill.weight);
                if fill.credit < u64::from(most) {
                    continue;
                }
                fill.credit -= u64::from(most);
                let place = fill.next_free(&places, size);
                places[place] = fill.at;
                free -= 1;
                if free == 0 {
                    break 'turns;
                }
            }
        }
        Self {
            places: places.into(),
        }
    }

    /// The endpoint of a key; of one that is not usable the keys are spread over the others. `None` when none is usable.
    pub fn pick(&self, key: u64, usable: impl Fn(usize) -> bool) -> Option<usize> {
        let size = self.places.len() as u64;
        if size == 0 {
            return None;
        }
        let at = |key: u64| self.places[(key % size) as usize] as usize;
        // A few more places drawn from the key, then all in order.
        let drawn = (0..16).map(|i| at(if i == 0 { key } else { mix(key ^ mix(i)) }));
        let all = (0..size).map(|i| at(key.wrapping_add(i)));
        drawn.chain(all).find(|a| usable(*a))
    }
}

/// An endpoint's own order of places.
struct Fill {
    at: u32,
    weight: u32,
    credit: u64,
    next: u64,
    skip: u64,
}

impl Fill {
    fn new(at: u32, name: &str, weight: u32, size: u64) -> Self {
        let seed = hash_bytes(name.as_bytes());
        Self {
            at,
            weight,
            credit: 0,
            next: seed % size,
            skip: mix(seed) % (size - 1) + 1,
        }
    }

    /// The next place in its order that nobody has. There is one: a prime's multiples come by every place.
    fn next_free(&mut self, places: &[u32], size: u64) -> usize {
        loop {
            let place = self.next as usize;
            self.next = (self.next + self.skip) % size;
            if places[place] == u32::MAX {
                return place;
            }
        }
    }
}

/// The next prime from a number on.
fn prime(from: u64) -> u64 {
    let is = |n: u64| {
        (2..)
            .take_while(|d| d * d <= n)
            .all(|d| !n.is_multiple_of(d))
    };
    (from.max(2)..).find(|n| is(*n)).unwrap_or(2)
}
