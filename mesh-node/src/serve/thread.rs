//! The data threads: one runtime each, its listeners, its flows.
//!
//! Invariants: nothing on a data thread waits for the control path without a bound; a listener is closed when
//! its pod goes; draining stops accepting first, lets flows end, then ends them.

use std::{
    cell::RefCell,
    collections::HashMap,
    io,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    thread::JoinHandle,
    time::Duration,
};

use mesh_model::{name::NodeName, reason::Reason};
use tokio::{
    net::TcpListener,
    sync::{mpsc, watch},
    task::{AbortHandle, LocalSet},
    time::MissedTickBehavior,
};

use super::{Sessions, plaintext, tcp};
use crate::{
    accept::{self, Accepted, Kind, ListenerEvent, Pod, PodUid},
    capture::Datapath,
    config::Limits,
    dial::Tunnels,
    dns::Names,
    exchange::{Clusters, Connections, Joined},
    identify::{Certificates, Handshakes, Held},
    observe::{Observer, Spans},
    state::MeshState,
    tunnel,
};

/// How often the bytes of long flows are made visible.
const PROGRESS: Duration = Duration::from_secs(5);
/// How long ended flows get to close their sockets.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// What all data threads share.
#[derive(Debug)]
pub struct Shared {
    /// This node.
    pub node: NodeName,
    /// The mesh.
    pub state: MeshState,
    /// Certificates.
    pub certificates: Certificates,
    /// The kernel.
    pub datapath: Arc<dyn Datapath>,
    /// Reports.
    pub observer: Observer,
    /// Handshakes under way.
    pub handshakes: Arc<Handshakes>,
    /// Bounds.
    pub limits: Limits,
    /// Addresses of hosts that are known by name only.
    pub names: Names,
    /// Flows under way.
    pub flows: AtomicUsize,
    /// What requests are balanced over.
    pub clusters: Clusters,
    /// Spans of requests.
    pub spans: Spans,
}

/// Whether the data threads take traffic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Serving,
    Draining,
    Ended,
}

/// The running data threads.
#[derive(Debug)]
pub struct DataThreads {
    phase: watch::Sender<Phase>,
    threads: Vec<JoinHandle<()>>,
    /// Closed when any thread has ended.
    alive: watch::Receiver<()>,
}

/// What everything on one data thread sees.
#[derive(Debug)]
pub struct Data {
    /// What all threads share.
    pub shared: Arc<Shared>,
    /// This thread's tunnels to peers.
    pub tunnels: Rc<Tunnels>,
    /// This thread's connections that carry requests.
    pub connections: Connections,
    /// This thread's live flows.
    pub sessions: Sessions,
    pods: RefCell<HashMap<PodUid, Served>>,
    phase: watch::Receiver<Phase>,
}

/// A pod that this thread serves. Dropping it closes its listeners and tells its tunnels.
#[derive(Debug)]
struct Served {
    listening: Vec<Listening>,
    gone: watch::Sender<()>,
    _certificate: Held,
}

#[derive(Debug)]
struct Listening {
    pod: Arc<Pod>,
    kind: Kind,
    listener: Rc<TcpListener>,
    accepting: Option<AbortHandle>,
}

/// One of the bounded number of places for flows; dropping it gives it back.
#[derive(Debug)]
pub struct Place(Arc<Shared>, Option<Box<Joined>>);

impl DataThreads {
    /// Starts one thread per receiver.
    pub fn start(
        shared: Arc<Shared>,
        receivers: Vec<mpsc::Receiver<ListenerEvent>>,
    ) -> io::Result<Self> {
        let (phase, _) = watch::channel(Phase::Serving);
        let (living, alive) = watch::channel(());
        let living = Arc::new(living);
        let mut threads = Vec::new();
        for (n, events) in receivers.into_iter().enumerate() {
            let (shared, phase, living) = (shared.clone(), phase.subscribe(), living.clone());
            let run = move || {
                let _living = living;
                let runtime = tokio::runtime::Builder::new_current_thread()
                    .enable_all()
                    .build();
                let runtime = runtime
                    .expect("a runtime needs a few descriptors, which a starting process has");
                LocalSet::new().block_on(&runtime, Data::new(shared, phase).run(events));
            };
            threads.push(
                std::thread::Builder::new()
                    .name(format!("data-{n}"))
                    .spawn(run)?,
            );
        }
        Ok(Self {
            phase,
            threads,
            alive,
        })
    }

