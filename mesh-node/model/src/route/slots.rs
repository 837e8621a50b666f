//! Endpoint slots of a service port for the kernel of one node, with locality and weight worked in.
//!
//! Invariant: slots are given only where choosing among them is all there is to decide: seen by all, no waypoint, no
//! affinity, no passthrough, no bounds of connections, nobody else on the address, and at least one endpoint on this
//! node.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::Arc,
};

use super::endpoint;
use crate::{
    balance::{self, Viewpoint},
    mesh::{
        Enrolment, Mesh, Service, Workload, knows_features,
        service::{Mode, Visibility},
        workload::TunnelProtocol,
    },
    name::NodeName,
};

/// One endpoint that the kernel may choose.
#[derive(Clone, Debug)]
pub struct Slot {
    /// The endpoint.
    pub workload: Arc<Workload>,
    /// Its IPv4 address.
    pub v4: Option<Ipv4Addr>,
    /// Its IPv6 address.
    pub v6: Option<Ipv6Addr>,
    /// Its own port.
    pub port: u16,
    /// Its share among the slots.
    pub weight: u32,
    /// Whether it is an enrolled pod of this node; a connection to another goes to the proxy, which chooses again.
    pub local: bool,
}

/// The slots of a service's port as seen from a node; empty when the proxy must choose.
pub fn slots(mesh: &Mesh, service: &Service, port: u16, node: &NodeName) -> Vec<Slot> {
    let extra = mesh.service_extra(&service.name);
    let simple = service.waypoint.is_none()
        && service.visibility == Visibility::Public
        && service.balancing.mode != Mode::Passthrough
        && extra.is_none_or(|e| e.affinity.is_none() && knows_features(&e.features));
    let bounded = mesh
        .destination(&service.name)
        .is_some_and(|d| d.concerns_connections(port));
    let alone = service
        .vips
        .iter()
        .all(|v| !mesh.is_contested(&v.network, v.ip));
    let (Ok(declared), true) = (
        endpoint::declared(service, port),
        simple && !bounded && alone && mesh.is_complete(),
    ) else {
        return Vec::new();
    };
    if !mesh.serves_on(&service.name, node) {
        return Vec::new();
    }
    let endpoints = mesh.endpoints(&service.name);
    // All pods of a node are in the same place, so a local endpoint tells where its clients are.
    let Some(here) = endpoints.iter().find(|w| w.node == *node) else {
        return Vec::new();
    };
    let from = Viewpoint {
        node,
        locality: &here.locality,
        cluster: &here.cluster,
        network: &here.network,
        // A service's own preference is about places alone.
        groups: &[],
        speaker: None,
    };
    let ranked: Vec<(usize, Slot)> = endpoints
        .iter()
        .filter(|w| w.network == here.network)
        .filter_map(|w| {
            Some((
                balance::rank(&service.balancing, &from, w)?,
                slot(mesh, w, endpoint::target_port(w, service, declared)?, node)?,
            ))
        })
        .collect();
    let best = ranked.iter().map(|(rank, _)| *rank).max();
    let chosen: Vec<Slot> = ranked
        .into_iter()
        .filter(|(rank, _)| Some(*rank) == best)
        .map(|(_, slot)| slot)
        .collect();
    if chosen.iter().any(|s| s.local) {
        chosen
    } else {
        Vec::new()
    }
}

fn slot(mesh: &Mesh, workload: &Arc<Workload>, port: u16, node: &NodeName) -> Option<Slot> {
    let own = |v6: bool| endpoint::address(mesh, workload, v6);
    let v4 = own(false).and_then(|ip| {
        if let IpAddr::V4(ip) = ip {
            Some(ip)
        } else {
            None
        }
    });
    let v6 = own(true).and_then(|ip| {
        if let IpAddr::V6(ip) = ip {
            Some(ip)
        } else {
            None
        }
    });
    let captured = workload.protocol == TunnelProtocol::Hbone && !workload.host_network;
    let enrolled = mesh
        .extra(&workload.uid)
        .is_some_and(|e| e.enrolment == Enrolment::Enrolled);
    let local = workload.node == *node && captured && enrolled;
    // One that only its name tells of is for the proxy to find.
    let named = workload.addresses.is_empty() && workload.hostname.is_some();
    (v4.is_some() || v6.is_some() || named).then(|| Slot {
        workload: Arc::clone(workload),
        v4,
        v6,
        port,
        weight: workload.capacity,
        local,
    })
}
