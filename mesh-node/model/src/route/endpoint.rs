//! The endpoints of a service that can take a connection, and how each is reached.
//!
//! Invariants: only healthy endpoints (unless the service says otherwise) that serve the port and share the
//! client's network; mutual TLS unless the endpoint's port is known to refuse it; a host name is used only
//! where there is no address.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use super::{Authority, Candidate, Chooser, Named, Via};
use crate::{
    authz::{Egress, Pinned},
    balance::{self, Draw, Viewpoint},
    mesh::{
        AppProtocol, Mesh, MtlsMode, Service, Workload, service::ServicePort,
        workload::TunnelProtocol,
    },
    name::{Hostname, Identity},
    reason::Reason,
};

/// HBONE's port at every workload (CONTRACTS.md, "Ports").
pub(super) const HBONE_PORT: u16 = 15008;

/// The first choice and up to three more for a failed dial.
const CANDIDATES: usize = 4;

/// A chosen endpoint.
pub(super) struct Endpoint {
    pub workload: Arc<Workload>,
    /// Its address or name.
    host: Host,
    /// Its own port.
    port: u16,
    /// Whether the client's family is IPv6.
    v6: bool,
}

#[derive(Clone)]
enum Host {
    Ip(IpAddr),
    Name(Hostname),
}

impl Endpoint {
    /// Its address and port; `None` when only its name is known.
    pub fn address(&self) -> Option<SocketAddr> {
        match self.host {
            Host::Ip(ip) => Some(SocketAddr::new(ip, self.port)),
            Host::Name(_) => None,
        }
    }

    /// It as a place to go.
    pub fn candidate(&self, mesh: &Mesh, names: &[Identity]) -> Candidate {
        let host = match &self.host {
            Host::Ip(ip) => {
                let address = SocketAddr::new(*ip, self.port);
                return candidate(mesh, &self.workload, address, names);
            }
            Host::Name(host) => host.clone(),
        };
        let tunnelled = takes_hbone(mesh, &self.workload, self.port);
        Candidate {
            workload: Some(Arc::clone(&self.workload)),
            via: Via::Named(Named {
                host,
                port: self.port,
                v6: self.v6,
                identities: tunnelled.then(|| identities(&self.workload, names)),
            }),
        }
    }
}

/// A workload as an endpoint with this port of its own; `None` when nothing can be dialed there.
pub(super) fn reach(
    mesh: &Mesh,
    workload: &Arc<Workload>,
    port: u16,
    v6: bool,
) -> Option<Endpoint> {
    Some(Endpoint {
        workload: Arc::clone(workload),
        host: host(mesh, workload, v6)?,
        port,
        v6,
    })
}

/// Chooses endpoints for a port of a service, best first; never empty.
pub(super) fn pick(
    mesh: &Mesh,
    service: &Service,
    port: u16,
    flow: &Egress,
    chooser: Chooser<'_>,
) -> Result<Vec<Endpoint>, Reason> {
    let declared = declared(service, port)?;
    let source = &flow.source;
    let from = Viewpoint {
        node: chooser.node,
        locality: &source.locality,
        cluster: &source.cluster,
        network: &source.network,
        // A service's own preference is about places alone.
        groups: &[],
        speaker: None,
    };
    let v6 = flow.original.ip().to_canonical().is_ipv6();
    let fit = |w: &Arc<Workload>| {
        let rank = balance::rank(&service.balancing, &from, w)?;
        let port = target_port(w, service, declared)?;
        (!chooser.ejected.contains(&w.uid)).then_some((rank, port))
    };
    let all = mesh.endpoints(&service.name);
    let usable: Vec<_> = all
        .iter()
        .filter(|w| w.network == source.network)
        .filter_map(|w| fit(w).map(|(rank, port)| (rank, w.capacity, w.uid.as_str(), (w, port))))
        .collect();
    if usable.is_empty() && all.iter().any(|w| fit(w).is_some()) {
        return Err(Reason::OtherNetwork);
    }
    let draw = match mesh.service_extra(&service.name).and_then(|e| e.affinity) {
        Some(_) => Draw::Sticky(chooser.client),
        None => Draw::Random(chooser.seed),
    };
    // Whether an address can be used is looked up only for those that come first; all are, should none of them have one.
    for count in [2 * CANDIDATES, usize::MAX] {
        let reachable = |(w, port): (&Arc<Workload>, u16)| reach(mesh, w, port, v6);
        let picked: Vec<Endpoint> = balance::order(usable.clone(), draw, count)
            .into_iter()
            .filter_map(reachable)
            .take(CANDIDATES)
            .collect();
        if !picked.is_empty() {
            return Ok(picked);
        }
    }
    Err(Reason::NoEndpoints)
}

/// The declaration of a service's port.
pub(super) fn declared(service: &Service, port: u16) -> Result<&ServicePort, Reason> {
    service
        .ports
        .iter()
        .find(|p| p.port == port)
        .ok_or(Reason::NoSuchPort)
}

/// The ports of a service that lead to this port of a workload.
pub fn leads_to<'a>(
    workload: &'a Workload,
    service: &'a Service,
    port: u16,
) -> impl Iterator<Item = u16> + 'a {
    let leads = move |p: &&ServicePort| target_port(workload, service, p) == Some(port);
    service.ports.iter().filter(leads).map(|p| p.port)
}

