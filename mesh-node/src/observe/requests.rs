//! Istio's HTTP metrics: a counter and a histogram of durations per label set.
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
/// Upper bounds of Istio's buckets, in milliseconds.
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
    count: u64,
    sum: f64,
    buckets: [u64; BUCKETS.len()],
    /// Longer than any bucket.
    over: u64,
    received: u64,
    sent: u64,
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
            protocol: if request.grpc { "grpc" } else { "http" },
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
        counts.count += 1;
        counts.sum += ms;
        match BUCKETS.iter().position(|bound| ms <= *bound) {
            Some(at) => counts.buckets[at] += 1,
            None => counts.over += 1,
        }
        counts.received += request.received;
        counts.sent += request.sent;
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
            one.encode_counter::<NoLabelSet, u64, u64>(&counts.count, None)?;
        }
        let help = "Duration of HTTP requests in milliseconds";
        let name = "istio_request_duration_milliseconds";
        let mut family = encoder.encode_descriptor(name, help, None, MetricType::Histogram)?;
        for (set, counts) in &sets {
            let last = (f64::MAX, counts.over);
            let bounds = BUCKETS.iter().copied().zip(counts.buckets);
            let buckets: Vec<(f64, u64)> = bounds.chain([last]).collect();
            let mut one = family.encode_family(set)?;
            one.encode_histogram::<NoLabelSet>(counts.sum, counts.count, &buckets, None)?;
        }
        Ok(())
    }
}
