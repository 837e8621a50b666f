//! Which place takes a request while some endpoints are left out.

use mesh_model::balance::{Level, spill};

use super::Member;

/// The rank that takes a request where `best` is the best one with somebody usable; `draw` is a request's hash, or
/// uniform. While nobody of the best place is `out`, nothing is looked at.
pub(super) fn spilled(
    members: &[Member],
    out: impl Fn(&Member) -> bool,
    best: usize,
    draw: impl FnOnce() -> u64,
) -> usize {
    let weighty = || members.iter().filter(|m| m.weight > 0 && m.rank <= best);
    if !weighty().any(|m| m.rank == best && out(m)) {
        return best;
    }
    let mut levels: Vec<Level> = Vec::new();
    for member in weighty() {
        let at = levels.partition_point(|level| level.rank > member.rank);
        if levels.get(at).is_none_or(|level| level.rank != member.rank) {
            let rank = member.rank;
            levels.insert(
                at,
                Level {
                    rank,
                    ..Level::default()
                },
            );
        }
        levels[at].all += 1;
        levels[at].usable += u64::from(!out(member));
    }
    spill(&levels, draw()).unwrap_or(best)
}
