//! The record of one flow, and the guard that reports it however the flow ends.
//!
//! Invariants: a guard that is dropped writes exactly one access-log line and closes exactly what it
//! opened in the metrics; bytes are counted from the client's view and added to shared counters only
//! when `progress` is called and at the end.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use mesh_model::{
    authz::Denial,
    mesh::Workload,
    name::{Identity, PolicyName, ServiceName},
    reason::Reason,
};

use super::{
    AccessFormat, LogSink, Metrics, RequestGuard, access,
    traffic::{FlowLabels, Reporter, TrafficCounters},
};
use crate::identify::Peer;

/// Which side of a flow this node saw.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Direction {
    /// A connection that arrived for a pod of this node.
    Inbound,
    /// A connection that a pod of this node dialed.
    Outbound,
    /// A connection between two pods of this node that the kernel decided.
    Direct,
    /// A connection that a waypoint carries.
    Through,
    /// A connection from outside the mesh that arrived for a pod of this node, which hands it to the pod's waypoint. It
    /// comes back as another one that is inbound.
    Handed,
}

impl Direction {
    /// The word in the access log.
    pub const fn as_str(self) -> &'static str {
        match self {
            Direction::Inbound => "inbound",
            Direction::Outbound => "outbound",
            Direction::Direct => "direct",
            Direction::Through => "through",
            Direction::Handed => "handed",
        }
    }
}

/// How the bytes of a flow travelled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Path {
    /// In a mutually authenticated tunnel.
    Hbone,
    /// Natively between two pods of one node, permitted by the kernel.
    Direct,
    /// As plain TCP.
    Plain,
}

impl Path {
    /// The word in the access log.
    pub const fn as_str(self) -> &'static str {
        match self {
            Path::Hbone => "hbone",
            Path::Direct => "direct",
            Path::Plain => "plain",
        }
    }
}

/// What policy said.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Verdict {
    /// Permitted.
    Allow,
    /// Refused.
    Deny,
    /// Permitted, and an AUDIT policy matched.
    Audit,
}

impl Verdict {
    /// The word in the access log.
    pub const fn as_str(self) -> &'static str {
        match self {
            Verdict::Allow => "allow",
            Verdict::Deny => "deny",
            Verdict::Audit => "audit",
        }
    }
}

/// One end of a flow, as far as it is known.
#[derive(Clone, Debug, Default)]
pub struct Party {
    /// Its address.
    pub addr: Option<SocketAddr>,
    /// The workload, when the mesh knows it.
    pub workload: Option<Arc<Workload>>,
    /// Who it proved to be (or, for our own pods, whom we act for).
    pub identity: Option<Identity>,
}

/// What TCP itself saw of a direct flow, as the kernel tells it at the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wire {
    /// Smoothed round trip time.
    pub rtt: Duration,
    /// Segments sent again.
    pub retransmits: u32,
}

/// Everything that is reported about a flow. What is unknown stays `None` and is left out.
#[derive(Clone, Debug)]
pub struct FlowRecord {
    /// Which side this node saw.
    pub direction: Direction,
    /// The client.
    pub source: Party,
    /// The server. `addr` is where the application's bytes end.
    pub destination: Party,
    /// Who brought it and told who the source is: a waypoint, or at a waypoint a node.
    pub via: Option<Box<Peer>>,
    /// Where the tunnel went (or what CONNECT asked for).
    pub hbone_addr: Option<SocketAddr>,
    /// The service that was addressed.
    pub service: Option<ServiceName>,
    /// How the bytes travelled.
    pub path: Option<Path>,
    /// What policy said.
    pub policy: Option<Verdict>,
    /// The policy that decided.
    pub policy_name: Option<PolicyName>,
    /// Why it was refused or failed; `None` when all went well.
    pub reason: Option<Reason>,
    /// The failure in words.
    pub error: Option<String>,
}

impl FlowRecord {
    /// A record of which only the client's address is known.
    pub fn new(direction: Direction, source: Option<SocketAddr>) -> Self {
        Self {
            direction,
            source: Party {
                addr: source,
                ..Party::default()
            },
            destination: Party::default(),
            via: None,
            hbone_addr: None,
            service: None,
            path: None,
            policy: None,
            policy_name: None,
            reason: None,
            error: None,
        }
    }

