//! Places as a DestinationRule names them: `region/zone/subzone`, shorter for all below, `*` for any.
//!
//! Invariant: of several names that fit a place the most specific one holds, then the first.

use std::sync::Arc;

use crate::mesh::workload::Locality;

/// The shares that a distribution gives to places, for clients of this place; `None` when it says nothing of them.
pub(crate) fn shares<'a>(
    table: &'a [(Arc<str>, Box<[(Arc<str>, u32)]>)],
    client: &Locality,
) -> Option<&'a [(Arc<str>, u32)]> {
    let at = best(table.iter().map(|(from, _)| &**from), client)?;
    Some(&table[at].1)
}

/// Which of these places an endpoint is in.
pub(crate) fn place(shares: &[(Arc<str>, u32)], endpoint: &Locality) -> Option<usize> {
    best(shares.iter().map(|(to, _)| &**to), endpoint)
}

/// How well an endpoint's place suits a client's: its own subzone, zone and region before the region that it fails
/// over to, that one before any other. Higher is better.
pub(crate) fn failover_rank(
    pairs: &[(Arc<str>, Arc<str>)],
    client: &Locality,
    endpoint: &Locality,
) -> usize {
    let known = |a: &str, b: &str| !a.is_empty() && a == b;
    if !known(&client.region, &endpoint.region) {
        let next = pairs
            .iter()
            .any(|(from, to)| *from == client.region && *to == endpoint.region);
        return usize::from(next);
    }
    let zone = known(&client.zone, &endpoint.zone);
    let subzone = zone && known(&client.subzone, &endpoint.subzone);
    2 + usize::from(zone) + usize::from(subzone)
}

fn best<'a>(names: impl Iterator<Item = &'a str>, at: &Locality) -> Option<usize> {
    let fits = names
        .enumerate()
        .filter_map(|(i, name)| Some((specific(name, at)?, i)));
    fits.min_by_key(|(depth, i)| (usize::MAX - depth, *i))
        .map(|(_, i)| i)
}

/// How many parts of a name are the place's own; `None` when it does not fit.
fn specific(name: &str, at: &Locality) -> Option<usize> {
    let parts = [&*at.region, &*at.zone, &*at.subzone];
    let mut depth = 0;
    for (i, want) in name.split('/').enumerate() {
        if want == "*" {
            return Some(depth);
        }
        if *parts.get(i)? != want {
            return None;
        }
        depth += 1;
    }
    Some(depth)
}
