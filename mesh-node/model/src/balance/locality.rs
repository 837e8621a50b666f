//! Places as a DestinationRule names them: `region/zone/subzone`, shorter for all below, `*` for any.
//!
//! Invariant: of several names that fit a place the most specific one holds, then the first.

use std::sync::Arc;

use super::Viewpoint;
use crate::{
    mesh::{Workload, workload::Locality},
    resilience::PlaceShares,
};

/// The labels that say where a workload is, which a preference can compare whatever labels its object has. Any other is
/// among the groups of a workload that has it.
pub const KNOWN_LABELS: [&str; 6] = [
    "topology.kubernetes.io/region",
    "topology.kubernetes.io/zone",
    "topology.istio.io/subzone",
    "kubernetes.io/hostname",
    "topology.istio.io/cluster",
    "topology.istio.io/network",
];

/// The shares that a distribution gives to places, for clients of this place; `None` when it says nothing of them.
pub(crate) fn shares<'a>(
    table: &'a [(Arc<str>, PlaceShares)],
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

/// How many of the leading labels client and endpoint share. `key=value` asks for that value of the endpoint, whatever
/// the client's is; a label that the client has not got is shared by nobody. `groups` are the endpoint's.
pub(crate) fn labels_rank(
    labels: &[Arc<str>],
    from: &Viewpoint<'_>,
    to: &Workload,
    groups: &[Arc<str>],
) -> usize {
    let shared = |label: &&Arc<str>| {
        let (key, value) = match label.split_once('=') {
            Some((key, value)) => (key, Some(value)),
            None => (&***label, None),
        };
        let (client, endpoint): (&str, &str) = match key {
            "topology.kubernetes.io/region" => (&from.locality.region, &to.locality.region),
            "topology.kubernetes.io/zone" => (&from.locality.zone, &to.locality.zone),
            "topology.istio.io/subzone" => (&from.locality.subzone, &to.locality.subzone),
            "kubernetes.io/hostname" => (from.node.as_str(), to.node.as_str()),
            "topology.istio.io/cluster" => (from.cluster.as_str(), to.cluster.as_str()),
            "topology.istio.io/network" => (from.network.as_str(), to.network.as_str()),
            _ => {
                let wanted = match value {
                    Some(_) => Some(*label),
                    None => group_of(from.groups, key),
                };
                return wanted.is_some_and(|wanted| groups.contains(wanted));
            }
        };
        let wanted = value.unwrap_or(client);
        !wanted.is_empty() && wanted == endpoint
    };
    labels.iter().take_while(shared).count()
}

/// The group that says which value a label has; those of several labels say nothing of one.
fn group_of<'g>(groups: &'g [Arc<str>], key: &str) -> Option<&'g Arc<str>> {
    groups.iter().find(|group| {
        let value = group.strip_prefix(key).and_then(|v| v.strip_prefix('='));
        value.is_some_and(|value| !value.contains(','))
    })
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