    /// Whether the flow is protected by mutual TLS; a direct flow never is.
    pub fn mtls(&self) -> bool {
        self.path == Some(Path::Hbone)
    }
}

/// What a part needs to report flows. Cloning is cheap; one clone per data thread is usual.
#[derive(Clone, Debug)]
pub struct Observer(Arc<Reporting>);

#[derive(Debug)]
struct Reporting {
    metrics: Metrics,
    sink: LogSink,
    format: AccessFormat,
    access: AtomicBool,
}

impl Observer {
    /// An observer that counts in `metrics` and writes access-log lines to `sink`.
    pub fn new(metrics: Metrics, sink: LogSink, format: AccessFormat, access_log: bool) -> Self {
        Self(Arc::new(Reporting {
            metrics,
            sink,
            format,
            access: AtomicBool::new(access_log),
        }))
    }

    /// An observer that writes no lines: for tests and tools.
    pub fn silent() -> Self {
        Self::new(
            Metrics::new(),
            LogSink::discard(),
            AccessFormat::Text,
            false,
        )
    }

    /// The metrics it counts in.
    pub fn metrics(&self) -> &Metrics {
        &self.0.metrics
    }

    /// Turns the access log on or off, for every clone.
    pub fn set_access_log(&self, on: bool) {
        self.0.access.store(on, Relaxed);
    }

    /// Begins to observe a request that came in a flow.
    pub fn request(&self, flow: FlowRecord) -> RequestGuard {
        RequestGuard::new(self.clone(), flow)
    }

    pub(super) fn logs_access(&self) -> bool {
        self.0.access.load(Relaxed)
    }

    pub(super) fn format(&self) -> AccessFormat {
        self.0.format
    }

    pub(super) fn line(&self, line: Vec<u8>) {
        self.0.sink.line(line);
    }

    /// Begins to observe a flow.
    pub fn flow(&self, direction: Direction, source: Option<SocketAddr>) -> FlowGuard {
        FlowGuard {
            observer: self.clone(),
            record: FlowRecord::new(direction, source),
            started: Instant::now(),
            counters: None,
            kernel: None,
            from_client: 0,
            to_client: 0,
            counted: (0, 0),
            abandoned: false,
        }
    }
}

/// Reports a flow when it is dropped.
#[derive(Debug)]
pub struct FlowGuard {
    observer: Observer,
    record: FlowRecord,
    started: Instant,
    counters: Option<Arc<TrafficCounters>>,
    /// Apart: the flows that are carried here have none of it, and there are many of them at once.
    kernel: Option<Box<Seen>>,
    from_client: u64,
    to_client: u64,
    counted: (u64, u64),
    abandoned: bool,
}

/// What is known of a direct flow beyond its record.
#[derive(Debug, Default)]
struct Seen {
    lasted: Option<Duration>,
    wire: Option<Wire>,
    /// The destination's view, because this node is both ends.
    mirror: Option<Arc<TrafficCounters>>,
}

// Ten thousand idle connections each hold one.
const _: () = assert!(size_of::<FlowGuard>() <= 400);

impl FlowGuard {
    /// What is known so far.
    pub fn record(&self) -> &FlowRecord {
        &self.record
    }

    /// To fill in what has become known.
    pub fn record_mut(&mut self) -> &mut FlowRecord {
        &mut self.record
    }

    /// The flow is established: its labels are final as far as counters go, and it counts as opened.
    /// Calling it again changes nothing.
    pub fn opened(&mut self) {
        if self.counters.is_some() {
            return;
        }
        let counters = self.resolve("-", self.reporter());
        counters.opened.fetch_add(1, Relaxed);
        self.counters = Some(counters);
        if self.record.direction == Direction::Direct {
            let mirror = self.resolve("-", Reporter::Destination);
            mirror.opened.fetch_add(1, Relaxed);
            self.seen().mirror = Some(mirror);
        }
    }

