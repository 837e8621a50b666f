//! Which way a permitted flow goes: the plan with its candidates, best first.
//!
//! Invariant: a plan is made only from a permit.

mod endpoint;
pub mod http;
mod short;
mod slots;
pub mod stream;
pub(crate) mod waypoint;

pub use endpoint::{declared_at, leads_to, place};
pub use short::{Short, Shortcut, short, shortcut};
pub use slots::{Slot, slots};

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use crate::{
    authz::{Conn, Egress, Handed, Permit, Target},
    mesh::{Mesh, Service, Workload, knows_features, service::Mode},
    name::{Hostname, Identity, NodeName, ServiceName, WorkloadUid},
    reason::Reason,
    resilience::TrafficPolicy,
};

/// How a flow goes on.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The service, when one was addressed (for logs and metrics).
    pub service: Option<ServiceName>,
    /// Where it may go, in the order of trying. Never empty.
    pub candidates: Vec<Candidate>,
}

/// One place to go.
#[derive(Clone, Debug)]
pub struct Candidate {
    /// The workload behind it, when it is one.
    pub workload: Option<Arc<Workload>>,
    /// How to get there.
    pub via: Via,
}

/// How to get to a candidate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Via {
    /// An HBONE tunnel.
    Hbone {
        /// Where the tunnel goes (pod IP or waypoint, usually port 15008).
        tunnel: SocketAddr,
        /// The CONNECT authority.
        authority: Authority,
        /// Identities the peer may prove; exactly one must be proven.
        identities: Box<[Identity]>,
    },
    /// Plain TCP to an address.
    Plain(SocketAddr),
    /// To a host whose addresses only a resolver knows.
    Named(Named),
}

impl Via {
    /// Whether the way is one of mutual TLS.
    pub fn is_tunnelled(&self) -> bool {
        match self {
            Self::Hbone { .. } => true,
            Self::Named(named) => named.identities.is_some(),
            Self::Plain(_) => false,
        }
    }

    /// Whom the peer may prove to be; nobody is asked to prove anything when absent.
    fn identities_mut(&mut self) -> Option<&mut Box<[Identity]>> {
        match self {
            Self::Hbone { identities, .. } => Some(identities),
            Self::Named(named) => named.identities.as_mut(),
            Self::Plain(_) => None,
        }
    }
}

/// A candidate that is known by its host name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Named {
    /// The name to resolve.
    pub host: Hostname,
    /// The port.
    pub port: u16,
    /// Whether an address of the client's family is better.
    pub v6: bool,
    /// Whom the peer must prove to be on HBONE; plain TCP when absent.
    pub identities: Option<Box<[Identity]>>,
}

impl Named {
    /// The way once an address of the host is known.
    pub fn at(&self, ip: IpAddr) -> Via {
        let address = SocketAddr::new(ip.to_canonical(), self.port);
        match &self.identities {
            Some(identities) => endpoint::hbone(address, identities.clone()),
            None => Via::Plain(address),
        }
    }
}

/// The authority of a CONNECT.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Authority {
    /// An address and a port.
    Address(SocketAddr),
    /// A host name and a port.
    Host(Arc<str>, u16),
}

/// What `plan` needs to know besides the snapshot.
#[derive(Clone, Copy, Debug)]
pub struct Chooser<'a> {
    /// The node that chooses.
    pub node: &'a NodeName,
    /// Randomness.
    pub seed: u64,
    /// The client's address (session affinity).
    pub client: IpAddr,
    /// Endpoints that are left out for a while.
    pub ejected: &'a [WorkloadUid],
}

