//! Istio's HTTP metrics: a counter, histograms of durations and of the sizes of bodies, and counters of gRPC's messages, per
//! label set.
//!
//! Invariant: past `LIMIT` sets requests share one per status, so that their number stays bounded.

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeLabel, EncodeLabelSet, LabelSetEncoder, NoLabelSet},
    metrics::MetricType,
};

use super::{
    FlowRecord, Reporter, RequestRecord,
    traffic::{FlowLabels, Labels},
};

/// How many label sets are kept before requests share one.
const LIMIT: usize = 10_000;
/// Upper bounds of Istio's buckets, which are the same for all histograms: milliseconds, or bytes.
const BUCKETS: [f64; 19] = [
    0.5,
    1.0,
    5.0,
    10.0,
    25.0,
    50.0,
    100.0,
    250.0,
    500.0,
    1_000.0,
    2_500.0,
    5_000.0,
    10_000.0,
    30_000.0,
    60_000.0,
    300_000.0,
    600_000.0,
    1_800_000.0,
    3_600_000.0,
];

/// What the labels of a request are made of.
#[derive(Clone, Copy)]
pub(super) struct RequestLabels<'a> {
    pub flow: &'a FlowRecord,
    pub request: &'a RequestRecord,
}

/// All label sets of the process. Cloning shares them.
#[derive(Clone, Debug, Default)]
pub struct Requests(Arc<Mutex<HashMap<Set, Counts>>>);

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Set {
    flow: Labels,
    status: u16,
    grpc: Option<u16>,
    protocol: &'static str,
    flags: String,
}

#[derive(Clone, Debug, Default)]
struct Counts {
    /// Milliseconds.
    took: Histogram,
    /// Bytes of the requests' bodies.
    received: Histogram,
    /// Bytes of the responses' bodies.
    sent: Histogram,
    /// Messages of gRPC in the requests' bodies, and in the responses'.
    messages: [u64; 2],
}

#[derive(Clone, Debug, Default)]
struct Histogram {
    count: u64,
    sum: f64,
    buckets: [u64; BUCKETS.len()],
    /// More than any bucket.
    over: u64,
}

impl Histogram {
    fn add(&mut self, value: f64) {
        self.count += 1;
        self.sum += value;
        match BUCKETS.iter().position(|bound| value <= *bound) {
            Some(at) => self.buckets[at] += 1,
            None => self.over += 1,
        }
    }
}

impl Requests {
    pub(super) fn count(&self, labels: RequestLabels<'_>, took: Duration) {
        let RequestLabels { flow, request } = labels;
        let set = Set {
            flow: Labels::new(FlowLabels {
                record: flow,
                reporter: Reporter::Waypoint,
                flag: "-",
            }),
            status: request.status,
            grpc: request.grpc_status,
            protocol: if request.grpc { GRPC } else { "http" },
            flags: request.shown_flags(),
        };
        let ms = took.as_secs_f64() * 1000.0;
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let set = match all.len() < LIMIT || all.contains_key(&set) {
            true => set,
            false => Set {
                flow: set.flow.anonymous(),
                ..set
            },
        };
        let counts = all.entry(set).or_default();
        counts.took.add(ms);
        // Beyond 2^53 bytes a float is not exact.
        counts.received.add(request.received as f64);
        counts.sent.add(request.sent as f64);
        counts.messages[0] += request.messages_received;
        counts.messages[1] += request.messages_sent;
    }
}

impl EncodeLabelSet for Set {
    fn encode(&self, encoder: &mut LabelSetEncoder<'_>) -> fmt::Result {
        for (name, value) in self.flow.pairs() {
            let value = match name {
                "request_protocol" => self.protocol,
                "response_flags" => &self.flags,
                _ => &value,
            };
            (name, value).encode(encoder.encode_label())?;
        }
        let status = self.status.to_string();
        ("response_code", status.as_str()).encode(encoder.encode_label())?;
        let grpc = self.grpc.map(|g| g.to_string()).unwrap_or_default();
        ("grpc_response_status", grpc.as_str()).encode(encoder.encode_label())
    }
}

/// How requests of gRPC are labelled.
const GRPC: &str = "grpc";

/// Names and help of the counters of messages.
const MESSAGES: [(&str, &str); 2] = [
    ("istio_request_messages", "Messages that gRPC requests sent"),
    (
        "istio_response_messages",
        "Messages that gRPC responses sent",
    ),
];

/// A histogram's name, its help, and where it is kept.
type Row = (&'static str, &'static str, fn(&Counts) -> &Histogram);

const ROWS: [Row; 3] = [
    (
        "istio_request_duration_milliseconds",
        "Duration of HTTP requests in milliseconds",
        |c| &c.took,
    ),
    (
        "istio_request_bytes",
        "Bytes of the bodies of HTTP requests",
        |c| &c.received,
    ),
    (
        "istio_response_bytes",
        "Bytes of the bodies of HTTP responses",
        |c| &c.sent,
    ),
];

impl Collector for Requests {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let sets: Vec<(Set, Counts)> = {
            let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            all.iter().map(|(s, c)| (s.clone(), c.clone())).collect()
        };
        let help = "HTTP requests";
        let mut family =
            encoder.encode_descriptor("istio_requests", help, None, MetricType::Counter)?;
        for (set, counts) in &sets {
            let mut one = family.encode_family(set)?;
            one.encode_counter::<NoLabelSet, u64, u64>(&counts.took.count, None)?;
        }
        for (at, (name, help)) in MESSAGES.into_iter().enumerate() {
            let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
            for (set, counts) in sets.iter().filter(|(s, _)| s.protocol == GRPC) {
                let mut one = family.encode_family(set)?;
                one.encode_counter::<NoLabelSet, u64, u64>(&counts.messages[at], None)?;
            }
        }
        for (name, help, get) in ROWS {
            let mut family = encoder.encode_descriptor(name, help, None, MetricType::Histogram)?;
            for (set, counts) in &sets {
                let one = get(counts);
                let bounds = BUCKETS.iter().copied().zip(one.buckets);
                let buckets: Vec<(f64, u64)> = bounds.chain([(f64::MAX, one.over)]).collect();
                let mut family = family.encode_family(set)?;
                family.encode_histogram::<NoLabelSet>(one.sum, one.count, &buckets, None)?;
            }
        }
        Ok(())
    }
}
