//! May this connection from outside the mesh enter, or go on by way of the waypoint that guards what it arrived for.
//!
//! Invariants: only what came in the clear is handed over, only where transport and policies let it in, and only for the
//! one port of the one service that it can be for; whatever is not certain is refused as if there were no such way; what
//! a waypoint brings, or dials in the clear, is never handed to it again.

use std::{net::SocketAddr, sync::Arc};

use super::{
    Conn, Decision, Permit,
    inbound::{self, Verdict, ingress},
    matches::Facts,
};
use crate::{
    authn::{self, Transport},
    mesh::{Mesh, Service, Workload, WorkloadExtra},
    reason::Reason,
    route,
};

/// A connection that is handed to a waypoint, which returns it to the workload where it arrived.
#[derive(Clone, Debug)]
pub struct Handed {
    /// The connection.
    pub conn: Conn,
    /// The service that it is for, which has a waypoint.
    pub service: Arc<Service>,
    /// An address of the service, and the port that leads to where the connection arrived.
    pub asked: SocketAddr,
}

/// What becomes of a connection that arrived without the mesh.
#[derive(Clone, Debug)]
pub enum Arrival {
    /// It enters.
    Enters(Conn),
    /// It goes by way of a waypoint.
    Handed(Box<Handed>),
}

/// The permit for what becomes of a connection.
#[derive(Clone, Debug)]
pub enum Arrived {
    /// That it enters.
    Enters(Permit<Conn>),
    /// That it goes by way of a waypoint.
    Handed(Permit<Handed>),
}

impl From<Permit<Arrival>> for Arrived {
    fn from(permit: Permit<Arrival>) -> Self {
        let Permit { subject, by } = permit;
        match subject {
            Arrival::Enters(conn) => Self::Enters(Permit::new(conn, by)),
            Arrival::Handed(handed) => Self::Handed(Permit::new(*handed, by)),
        }
    }
}

/// Decides a connection at its destination as [`ingress`] does, save that one which only its waypoint's absence forbids
/// may be handed to that.
pub fn arrive(mesh: &Mesh, conn: Conn) -> Decision<Arrival> {
    let Decision {
        outcome,
        audited,
        dry_run,
    } = ingress(mesh, conn.clone());
    match outcome {
        Err(denial) if denial.reason == Reason::WaypointRequired => hand(mesh, conn),
        outcome => Decision {
            outcome: outcome
                .map(|Permit { subject, by }| Permit::new(Arrival::Enters(subject), by)),
            audited,
            dry_run,
        },
    }
}

/// Decides whether a connection to a guarded workload is handed over.
fn hand(mesh: &Mesh, conn: Conn) -> Decision<Arrival> {
    let judged = inbound::ready(mesh, &conn).and_then(|(workload, extra)| {
        authn::admit(extra, conn.destination.port(), &conn.transport)?;
        let (service, asked) =
            destined(mesh, workload, extra, &conn).ok_or(Reason::WaypointRequired)?;
        let verdict = inbound::judge(mesh, workload, &Facts::of(&conn));
        Ok((verdict, service, asked))
    });
    match judged {
        Ok((verdict, service, asked)) => verdict.about(|by| {
            let handed = Handed {
                conn,
                service,
                asked,
            };
            Permit::new(Arrival::Handed(Box::new(handed)), by)
        }),
        Err(reason) => Verdict::refused(reason).about(|by| Permit::new(Arrival::Enters(conn), by)),
    }
}

/// The service that a connection can be for, and how that is asked for.
fn destined(
    mesh: &Mesh,
    workload: &Workload,
    extra: &WorkloadExtra,
    conn: &Conn,
) -> Option<(Arc<Service>, SocketAddr)> {
    let plain = match (&conn.transport, &conn.via) {
        (Transport::Plain | Transport::Probe, None) => true,
        (Transport::Plain | Transport::Probe, Some(_))
        | (Transport::Mtls(_) | Transport::Kernel(_), _) => false,
    };
    if !plain || !extra.guarded {
        return None;
    }
    // A waypoint that dials in the clear would get its own connection back.
    let source = mesh.workload_at(&workload.network, conn.source_ip);
    if source.is_some_and(|s| inbound::vouches(mesh, workload, &s.identity)) {
        return None;
    }
    let memberships = workload.services.iter();
    let waypointed = memberships.filter_map(|m| {
        let service = mesh.service(&m.service)?;
        service.waypoint.as_ref().map(|_| service)
    });
    let mut ports = waypointed.flat_map(|service| {
        let leads = route::leads_to(workload, service, conn.destination.port());
        leads.map(move |port| (service, port))
    });
    let (Some((service, port)), None) = (ports.next(), ports.next()) else {
        return None;
    };
    let own = |ip: std::net::IpAddr| {
        let found = mesh.service_at(&workload.network, ip);
        found.is_some_and(|found| found.name == service.name)
    };
    let v6 = conn.destination.ip().to_canonical().is_ipv6();
    let mut vips = service.vips.iter().map(|vip| vip.ip.to_canonical());
    let mut others = vips.clone();
    let vip = vips
        .find(|ip| ip.is_ipv6() == v6 && own(*ip))
        .or_else(|| others.find(|ip| own(*ip)))?;
    Some((Arc::clone(service), SocketAddr::new(vip, port)))
}
