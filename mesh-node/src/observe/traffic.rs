//! Istio's TCP metrics: one set of five counters per label set, resolved once per flow.
//!
//! Invariants: label values come from the configuration, never from what a client sends, so that the
//! number of sets is bounded by workloads and services; past `LIMIT` flows share one set per reporter.
//! A thread keeps what it resolved, so that the shared lock is not on the way of every flow.

use std::{
    cell::RefCell,
    collections::HashMap,
    fmt,
    hash::{Hash, Hasher},
    sync::{
        Arc, RwLock,
        atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
};

use mesh_model::{
    mesh::Workload,
    name::{Identity, ServiceName},
};
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeLabel, EncodeLabelSet, LabelSetEncoder, NoLabelSet},
    metrics::MetricType,
};

use super::flow::{FlowRecord, Party};

/// How many label sets are kept before flows share one.
const LIMIT: usize = 10_000;

/// How many resolved sets a thread keeps before it starts again.
const THREAD_LIMIT: usize = 512;

/// Which end reports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reporter {
    /// The client's node.
    Source,
    /// The server's node.
    Destination,
    /// The waypoint between them.
    Waypoint,
}

/// The five counters of a label set. `sent` goes to the client and `received` comes from it, as Istio defines them.
#[derive(Debug, Default)]
pub struct TrafficCounters {
    /// Connections opened.
    pub opened: AtomicU64,
    /// Connections closed.
    pub closed: AtomicU64,
    /// Bytes of responses.
    pub sent: AtomicU64,
    /// Bytes of requests.
    pub received: AtomicU64,
    /// Connections that failed.
    pub failed: AtomicU64,
}

/// What the labels of a flow are made of.
#[derive(Clone, Copy)]
pub(super) struct FlowLabels<'a> {
    pub record: &'a FlowRecord,
    pub reporter: Reporter,
    pub flag: &'static str,
}

/// All label sets of this process. Cloning shares them.
#[derive(Clone, Debug, Default)]
pub struct Traffic {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    id: usize,
    sets: RwLock<HashMap<Arc<Labels>, Arc<TrafficCounters>>>,
    overflowed: AtomicU64,
}

impl Default for Inner {
    fn default() -> Self {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        Self {
            id: NEXT.fetch_add(1, Relaxed),
            sets: RwLock::default(),
            overflowed: AtomicU64::new(0),
        }
    }
}

thread_local! {
    static RESOLVED: RefCell<HashMap<CacheKey, Arc<TrafficCounters>>> = RefCell::default();
}

impl Traffic {
    /// The counters of a flow.
    pub(super) fn resolve(&self, flow: FlowLabels<'_>) -> Arc<TrafficCounters> {
        let key = CacheKey::new(self.inner.id, flow);
        RESOLVED.with_borrow_mut(|cache| {
            if let Some(found) = cache.get(&key) {
                return found.clone();
            }
            let counters = self.shared(Labels::new(flow));
            if cache.len() >= THREAD_LIMIT {
                cache.clear();
            }
            cache.insert(key, counters.clone());
            counters
        })
    }

    /// How many flows had to share a label set because there were too many.
    pub fn overflowed(&self) -> u64 {
        self.inner.overflowed.load(Relaxed)
    }

    fn shared(&self, labels: Labels) -> Arc<TrafficCounters> {
        let poisoned = "no code panics while it holds the lock of the label sets";
        if let Some(found) = self.inner.sets.read().expect(poisoned).get(&labels) {
            return found.clone();
        }
        let mut sets = self.inner.sets.write().expect(poisoned);
        let labels = if sets.len() < LIMIT || sets.contains_key(&labels) {
            labels
        } else {
            self.inner.overflowed.fetch_add(1, Relaxed);
            labels.anonymous()
        };
        sets.entry(Arc::new(labels)).or_default().clone()
    }
}

/// What a thread remembers a resolved set by. Workloads are compared by pointer; holding them keeps the pointers unique.
#[derive(Clone)]
struct CacheKey {
    traffic: usize,
    reporter: Reporter,
    flag: &'static str,
    mtls: bool,
    ends: [(Option<Arc<Workload>>, Option<Identity>); 2],
    service: Option<ServiceName>,
}

impl CacheKey {
    fn new(traffic: usize, flow: FlowLabels<'_>) -> Self {
        let end = |p: &Party| (p.workload.clone(), p.identity.clone());
        let r = flow.record;
        Self {
            traffic,
            reporter: flow.reporter,
            flag: flow.flag,
            mtls: r.mtls(),
            ends: [end(&r.source), end(&r.destination)],
            service: r.service.clone(),
        }
    }

    fn pointers(&self) -> [Option<*const Workload>; 2] {
        [0, 1].map(|i| self.ends[i].0.as_ref().map(Arc::as_ptr))
    }
}

impl PartialEq for CacheKey {
    fn eq(&self, other: &Self) -> bool {
        self.traffic == other.traffic
            && self.reporter == other.reporter
            && self.flag == other.flag
            && self.mtls == other.mtls
            && self.pointers() == other.pointers()
            && self.service == other.service
            && self.ends[0].1 == other.ends[0].1
            && self.ends[1].1 == other.ends[1].1
    }
}

impl Eq for CacheKey {}

impl Hash for CacheKey {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.pointers().hash(state);
        self.reporter.hash(state);
        self.service
            .as_ref()
            .map(|s| s.hostname.as_str())
            .hash(state);
    }
}

