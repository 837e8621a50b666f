//! The story of a TCP connection: accept -> identify -> authorize -> route -> dial -> relay -> observe.
//!
//! Three ways in: `outbound` (a pod dialed), `tunnel` (a peer brings streams for a pod), and that of `plaintext.rs`
//! (someone outside the mesh dialed a pod). Invariants: each flow is reported exactly once, however it ends; what is
//! refused is reset, never closed politely; nothing is read from a client before its upstream is there; a flow
//! that is relayed is a small task of its own, so that an idle one holds nothing of what setting it up needed.

use std::{cell::RefCell, future::Future, net::SocketAddr, rc::Rc, sync::Arc, time::Duration};

use mesh_model::{
    authn::Transport,
    authz::{Conn, Denial},
    name::{Identity, PolicyName},
    reason::Reason,
};
use prometheus_client::metrics::gauge::Gauge;
use rustls::pki_types::UnixTime;
use tokio::{
    net::TcpStream,
    time::{sleep, timeout},
};

use super::{
    Data, Flow, Registered, Reviewed,
    bounded::{self, Bounded},
    parties,
    stopped::Stopped,
    thread::Place,
    waypoint,
};
use crate::{
    accept::{Accepted, Kind, Pod, authority, origin, reset},
    authorize::{self, Permitted},
    capture::FailedDial,
    dial::{self, Upstream},
    exchange::Joined,
    identify::{self, Admits, Peer, Proven},
    observe::{Direction, DirectionLabel, FlowGuard, Path, ResultLabel, Verdict},
    relay::{self, Bounds, CutSignal, Cutter, End, Hand, Meter},
    route,
    tunnel::{self, Incoming, ServerTunnel, TunnelError, error::REASON_HEADER},
    wire::{Headers, Limits},
};

/// A connection that a pod dialed and the kernel brought here.
pub(super) async fn outbound(data: Rc<Data>, accepted: Accepted, place: Place) {
    let mut report = data
        .shared
        .observer
        .flow(Direction::Outbound, Some(accepted.peer));
    let Some(original) = data
        .shared
        .datapath
        .take_original(accepted.local, accepted.peer)
    else {
        report.refuse(&Denial::new(Reason::NoOriginalDestination));
        return accepted.reset();
    };
    report.record_mut().destination.addr = Some(original);
    // Read before anything is decided: a failure is void as soon as the destination's configuration changes.
    let epoch = data.shared.datapath.epoch(original.ip());
    match connect(&data, &accepted, original, &mut report).await {
        Ok(connected) => {
            report.opened();
            let Accepted { pod, tcp, .. } = accepted;
            let live = Live {
                pod: &pod,
                conn: None,
                client_first: true,
                decided_in: connected.decided_in,
                bounds: connected.bounds,
            };
            let place = place.holding(connected.held);
            let carried = Carried::new(&data, live, report, place);
            match connected.upstream {
                Upstream::Tunnel(stream) => {
                    carried.by(|meter, cut| relay::splice(tcp, stream, meter, cut));
                }
                Upstream::Plain(far) => {
                    carried.by(|meter, cut| relay::copy(tcp, far, meter, cut));
                }
            }
        }
        Err(stopped) => {
            stopped.report(&mut report);
            if let Some(lasting) = stopped.lasting() {
                data.shared.datapath.note_failed_dial(FailedDial {
                    source: accepted.pod.netns_cookie,
                    original,
                    epoch,
                    reason: stopped.reason(),
                    lasting,
                });
            }
            accepted.reset();
        }
    }
}

/// An outbound flow that has its upstream.
struct Connected {
    upstream: Upstream,
    /// The generation of the snapshot that decided.
    decided_in: u64,
    /// Its place among the connections of what it goes to.
    held: Option<Joined>,
    bounds: Bounds,
}

