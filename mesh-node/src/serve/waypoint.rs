//! The story of a CONNECT at a waypoint: who asks, for what; whether this waypoint serves it; then its bytes or its
//! requests to an endpoint, with the waypoint's own certificate and the client's name in-band.
//!
//! Invariants: a waypoint carries only what names it as its waypoint; who the client is decides where the connection
//! ends; the client's address is the one that its tunnel came from, of what it says only the port is taken; of a client
//! outside the mesh only the node is believed where its connection arrived, for the pod where it did.

use std::{io, net::SocketAddr, pin::pin, rc::Rc, time::Duration};

use bytes::BytesMut;
use mesh_model::{
    authz::{Bringer, Denial, Egress, Target},
    mesh::AppProtocol,
    name::Identity,
    reason::Reason,
    route as model,
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite},
    time::{Instant, sleep, sleep_until},
};

use super::{
    Data, http, parties,
    stopped::Stopped,
    streams::{self, Reached},
    tcp::{Arrived, Carried, Live, refuse},
    thread::Place,
};
use crate::{
    accept::{authority, origin},
    authorize::{self, Permitted},
    dial::{self, Behalf, Upstream},
    exchange::{Spoken, spoken},
    identify::Peer,
    observe::{Direction, FlowGuard, Observer, Path},
    relay, route,
    tunnel::{Incoming, Io, Link},
    wire::Headers,
};

/// How long a client on a port of unknown protocol may be silent before its server is listened to as well.
const SILENCE: Duration = Duration::from_millis(50);

/// A client's connection to something that the waypoint serves.
pub(super) struct Carry {
    /// Where it arrived.
    pub arrived: Rc<Arrived>,
    /// Who brought it.
    pub bringer: Bringer,
    /// The client's address.
    pub client: SocketAddr,
    /// What it is for, and that it may go on.
    pub permitted: Permitted<Egress>,
}

impl Carry {
    /// Who the client proved to be; none for one outside the mesh.
    pub fn identity(&self) -> Option<&Identity> {
        self.bringer.client()
    }

    /// Begins to report a flow or request of it. Nothing but its ends is known yet.
    pub fn report(&self, observer: &Observer) -> FlowGuard {
        reported(observer, &self.arrived, &self.bringer, self.client)
    }
}

/// Begins to report what somebody brought.
fn reported(
    observer: &Observer,
    arrived: &Arrived,
    bringer: &Bringer,
    client: SocketAddr,
) -> FlowGuard {
    let mut report = observer.flow(Direction::Through, Some(client));
    let record = report.record_mut();
    record.path = Some(Path::Hbone);
    record.hbone_addr = Some(arrived.local);
    match bringer {
        Bringer::Client(identity) => record.source.identity = Some(identity.clone()),
        Bringer::Node { .. } => record.via = Some(Box::new(arrived.who.clone())),
    }
    report
}

/// One CONNECT of a tunnel to a waypoint.
pub(super) async fn stream(data: Rc<Data>, arrived: Rc<Arrived>, request: Incoming) {
    let observer = &data.shared.observer;
    let (bringer, client) = match brought(request.headers(), &arrived) {
        Ok(brought) => brought,
        Err(reason) => {
            let mut report = observer.flow(Direction::Through, Some(arrived.peer));
            let record = report.record_mut();
            (record.path, record.hbone_addr) = (Some(Path::Hbone), Some(arrived.local));
            record.via = Some(Box::new(arrived.who.clone()));
            let stopped = Stopped::Denied(Denial::new(reason));
            return refuse(request, &stopped, &mut report);
        }
    };
    let mut report = reported(observer, &arrived, &bringer, client);
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
    let permitted = match authorize::through(state, pod, &bringer, original).await {
        Ok(permitted) => permitted,
        Err(denial) => return refuse(request, &Stopped::Denied(denial), &mut report),
    };
    parties::client(&permitted, client.ip(), bringer.client(), &mut report);
    let carry = Carry {
        arrived,
        bringer,
        client,
        permitted,
    };
    match declared(&carry.permitted) {
        AppProtocol::Tls if streams::wants_name(&carry) => {
            let near = Io::new(request.accept(Headers::new()));
            let first = BytesMut::new();
            spoken_first(&data, carry, (near, first), report, place).await;
        }
        AppProtocol::Tcp | AppProtocol::Tls => bytes(&data, carry, request, report, place).await,
        AppProtocol::Http11 | AppProtocol::Http2 | AppProtocol::Grpc => {
            let mut near = Io::new(request.accept(Headers::new()));
            let mut first = BytesMut::new();
            match hear(&data, &mut near, &mut first).await {
                Ok(spoken) => requests(data, carry, near, first, spoken, report, place).await,
                Err(unheard) => unheard.end(near, &mut report).await,
            }
        }
        AppProtocol::Unknown => {
            let near = Io::new(request.accept(Headers::new()));
            either(data, carry, near, report, place).await;
        }
    }
}