    /// Waits until a thread has ended, which in ordinary life none does.
    pub async fn ended(&self) {
        let mut alive = self.alive.clone();
        // An error means that every sender is gone; a value is never sent.
        while alive.changed().await.is_ok() {}
    }

    /// Stops accepting and tells peers to go elsewhere; live flows go on.
    pub fn drain(&self) {
        self.phase.send_replace(Phase::Draining);
    }

    /// Ends the flows that are left, and the threads.
    pub async fn end(self) {
        self.phase.send_replace(Phase::Ended);
        let joined = tokio::task::spawn_blocking(move || {
            self.threads.into_iter().for_each(|t| drop(t.join()))
        });
        if tokio::time::timeout(LAST_WORDS * 3, joined).await.is_err() {
            tracing::error!("a data thread did not end in time");
        }
    }
}

impl Shared {
    /// What it does now, for dumps.
    pub fn describe(&self) -> serde_json::Value {
        serde_json::json!({
            "flows": self.flows.load(Relaxed),
            "clusters": self.clusters.describe(),
        })
    }

    /// A place for one more flow, if there is one.
    pub fn place(self: &Arc<Self>) -> Option<Place> {
        let taken = self.flows.fetch_add(1, Relaxed);
        let place = Place(self.clone(), None);
        (taken < self.limits.flows).then_some(place)
    }
}

impl Place {
    /// Holds, beside itself, a flow's place among its cluster's connections.
    pub fn holding(mut self, joined: Option<Joined>) -> Self {
        self.1 = joined.map(Box::new);
        self
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.flows.fetch_sub(1, Relaxed);
    }
}

impl Data {
    fn new(shared: Arc<Shared>, phase: watch::Receiver<Phase>) -> Rc<Self> {
        let mut limits = crate::wire::Limits::client();
        limits.idle = shared.limits.tunnel_idle;
        let tunnels = Rc::new(Tunnels::new(
            shared.certificates.clone(),
            limits,
            shared.limits.connect_timeout,
        ));
        Rc::new(Self {
            shared,
            tunnels,
            connections: Connections::default(),
            sessions: Sessions::default(),
            pods: RefCell::default(),
            phase,
        })
    }