/// Authorizes, routes and dials an outbound flow.
async fn connect(
    data: &Rc<Data>,
    accepted: &Accepted,
    original: SocketAddr,
    report: &mut FlowGuard,
) -> Result<Connected, Stopped> {
    let shared = &data.shared;
    let permitted = authorize::outbound(&shared.state, &accepted.pod, original).await?;
    let source = permitted.permit.subject().source.clone();
    report.record_mut().source.identity = Some(source.identity.clone());
    report.record_mut().source.workload = Some(source);
    let bounded = Bounded::of(shared, &permitted)?;
    let ejected = bounded.as_ref().map_or(&[][..], |b| &b.ejected);
    let client = accepted.peer.ip();
    let plan = match route::outbound(&shared.node, &permitted, client, ejected) {
        Ok(plan) => plan,
        Err(denial) => return Err(bounded::unplanned(denial, ejected)),
    };
    report.record_mut().service = plan.service.clone();
    let counted = bounded.as_ref().map(Bounded::begin).transpose()?;
    let pool = bounded.as_ref().map(|b| &b.policy.pool);
    let Permitted {
        permit, snapshot, ..
    } = permitted;
    let decided_in = snapshot.generation;
    drop(snapshot);
    let request = dial::Request {
        pod: &accepted.pod,
        permit: &permit,
        client: accepted.peer,
        behalf: None,
        timeout: pool.map_or(shared.limits.connect_timeout, |p| p.connect_timeout),
        names: &shared.names,
        keepalive: pool.and_then(|p| p.keepalive),
    };
    let dialed = dial::noting(&data.tunnels, &request, &plan, |candidate, answered| {
        if let Some(bounded) = &bounded {
            bounded.note(candidate, answered);
        }
    });
    let dialed = dialed.await;
    route::learn(
        &*shared.datapath,
        &shared.state,
        &shared.node,
        &accepted.pod,
        permit.subject(),
    );
    // A failure is reported with what was tried first.
    let candidate = dialed
        .as_ref()
        .map_or(plan.candidates.first(), |(_, c)| Some(&**c));
    if let Some(candidate) = candidate {
        parties::went_to(candidate, report);
    }
    match dialed {
        Ok((upstream, _)) => Ok(Connected {
            upstream,
            decided_in,
            held: counted,
            bounds: pool.map_or(Bounds::NONE, Bounds::of),
        }),
        Err(error) => {
            let (mesh, from) = (
                &shared.state.load().mesh,
                &permit.subject().source.namespace,
            );
            Err(Stopped::dialing(error, mesh, from, plan.candidates.first()))
        }
    }
}

/// A tunnel that a peer opened to a pod.
pub(super) async fn tunnel(data: Rc<Data>, accepted: Accepted, place: Place) {
    let (pod, local, peer) = (accepted.pod.clone(), accepted.local, accepted.peer);
    let kind = accepted.kind;
    let (mut tunnel, Proven { peer: who, until }) =
        match Box::pin(shake_hands(&data, accepted)).await {
            Ok(ready) => ready,
            Err((reason, error)) => {
                let mut report = data.shared.observer.flow(Direction::Inbound, Some(peer));
                report.record_mut().destination.addr = Some(local);
                report.fail(reason, error);
                return;
            }
        };
    let Some(mut gone) = data.gone(&pod.uid) else {
        return tunnel.abort();
    };
    // A tunnel takes no further flows once the certificate that it rests on has expired.
    let expiry = sleep(Duration::from_secs(
        until.saturating_sub(UnixTime::now().as_secs()),
    ));
    let mut expiry = std::pin::pin!(expiry);
    // At a waypoint, whose replicas share the load, none lives for ever.
    let mut age = std::pin::pin!(async {
        match kind {
            Kind::Waypoint => data.outlived().await,
            Kind::Hbone | Kind::Outbound | Kind::Plaintext => data.draining().await,
        }
    });
    let mut draining = false;
    let arrived = Arrived {
        pod,
        who,
        local,
        peer,
    };
    let arrived = Rc::new(arrived);
    loop {
        tokio::select! {
            request = tunnel.next() => {
                let Some(request) = request else { break };
                let (data, arrived) = (data.clone(), arrived.clone());
                match kind {
                    Kind::Waypoint => {
                        drop(tokio::task::spawn_local(waypoint::stream(data, arrived, request)));
                    }
                    Kind::Hbone | Kind::Outbound | Kind::Plaintext => {
                        drop(tokio::task::spawn_local(stream(data, arrived, request)));
                    }
                }
            }
            _ = gone.changed() => break tunnel.abort(),
            () = &mut age, if !draining => {
                draining = true;
                tunnel.drain();
            }
            () = &mut expiry, if !draining => {
                draining = true;
                tunnel.drain();
            }
        }
    }
    // A peer that broke the rules is named, also when none of its flows lived to say so.
    if let Some(error @ TunnelError::Protocol { .. }) = tunnel.error() {
        let mut report = data.shared.observer.flow(Direction::Inbound, Some(peer));
        let record = report.record_mut();
        record.path = Some(Path::Hbone);
        record.hbone_addr = Some(local);
        record.source.identity = arrived.who.workload().cloned();
        report.fail(error.reason(), error.to_string());
    }
    drop(place);
}

