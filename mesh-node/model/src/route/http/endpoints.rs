//! The endpoints that may take requests to a port of a service, or to a named part of it.
//!
//! Invariants: an endpoint is in a subset only when its companion says so; a subset that nobody defines, or a
//! destination that needs a feature this build does not know, has no endpoints and says why. Of places a destination
//! decides before the service does, unless nobody asked it to.

use std::{net::SocketAddr, sync::Arc};

use super::Selector;
use crate::{
    authz::{self, Egress, Pinned, Target},
    balance::{self, Viewpoint},
    mesh::{Mesh, Service, Workload, knows_features, service::Mode},
    name::Identity,
    reason::Reason,
    resilience::{Destination, LocalityPreference, UpstreamTls},
    route::{Candidate, Via, endpoint},
};

/// An endpoint.
#[derive(Clone, Debug)]
pub struct Endpoint {
    /// The workload.
    pub workload: Arc<Workload>,
    /// Its address and port; `None` when only its name is known.
    pub address: Option<SocketAddr>,
    /// How to get there.
    pub candidate: Candidate,
    /// Whether its node takes a waypoint's word for who the client is: from who is no waypoint of it, it takes none.
    pub vouched: bool,
}

/// Why a destination's rule leaves no way to an endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoWay {
    /// The mesh's own TLS is demanded, and it takes none.
    #[error("mutual TLS is demanded of an endpoint that takes none")]
    NotMutual,
    /// It proves to be somebody else than the rule names.
    #[error(
        "the endpoint is none of the identities that the destination rule's subjectAltNames allow"
    )]
    Somebody,
}

impl NoWay {
    /// The reason that a connection to it ends with.
    pub fn reason(self) -> Reason {
        match self {
            Self::NotMutual | Self::Somebody => Reason::TlsFailure,
        }
    }
}

impl Endpoint {
    /// The way to it under what its destination says of TLS.
    pub fn way(&self, tls: Option<&UpstreamTls>) -> Result<Candidate, NoWay> {
        let mut candidate = self.candidate.clone();
        match (tls, self.address) {
            (Some(UpstreamTls::Disable), Some(address)) => candidate.via = Via::Plain(address),
            (Some(UpstreamTls::Mesh(named)), _) => {
                let proven = candidate.via.identities_mut().ok_or(NoWay::NotMutual)?;
                if !named.is_empty() {
                    *proven = proven
                        .iter()
                        .filter(|who| named.contains(who))
                        .cloned()
                        .collect();
                }
                if proven.is_empty() {
                    return Err(NoWay::Somebody);
                }
            }
            _ => {}
        }
        Ok(candidate)
    }
}

/// The endpoints of a service's port, or of a subset of them, each with its rank (higher is better) and its weight
/// among its equals. Never empty.
pub fn endpoints(
    mesh: &Mesh,
    service: &Service,
    port: u16,
    subset: Option<&str>,
    from: Viewpoint<'_>,
) -> Result<Vec<(usize, u32, Endpoint)>, Reason> {
    let declared = endpoint::declared(service, port)?;
    let destination = mesh.destination(&service.name);
    if destination.is_some_and(|d| !knows_features(&d.features)) {
        return Err(Reason::RouteInvalid);
    }
    let selector = match subset {
        Some(name) => Some(selector(destination, name).ok_or(Reason::NoEndpoints)?),
        None => None,
    };
    let open = service.balancing.mode == Mode::Unspecified;
    let preference = destination
        .and_then(|d| d.policy(subset, port))
        .and_then(|p| p.balancing.locality.as_ref())
        .filter(|preference| open || !preference.is_unasked());
    let fit = |w: &Arc<Workload>| {
        let chosen = selector.is_none_or(|s| in_subset(mesh, w, s));
        let rank = balance::rank(&service.balancing, &from, w).filter(|_| chosen)?;
        let (rank, weight) = match preference {
            Some(preference) => preferred(mesh, preference, &from, w)?,
            None => (rank, w.capacity),
        };
        Some((rank, weight, endpoint::target_port(w, service, declared)?))
    };
    let names: Vec<Identity> = endpoint::alternative_names(service).collect();
    let all = from
        .speaker
        .is_some_and(|s| authz::vouches_for(mesh, from.network, &service.name, s));
    let vouched = |w: &Workload| all || from.speaker.is_some_and(|s| authz::vouches(mesh, w, s));
    let v6 = service
        .vips
        .first()
        .is_some_and(|v| v.ip.to_canonical().is_ipv6());
    let (mut found, mut elsewhere) = (Vec::new(), false);
    for workload in mesh.endpoints(&service.name) {
        let Some((rank, weight, port)) = fit(workload) else {
            continue;
        };
        if workload.network != *from.network {
            elsewhere = true;
            continue;
        }
        let Some(at) = endpoint::reach(mesh, workload, port, v6) else {
            continue;
        };
        let endpoint = Endpoint {
            workload: Arc::clone(workload),
            address: at.address(),
            candidate: at.candidate(mesh, &names),
            vouched: vouched(workload),
        };
        found.push((rank, weight, endpoint));
    }
    share_out(preference, &from, &mut found);
    match (found.is_empty(), elsewhere) {
        (false, _) => Ok(found),
        (true, true) => Err(Reason::OtherNetwork),
        (true, false) => Err(Reason::NoEndpoints),
    }
}

