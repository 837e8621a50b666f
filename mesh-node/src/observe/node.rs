//! All metrics of the process: Istio's traffic metrics and our own, which begin with `warren_`.
//!
//! Invariants: label values are words of this program or names from the configuration; whoever counts
//! often keeps the handle.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicI64, AtomicU64, Ordering::Relaxed},
    },
    time::{SystemTime, UNIX_EPOCH},
};

use mesh_model::reason::Reason;
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeLabelSet, NoLabelSet, text::encode},
    metrics::{MetricType, counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};

use super::{ClusterSource, LogSink, Requests, Traffic, clusters::ClusterMetrics};

/// Where the kernel's counters come from.
pub trait KernelCounters: fmt::Debug + Send + Sync {
    /// `decision`, `refused`, `dropped` or `full`; which decision, the key of the reason, or which map; how often
    /// it happened.
    fn read(&self) -> Vec<(&'static str, &'static str, u64)>;
}

/// The metrics of this process. Cloning shares them.
#[derive(Clone, Debug)]
pub struct Metrics {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    traffic: Traffic,
    requests: Requests,
    node: NodeMetrics,
    registry: std::sync::RwLock<Registry>,
}

/// A reason as a label.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ReasonLabel {
    reason: &'static str,
}

impl From<Reason> for ReasonLabel {
    fn from(reason: Reason) -> Self {
        Self {
            reason: reason.shown().key,
        }
    }
}

/// The one label `result`, e.g. `ok` or `error`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ResultLabel {
    /// Its value.
    pub result: &'static str,
}

/// The one label `direction`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct DirectionLabel {
    /// Its value: `inbound`, `outbound` or `direct`.
    pub direction: &'static str,
}

/// The one label `state`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct StateLabel {
    /// Its value.
    pub state: &'static str,
}

/// The one label `program`: a kernel program.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ProgramLabel {
    /// Its value: `guard` or `anchor`.
    pub program: &'static str,
}

/// The one label `type`: a short name of an xDS type.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct TypeLabel {
    /// Its value.
    pub r#type: String,
}

/// The one label `identity`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct IdentityLabel {
    /// Its value: a SPIFFE URI of a pod of this node.
    pub identity: String,
}

/// How a DNS query came and what became of it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct DnsLabel {
    /// `udp` or `tcp`.
    pub transport: &'static str,
    /// `answered`, `forwarded`, `failed`, `refused` or `malformed`.
    pub result: &'static str,
}