/// A tunnel's ends.
pub(super) struct Arrived {
    pub(super) pod: Arc<Pod>,
    /// Who the peer proved to be.
    pub(super) who: Peer,
    pub(super) local: SocketAddr,
    pub(super) peer: SocketAddr,
}

/// Makes a tunnel of an accepted connection, within the bounds of handshakes.
async fn shake_hands(
    data: &Rc<Data>,
    accepted: Accepted,
) -> Result<(ServerTunnel, Proven), (Reason, String)> {
    let Accepted {
        pod,
        tcp,
        peer,
        kind,
        ..
    } = accepted;
    // Only waypoints have to do with nodes.
    let admits = match kind {
        Kind::Waypoint => Admits::Nodes,
        Kind::Hbone | Kind::Outbound | Kind::Plaintext => Admits::Workloads,
    };
    let shared = &data.shared;
    let results = &shared.observer.metrics().node().handshakes;
    let count = |result: &'static str| {
        results.get_or_create(&ResultLabel { result }).inc();
    };
    let Some(slot) = shared.handshakes.begin(peer.ip()) else {
        count("overloaded");
        reset(tcp);
        return Err((
            Reason::Overloaded,
            "too many TLS handshakes are under way".into(),
        ));
    };
    let handshake = async {
        let tls = shared.certificates.server(&pod.identity, admits).await;
        tunnel::accept(tcp, tls, Limits::server())
            .await
            .map_err(|e| (e.reason(), e.to_string()))
    };
    let tunnel = match timeout(shared.limits.handshake_timeout, handshake).await {
        Ok(outcome) => outcome.inspect_err(|_| count("error"))?,
        Err(_) => {
            count("timeout");
            return Err((
                Reason::TlsFailure,
                "the TLS handshake was not finished in time".into(),
            ));
        }
    };
    drop(slot);
    let proven = identify::peer(tunnel.peer_certificates(), admits, UnixTime::now());
    let proven = proven
        .map_err(|e| (e.reason(), e.to_string()))
        .inspect_err(|_| count("error"))?;
    count("ok");
    Ok((tunnel, proven))
}

