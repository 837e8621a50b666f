//! What endpoints say of requests that a waypoint brings them.
//!
//! Invariant: an explanation asks the very functions that decide; it decides nothing by itself.

use std::{fmt, sync::Arc};

use serde::Serialize;

use super::{Verdict, Why, conn};
use crate::{
    authn::Transport,
    authz::{self, Decision, Denial},
    balance::Viewpoint,
    mesh::{Enrolment, Mesh, Service, Workload},
    reason::Reason,
    resilience::UpstreamTls,
    route::{self, http::Endpoint},
};

/// Endpoints that are shown as text; all are told to programs.
const SHOWN: usize = 20;

/// The endpoints of one backend of a request.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Onward {
    /// The uid of the waypoint's replica that is taken for all of them.
    pub waypoint: Option<String>,
    /// The service.
    pub service: String,
    /// Its port.
    pub port: u16,
    /// The subset.
    pub subset: Option<String>,
    /// Why nobody can be asked.
    pub refused: Option<Why>,
    /// Who may be asked, best first.
    pub endpoints: Vec<Asked>,
}

/// An endpoint that may be asked.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Asked {
    /// The uid of the workload.
    pub workload: String,
    /// Its address and port; absent where only a name is known.
    pub address: Option<String>,
    /// Whom its policies see: `the client`, `the waypoint`, or `nobody` where no mutual TLS is used.
    pub sees: &'static str,
    /// What its node says; absent where nobody of the mesh decides.
    pub decision: Option<Verdict>,
}

/// A client of a waypoint.
#[derive(Clone, Copy, Debug)]
pub struct Client<'a> {
    /// The workload.
    pub workload: &'a Arc<Workload>,
    /// Whether it is enrolled, so that it proves who it is.
    pub enrolled: bool,
}

/// Explains what endpoints of `port` of `to`, or of a subset of them, say of requests that came for `service`.
pub fn onward(
    mesh: &Mesh,
    client: Client<'_>,
    service: &Service,
    to: &Service,
    port: u16,
    subset: Option<&str>,
) -> Onward {
    let mut onward = Onward {
        waypoint: None,
        service: to.name.to_string(),
        port,
        subset: subset.map(str::to_owned),
        refused: None,
        endpoints: Vec::new(),
    };
    match onward.ask(mesh, client, service, to) {
        Ok(()) => {}
        Err(reason) => onward.refused = Some(reason.into()),
    }
    onward
}

impl Onward {
    /// Whether somebody may answer.
    pub fn is_open(&self) -> bool {
        let open = |asked: &Asked| asked.decision.as_ref().is_none_or(|d| d.allowed);
        self.endpoints.iter().any(open)
    }

    fn ask(
        &mut self,
        mesh: &Mesh,
        client: Client<'_>,
        service: &Service,
        to: &Service,
    ) -> Result<(), Reason> {
        let network = &client.workload.network;
        let gateway = service.waypoint.as_ref().ok_or(Reason::NotReady)?;
        let waypoint = route::waypoint::replica(mesh, network, gateway)?;
        self.waypoint = Some(waypoint.uid.to_string());
        let from = Viewpoint::of_waypoint(mesh, &waypoint.node, waypoint);
        let subset = self.subset.as_deref();
        let mut found = route::http::endpoints(mesh, to, self.port, subset, from)?;
        found.sort_by(|(a, _, x), (b, _, y)| {
            b.cmp(a).then_with(|| x.workload.uid.cmp(&y.workload.uid))
        });
        let policy = mesh.destination(&to.name);
        let tls = policy
            .and_then(|d| d.policy(subset, self.port))
            .and_then(|p| p.tls.as_ref());
        let ask = |(_, _, endpoint): &(usize, u32, Endpoint)| {
            asked(mesh, client, waypoint, endpoint, tls)
        };
        self.endpoints = found.iter().map(ask).collect();
        Ok(())
    }
}

/// What the endpoint's node says of a connection that the waypoint makes; `tls` is what the destination's rule wants.
fn asked(
    mesh: &Mesh,
    client: Client<'_>,
    waypoint: &Arc<Workload>,
    endpoint: &Endpoint,
    tls: Option<&UpstreamTls>,
) -> Asked {
    let workload = &endpoint.workload;
    let enrolled = mesh
        .extra(&workload.uid)
        .is_some_and(|extra| extra.enrolment == Enrolment::Enrolled);
    let way = endpoint.way(tls);
    let tunnelled = way.as_ref().is_ok_and(|way| way.via.is_tunnelled());
    let proven = |who: &Workload| Transport::Mtls(who.identity.clone());
    let (sees, from, transport) = match (tunnelled, endpoint.vouched, client.enrolled) {
        (false, ..) => ("nobody", waypoint, Transport::Plain),
        (true, true, true) => ("the client", client.workload, proven(client.workload)),
        (true, false, true) => ("the waypoint", waypoint, proven(waypoint)),
        (true, _, false) => ("nobody", client.workload, Transport::Plain),
    };
    let decision = endpoint.address.filter(|_| enrolled).map(|at| {
        if let Err(no_way) = &way {
            return refused(no_way.reason());
        }
        let mut connection = conn(from, transport, workload, at);
        if !tunnelled {
            return Verdict::of(&authz::arrive(mesh, connection));
        }
        if !endpoint.vouched && !client.enrolled {
            // Who proved nothing does not go by the waypoint's name.
            return refused(Reason::NotWaypoint);
        }
        let via = endpoint.vouched.then(|| waypoint.identity.clone());
        connection.via = via.map(Box::new);
        Verdict::of(&authz::ingress(mesh, connection))
    });
    Asked {
        workload: workload.uid.to_string(),
        address: endpoint.address.map(|a| a.to_string()),
        sees,
        decision,
    }
}

/// What the waypoint decides by itself.
fn refused(reason: Reason) -> Verdict {
    Verdict::of(&Decision::<()> {
        outcome: Err(Denial::new(reason)),
        audited: Vec::new(),
        dry_run: Vec::new(),
    })
}

impl fmt::Display for Onward {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "endpoints of {}:{}", self.service, self.port)?;
        if let Some(subset) = &self.subset {
            write!(f, " subset {subset}")?;
        }
        match &self.waypoint {
            Some(waypoint) => writeln!(f, ", as waypoint {waypoint} asks them")?,
            None => writeln!(f)?,
        }
        if let Some(why) = &self.refused {
            writeln!(f, "   => refused: {} ({})", why.text, why.reason)?;
        }
        for asked in self.endpoints.iter().take(SHOWN) {
            write!(f, "   {}", asked.workload)?;
            if let Some(address) = &asked.address {
                write!(f, " at {address}")?;
            }
            writeln!(f, " sees {}", asked.sees)?;
            asked.decision.iter().try_for_each(|d| write!(f, "{d}"))?;
        }
        match self.endpoints.len().saturating_sub(SHOWN) {
            0 => Ok(()),
            more => writeln!(f, "   and {more} more"),
        }
    }
}
