//! Pickers by their statistics: shares within binomial bounds, turns exactly, and how few keys move.
//!
//! Invariant: bounds are such that a right picker fails once in a million runs at most, and seeds are fixed.

use mesh_model::{
    balance::{self, Level, Maglev, Ring, RoundRobin, least_request, random, spill},
    resilience::Share,
    testing::Rng,
};

/// Whether so many of n are what a share of p gives, at 1e-6 (both sides): 4.9 standard deviations and one for steps.
#[track_caller]
fn check_share(got: usize, n: usize, p: f64, what: &str) {
    let (mean, n) = (n as f64 * p, n as f64);
    let bound = 4.9 * (n * p * (1.0 - p)).sqrt() + 1.0;
    let off = (got as f64 - mean).abs();
    assert!(
        off <= bound,
        "{what}: {got} of {n}, expected {mean} +- {bound}"
    );
}

#[test]
fn draws_by_weight_have_their_shares() {
    let mut rng = Rng::with_seed(1);
    for weights in [
        &[80, 20][..],
        &[75, 25],
        &[90, 10],
        &[1, 1, 1],
        &[1, 0, 999],
        &[5],
    ] {
        let (n, mut got) = (200_000, vec![0; weights.len()]);
        for _ in 0..n {
            got[random(weights, rng.u64(..)).expect("there is weight")] += 1;
        }
        let sum: u32 = weights.iter().sum();
        for (w, got) in weights.iter().zip(got) {
            check_share(
                got,
                n,
                f64::from(*w) / f64::from(sum),
                &format!("{weights:?}"),
            );
        }
    }
    assert_eq!(random(&[], 1), None);
    assert_eq!(random(&[0, 0], u64::MAX), None);
}

/// Shares as Envoy's documentation of priority levels works them out, for one, two and three of them.
#[test]
fn a_place_spills_over_as_its_endpoints_are_left_out() {
    let mut rng = Rng::with_seed(3);
    let check = |rng: &mut Rng, usable: &[u64], shares: &[u32]| {
        let level = |(at, usable): (usize, &u64)| Level {
            rank: rank_of(at),
            all: 100,
            usable: *usable,
        };
        let levels: Vec<Level> = usable.iter().enumerate().map(level).collect();
        let (n, mut got) = (100_000, vec![0; shares.len()]);
        for _ in 0..n {
            let rank = spill(&levels, rng.u64(..)).expect("somebody is usable");
            got[(0..shares.len())
                .find(|at| rank_of(*at) == rank)
                .expect("a rank")] += 1;
        }
        let sum: u32 = shares.iter().sum();
        for (share, got) in shares.iter().zip(got) {
            let p = f64::from(*share) / f64::from(sum);
            check_share(got, n, p, &format!("{usable:?}"));
        }
    };
    check(&mut rng, &[100], &[1]);
    check(&mut rng, &[1], &[1]);
    check(&mut rng, &[72, 72], &[100, 0]);
    check(&mut rng, &[71, 71], &[99, 1]);
    check(&mut rng, &[50, 50], &[70, 30]);
    check(&mut rng, &[50, 0], &[1, 0]);
    check(&mut rng, &[0, 100], &[0, 100]);
    check(&mut rng, &[25, 100], &[35, 65]);
    check(&mut rng, &[25, 25], &[35, 35]);
    check(&mut rng, &[20, 20, 10], &[28, 28, 14]);
    check(&mut rng, &[0, 50, 50], &[0, 70, 30]);
    assert_eq!(spill(&[], 1), None);
    let level = |rank, all, usable| Level { rank, all, usable };
    assert_eq!(spill(&[level(1, 3, 0)], 1), None);
    assert_eq!(
        spill(&[level(1, 1_000, 1), level(0, 5, 0)], u64::MAX),
        Some(1)
    );
}

/// Ranks need not follow each other.
fn rank_of(at: usize) -> usize {
    9 - 3 * at
}

#[test]
fn shares_of_faults_hold_over_many_requests() {
    let mut rng = Rng::with_seed(2);
    for percent in [0.1, 5.0, 10.0, 50.0, 100.0, 0.0] {
        let share = Share::percent(percent).expect("a share");
        let n = 1_000_000;
        let got = (0..n).filter(|_| share.covers(rng.u64(..))).count();
        check_share(got, n, percent / 100.0, &format!("{percent} %"));
    }
}