/// One CONNECT of a tunnel: a flow that arrives for a pod.
async fn stream(data: Rc<Data>, arrived: Rc<Arrived>, mut request: Incoming) {
    let mut report = data
        .shared
        .observer
        .flow(Direction::Inbound, Some(arrived.peer));
    report.record_mut().path = Some(Path::Hbone);
    report.record_mut().hbone_addr = Some(arrived.local);
    let Some(who) = arrived.who.workload() else {
        let denial = Denial::new(Reason::IdentityMismatch);
        return refuse(request, &Stopped::Denied(denial), &mut report);
    };
    report.record_mut().source.identity = Some(who.clone());
    let Some(place) = data.shared.place() else {
        return refuse(
            request,
            &Stopped::Denied(Denial::new(Reason::Overloaded)),
            &mut report,
        );
    };
    let Some(destination) = authority::parse(request.authority())
        .filter(|a| a.ip() == arrived.local.ip() && arrived.pod.owns(a.ip()))
    else {
        tracing::debug!(pod = %arrived.pod.workload, authority = %request.authority().escape_debug(), "a CONNECT for something else was refused");
        return refuse(
            request,
            &Stopped::Denied(Denial::new(Reason::BadAuthority)),
            &mut report,
        );
    };
    // A waypoint says who is behind it; whether it may, the model decides.
    let (via, client, peer) = match origin::origin(request.headers()) {
        Ok(None) => (None, Some(who.clone()), arrived.peer),
        Ok(Some(of)) => (Some(who), of.identity, of.address),
        Err(origin::Unreadable) => {
            let denial = Denial::new(Reason::BadAuthority);
            return refuse(request, &Stopped::Denied(denial), &mut report);
        }
    };
    if let Some(via) = via {
        let record = report.record_mut();
        record.via = Some(Box::new(Peer::Workload(via.clone())));
        record.source.identity = client.clone();
        record.source.addr = Some(peer);
    }
    let inbound = Inbound {
        pod: &arrived.pod,
        transport: client.map_or(Transport::Plain, Transport::Mtls),
        via,
        peer,
        destination,
    };
    let reached = tokio::select! {
        reached = reach(&data, inbound, &mut report) => reached,
        () = request.cancelled() => Err(Stopped::Abandoned),
    };
    match reached {
        Ok((app, permitted)) => {
            report.opened();
            let subject = permitted.permit.subject();
            let answer = Headers::new().with("baggage", dial::baggage(&subject.workload));
            let stream = request.accept(answer);
            let live = Live {
                pod: &arrived.pod,
                conn: Some(Reviewed::Entered(subject.clone())),
                client_first: false,
                decided_in: permitted.snapshot.generation,
                bounds: Bounds::NONE,
            };
            drop(permitted);
            let carried = Carried::new(&data, live, report, place);
            carried.by(|meter, cut| relay::splice(app, stream, meter, cut));
        }
        Err(stopped) => refuse(request, &stopped, &mut report),
    }
}

pub(super) fn refuse(request: Incoming, stopped: &Stopped, report: &mut FlowGuard) {
    stopped.report(report);
    let shown = stopped.reason().shown();
    request.refuse(shown.hbone, Headers::new().with(REASON_HEADER, shown.key));
}

/// A flow that arrived for a pod.
pub(super) struct Inbound<'a> {
    pub(super) pod: &'a Arc<Pod>,
    pub(super) transport: Transport,
    /// The waypoint that says who the client is.
    pub(super) via: Option<&'a Identity>,
    pub(super) peer: SocketAddr,
    pub(super) destination: SocketAddr,
}

impl Inbound<'_> {
    /// Says in the report who is at both ends.
    pub(super) fn identify(&self, data: &Rc<Data>, report: &mut FlowGuard) {
        report.record_mut().destination.addr = Some(self.destination);
        report.record_mut().destination.identity = Some(self.pod.identity.clone());
        parties::identify(data, self.pod, &self.transport, self.peer, report);
    }
}

/// Says in the report that policy allowed a flow.
pub(super) fn allowed(audited: bool, by: Option<&PolicyName>, report: &mut FlowGuard) {
    let record = report.record_mut();
    record.policy = Some(match audited {
        true => Verdict::Audit,
        false => Verdict::Allow,
    });
    record.policy_name = by.cloned();
}

/// Authorizes an inbound flow and connects to the application.
async fn reach(
    data: &Rc<Data>,
    inbound: Inbound<'_>,
    report: &mut FlowGuard,
) -> Result<(TcpStream, Permitted<Conn>), Stopped> {
    inbound.identify(data, report);
    let Inbound {
        pod,
        transport,
        via,
        peer,
        destination,
    } = inbound;
    let permitted =
        authorize::inbound(&data.shared.state, pod, &transport, via, peer, destination).await?;
    allowed(permitted.audited, permitted.permit.by(), report);
    let app = dial::to_application(
        pod,
        &permitted.permit,
        peer,
        data.shared.limits.connect_timeout,
    )
    .await?;
    Ok((app, permitted))
}