    /// Bytes that were carried since the last call; costs two additions.
    pub fn carried(&mut self, from_client: u64, to_client: u64) {
        self.from_client += from_client;
        self.to_client += to_client;
    }

    /// Bytes carried so far: from the client, to the client.
    pub fn bytes(&self) -> (u64, u64) {
        (self.from_client, self.to_client)
    }

    /// Makes the bytes so far visible in the metrics; for long flows, every few seconds.
    pub fn progress(&mut self) {
        let (from, to) = (
            self.from_client - self.counted.0,
            self.to_client - self.counted.1,
        );
        self.counted = (self.from_client, self.to_client);
        for counters in self.views() {
            counters.received.fetch_add(from, Relaxed);
            counters.sent.fetch_add(to, Relaxed);
        }
    }

    /// Policy (or a check before it) refused the flow.
    pub fn refuse(&mut self, denial: &Denial) {
        self.record.policy = Some(Verdict::Deny);
        self.record.policy_name = denial.policy.clone();
        self.fail(denial.reason, denial.to_string());
    }

    /// The flow failed. The first reason wins: what follows is its consequence.
    pub fn fail(&mut self, reason: Reason, error: impl Into<String>) {
        if self.record.reason.is_none() {
            self.record.reason = Some(reason);
            self.record.error = Some(error.into());
        }
    }

    /// How long the flow lasted, where that is known better than by this guard's own life (kernel events).
    pub fn lasted(&mut self, duration: Duration) {
        self.seen().lasted = Some(duration);
    }

    /// What TCP saw of the flow: for direct flows, of which no other end of ours carries the bytes.
    pub fn wire(&mut self, wire: Wire) {
        self.seen().wire = Some(wire);
    }

    /// Reports nothing: somebody else does.
    pub fn forget(mut self) {
        self.counters = None;
        self.kernel = None;
        self.abandoned = true;
    }

    /// Reports nothing: the flow goes on, and somebody else will see its end.
    pub fn abandon(mut self) {
        self.abandoned = true;
    }

    fn seen(&mut self) -> &mut Seen {
        self.kernel.get_or_insert_default()
    }

    /// Whose counters the flow counts in.
    fn views(&self) -> impl Iterator<Item = &Arc<TrafficCounters>> {
        let mirror = self.kernel.as_ref().and_then(|k| k.mirror.as_ref());
        self.counters.iter().chain(mirror)
    }

    fn reporter(&self) -> Reporter {
        match self.record.direction {
            Direction::Inbound => Reporter::Destination,
            // The node stands for a client that has none.
            Direction::Outbound | Direction::Direct | Direction::Handed => Reporter::Source,
            Direction::Through => Reporter::Waypoint,
        }
    }

    fn resolve(&self, flag: &'static str, reporter: Reporter) -> Arc<TrafficCounters> {
        self.observer.metrics().traffic().resolve(FlowLabels {
            record: &self.record,
            reporter,
            flag,
        })
    }

    fn count_end(&mut self) {
        self.progress();
        for counters in self.views() {
            counters.closed.fetch_add(1, Relaxed);
        }
        let Some(reason) = self.record.reason else {
            return;
        };
        let flag = reason.shown().flag;
        if self.counters.is_none() || flag != "-" {
            self.resolve(flag, self.reporter())
                .failed
                .fetch_add(1, Relaxed);
            self.observer
                .metrics()
                .node()
                .flow_failures
                .get_or_create(&super::node::ReasonLabel::from(reason))
                .inc();
        }
    }
}

impl Drop for FlowGuard {
    fn drop(&mut self) {
        if self.abandoned {
            return self.progress();
        }
        self.count_end();
        if !self.observer.logs_access() {
            return;
        }
        let Seen { lasted, wire, .. } = self.kernel.take().map(|k| *k).unwrap_or_default();
        let ended = access::Ended {
            record: &self.record,
            opened: self.counters.is_some(),
            from_client: self.from_client,
            to_client: self.to_client,
            duration: lasted.unwrap_or_else(|| self.started.elapsed()),
            wire,
        };
        self.observer
            .line(access::line(self.observer.format(), &ended));
    }
}

#[cfg(test)]
#[path = "flow_tests.rs"]
mod tests;