#[test]
fn turns_are_exact_and_spread() {
    let mut turns = RoundRobin::default();
    let weights = [5, 0, 1, 1];
    let round: Vec<usize> = (0..7).map(|_| turns.next(&weights).expect("one")).collect();
    assert_eq!(round, [0, 0, 2, 0, 3, 0, 0]);
    let again: Vec<usize> = (0..7).map(|_| turns.next(&weights).expect("one")).collect();
    assert_eq!(round, again);
    // Another number of endpoints begins a new round; none at all has no turn.
    assert_eq!(turns.next(&[1, 1]), Some(0));
    assert_eq!(turns.next(&[1, 1]), Some(1));
    assert_eq!(turns.next(&[]), None);
    assert_eq!(turns.next(&[0, 0]), None);
    let mut mid = RoundRobin::default();
    mid.skip(&[1, 1, 1], 2);
    assert_eq!(mid.next(&[1, 1, 1]), Some(2));
    let mut rng = Rng::with_seed(3);
    for _ in 0..200 {
        let weights: Vec<u32> = (0..rng.usize(1..9)).map(|_| rng.u32(0..20)).collect();
        let sum: u32 = weights.iter().sum();
        let (mut turns, mut got) = (RoundRobin::default(), vec![0; weights.len()]);
        for _ in 0..3 * sum {
            got[turns.next(&weights).expect("there is weight")] += 1;
        }
        assert!(
            weights.iter().zip(&got).all(|(w, g)| 3 * w == *g),
            "{weights:?}: {got:?}"
        );
    }
}

#[test]
fn the_busy_one_gets_less_and_weights_hold_when_idle() {
    let mut rng = Rng::with_seed(4);
    let n = 200_000;
    let mut count = |weights: &[u32], active: &[usize]| {
        let mut got = vec![0; weights.len()];
        for _ in 0..n {
            let draws = [rng.u64(..), rng.u64(..)];
            got[least_request(weights, |i| active[i], draws).expect("one")] += 1;
        }
        got
    };
    let idle = count(&[3, 1], &[0, 0]);
    check_share(idle[0], n, 0.75, "idle");
    // The busier of two is taken only when both draws are it.
    let busy = count(&[1, 1, 1], &[0, 9, 1]);
    check_share(busy[0], n, 5.0 / 9.0, "idle of three");
    check_share(busy[2], n, 3.0 / 9.0, "less busy of three");
    check_share(busy[1], n, 1.0 / 9.0, "busy of three");
    assert_eq!(least_request(&[0], |_| 0, [1, 2]), None);
}

const KEYS: u64 = 100_000;

fn names(n: usize) -> Vec<String> {
    (0..n)
        .map(|i| format!("Kubernetes//Pod/shop/web-{i}"))
        .collect()
}

fn members(names: &[String]) -> Vec<(&str, u32)> {
    names.iter().map(|n| (n.as_str(), 1)).collect()
}

/// Whom each key gets, by name.
fn owners<'a>(members: &[(&'a str, u32)], pick: impl Fn(u64) -> Option<usize>) -> Vec<&'a str> {
    let owner = |k: u64| members[pick(balance::hash(&k.to_be_bytes())).expect("one")].0;
    (0..KEYS).map(owner).collect()
}

#[test]
fn few_keys_move_when_an_endpoint_goes() {
    let names = names(20);
    let all = members(&names);
    let without: Vec<(&str, u32)> = all.iter().copied().filter(|m| m.0 != all[7].0).collect();
    let turned: Vec<(&str, u32)> = without.iter().rev().copied().collect();
    let moved = |before: &[&str], after: &[&str], allowed: f64, what: &str| {
        let lost = before.iter().filter(|o| **o == all[7].0).count();
        let moved = before.iter().zip(after).filter(|(b, a)| b != a).count();
        assert!(moved >= lost);
        let share = moved as f64 / KEYS as f64;
        assert!(share <= allowed / all.len() as f64, "{what}: {share} moved");
    };
    // A ring moves the keys of the one that went, and as many again: the others get more places.
    let ring = |m: &[(&str, u32)]| Ring::new(m, 1024 * 20);
    let (full, less) = (ring(&all), ring(&without));
    let before = owners(&all, |k| full.pick(k, |_| true));
    moved(
        &before,
        &owners(&without, |k| less.pick(k, |_| true)),
        3.0,
        "ring",
    );
    let maglev = |m: &[(&str, u32)]| Maglev::new(m, 65_537);
    let (full, less, other) = (maglev(&all), maglev(&without), maglev(&turned));
    let before = owners(&all, |k| full.pick(k, |_| true));
    moved(
        &before,
        &owners(&without, |k| less.pick(k, |_| true)),
        3.0,
        "maglev",
    );
    moved(
        &before,
        &owners(&turned, |k| other.pick(k, |_| true)),
        3.0,
        "maglev, in another order",
    );
}