/// What was declared about the port that was addressed: by its service, or by those that lead to the workload's port.
fn declared(permitted: &Permitted<Egress>) -> AppProtocol {
    match &permitted.permit.subject().target {
        Target::Service(service, port) => {
            let declared = service.ports.iter().find(|p| p.port == *port);
            declared.map_or(AppProtocol::Tcp, |p| p.protocol)
        }
        Target::Workload(workload, port) => {
            let mesh = &permitted.snapshot.mesh;
            model::declared_at(mesh, workload, *port)
        }
        Target::External => AppProtocol::Tcp,
    }
}

/// Serves requests.
async fn requests(
    data: Rc<Data>,
    carry: Carry,
    mut near: Io,
    first: BytesMut,
    spoken: Spoken,
    report: FlowGuard,
    place: Place,
) {
    // Each request is reported by itself.
    report.forget();
    near.unread(first.freeze());
    http::serve(data, carry, near, spoken == Spoken::Http2, place).await;
}

/// Why nothing is known of what a client speaks.
enum Unheard {
    /// It said nothing, or not enough, for too long.
    Late,
    /// The waypoint drains.
    Draining,
    /// Its connection failed.
    Failed(io::Error),
}

impl Unheard {
    /// Ends such a client's connection, in order where it is still there.
    async fn end(self, near: Io, report: &mut FlowGuard) {
        match self {
            Self::Late => report.fail(
                Reason::IdleTimeout,
                "the client said nothing, or not enough, for too long",
            ),
            Self::Draining => report.fail(
                Reason::Draining,
                "the waypoint drains, and the client had said nothing",
            ),
            Self::Failed(error) => return report.fail(Reason::PeerReset, error.to_string()),
        }
        http::close(near).await;
    }
}

/// Reads until it is known what a client speaks; one that ends first speaks bytes. One that is silent is waited for as
/// long as one between two requests, and one that has begun as long as the head of a request may take.
async fn hear(data: &Data, near: &mut Io, first: &mut BytesMut) -> Result<Spoken, Unheard> {
    let limits = &data.shared.limits;
    let mut until = Instant::now() + limits.http_idle;
    let mut draining = pin!(data.draining());
    loop {
        if let Some(spoken) = spoken(first) {
            return Ok(spoken);
        }
        let silent = first.is_empty();
        let read = tokio::select! {
            biased;
            read = near.read_buf(first) => read.map_err(Unheard::Failed)?,
            () = sleep_until(until) => return Err(Unheard::Late),
            // One that is about to say what it wants may finish.
            () = draining.as_mut(), if silent => return Err(Unheard::Draining),
        };
        if read == 0 {
            return Ok(Spoken::Bytes);
        }
        if silent {
            until = Instant::now() + limits.http_head;
        }
    }
}

/// Carries requests or bytes, as whoever speaks first decides: a client that is silent for a moment may wait for its
/// server to speak, which is then connected to and listened to as well.
async fn either(data: Rc<Data>, carry: Carry, mut near: Io, mut report: FlowGuard, place: Place) {
    let (mut first, mut said) = (BytesMut::new(), BytesMut::new());
    let server = async {
        sleep(SILENCE).await;
        let reached = streams::reach(&data, &carry, &mut report, None).await;
        let Ok(mut reached) = reached else {
            // Perhaps requests can be answered all the same.
            return std::future::pending().await;
        };
        // When nothing can be read, the relay finds out by itself.
        let _ = reached.far.read_buf(&mut said).await;
        reached
    };
    let heard = tokio::select! {
        biased;
        spoken = hear(&data, &mut near, &mut first) => Ok(spoken),
        reached = server => Err(reached),
    };
    match heard {
        Ok(Ok(spoken @ (Spoken::Http1 | Spoken::Http2))) => {
            requests(data, carry, near, first, spoken, report, place).await;
        }
        Ok(Ok(Spoken::Bytes)) => spoken_first(&data, carry, (near, first), report, place).await,
        Ok(Err(unheard)) => unheard.end(near, &mut report).await,
        Err(mut reached) => {
            near.unread(first.freeze());
            reached.far = reached.far.after(said.freeze());
            joined(&data, &carry, near, reached, report, place);
        }
    }
}

