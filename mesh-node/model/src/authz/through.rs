//! May this connection go through a waypoint: whether the waypoint serves what was addressed.
//!
//! Invariants: a waypoint takes only what names it as its waypoint, so that it is nobody's open relay; what the client
//! does not see is not there. Policies about the client are decided where the connection ends.

use std::{net::SocketAddr, sync::Arc};

use super::{Decision, Denial, Egress, Target, outbound::egress};
use crate::{
    mesh::{GatewayAddress, Mesh, Workload},
    name::Identity,
    reason::Reason,
    route,
};

/// Decides whether `waypoint` carries a connection of `client` on to `original`.
pub fn through(
    mesh: &Mesh,
    waypoint: Arc<Workload>,
    client: &Identity,
    original: SocketAddr,
) -> Decision<Egress> {
    match served(mesh, &waypoint, client, original) {
        Ok(target) => egress(
            mesh,
            Egress {
                source: waypoint,
                target,
                original,
            },
        ),
        Err(reason) => Decision {
            outcome: Err(Denial::new(reason)),
            audited: Vec::new(),
            dry_run: Vec::new(),
        },
    }
}

fn served(
    mesh: &Mesh,
    waypoint: &Workload,
    client: &Identity,
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
        let served = mesh.sees(&client.namespace, service) && (standby || own(&service.waypoint));
        let target = || Target::Service(service.clone(), port);
        return served.then(target).ok_or(Reason::BadAuthority);
    }
    let workload = mesh.workload_at(network, ip).filter(|w| own(&w.waypoint));
    workload
        .map(|w| Target::Workload(w.clone(), port))
        .ok_or(Reason::BadAuthority)
}
