//! Where a waypoint is, and who it is.
//!
//! Invariant: a waypoint that cannot be resolved is a refusal, never a way around it.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use super::{Authority, Candidate, Chooser, Plan, Via, endpoint};
use crate::{
    authz::Egress,
    mesh::{GatewayAddress, GatewayDestination, Mesh, Service, Workload},
    name::{Identity, NetworkId, ServiceName},
    reason::Reason,
};

/// What a waypoint's address names.
enum Gateway<'a> {
    Service(&'a Arc<Service>),
    Workload(&'a Arc<Workload>, IpAddr),
}

fn resolve<'a>(mesh: &'a Mesh, address: &GatewayAddress) -> Result<Gateway<'a>, Reason> {
    match &address.destination {
        GatewayDestination::Hostname(name) => mesh
            .service(name)
            .map(Gateway::Service)
            .ok_or(Reason::NotReady),
        GatewayDestination::Address(at) if mesh.is_contested(&at.network, at.ip) => {
            Err(Reason::WaypointRequired)
        }
        GatewayDestination::Address(at) => {
            let service = mesh.service_at(&at.network, at.ip).map(Gateway::Service);
            let workload = || {
                mesh.workload_at(&at.network, at.ip)
                    .map(|w| Gateway::Workload(w, at.ip.to_canonical()))
            };
            service.or_else(workload).ok_or(Reason::NotReady)
        }
    }
}

/// Who a waypoint may prove to be; nobody when it cannot be resolved.
pub(crate) fn identities(
    mesh: &Mesh,
    network: &NetworkId,
    address: &GatewayAddress,
) -> Vec<Identity> {
    match resolve(mesh, address) {
        Ok(Gateway::Service(service)) => of_service(mesh, network, service),
        Ok(Gateway::Workload(workload, _)) => vec![workload.identity.clone()],
        Err(_) => Vec::new(),
    }
}

/// Who a waypoint may prove to be that is a service.
pub(crate) fn of_service(mesh: &Mesh, network: &NetworkId, service: &Service) -> Vec<Identity> {
    let own = mesh
        .endpoints(&service.name)
        .iter()
        .filter(|w| w.network == *network)
        .map(|w| w.identity.clone());
    own.chain(endpoint::alternative_names(service)).collect()
}

/// A replica of a waypoint, the first by uid of those that serve.
pub(crate) fn replica<'a>(
    mesh: &'a Mesh,
    network: &NetworkId,
    address: &GatewayAddress,
) -> Result<&'a Arc<Workload>, Reason> {
    match resolve(mesh, address)? {
        Gateway::Workload(workload, _) => Ok(workload),
        Gateway::Service(gateway) => mesh
            .endpoints(&gateway.name)
            .iter()
            .filter(|w| w.network == *network && w.healthy)
            .min_by(|a, b| a.uid.cmp(&b.uid))
            .ok_or(Reason::WaypointGone),
    }
}

/// Whether a workload is one of the waypoint's own, which must not be sent to itself.
pub(crate) fn is_own(mesh: &Mesh, source: &Workload, address: &GatewayAddress) -> bool {
    match resolve(mesh, address) {
        Ok(Gateway::Service(service)) => source.services.iter().any(|m| m.service == service.name),
        Ok(Gateway::Workload(workload, _)) => workload.uid == source.uid,
        Err(_) => false,
    }
}

/// The way to the original destination through its waypoint.
pub(super) fn plan(
    mesh: &Mesh,
    flow: &Egress,
    service: Option<ServiceName>,
    address: &GatewayAddress,
    chooser: Chooser<'_>,
) -> Result<Plan, Reason> {
    let authority = Authority::Address(SocketAddr::new(
        flow.original.ip().to_canonical(),
        flow.original.port(),
    ));
    let tunnel = |workload: &Arc<Workload>, tunnel: SocketAddr, names: &[Identity]| Candidate {
        workload: Some(Arc::clone(workload)),
        via: Via::Hbone {
            tunnel,
            authority: authority.clone(),
            identities: endpoint::identities(workload, names),
        },
    };
    let candidates: Vec<Candidate> =
        match resolve(mesh, address)? {
            Gateway::Workload(workload, ip) => vec![tunnel(
                workload,
                SocketAddr::new(ip, address.hbone_port),
                &[],
            )],
            Gateway::Service(gateway) => {
                let names: Vec<Identity> = endpoint::alternative_names(gateway).collect();
                let picked = endpoint::pick(mesh, gateway, address.hbone_port, flow, chooser)
                    .map_err(|e| match e {
                        // A gateway's HBONE port need not be among its service's ports.
                        Reason::NoSuchPort => Reason::NotReady,
                        Reason::NoEndpoints => Reason::WaypointGone,
                        other => other,
                    })?;
                picked
                    .iter()
                    .filter_map(|e| Some(tunnel(&e.workload, e.address()?, &names)))
                    .collect()
            }
        };
    if candidates.is_empty() {
        return Err(Reason::WaypointGone);
    }
    Ok(Plan {
        service,
        candidates,
    })
}