/// Carries bytes of a client that has begun, or is to begin, to speak: what it asks for may decide where they go.
async fn spoken_first(
    data: &Rc<Data>,
    carry: Carry,
    (mut near, mut first): (Io, BytesMut),
    mut report: FlowGuard,
    place: Place,
) {
    let name = match streams::wants_name(&carry) {
        true => match streams::hear_name(&mut near, &mut first).await {
            Ok(name) => name,
            Err(error) => return report.fail(Reason::PeerReset, error.to_string()),
        },
        false => None,
    };
    near.unread(first.freeze());
    match streams::reach(data, &carry, &mut report, name.as_deref()).await {
        Ok(reached) => joined(data, &carry, near, reached, report, place),
        // Dropped before its end, the client's stream is reset.
        Err(stopped) => stopped.report(&mut report),
    }
}

/// Who brings a connection, and the client's address. Where it arrived only a node may say, which has to.
fn brought(headers: &Headers, arrived: &Arrived) -> Result<(Bringer, SocketAddr), Reason> {
    let return_to = origin::return_to(headers);
    let return_to = return_to.map_err(|origin::Unreadable| Reason::BadAuthority)?;
    match (&arrived.who, return_to) {
        (Peer::Workload(identity), None) => {
            let address = client(headers, arrived.peer);
            Ok((Bringer::Client(identity.clone()), address))
        }
        (Peer::Workload(_), Some(_)) => Err(Reason::NotItsNode),
        (Peer::Node(node), Some(at)) => {
            let address = origin::client(headers).ok_or(Reason::BadAuthority)?;
            let node = node.node.clone();
            Ok((Bringer::Node { node, arrived: at }, address))
        }
        (Peer::Node(_), None) => Err(Reason::BadAuthority),
    }
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
        dialed = streams::reach(data, &carry, &mut report, None) => dialed,
        () = request.cancelled() => Err(Stopped::Abandoned),
    };
    let reached = match dialed {
        Ok(reached) => reached,
        Err(stopped) => return refuse(request, &stopped, &mut report),
    };
    let near = Io::new(request.accept(Headers::new()));
    joined(data, &carry, near, reached, report, place);
}

/// A client's side of what is relayed.
pub(super) trait Near: AsyncRead + AsyncWrite + Unpin + 'static {}

impl<T: AsyncRead + AsyncWrite + Unpin + 'static> Near for T {}

/// Begins the task that relays between both.
pub(super) fn joined(
    data: &Rc<Data>,
    carry: &Carry,
    near: impl Near,
    to: Reached,
    mut report: FlowGuard,
    place: Place,
) {
    let Reached { far, held, bounds } = to;
    report.opened();
    let live = Live {
        pod: &carry.arrived.pod,
        // Where the connection ends it is decided again when policies change.
        conn: None,
        client_first: true,
        decided_in: carry.permitted.snapshot.generation,
        bounds,
    };
    let carried = Carried::new(data, live, report, place.holding(held));
    carried.by(|meter, cut| relay::join(near, far, meter, cut));
}

/// Connects to an endpoint of what was addressed.
pub(super) async fn reach(
    data: &Data,
    carry: &Carry,
    report: &mut FlowGuard,
) -> Result<Link, Stopped> {
    let shared = &data.shared;
    let plan = route::outbound(&shared.node, &carry.permitted, carry.client.ip(), &[])?;
    report.record_mut().service = plan.service.clone();
    let workload = report.record().source.workload.clone();
    let request = dial::Request {
        pod: &carry.arrived.pod,
        permit: &carry.permitted.permit,
        client: carry.client,
        behalf: Some(Behalf {
            identity: carry.identity(),
            workload: workload.as_deref().filter(|_| carry.identity().is_some()),
        }),
        timeout: shared.limits.connect_timeout,
        names: &shared.names,
        keepalive: None,
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
        Upstream::Plain(tcp) => Link::Plain(tcp, Default::default()),
    })
}