type Picker<'a> = dyn Fn(u64, &dyn Fn(usize) -> bool) -> Option<usize> + 'a;

#[test]
fn one_that_is_left_out_gives_away_only_its_own_keys() {
    let names = names(10);
    let all = members(&names);
    let (ring, maglev) = (Ring::new(&all, 4096), Maglev::new(&all, 65_537));
    let pickers: [(&str, &Picker<'_>); 2] = [
        ("ring", &|k, usable| ring.pick(k, usable)),
        ("maglev", &|k, usable| maglev.pick(k, usable)),
    ];
    for (what, pick) in pickers {
        let mut heirs = [0usize; 10];
        for k in 0..KEYS {
            let key = balance::hash(&k.to_be_bytes());
            let before = pick(key, &|_| true).expect("one");
            let after = pick(key, &|i| i != 3).expect("one");
            if before == 3 {
                heirs[after] += 1;
            } else {
                assert_eq!(before, after, "{what}");
            }
        }
        assert_eq!(heirs[3], 0, "{what}");
        let sum: usize = heirs.iter().sum();
        let most = heirs.iter().max().expect("ten");
        assert!(*most * 3 < sum, "{what}: one inherits too much: {heirs:?}");
        assert_eq!(pick(1, &|_| false), None, "{what}");
    }
    assert_eq!(Ring::new(&[], 1024).pick(1, |_| true), None);
    assert_eq!(Maglev::new(&[("a", 0)], 7).pick(1, |_| true), None);
}

#[test]
fn tables_are_filled_by_weight_and_bounded() {
    let weights = [1, 3, 0, 4];
    let all: Vec<(&str, u32)> = ["a", "b", "c", "d"].into_iter().zip(weights).collect();
    let (ring, maglev) = (Ring::new(&all, 65_536), Maglev::new(&all, 65_537));
    let shares = |pick: &dyn Fn(u64) -> Option<usize>| {
        let mut got = [0usize; 4];
        (0..KEYS).for_each(|k| got[pick(balance::hash(&k.to_be_bytes())).expect("one")] += 1);
        got.map(|g| g as f64 / KEYS as f64)
    };
    for (got, allowed) in [
        (shares(&|k| ring.pick(k, |_| true)), 0.03),
        (shares(&|k| maglev.pick(k, |_| true)), 0.01),
    ] {
        for (w, got) in weights.iter().zip(got) {
            let expect = f64::from(*w) / 8.0;
            assert!((got - expect).abs() <= allowed, "{w} of 8: {got}");
        }
    }
    // Whatever is asked for, a table is made quickly and answers.
    let many = names(1_000);
    for size in [0, 1, 4, 1 << 40, u64::MAX] {
        assert!(
            Ring::new(&members(&many[..3]), size)
                .pick(5, |_| true)
                .is_some()
        );
        assert!(
            Maglev::new(&members(&many[..3]), size)
                .pick(5, |_| true)
                .is_some()
        );
    }
    let maglev = Maglev::new(&members(&many), 0);
    let mut seen = vec![false; many.len()];
    (0..KEYS).for_each(|k| seen[maglev.pick(k, |_| true).expect("one")] = true);
    assert!(seen.iter().all(|s| *s), "somebody with weight has no place");
    let heavy = [("a", u32::MAX), ("b", 1)];
    assert!(Ring::new(&heavy, 1024).pick(5, |_| true).is_some());
    assert!(Maglev::new(&heavy, 65_537).pick(5, |_| true).is_some());
}