/// What is needed to keep an eye on a live flow.
pub(super) struct Live<'a> {
    pub(super) pod: &'a Arc<Pod>,
    pub(super) conn: Option<Reviewed>,
    pub(super) client_first: bool,
    pub(super) decided_in: u64,
    pub(super) bounds: Bounds,
}

/// A flow that was let through and is about to be relayed, under review.
pub(super) struct Carried {
    place: Place,
    report: Rc<RefCell<FlowGuard>>,
    registered: Registered,
    live_flows: Gauge,
    meter: Meter,
    cut: CutSignal,
    /// What bounds it and cuts it then, where anything does.
    bounds: Option<(Bounds, Hand)>,
}

impl Carried {
    pub(super) fn new(data: &Rc<Data>, live: Live<'_>, report: FlowGuard, place: Place) -> Self {
        let (cutter, cut) = Cutter::new();
        let bounds = (live.bounds != Bounds::NONE).then(|| (live.bounds, cutter.hand()));
        let meter = Meter::new();
        if data.gone(&live.pod.uid).is_none() {
            cutter.cut(Reason::WorkloadGone);
        }
        let sessions = &data.shared.observer.metrics().node().sessions;
        let direction = report.record().direction.as_str();
        let live_flows = sessions.get_or_create_owned(&DirectionLabel { direction });
        live_flows.inc();
        let report = Rc::new(RefCell::new(report));
        let flow = Flow {
            pod: live.pod.uid.clone(),
            conn: live.conn,
            cutter,
            meter: meter.clone(),
            client_first: live.client_first,
            guard: report.clone(),
        };
        let registered = data
            .sessions
            .register(flow, live.decided_in, &data.shared.state);
        Self {
            place,
            report,
            registered,
            live_flows,
            meter,
            cut,
            bounds,
        }
    }

    /// Begins the task that relays the flow to its end and reports it.
    pub(super) fn by<F>(mut self, relay: impl FnOnce(&Meter, CutSignal) -> F)
    where
        F: Future<Output = End> + Unpin + 'static,
    {
        let relay = relay(&self.meter, std::mem::take(&mut self.cut));
        match self.bounds.take() {
            // A flow without bounds does not pay for them.
            None => self.run(relay),
            Some((bounds, hand)) => {
                let relay = relay::bounded(relay, bounds, &self.meter, hand);
                self.run(relay);
            }
        }
    }

    fn run(self, mut relay: impl Future<Output = End> + Unpin + 'static) {
        let Self {
            place,
            report,
            registered,
            live_flows,
            meter: _,
            cut: _,
            bounds: _,
        } = self;
        drop(tokio::task::spawn_local(async move {
            // By reference: an awaited value would lie in the task twice, where it came in and where it is polled.
            let end = (&mut relay).await;
            drop(relay);
            drop(registered);
            live_flows.dec();
            if let Some(reason) = end.reason {
                report
                    .borrow_mut()
                    .fail(reason, end.error.unwrap_or_default());
            }
            drop(report);
            drop(place);
        }));
    }
}

/// Refuses a connection for which there is no place.
pub(super) fn overloaded(data: &Rc<Data>, accepted: Accepted) {
    let direction = match accepted.kind {
        Kind::Outbound => Direction::Outbound,
        Kind::Plaintext | Kind::Hbone => Direction::Inbound,
        Kind::Waypoint => Direction::Through,
    };
    let mut report = data.shared.observer.flow(direction, Some(accepted.peer));
    report.record_mut().destination.addr = Some(accepted.local);
    report.refuse(&Denial::new(Reason::Overloaded));
    accepted.reset();
}
