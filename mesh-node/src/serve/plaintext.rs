//! The story of a connection that came without the mesh: it goes on to its application, or, where a waypoint guards that,
//! by way of the waypoint, which returns it.
//!
//! Invariants: as for the ways of `tcp.rs`; what a waypoint must see gets to the application only from there.

use std::rc::Rc;

use mesh_model::{
    authn::Transport,
    authz::{Arrived, Conn},
    route::Via,
};
use tokio::net::TcpStream;

use super::{
    Data, Reviewed,
    stopped::Stopped,
    tcp::{Carried, Inbound, Live, allowed},
    thread::Place,
};
use crate::{
    accept::Accepted,
    authorize::{self, Permitted},
    dial,
    observe::{Direction, FlowGuard, Path},
    relay::{self, Bounds},
    route,
    tunnel::Stream,
};

/// A connection to a pod that came without the mesh.
pub(super) async fn arrived(data: Rc<Data>, accepted: Accepted, place: Place) {
    let mut report = data
        .shared
        .observer
        .flow(Direction::Inbound, Some(accepted.peer));
    report.record_mut().path = Some(Path::Plain);
    let probe = data.shared.datapath.is_probe(accepted.local, accepted.peer);
    let transport = if probe {
        Transport::Probe
    } else {
        Transport::Plain
    };
    // The kernel steers a connection here without changing it: where it arrived is what was dialed.
    let inbound = Inbound {
        pod: &accepted.pod,
        transport,
        via: None,
        peer: accepted.peer,
        destination: accepted.local,
    };
    match admit(&data, inbound, &mut report).await {
        Ok((admitted, decided_in)) => {
            report.opened();
            let Accepted { pod, tcp, .. } = accepted;
            let live = |reviewed| Live {
                pod: &pod,
                conn: Some(reviewed),
                client_first: true,
                decided_in,
                bounds: Bounds::NONE,
            };
            match admitted {
                Admitted::Entered(app, conn) => {
                    let live = live(Reviewed::Entered(conn));
                    let carried = Carried::new(&data, live, report, place);
                    carried.by(|meter, cut| relay::copy(tcp, app, meter, cut));
                }
                Admitted::Handed(stream, conn) => {
                    let live = live(Reviewed::Handed(conn));
                    let carried = Carried::new(&data, live, report, place);
                    carried.by(|meter, cut| relay::splice(tcp, stream, meter, cut));
                }
            }
        }
        Err(stopped) => {
            stopped.report(&mut report);
            accepted.reset();
        }
    }
}

/// A connection from outside the mesh that was let in.
enum Admitted {
    /// The application takes it.
    Entered(TcpStream, Conn),
    /// A waypoint does.
    Handed(Stream, Conn),
}

/// Authorizes a connection from outside the mesh, and connects to the application or to the waypoint that it goes by;
/// says in which generation that was decided.
async fn admit(
    data: &Rc<Data>,
    inbound: Inbound<'_>,
    report: &mut FlowGuard,
) -> Result<(Admitted, u64), Stopped> {
    inbound.identify(data, report);
    let (state, limits) = (&data.shared.state, &data.shared.limits);
    let Inbound {
        pod,
        transport,
        via: _,
        peer,
        destination,
    } = inbound;
    let permitted = authorize::arrived(state, pod, &transport, peer, destination).await?;
    let Permitted {
        permit,
        snapshot,
        audited,
    } = permitted;
    allowed(audited, permit.by(), report);
    let generation = snapshot.generation;
    let permit = match Arrived::from(permit) {
        Arrived::Enters(permit) => {
            let within = limits.connect_timeout;
            let app = dial::to_application(pod, &permit, peer, within).await?;
            let conn = permit.subject().clone();
            return Ok((Admitted::Entered(app, conn), generation));
        }
        Arrived::Handed(permit) => permit,
    };
    let record = report.record_mut();
    record.direction = Direction::Handed;
    record.service = Some(permit.subject().service.name.clone());
    let plan = route::handed(&data.shared.node, &snapshot, &permit, peer.ip())?;
    drop(snapshot);
    let handing = dial::Handing {
        pod,
        permit: &permit,
        client: peer,
        timeout: limits.connect_timeout,
    };
    let dialed = dial::hand_over(&data.tunnels, handing, &plan).await;
    // A failure is reported with what was tried first.
    let tried = dialed
        .as_ref()
        .map_or(plan.candidates.first(), |(_, c)| Some(*c));
    if let Some(Via::Hbone { tunnel, .. }) = tried.map(|c| &c.via) {
        report.record_mut().hbone_addr = Some(*tunnel);
    }
    let conn = permit.subject().conn.clone();
    match dialed {
        Ok((stream, _)) => Ok((Admitted::Handed(stream, conn), generation)),
        Err(error) => {
            let (mesh, from) = (&state.load().mesh, &pod.namespace);
            Err(Stopped::dialing(error, mesh, from, tried))
        }
    }
}