/// What services say that a port of a workload speaks; unknown where none says anything, or they contradict each other.
pub fn declared_at(mesh: &Mesh, workload: &Workload, port: u16) -> AppProtocol {
    let services = workload.services.iter();
    let services = services.filter_map(|m| mesh.service(&m.service));
    let ports = services.flat_map(|service| service.ports.iter().map(move |p| (service, p)));
    let leads = ports.filter(|(s, p)| target_port(workload, s, p) == Some(port));
    let protocols = leads.map(|(_, p)| p.protocol);
    let mut said = protocols.filter(|p| *p != AppProtocol::Unknown);
    match said.next() {
        Some(first) if said.all(|p| p == first) => first,
        Some(_) | None => AppProtocol::Unknown,
    }
}

/// Where a workload takes connections to a port of a service, by an address of its own.
pub fn place(
    mesh: &Mesh,
    workload: &Workload,
    service: &Service,
    port: u16,
    v6: bool,
) -> Option<SocketAddr> {
    let port = target_port(workload, service, declared(service, port).ok()?)?;
    Some(SocketAddr::new(address(mesh, workload, v6)?, port))
}

/// A workload as an endpoint that a connection goes back to: by a tunnel, whatever its port takes otherwise.
pub(super) fn pinned(
    mesh: &Mesh,
    pinned: &Pinned,
    service: &Service,
    port: u16,
) -> Result<(Arc<Workload>, SocketAddr, Candidate), Reason> {
    let declared = declared(service, port)?;
    let workload = mesh.workload(&pinned.workload.uid);
    let workload = workload.filter(|w| w.addresses.iter().any(|ip| ip.to_canonical() == pinned.ip));
    let workload = workload.ok_or(Reason::WorkloadGone)?;
    let port = target_port(workload, service, declared).ok_or(Reason::NoEndpoints)?;
    let address = SocketAddr::new(pinned.ip, port);
    let candidate = Candidate {
        workload: Some(Arc::clone(workload)),
        via: hbone(address, identities(workload, &[])),
    };
    Ok((Arc::clone(workload), address, candidate))
}

/// The endpoint's own port: what its membership names, else the service's target port unless that is 0.
pub(super) fn target_port(
    workload: &Workload,
    service: &Service,
    declared: &ServicePort,
) -> Option<u16> {
    let membership = workload
        .services
        .iter()
        .find(|m| m.service == service.name)?;
    let named = membership
        .ports
        .iter()
        .find(|(p, _)| *p == declared.port)
        .map(|(_, target)| *target);
    named.or(Some(declared.target_port)).filter(|p| *p != 0)
}

/// The endpoint's address in the client's family where it has one, else another. An address that others
/// claim too is none.
pub(super) fn address(mesh: &Mesh, workload: &Workload, v6: bool) -> Option<IpAddr> {
    let own = || {
        workload
            .addresses
            .iter()
            .map(IpAddr::to_canonical)
            .filter(|ip| !ip.is_unspecified() && !mesh.is_contested(&workload.network, *ip))
    };
    own().find(|ip| ip.is_ipv6() == v6).or_else(|| own().next())
}

/// Where an endpoint is: its address, or its name when it has none.
fn host(mesh: &Mesh, workload: &Workload, v6: bool) -> Option<Host> {
    if workload.addresses.is_empty() {
        return workload.hostname.clone().map(Host::Name);
    }
    address(mesh, workload, v6).map(Host::Ip)
}

/// A workload as a place to go.
pub(super) fn candidate(
    mesh: &Mesh,
    workload: &Arc<Workload>,
    address: SocketAddr,
    names: &[Identity],
) -> Candidate {
    Candidate {
        workload: Some(Arc::clone(workload)),
        via: via(mesh, workload, address, names),
    }
}

fn via(mesh: &Mesh, workload: &Workload, address: SocketAddr, names: &[Identity]) -> Via {
    if takes_hbone(mesh, workload, address.port()) {
        hbone(address, identities(workload, names))
    } else {
        Via::Plain(address)
    }
}

fn takes_hbone(mesh: &Mesh, workload: &Workload, port: u16) -> bool {
    // Until a workload's extra part came, mutual TLS is assumed: the tunnel then fails rather than leaks.
    let plain = mesh
        .extra(&workload.uid)
        .is_some_and(|e| e.mtls_for(port) == MtlsMode::Disable);
    !(workload.protocol == TunnelProtocol::None || workload.host_network || plain)
}

/// A tunnel to the workload that has this address, for itself.
pub(super) fn hbone(address: SocketAddr, identities: Box<[Identity]>) -> Via {
    Via::Hbone {
        tunnel: SocketAddr::new(address.ip(), HBONE_PORT),
        authority: Authority::Address(address),
        identities,
    }
}

/// Who may answer for a workload: itself, and the names its service allows.
pub(super) fn identities(workload: &Workload, names: &[Identity]) -> Box<[Identity]> {
    let mut list = vec![workload.identity.clone()];
    list.extend(names.iter().filter(|n| **n != workload.identity).cloned());
    list.into()
}

/// The identities among a service's alternative names; others cannot be proven on HBONE.
pub(super) fn alternative_names(service: &Service) -> impl Iterator<Item = Identity> + '_ {
    service
        .subject_alt_names
        .iter()
        .filter_map(|san| san.parse().ok())
}