macro_rules! metrics {
    ($($(#[doc = $help:literal])+ $field:ident: $ty:ty = $name:literal;)+) => {
        /// Warren's own metrics.
        #[derive(Debug, Default)]
        pub struct NodeMetrics {
            $($(#[doc = $help])+ pub $field: $ty,)+
            /// When configuration was last received, in seconds since 1970; 0 is never. Shown as an age.
            pub config_received: Arc<AtomicI64>,
        }

        impl NodeMetrics {
            fn register(&self, registry: &mut Registry) {
                $(registry.register($name, concat!($($help),+).trim().trim_end_matches('.'), self.$field.clone());)+
                registry.register_collector(Box::new(ConfigAge(self.config_received.clone())));
            }
        }
    };
}

metrics! {
    /// Flows that were refused or failed, by reason.
    flow_failures: Family<ReasonLabel, Counter> = "warren_flow_failures";
    /// Flows being carried.
    sessions: Family<DirectionLabel, Gauge> = "warren_sessions";
    /// Live flows that a change of policy ended.
    sessions_cut: Counter = "warren_sessions_cut";
    /// Tunnels that are open.
    tunnels: Family<DirectionLabel, Gauge> = "warren_tunnels";
    /// TLS handshakes of tunnels.
    handshakes: Family<ResultLabel, Counter> = "warren_tunnel_handshakes";
    /// Times a listener backed off because the process had no descriptor left.
    accept_backoffs: Counter = "warren_accept_backoffs";
    /// Registered pods, by state.
    pods: Family<StateLabel, Gauge> = "warren_pods";
    /// Pods that the configuration places on this node and that are not registered, because their network
    /// namespaces were not found.
    pods_missing: Gauge = "warren_pods_missing";
    /// Running pods that were found and registered without the CNI plugin.
    pods_found: Counter = "warren_pods_found";
    /// Captured pods whose flows are refused because they carry traffic of others.
    pods_barred: Gauge = "warren_pods_barred";
    /// Whether the CNI plugin is in the container runtime's configuration.
    cni_chained: Gauge = "warren_cni_chained";
    /// Times that the CNI plugin was put into the configuration, or back into it.
    cni_mended: Counter = "warren_cni_mended";
    /// Enrolments, by result.
    enrolments: Family<ResultLabel, Counter> = "warren_enrolments";
    /// Connections older than enrolment that go on outside policy.
    unmeshed_connections: Gauge = "warren_unmeshed_connections";
    /// Sockets inside pods that had to be made while a flow waited.
    sockets_made_late: Counter = "warren_pod_sockets_made_late";
    /// DNS queries of pods.
    dns_requests: Family<DnsLabel, Counter> = "warren_dns_requests";
    /// Events that the kernel reported.
    kernel_events: Counter = "warren_kernel_events_read";
    /// Events that the kernel could not report because the buffer was full, or that did not parse.
    kernel_events_lost: Counter = "warren_kernel_events_lost";
    /// Sockets in the pods that programs of an earlier map layout may serve, which are kept for as long.
    elder_sockets: Gauge = "warren_earlier_layout_sockets";
    /// Heartbeats that could not be written to the kernel.
    heartbeat_failures: Counter = "warren_heartbeat_failures";
    /// Whether connections between pods of this node may go direct.
    direct_allowed: Gauge = "warren_direct_allowed";
    /// Direct flows that ended, of those that were established.
    direct_flows: Counter = "warren_direct_flows";
    /// Their smoothed round trip times at the end, added up, in microseconds.
    direct_rtt: Counter = "warren_direct_rtt_microseconds";
    /// Segments that they sent again.
    direct_retransmits: Counter = "warren_direct_retransmits";
    /// Interfaces that have a guard or an anchor.
    interfaces_watched: Gauge = "warren_interfaces_watched";
    /// Interfaces that should have a guard or an anchor at the head of their chain and have not.
    interfaces_open: Gauge = "warren_interfaces_open";
    /// Guards and anchors that had lost their places on an interface and were put back.
    programs_restored: Family<ProgramLabel, Counter> = "warren_programs_restored";
    /// Whether the node's kubelet was found, so that its probes are recognised.
    kubelet_found: Gauge = "warren_kubelet_found";
    /// Programs that share kubelet's cgroup, whose connections pass as probes too.
    kubelet_cgroup_others: Gauge = "warren_kubelet_cgroup_others";
    /// Whether the stream to the controller is up.
    xds_connected: Gauge = "warren_xds_connected";
    /// Streams to the controller that were opened, by result.
    xds_connections: Family<ResultLabel, Counter> = "warren_xds_connections";
    /// Responses of the controller that were refused.
    xds_nacks: Family<TypeLabel, Counter> = "warren_xds_nacks";
    /// Host names of endpoints that the node resolved itself.
    name_lookups: Family<ResultLabel, Counter> = "warren_name_lookups";
    /// Resources received from the controller.
    xds_resources: Family<TypeLabel, Counter> = "warren_xds_resources";
    /// When the certificate of an identity expires, in seconds since 1970.
    certificate_expiry: Family<IdentityLabel, Gauge> = "warren_certificate_expiry_timestamp_seconds";
    /// Attempts to get a certificate.
    certificate_requests: Family<ResultLabel, Counter> = "warren_certificate_requests";
    /// Spans that ended, by what became of them.
    spans: Family<ResultLabel, Counter> = "warren_spans";
    /// Copies of requests (mirrors) that were to be sent, by what became of them.
    mirrors: Family<ResultLabel, Counter> = "warren_mirrors";
    /// Whether the process is draining.
    draining: Gauge = "warren_draining";
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// Metrics at zero.
    pub fn new() -> Self {
        let mut registry = Registry::default();
        let (traffic, node) = (Traffic::default(), NodeMetrics::default());
        node.register(&mut registry);
        registry.register_collector(Box::new(traffic.clone()));
        let requests = Requests::default();
        registry.register_collector(Box::new(requests.clone()));
        let shared = traffic.clone();
        registry.register_collector(Box::new(Number {
            name: "warren_metrics_overflowed",
            help: "Flows that shared a label set because there were too many",
            read: Box::new(move || shared.overflowed()),
        }));
        let build =
            prometheus_client::metrics::info::Info::new([("version", env!("CARGO_PKG_VERSION"))]);
        registry.register("warren_build", "Version of this build", build);
        Self {
            inner: Arc::new(Inner {
                traffic,
                requests,
                node,
                registry: registry.into(),
            }),
        }
    }

    /// Istio's HTTP metrics.
    pub fn requests(&self) -> &Requests {
        &self.inner.requests
    }

    /// Istio's TCP metrics.
    pub fn traffic(&self) -> &Traffic {
        &self.inner.traffic
    }

    /// Warren's own.
    pub fn node(&self) -> &NodeMetrics {
        &self.inner.node
    }

    /// Shows the kernel's counters too.
    pub fn add_kernel(&self, source: Arc<dyn KernelCounters>) {
        self.register(Box::new(Kernel(source)));
    }

    /// Shows how clusters are doing.
    pub fn add_clusters(&self, source: Box<dyn ClusterSource>) {
        self.register(Box::new(ClusterMetrics(source)));
    }

    /// Shows how many log lines were dropped.
    pub fn add_log(&self, sink: &LogSink) {
        let sink = sink.clone();
        let read = Box::new(move || sink.dropped());
        self.register(Box::new(Number {
            name: "warren_log_lines_dropped",
            help: "Log lines dropped because the output was too slow",
            read,
        }));
    }

    /// Adds metrics that are read when they are asked for.
    pub fn register(&self, collector: Box<dyn Collector>) {
        self.inner
            .registry
            .write()
            .expect("no code panics while it holds the registry")
            .register_collector(collector);
    }

    /// The exposition text.
    pub fn text(&self) -> Result<String, fmt::Error> {
        let mut text = String::with_capacity(16 << 10);
        encode(
            &mut text,
            &self
                .inner
                .registry
                .read()
                .expect("no code panics while it holds the registry"),
        )?;
        Ok(text)
    }
}

struct Number {
    name: &'static str,
    help: &'static str,
    read: Box<dyn Fn() -> u64 + Send + Sync>,
}

impl fmt::Debug for Number {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}

impl Collector for Number {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        encoder
            .encode_descriptor(self.name, self.help, None, MetricType::Counter)?
            .encode_counter::<NoLabelSet, u64, u64>(&(self.read)(), None)
    }
}

#[derive(Debug)]
struct ConfigAge(Arc<AtomicI64>);

impl Collector for ConfigAge {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let at = self.0.load(Relaxed);
        if at == 0 {
            return Ok(());
        }
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |d| i64::try_from(d.as_secs()).unwrap_or(i64::MAX));
        let help =
            "Seconds since configuration was last received from the controller or confirmed by it";
        encoder
            .encode_descriptor("warren_config_age_seconds", help, None, MetricType::Gauge)?
            .encode_gauge(&now.saturating_sub(at).max(0))
    }
}

#[derive(Debug)]
struct Kernel(Arc<dyn KernelCounters>);

impl Collector for Kernel {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let help = "Decisions, refusals at connect and drops of the kernel programs, and maps that were full";
        let mut family =
            encoder.encode_descriptor("warren_kernel", help, None, MetricType::Counter)?;
        for (kind, name, value) in self.0.read() {
            // Reasons that never happened would only be noise.
            if value > 0 || kind == "decision" {
                family
                    .encode_family(&[("kind", kind), ("name", name)])?
                    .encode_counter::<NoLabelSet, u64, u64>(&value, None)?;
            }
        }
        Ok(())
    }
}

/// What happens in several places, counted in the same way.
impl NodeMetrics {
    /// Counts a copy of a request.
    pub fn mirrored(&self, result: &'static str) {
        self.mirrors.get_or_create(&ResultLabel { result }).inc();
    }

    /// Sets the age of the configuration to zero.
    pub fn config_is_fresh(&self) {
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |d| i64::try_from(d.as_secs()).unwrap_or(i64::MAX));
        self.config_received.store(now, Relaxed);
    }
}

// Counters of ours are 64 bits wide on every target that the node proxy runs on.
const _: () = assert!(size_of::<AtomicU64>() == 8);
