//! To which place a request goes when some endpoints of the best one are left out.
//!
//! Invariants: as long as nobody is left out the best place takes everything; a place without a usable endpoint takes
//! nothing; what is drawn is an argument.

/// How far a place is taken to be larger than its work, as Envoy takes it (its overprovisioning factor, per cent): work
/// spills over to the next place when fewer than 72 in a hundred of its endpoints are usable.
const SPARE: u64 = 140;

/// One place, by its endpoints.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Level {
    /// How well it fits; higher is better.
    pub rank: usize,
    /// Its endpoints, without those of no weight.
    pub all: u64,
    /// Those of them that are not left out.
    pub usable: u64,
}

/// The rank of the place that takes a request. `levels` are sorted, best first; `draw` is uniform over all of `u64`, or a
/// request's hash. `None` when no endpoint is usable.
pub fn spill(levels: &[Level], draw: u64) -> Option<usize> {
    let health = |level: &Level| (SPARE * level.usable / level.all.max(1)).min(100);
    let sum: u64 = levels.iter().map(health).sum();
    let last = levels.iter().rfind(|level| level.usable > 0)?;
    // Where all places together are not healthy enough for all the work, they share it by their health.
    let whole = sum.min(100);
    let mut at = ((u128::from(draw) * u128::from(whole)) >> 64) as u64;
    for level in levels {
        let share = health(level);
        if at < share {
            return Some(level.rank);
        }
        at -= share;
    }
    // Of a place with very many endpoints less than one per cent may be usable.
    Some(last.rank)
}
