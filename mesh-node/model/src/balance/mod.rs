//! Which endpoint takes a connection: health, locality, weight, affinity.
//!
//! Invariants: pure and deterministic in its seed; a better locality always comes before a worse one;
//! an endpoint without weight is never chosen.

mod hash;
mod locality;
mod pick;
mod spill;

pub use hash::{Maglev, Ring, hash_bytes as hash};
pub use locality::KNOWN_LABELS;
pub(crate) use locality::{failover_rank, labels_rank, place, shares};
pub use pick::{RoundRobin, least_request, random};
pub use spill::{Level, spill};

use std::{net::IpAddr, sync::Arc};

use crate::{
    mesh::{
        Mesh, Workload,
        service::{Balancing, Mode, Scope},
        workload::Locality,
    },
    name::{ClusterId, Identity, NetworkId, NodeName},
};

/// From where an endpoint is chosen.
#[derive(Clone, Copy, Debug)]
pub struct Viewpoint<'a> {
    /// The node of the client.
    pub node: &'a NodeName,
    /// Its region, zone and subzone.
    pub locality: &'a Locality,
    /// Its cluster.
    pub cluster: &'a ClusterId,
    /// Its network.
    pub network: &'a NetworkId,
    /// The selectors that select it, as [`crate::mesh::WorkloadExtra::groups`] lists them.
    pub groups: &'a [Arc<str>],
    /// As whom it speaks for others, where it is a waypoint.
    pub speaker: Option<&'a Identity>,
}

impl<'a> Viewpoint<'a> {
    /// That of a workload that runs on `node`.
    pub fn of(mesh: &'a Mesh, node: &'a NodeName, workload: &'a Workload) -> Self {
        let extra = mesh.extra(&workload.uid);
        Self {
            groups: extra.map_or(&[], |extra| &extra.groups),
            node,
            locality: &workload.locality,
            cluster: &workload.cluster,
            network: &workload.network,
            speaker: None,
        }
    }

    /// The same of a waypoint, which asks for others.
    pub fn of_waypoint(mesh: &'a Mesh, node: &'a NodeName, workload: &'a Workload) -> Self {
        Self {
            speaker: Some(&workload.identity),
            ..Self::of(mesh, node, workload)
        }
    }
}

/// How well an endpoint fits a preference: the number of leading scopes in which it equals the client.
/// `None` when it must not be used at all.
pub fn rank(balancing: &Balancing, from: &Viewpoint<'_>, endpoint: &Workload) -> Option<usize> {
    if endpoint.capacity == 0 || !(endpoint.healthy || balancing.allow_unhealthy) {
        return None;
    }
    let fits = balancing
        .preference
        .iter()
        .take_while(|scope| equal(**scope, from, endpoint))
        .count();
    match balancing.mode {
        Mode::Unspecified | Mode::Passthrough => Some(0),
        Mode::Failover => Some(fits),
        Mode::Strict => (fits == balancing.preference.len()).then_some(fits),
    }
}

/// Whether client and endpoint are known to be in the same place. A subzone counts only within its zone, a zone
/// only within its region.
fn equal(scope: Scope, from: &Viewpoint<'_>, to: &Workload) -> bool {
    let same = |a: &str, b: &str| !a.is_empty() && a == b;
    let region = || same(&from.locality.region, &to.locality.region);
    let zone = || region() && same(&from.locality.zone, &to.locality.zone);
    match scope {
        Scope::Region => region(),
        Scope::Zone => zone(),
        Scope::Subzone => zone() && same(&from.locality.subzone, &to.locality.subzone),
        Scope::Node => same(from.node.as_str(), to.node.as_str()),
        Scope::Cluster => *from.cluster == to.cluster,
        Scope::Network => *from.network == to.network,
    }
}

/// How to order endpoints that fit equally well.
#[derive(Clone, Copy, Debug)]
pub enum Draw {
    /// At random by weight.
    Random(u64),
    /// The same client always gets the same endpoint, and few clients move when endpoints come and go.
    Sticky(IpAddr),
}

/// Orders the best `count` items: by rank, then by the draw. Each item is (rank, weight, stable name, value).
pub fn order<T>(items: Vec<(usize, u32, &str, T)>, draw: Draw, count: usize) -> Vec<T> {
    // Weighted sampling without replacement (Efraimidis and Spirakis): the smallest -ln(u)/w wins. With u from a
    // hash of client and endpoint the same rule is weighted rendezvous hashing.
    let uniform = |at: usize, name: &str| {
        let bits = match draw {
            Draw::Random(seed) => mix(seed ^ mix(at as u64)),
            Draw::Sticky(client) => mix(hash_ip(client.to_canonical()) ^ fnv(name.as_bytes())),
        };
        ((bits >> 11) as f64 + 1.0) / (1u64 << 53) as f64
    };
    let score =
        |at: usize, weight: u32, name: &str| -uniform(at, name).ln() / f64::from(weight.max(1));
    let mut scored: Vec<(usize, f64, T)> = items
        .into_iter()
        .enumerate()
        .map(|(at, (rank, weight, name, value))| (rank, score(at, weight, name), value))
        .collect();
    let better = |a: &(usize, f64, T), b: &(usize, f64, T)| b.0.cmp(&a.0).then(a.1.total_cmp(&b.1));
    if scored.len() > count && count > 0 {
        scored.select_nth_unstable_by(count - 1, better);
        scored.truncate(count);
    }
    scored.sort_unstable_by(better);
    scored.into_iter().map(|(.., value)| value).collect()
}

fn hash_ip(ip: IpAddr) -> u64 {
    match ip {
        IpAddr::V4(ip) => fnv(&ip.octets()),
        IpAddr::V6(ip) => fnv(&ip.octets()),
    }
}

/// FNV-1a: the same on every node and in every version, so that affinity survives an upgrade.
fn fnv(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |h, b| {
        (h ^ u64::from(*b)).wrapping_mul(0x100_0000_01b3)
    })
}

/// The finalizer of SplitMix64.
fn mix(seed: u64) -> u64 {
    let mut z = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
