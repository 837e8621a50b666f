//! May this flow leave: what it is addressed to, and whether the mesh is ready for it.
//!
//! Invariant: an address that several claim, or a service that needs what this build does not know, is refused.

use std::net::SocketAddr;

use super::{Decision, Denial, Egress, Permit, Target};
use crate::{
    mesh::{Mesh, Workload, knows_features, workload::TunnelProtocol},
    reason::Reason,
};

/// The proxy's own ports in every enrolled pod (CONTRACTS.md, "Ports"); dialing them would come back to it.
pub(super) fn is_own_port(port: u16) -> bool {
    matches!(port, 15001..=15006 | 15008 | 15053)
}

/// Identifies what an address is: service first, then workload, else external.
pub fn target(mesh: &Mesh, source: &Workload, original: SocketAddr) -> Target {
    let (network, ip, port) = (
        &source.network,
        original.ip().to_canonical(),
        original.port(),
    );
    if mesh.is_contested(network, ip) {
        return Target::External;
    }
    if let Some(service) = mesh.service_at(network, ip) {
        // To a client that does not see the service its address is one like any other outside.
        if !mesh.sees(&source.namespace, service) {
            return Target::External;
        }
        return Target::Service(service.clone(), port);
    }
    mesh.workload_at(network, ip)
        .map_or(Target::External, |w| Target::Workload(w.clone(), port))
}

/// Decides whether an outbound flow may leave: readiness, REGISTRY_ONLY.
pub fn egress(mesh: &Mesh, flow: Egress) -> Decision<Egress> {
    let outcome = match refuse(mesh, &flow) {
        None => Ok(Permit::new(flow, None)),
        Some(reason) => Err(Denial::new(reason)),
    };
    Decision {
        outcome,
        audited: Vec::new(),
        dry_run: Vec::new(),
    }
}

fn refuse(mesh: &Mesh, flow: &Egress) -> Option<Reason> {
    let Egress {
        source,
        target,
        original,
        pinned: _,
    } = flow;
    let Some(config) = mesh.config().filter(|_| mesh.is_complete()) else {
        return Some(Reason::NotReady);
    };
    let Some(extra) = mesh.extra(&source.uid) else {
        return Some(Reason::NotReady);
    };
    if !knows_features(&extra.features) {
        return Some(Reason::PolicyInvalid);
    }
    if mesh.is_contested(&source.network, original.ip()) {
        return Some(Reason::NotReady);
    }
    match target {
        Target::Service(service, _) => {
            let extra = mesh.service_extra(&service.name);
            (!extra.is_none_or(|e| knows_features(&e.features))).then_some(Reason::PolicyInvalid)
        }
        Target::Workload(workload, port) => {
            let captured = workload.protocol == TunnelProtocol::Hbone && !workload.host_network;
            (captured && is_own_port(*port)).then_some(Reason::Loop)
        }
        Target::External => {
            let (network, ip) = (&source.network, original.ip());
            let unseen = mesh
                .service_at(network, ip.to_canonical())
                .is_some_and(|s| !mesh.sees(&source.namespace, s));
            (config.registry_only && (unseen || !mesh.is_known(network, ip)))
                .then_some(Reason::OutsideMesh)
        }
    }
}