/// How connections to a service that no waypoint serves for this client are bounded, where anybody says so. With a
/// feature in it that this build does not know they are refused.
pub fn bounds<'m>(
    mesh: &'m Mesh,
    source: &Workload,
    service: &Service,
    port: u16,
) -> Result<Option<&'m Arc<TrafficPolicy>>, Reason> {
    let waypoint = service.waypoint.as_ref();
    if waypoint.is_some_and(|w| !waypoint::is_own(mesh, source, w)) {
        return Ok(None);
    }
    let destination = mesh.destination(&service.name);
    match destination.filter(|d| d.concerns_connections(port)) {
        Some(d) if !knows_features(&d.features) => Err(Reason::RouteInvalid),
        Some(d) => Ok(d.policy(None, port)),
        None => Ok(None),
    }
}

/// Plans an outbound flow.
pub fn outbound(
    mesh: &Mesh,
    permit: &Permit<Egress>,
    chooser: Chooser<'_>,
) -> Result<Plan, Reason> {
    let flow = permit.subject();
    match &flow.target {
        Target::Service(service, port) => to_service(mesh, flow, service, *port, chooser),
        Target::Workload(workload, port) => match &workload.waypoint {
            Some(waypoint) if !waypoint::is_own(mesh, &flow.source, waypoint) => {
                waypoint::plan(mesh, flow, None, waypoint, chooser)
            }
            Some(_) | None => {
                let address = SocketAddr::new(flow.original.ip().to_canonical(), *port);
                Ok(Plan {
                    service: None,
                    candidates: vec![endpoint::candidate(mesh, workload, address, &[])],
                })
            }
        },
        Target::External => Ok(Plan {
            service: None,
            candidates: vec![as_dialed(flow)],
        }),
    }
}

fn to_service(
    mesh: &Mesh,
    flow: &Egress,
    service: &Service,
    port: u16,
    chooser: Chooser<'_>,
) -> Result<Plan, Reason> {
    let name = Some(service.name.clone());
    if let Some(waypoint) = service
        .waypoint
        .as_ref()
        .filter(|w| !waypoint::is_own(mesh, &flow.source, w))
    {
        endpoint::declared(service, port)?;
        return waypoint::plan(mesh, flow, name, waypoint, chooser);
    }
    if let Some(pinned) = flow.pinned.as_ref().filter(|p| p.service == service.name) {
        let (_, _, candidate) = endpoint::pinned(mesh, pinned, service, port)?;
        return Ok(Plan {
            service: name,
            candidates: vec![candidate],
        });
    }
    let names: Vec<Identity> = endpoint::alternative_names(service).collect();
    if service.balancing.mode == Mode::Passthrough {
        let original = SocketAddr::new(flow.original.ip().to_canonical(), flow.original.port());
        let candidate = match mesh.workload_at(&flow.source.network, original.ip()) {
            Some(workload) => endpoint::candidate(mesh, workload, original, &names),
            None => as_dialed(flow),
        };
        return Ok(Plan {
            service: name,
            candidates: vec![candidate],
        });
    }
    let picked = endpoint::pick(mesh, service, port, flow, chooser)?;
    let candidates = picked.iter().map(|e| e.candidate(mesh, &names)).collect();
    Ok(Plan {
        service: name,
        candidates,
    })
}

/// The destination as the application dialed it, without the mesh.
fn as_dialed(flow: &Egress) -> Candidate {
    Candidate {
        workload: None,
        via: Via::Plain(flow.original),
    }
}

/// Plans the way of a connection that is handed over: to the waypoint of its service.
pub fn handed(mesh: &Mesh, permit: &Permit<Handed>, chooser: Chooser<'_>) -> Result<Plan, Reason> {
    let Handed {
        conn,
        service,
        asked,
    } = permit.subject();
    let address = service.waypoint.as_ref();
    let address = address.ok_or(Reason::WaypointRequired)?;
    let flow = Egress {
        source: Arc::clone(&conn.workload),
        target: Target::Service(Arc::clone(service), asked.port()),
        original: *asked,
        pinned: None,
    };
    waypoint::plan(mesh, &flow, Some(service.name.clone()), address, chooser)
}

/// Plans an inbound flow: straight to the application.
pub fn inbound(permit: &Permit<Conn>) -> SocketAddr {
    permit.subject().destination
}
