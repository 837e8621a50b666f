//! May this connection go through a waypoint: whether the waypoint serves what was addressed, and who may bring it.
//!
//! Invariants: a waypoint takes only what names it as its waypoint, so that it is nobody's open relay; what the client
//! does not see is not there; a node brings only what arrived at a pod of its own, for a service of that pod. Policies
//! about the client are decided where the connection ends.

use std::{net::SocketAddr, sync::Arc};

use super::{Decision, Denial, Egress, Pinned, Target, outbound::egress};
use crate::{
    mesh::{GatewayAddress, Mesh, Workload, workload::TunnelProtocol},
    name::{Identity, NodeName},
    reason::Reason,
    route,
};

/// Who brings a connection to a waypoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Bringer {
    /// The client, which proved who it is.
    Client(Identity),
    /// A node, for somebody outside the mesh of whom nothing is proven.
    Node {
        /// The node.
        node: NodeName,
        /// The pod's address and port where the connection arrived.
        arrived: SocketAddr,
    },
}

impl Bringer {
    /// Who the client proved to be; nobody outside the mesh did.
    pub fn client(&self) -> Option<&Identity> {
        match self {
            Self::Client(identity) => Some(identity),
            Self::Node { .. } => None,
        }
    }
}

/// Decides whether `waypoint` carries a connection on to `original`.
pub fn through(
    mesh: &Mesh,
    waypoint: Arc<Workload>,
    bringer: &Bringer,
    original: SocketAddr,
) -> Decision<Egress> {
    let served = served(mesh, &waypoint, bringer.client(), original);
    let known = served.and_then(|target| match bringer {
        Bringer::Client(_) => Ok((target, None)),
        Bringer::Node { node, arrived } => {
            let pinned = pinned(mesh, &waypoint, node, *arrived, &target);
            Ok((target, Some(pinned.ok_or(Reason::NotItsNode)?)))
        }
    });
    match known {
        Ok((target, pinned)) => egress(
            mesh,
            Egress {
                source: waypoint,
                target,
                original,
                pinned,
            },
        ),
        Err(reason) => Decision {
            outcome: Err(Denial::new(reason)),
            audited: Vec::new(),
            dry_run: Vec::new(),
        },
    }
}

/// Where a connection arrived that a node hands over, if it is that node's to hand over.
fn pinned(
    mesh: &Mesh,
    waypoint: &Workload,
    node: &NodeName,
    arrived: SocketAddr,
    target: &Target,
) -> Option<Pinned> {
    let Target::Service(service, port) = target else {
        return None;
    };
    let ip = arrived.ip().to_canonical();
    let workload = mesh.workload_at(&waypoint.network, ip)?;
    let captured = workload.protocol == TunnelProtocol::Hbone && !workload.host_network;
    let its = !node.as_str().is_empty() && workload.node == *node;
    let mut leads = route::leads_to(workload, service, arrived.port());
    (captured && its && leads.any(|p| p == *port)).then(|| Pinned {
        workload: Arc::clone(workload),
        service: service.name.clone(),
        ip,
    })
}

fn served(
    mesh: &Mesh,
    waypoint: &Workload,
    client: Option<&Identity>,
    original: SocketAddr,
) -> Result<Target, Reason> {
    let (network, port) = (&waypoint.network, original.port());
    let ip = original.ip().to_canonical();
    if !mesh.is_complete() || mesh.is_contested(network, ip) {
        return Err(Reason::NotReady);
    }
    let own = |of: &Option<GatewayAddress>| {
        of.as_ref()
            .is_some_and(|w| route::waypoint::is_own(mesh, waypoint, w))
    };
    if let Some(service) = mesh.service_at(network, ip) {
        let standby = mesh.service_extra(&service.name);
        let standby = standby.and_then(|extra| extra.standby.as_ref());
        let standby = standby.is_some_and(|s| waypoint.services.iter().any(|m| m.service == *s));
        // Whoever reached an endpoint of it without the mesh needs not see it.
        let seen = client.is_none_or(|client| mesh.sees(&client.namespace, service));
        let served = seen && (standby || own(&service.waypoint));
        let target = || Target::Service(service.clone(), port);
        return served.then(target).ok_or(Reason::BadAuthority);
    }
    let workload = mesh.workload_at(network, ip).filter(|w| own(&w.waypoint));
    workload
        .map(|w| Target::Workload(w.clone(), port))
        .ok_or(Reason::BadAuthority)
}