/// The endpoint that requests go back to where they arrived at one of this service already, for a port of it.
pub fn pinned(mesh: &Mesh, to: &Pinned, service: &Service, port: u16) -> Result<Endpoint, Reason> {
    let (workload, address, candidate) = endpoint::pinned(mesh, to, service, port)?;
    Ok(Endpoint {
        workload,
        address: Some(address),
        candidate,
        // It is an endpoint of what was addressed, which the waypoint serves.
        vouched: true,
    })
}

/// The workload that a flow is addressed to, where that is no service, at the address that was dialed.
pub fn addressed(mesh: &Mesh, flow: &Egress) -> Option<Endpoint> {
    let Target::Workload(workload, port) = &flow.target else {
        return None;
    };
    let address = SocketAddr::new(flow.original.ip().to_canonical(), *port);
    Some(Endpoint {
        workload: Arc::clone(workload),
        address: Some(address),
        candidate: endpoint::candidate(mesh, workload, address, &[]),
        vouched: true,
    })
}

fn selector<'a>(destination: Option<&'a Arc<Destination>>, name: &str) -> Option<&'a Selector> {
    let subset = destination?.subsets.iter().find(|s| *s.name == *name)?;
    Some(&subset.selector)
}

fn in_subset(mesh: &Mesh, workload: &Workload, selector: &Selector) -> bool {
    mesh.extra(&workload.uid)
        .is_some_and(|e| selector.selects(&e.groups))
}

/// Rank and weight by what a destination prefers; `None` where it sends nothing.
fn preferred(
    mesh: &Mesh,
    preference: &LocalityPreference,
    from: &Viewpoint<'_>,
    to: &Workload,
) -> Option<(usize, u32)> {
    match preference {
        LocalityPreference::Failover(pairs) => {
            let rank = balance::failover_rank(pairs, from.locality, &to.locality);
            Some((rank, to.capacity))
        }
        LocalityPreference::Distribute(table) => {
            match balance::shares(table, from.locality) {
                // Only places that are named get anything.
                Some(shares) => balance::place(shares, &to.locality).map(|_| (0, to.capacity)),
                None => Some((0, to.capacity)),
            }
        }
        LocalityPreference::Labels(keys) => {
            let extra = mesh.extra(&to.uid);
            let groups = extra.map_or(&[][..], |extra| &extra.groups);
            Some((balance::labels_rank(keys, from, to, groups), to.capacity))
        }
    }
}

/// Scales weights so that each place of a distribution gets its share, however many endpoints it has.
fn share_out(
    preference: Option<&LocalityPreference>,
    from: &Viewpoint<'_>,
    found: &mut Vec<(usize, u32, Endpoint)>,
) {
    let Some(LocalityPreference::Distribute(table)) = preference else {
        return;
    };
    let Some(shares) = balance::shares(table, from.locality) else {
        return;
    };
    let place = |e: &Endpoint| balance::place(shares, &e.workload.locality);
    let mut sums = vec![0u64; shares.len()];
    for (_, weight, endpoint) in found.iter() {
        if let Some(at) = place(endpoint) {
            sums[at] += u64::from(*weight);
        }
    }
    for (_, weight, endpoint) in found.iter_mut() {
        if let Some(at) = place(endpoint) {
            let scaled = u64::from(*weight) * u64::from(shares[at].1) * SCALE / sums[at].max(1);
            *weight = u32::try_from(scaled).unwrap_or(u32::MAX);
        }
    }
    found.retain(|(_, weight, _)| *weight > 0);
}

/// Weights of a distribution are per cent times this over the place's sum: shares hold to 1 in 10,000.
const SCALE: u64 = 10_000;