    async fn run(self: Rc<Self>, mut events: mpsc::Receiver<ListenerEvent>) {
        let mut phase = self.phase.clone();
        let mut diffs = self.shared.state.diffs();
        let mut progress = tokio::time::interval(PROGRESS);
        progress.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                event = events.recv() => match event {
                    Some(event) => self.on_event(event),
                    None => break,
                },
                diff = diffs.next() => {
                    let snapshot = self.shared.state.load();
                    let cut = self.sessions.review(&diff, &snapshot);
                    self.shared.observer.metrics().node().sessions_cut.inc_by(cut as u64);
                    let is_gone = |name: &_| snapshot.mesh.service(name).is_none();
                    if diff.services.iter().any(is_gone) {
                        self.shared.clusters.forget(is_gone);
                    }
                }
                _ = progress.tick() => {
                    self.sessions.progress();
                    self.connections.sweep();
                }
                changed = phase.changed() => {
                    if changed.is_err() || *phase.borrow_and_update() == Phase::Ended {
                        break;
                    }
                    self.pods.borrow_mut().values_mut().for_each(|served| served.listening.clear());
                    self.connections.clear();
                    self.tunnels.retire_all();
                }
            }
        }
        self.sessions.cut_all(Reason::Draining);
        self.pods.borrow_mut().clear();
        let quiet = async {
            while !self.sessions.is_empty() || tunnel::open_tunnels() > 0 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        // Flows that do not end now end with the process. Tunnels say goodbye first: a socket that is closed
        // with something unread resets its peer, and the last bytes of a flow with it.
        let _ = tokio::time::timeout(LAST_WORDS, quiet).await;
    }

    fn on_event(self: &Rc<Self>, event: ListenerEvent) {
        match event {
            ListenerEvent::Add {
                pod,
                kind,
                listener,
            } => self.add(pod, kind, listener),
            ListenerEvent::Remove { uid, reason } => {
                if let Some(served) = self.pods.borrow_mut().remove(&uid) {
                    served
                        .listening
                        .first()
                        .inspect(|l| self.tunnels.retire_pod(&l.pod.addresses));
                }
                self.sessions.cut_pod(&uid, reason);
            }
            ListenerEvent::Pause => self.each_listening(|_, l| {
                if let Some(accepting) = l.accepting.take() {
                    accepting.abort();
                }
            }),
            ListenerEvent::Resume => self.each_listening(|data, l| {
                if l.accepting.is_none() {
                    l.accepting = Some(data.accept_on(l.pod.clone(), l.kind, l.listener.clone()));
                }
            }),
        }
    }

    fn each_listening(self: &Rc<Self>, mut act: impl FnMut(&Rc<Self>, &mut Listening)) {
        let mut pods = self.pods.borrow_mut();
        pods.values_mut()
            .flat_map(|p| &mut p.listening)
            .for_each(|l| act(self, l));
    }

    fn add(self: &Rc<Self>, pod: Arc<Pod>, kind: Kind, listener: std::net::TcpListener) {
        if *self.phase.borrow() != Phase::Serving {
            return;
        }
        let listener = match TcpListener::from_std(listener) {
            Ok(listener) => Rc::new(listener),
            Err(error) => {
                tracing::error!(pod = %pod.workload, ?kind, %error, "a listener cannot be served; connections to it wait for another data thread");
                return;
            }
        };
        let accepting = Some(self.accept_on(pod.clone(), kind, listener.clone()));
        let mut pods = self.pods.borrow_mut();
        let served = pods.entry(pod.uid.clone()).or_insert_with(|| Served {
            listening: Vec::new(),
            gone: watch::Sender::new(()),
            _certificate: self.shared.certificates.hold(&pod.identity),
        });
        served.listening.push(Listening {
            pod,
            kind,
            listener,
            accepting,
        });
    }

    fn accept_on(
        self: &Rc<Self>,
        pod: Arc<Pod>,
        kind: Kind,
        listener: Rc<TcpListener>,
    ) -> AbortHandle {
        let data = self.clone();
        let accept = async move {
            let metrics = data.shared.observer.metrics().clone();
            loop {
                let backed_off = |error: &io::Error| {
                    metrics.node().accept_backoffs.inc();
                    tracing::warn!(pod = %pod.workload, ?kind, %error, "accepting pauses");
                };
                match accept::next(&listener, backed_off).await {
                    Ok((tcp, peer)) => data.take(&pod, kind, tcp, peer),
                    Err(error) => {
                        tracing::error!(pod = %pod.workload, ?kind, %error, "a listener failed and is closed");
                        return;
                    }
                }
            }
        };
        tokio::task::spawn_local(accept).abort_handle()
    }

    fn take(
        self: &Rc<Self>,
        pod: &Arc<Pod>,
        kind: Kind,
        tcp: tokio::net::TcpStream,
        peer: std::net::SocketAddr,
    ) {
        // A connection that is gone already needs no answer.
        let Ok(accepted) = Accepted::new(pod.clone(), kind, tcp, peer) else {
            return;
        };
        let Some(place) = self.shared.place() else {
            tcp::overloaded(self, accepted);
            return;
        };
        let data = self.clone();
        match kind {
            Kind::Outbound => drop(tokio::task::spawn_local(tcp::outbound(
                data, accepted, place,
            ))),
            Kind::Plaintext => drop(tokio::task::spawn_local(plaintext::arrived(
                data, accepted, place,
            ))),
            Kind::Hbone | Kind::Waypoint => {
                drop(tokio::task::spawn_local(tcp::tunnel(data, accepted, place)));
            }
        }
    }

    /// A receiver that fails when the pod has gone; `None` when it has gone already.
    pub fn gone(&self, pod: &PodUid) -> Option<watch::Receiver<()>> {
        self.pods
            .borrow()
            .get(pod)
            .map(|served| served.gone.subscribe())
    }

    /// Waits until something that clients of a waypoint hold open has lived long enough. Not all at once: each lives up to
    /// a fifth less.
    pub async fn age(&self) {
        let age = self.shared.limits.waypoint_age;
        tokio::time::sleep(age.mul_f64(1.0 - 0.2 * fastrand::f64())).await;
    }

    /// The same, or until this thread drains.
    pub async fn outlived(&self) {
        tokio::select! {
            () = self.draining() => {}
            () = self.age() => {}
        }
    }

    /// Waits until this thread drains.
    pub async fn draining(&self) {
        let mut phase = self.phase.clone();
        // An error means that the process ends, which is draining too.
        let _ = phase.wait_for(|p| *p != Phase::Serving).await;
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        if let Some(accepting) = self.accepting.take() {
            accepting.abort();
        }
    }
}
