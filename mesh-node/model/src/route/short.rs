//! The short path: what the kernel may do by itself between two pods of one node.
//!
//! Invariant: whatever is not certain goes to the proxy, which decides with everything at hand.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use crate::{
    authn::Transport,
    authz::{self, Conn, Decision},
    mesh::{
        Enrolment, Mesh, MtlsMode, SameNode, Workload, knows_features, workload::TunnelProtocol,
    },
    reason::Reason,
};

/// What the kernel may do by itself with a connection between two pods of this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Shortcut {
    /// Connect natively; policy allows it.
    Direct,
    /// Send it to the proxy.
    Proxy,
    /// Refuse it in `connect()`.
    Refuse(Reason),
}

/// A shortcut and the decision behind it, so that a direct flow is logged like any other.
#[derive(Clone, Debug)]
pub struct Short {
    /// What the kernel may do.
    pub way: Shortcut,
    /// What policy said, when it was asked: permit or denial, audited and dry-run policies.
    pub decision: Option<Decision<Conn>>,
}

/// Decides the short path between a local source and a local destination workload.
/// `Direct` only if policy allows it with the kernel-proven identity, the mode of the mesh and of the
/// destination's port permit it, and no waypoint is wanted.
pub fn shortcut(
    mesh: &Mesh,
    source: &Arc<Workload>,
    destination: &Arc<Workload>,
    address: SocketAddr,
) -> Shortcut {
    short(mesh, source, destination, address).way
}

/// As `shortcut`, with the decision behind it.
pub fn short(
    mesh: &Mesh,
    source: &Arc<Workload>,
    destination: &Arc<Workload>,
    address: SocketAddr,
) -> Short {
    let address = SocketAddr::new(address.ip().to_canonical(), address.port());
    let Some(source_ip) = fits(mesh, source, destination, address) else {
        return Short {
            way: Shortcut::Proxy,
            decision: None,
        };
    };
    let conn = Conn {
        via: None,
        transport: Transport::Kernel(source.identity.clone()),
        source_ip,
        workload: Arc::clone(destination),
        destination: address,
    };
    let decision = authz::ingress(mesh, conn);
    let way = match &decision.outcome {
        Ok(_) => Shortcut::Direct,
        // Not yet known is not a no: the proxy waits a little before it refuses.
        Err(denial) if denial.reason == Reason::NotReady => Shortcut::Proxy,
        Err(denial) => Shortcut::Refuse(denial.reason),
    };
    Short {
        way,
        decision: Some(decision),
    }
}

/// Whether the two may talk directly at all, policy aside; the source's address if so.
fn fits(
    mesh: &Mesh,
    source: &Workload,
    destination: &Workload,
    address: SocketAddr,
) -> Option<IpAddr> {
    let mode = mesh.config().filter(|_| mesh.is_complete())?.same_node;
    let (from, to) = (mesh.extra(&source.uid)?, mesh.extra(&destination.uid)?);
    let captured = |w: &Workload| !w.host_network && w.protocol == TunnelProtocol::Hbone;
    let enrolled = from.enrolment == Enrolment::Enrolled
        && to.enrolment == Enrolment::Enrolled
        && captured(source)
        && captured(destination);
    let together = !source.node.as_str().is_empty()
        && source.node == destination.node
        && source.network == destination.network;
    let owned = mesh
        .workload_at(&destination.network, address.ip())
        .is_some_and(|w| w.uid == destination.uid);
    let mode_permits = match (mode, to.mtls_for(address.port())) {
        (SameNode::Tunnel, _) | (SameNode::Auto, MtlsMode::Strict) => false,
        (SameNode::Direct, _) | (SameNode::Auto, MtlsMode::Permissive | MtlsMode::Disable) => true,
    };
    let waypoint = destination.waypoint.is_some() || to.guarded;
    let understood = knows_features(&from.features) && knows_features(&to.features);
    if !(enrolled && together && owned && mode_permits && understood) || waypoint {
        return None;
    }
    let v6 = address.is_ipv6();
    let own = |ip: &IpAddr| {
        ip.is_ipv6() == v6
            && mesh
                .workload_at(&source.network, *ip)
                .is_some_and(|w| w.uid == source.uid)
    };
    source.addresses.iter().map(IpAddr::to_canonical).find(own)
}
