//! The story of a CONNECT at a waypoint: who asks, for what; whether this waypoint serves it; then its bytes or its
//! requests to an endpoint, with the waypoint's own certificate and the client's name in-band.
//!
//! Invariants: a waypoint carries only what names it as its waypoint; who the client is decides where the connection
//! ends; the client's address is the one that its tunnel came from, of what it says only the port is taken.

use std::{net::SocketAddr, rc::Rc};

use mesh_model::{
    authz::{Denial, Egress},
    reason::Reason,
};

use super::{
    Data, parties,
    stopped::Stopped,
    tcp::{Arrived, Carried, Live, refuse},
    thread::Place,
};
use crate::{
    accept::{authority, origin},
    authorize::{self, Permitted},
    dial::{self, Behalf, Upstream},
    observe::{Direction, FlowGuard, Path},
    relay, route,
    tunnel::{Incoming, Io, Link},
    wire::Headers,
};

/// A client's connection to something that the waypoint serves.
pub(super) struct Carry {
    /// Where it arrived.
    pub arrived: Rc<Arrived>,
    /// The client's address.
    pub client: SocketAddr,
    /// What it is for, and that it may go on.
    pub permitted: Permitted<Egress>,
}

/// One CONNECT of a tunnel to a waypoint.
pub(super) async fn stream(data: Rc<Data>, arrived: Rc<Arrived>, request: Incoming) {
    let client = client(request.headers(), arrived.peer);
    let observer = &data.shared.observer;
    let mut report = observer.flow(Direction::Through, Some(client));
    let record = report.record_mut();
    record.path = Some(Path::Hbone);
    record.hbone_addr = Some(arrived.local);
    record.source.identity = Some(arrived.identity.clone());
    let denied = |reason| Stopped::Denied(Denial::new(reason));
    let Some(place) = data.shared.place() else {
        return refuse(request, &denied(Reason::Overloaded), &mut report);
    };
    let Some(original) = authority::parse(request.authority()) else {
        tracing::debug!(authority = %request.authority().escape_debug(), "a CONNECT for something that is no address was refused");
        return refuse(request, &denied(Reason::BadAuthority), &mut report);
    };
    report.record_mut().destination.addr = Some(original);
    let (state, pod) = (&data.shared.state, &arrived.pod);
    let permitted = match authorize::through(state, pod, &arrived.identity, original).await {
        Ok(permitted) => permitted,
        Err(denial) => return refuse(request, &Stopped::Denied(denial), &mut report),
    };
    parties::client(&permitted, client.ip(), &arrived.identity, &mut report);
    let carry = Carry {
        arrived,
        client,
        permitted,
    };
    bytes(&data, carry, request, report, place).await;
}

/// The client's address: where its tunnel came from, with the port that it names, if any.
fn client(headers: &Headers, peer: SocketAddr) -> SocketAddr {
    origin::client(headers)
        .filter(|named| named.ip() == peer.ip())
        .unwrap_or(peer)
}

/// Carries bytes that nobody looks at.
async fn bytes(
    data: &Rc<Data>,
    carry: Carry,
    mut request: Incoming,
    mut report: FlowGuard,
    place: Place,
) {
    let dialed = tokio::select! {
        dialed = reach(data, &carry, &mut report) => dialed,
        () = request.cancelled() => Err(Stopped::Abandoned),
    };
    let far = match dialed {
        Ok(far) => far,
        Err(stopped) => return refuse(request, &stopped, &mut report),
    };
    let near = Io::new(request.accept(Headers::new()));
    joined(data, &carry, near, far, report, place);
}

/// Begins the task that relays between both.
pub(super) fn joined(
    data: &Rc<Data>,
    carry: &Carry,
    near: Io,
    far: Link,
    mut report: FlowGuard,
    place: Place,
) {
    report.opened();
    let live = Live {
        pod: &carry.arrived.pod,
        // Where the connection ends it is decided again when policies change.
        conn: None,
        client_first: true,
        decided_in: carry.permitted.snapshot.generation,
    };
    let carried = Carried::new(data, live, report, place);
    carried.by(|meter, cut| relay::join(near, far, meter, cut));
}

/// Connects to an endpoint of what was addressed.
pub(super) async fn reach(
    data: &Rc<Data>,
    carry: &Carry,
    report: &mut FlowGuard,
) -> Result<Link, Stopped> {
    let shared = &data.shared;
    let plan = route::outbound(&shared.node, &carry.permitted, carry.client.ip())?;
    report.record_mut().service = plan.service.clone();
    let workload = report.record().source.workload.clone();
    let request = dial::Request {
        pod: &carry.arrived.pod,
        permit: &carry.permitted.permit,
        client: carry.client,
        behalf: Some(Behalf {
            identity: &carry.arrived.identity,
            workload: workload.as_deref(),
        }),
        timeout: shared.limits.connect_timeout,
        names: &shared.names,
    };
    let dialed = dial::outbound(&data.tunnels, &request, &plan).await;
    let candidate = dialed
        .as_ref()
        .map_or(plan.candidates.first(), |(_, c)| Some(&**c));
    if let Some(candidate) = candidate {
        parties::went_to(candidate, report);
    }
    Ok(match dialed?.0 {
        Upstream::Tunnel(stream) => Link::Tunnel(Io::new(stream)),
        Upstream::Plain(tcp) => Link::Plain(tcp),
    })
}