/// The label values of one set; `None` is shown as `unknown`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Labels {
    reporter: Reporter,
    source: End,
    service: Option<ServiceName>,
    service_short: Option<Arc<str>>,
    destination: End,
    flag: &'static str,
    mtls: bool,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
struct End {
    workload: Option<Arc<str>>,
    canonical: Option<Arc<str>>,
    revision: Option<Arc<str>>,
    namespace: Option<Arc<str>>,
    principal: Option<Identity>,
    cluster: Option<Arc<str>>,
}

impl End {
    fn new(party: &Party) -> Self {
        let some = |text: &Arc<str>| (!text.is_empty()).then(|| text.clone());
        let principal = party.identity.clone();
        match party.workload.as_deref() {
            None => Self {
                namespace: principal.as_ref().map(|i| i.namespace.as_str().into()),
                principal,
                ..Self::default()
            },
            Some(w) => Self {
                workload: some(&w.canonical.workload_name),
                canonical: some(&w.canonical.name),
                revision: some(&w.canonical.revision),
                namespace: Some(w.namespace.as_str().into()),
                principal,
                cluster: some(&w.cluster.as_str().into()),
            },
        }
    }
}

impl Labels {
    pub(super) fn new(flow: FlowLabels<'_>) -> Self {
        let r = flow.record;
        let short = r
            .service
            .as_ref()
            .and_then(|s| s.hostname.as_str().split('.').next())
            .map(Into::into);
        Self {
            reporter: flow.reporter,
            source: End::new(&r.source),
            service: r.service.clone(),
            service_short: short,
            destination: End::new(&r.destination),
            flag: flow.flag,
            mtls: r.mtls(),
        }
    }

    pub(super) fn anonymous(self) -> Self {
        Self {
            source: End::default(),
            destination: End::default(),
            service: None,
            service_short: None,
            ..self
        }
    }

    /// Names and values in Istio's order.
    pub(super) fn pairs(&self) -> [(&'static str, String); 23] {
        let text = |v: &Option<Arc<str>>| v.as_deref().unwrap_or("unknown").to_owned();
        let who = |v: &Option<Identity>| {
            v.as_ref()
                .map_or_else(|| "unknown".to_owned(), Identity::to_string)
        };
        let service =
            |f: fn(&ServiceName) -> &str| self.service.as_ref().map_or("unknown", f).to_owned();
        let (s, d) = (&self.source, &self.destination);
        let reporter = match self.reporter {
            Reporter::Source => "source",
            Reporter::Destination => "destination",
            Reporter::Waypoint => "waypoint",
        };
        [
            ("reporter", reporter.to_owned()),
            ("source_workload", text(&s.workload)),
            ("source_canonical_service", text(&s.canonical)),
            ("source_canonical_revision", text(&s.revision)),
            ("source_workload_namespace", text(&s.namespace)),
            ("source_principal", who(&s.principal)),
            ("source_app", text(&s.canonical)),
            ("source_version", text(&s.revision)),
            ("source_cluster", text(&s.cluster)),
            ("destination_service", service(|n| n.hostname.as_str())),
            (
                "destination_service_namespace",
                service(|n| n.namespace.as_str()),
            ),
            ("destination_service_name", text(&self.service_short)),
            ("destination_workload", text(&d.workload)),
            ("destination_canonical_service", text(&d.canonical)),
            ("destination_canonical_revision", text(&d.revision)),
            ("destination_workload_namespace", text(&d.namespace)),
            ("destination_principal", who(&d.principal)),
            ("destination_app", text(&d.canonical)),
            ("destination_version", text(&d.revision)),
            ("destination_cluster", text(&d.cluster)),
            ("request_protocol", "tcp".to_owned()),
            ("response_flags", self.flag.to_owned()),
            (
                "connection_security_policy",
                if self.mtls { "mutual_tls" } else { "unknown" }.to_owned(),
            ),
        ]
    }
}

impl EncodeLabelSet for Labels {
    fn encode(&self, encoder: &mut LabelSetEncoder<'_>) -> fmt::Result {
        self.pairs()
            .into_iter()
            .try_for_each(|(name, value)| (name, value.as_str()).encode(encoder.encode_label()))
    }
}

/// A counter's name, its help, and where it is kept.
type Row = (
    &'static str,
    &'static str,
    fn(&TrafficCounters) -> &AtomicU64,
);

const ROWS: [Row; 5] = [
    (
        "istio_tcp_connections_opened",
        "TCP connections opened",
        |c| &c.opened,
    ),
    (
        "istio_tcp_connections_closed",
        "TCP connections closed",
        |c| &c.closed,
    ),
    (
        "istio_tcp_sent_bytes",
        "bytes sent to clients in responses",
        |c| &c.sent,
    ),
    (
        "istio_tcp_received_bytes",
        "bytes received from clients in requests",
        |c| &c.received,
    ),
    (
        "istio_tcp_connections_failed",
        "TCP connections that were refused or failed",
        |c| &c.failed,
    ),
];

impl Collector for Traffic {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let sets: Vec<_> = {
            let sets = self
                .inner
                .sets
                .read()
                .expect("no code panics while it holds the lock of the label sets");
            sets.iter()
                .map(|(labels, counters)| (labels.clone(), counters.clone()))
                .collect()
        };
        for (name, help, get) in ROWS {
            let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
            for (labels, counters) in &sets {
                let value = get(counters).load(Relaxed);
                if value > 0 {
                    let mut one = family.encode_family(&**labels)?;
                    one.encode_counter::<NoLabelSet, u64, u64>(&value, None)?;
                }
            }
        }
        Ok(())
    }
}
