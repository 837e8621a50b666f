//! Metrics of clusters: the endpoints of a service's port as this process uses them, their pool, and who is left out.
//!
//! Read when they are asked for. Invariant: past `CLUSTERS` of them the rest is added up under one name, and past `ENDPOINTS`
//! the rest has no figures of its own, so that their number stays bounded.

use std::fmt;

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, NoLabelSet},
    metrics::MetricType,
};

/// How many clusters are told apart.
const CLUSTERS: usize = 2_000;
/// How many endpoints have figures of their own, over all clusters.
const ENDPOINTS: usize = 10_000;
/// The name of all clusters that are not told apart.
const OTHERS: &str = "other";

/// Where the figures come from.
pub trait ClusterSource: fmt::Debug + Send + Sync {
    /// Each cluster's, in any order.
    fn figures(&self) -> Vec<ClusterFigures>;
}

/// How a cluster is doing. Names in brackets are those of Envoy's statistics that mean the same.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClusterFigures {
    /// `outbound|port|subset|host`.
    pub name: String,
    /// Connections that are open (`upstream_cx_active`).
    pub connections: u64,
    /// Requests that wait for a connection (`upstream_rq_pending_active`).
    pub pending: u64,
    /// Requests under way (`upstream_rq_active`).
    pub requests: u64,
    /// Retries under way.
    pub retries: u64,
    /// Connections ever made or tried (`upstream_cx_total`).
    pub connections_ever: u64,
    /// Requests ever begun (`upstream_rq_total`).
    pub requests_ever: u64,
    /// Retries ever begun (`upstream_rq_retry`).
    pub retries_ever: u64,
    /// Times that a bound was met: of connections (`upstream_cx_overflow`), of requests that wait
    /// (`upstream_rq_pending_overflow`), of requests, of retries (`upstream_rq_retry_overflow`).
    pub overflows: [u64; 4],
    /// Connections that could not be made (`upstream_cx_connect_fail`).
    pub connect_failures: u64,
    /// Times that an endpoint was left out (`outlier_detection.ejections_enforced_total`).
    pub ejections: u64,
    /// The endpoints (`membership_total`).
    pub endpoints: Vec<EndpointFigures>,
}

/// How an endpoint of a cluster is doing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EndpointFigures {
    /// Its workload's uid.
    pub workload: String,
    /// Requests under way to it.
    pub active: u64,
    /// Whether it is left out.
    pub ejected: bool,
}

/// The bounds that `overflows` counts.
const BOUNDS: [&str; 4] = ["connections", "pending", "requests", "retries"];

/// A metric's name, its help, and where it is read.
type Row<T> = (&'static str, &'static str, fn(&T) -> u64);

const GAUGES: [Row<ClusterFigures>; 4] = [
    (
        "warren_cluster_connections_open",
        "Connections to endpoints that are open",
        |c| c.connections,
    ),
    (
        "warren_cluster_requests_pending",
        "Requests that wait for a connection",
        |c| c.pending,
    ),
    (
        "warren_cluster_requests_active",
        "Requests under way",
        |c| c.requests,
    ),
    ("warren_cluster_retries_active", "Retries under way", |c| {
        c.retries
    }),
];

const COUNTERS: [Row<ClusterFigures>; 5] = [
    (
        "warren_cluster_connections",
        "Connections to endpoints that were made or tried",
        |c| c.connections_ever,
    ),
    ("warren_cluster_requests", "Requests that were begun", |c| {
        c.requests_ever
    }),
    ("warren_cluster_retries", "Retries that were begun", |c| {
        c.retries_ever
    }),
    (
        "warren_cluster_connect_failures",
        "Connections to endpoints that could not be made",
        |c| c.connect_failures,
    ),
    (
        "warren_cluster_ejections",
        "Times that an endpoint was left out because it failed too often",
        |c| c.ejections,
    ),
];

impl ClusterFigures {
    fn ejected(&self) -> u64 {
        self.endpoints.iter().filter(|e| e.ejected).count() as u64
    }

    /// Adds another's figures, as far as they can be added up.
    fn add(&mut self, other: Self) {
        self.connections += other.connections;
        self.pending += other.pending;
        self.requests += other.requests;
        self.retries += other.retries;
        self.connections_ever += other.connections_ever;
        self.requests_ever += other.requests_ever;
        self.retries_ever += other.retries_ever;
        for (sum, more) in self.overflows.iter_mut().zip(other.overflows) {
            *sum += more;
        }
        self.connect_failures += other.connect_failures;
        self.ejections += other.ejections;
        self.endpoints.extend(other.endpoints);
    }
}

/// Shows what a source tells.
#[derive(Debug)]
pub(super) struct ClusterMetrics(pub Box<dyn ClusterSource>);

/// At most so many clusters, in the order of their names; the rest as one.
fn bounded(mut all: Vec<ClusterFigures>, most: usize) -> Vec<ClusterFigures> {
    all.sort_by(|a, b| a.name.cmp(&b.name));
    if all.len() > most {
        let mut others = ClusterFigures {
            name: OTHERS.to_owned(),
            ..ClusterFigures::default()
        };
        all.drain(most..).for_each(|c| others.add(c));
        all.push(others);
    }
    all
}

impl Collector for ClusterMetrics {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let all = bounded(self.0.figures(), CLUSTERS);
        if all.is_empty() {
            return Ok(());
        }
        for (name, help, get) in GAUGES {
            let mut family = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
            for c in &all {
                let labels = [("cluster", c.name.as_str())];
                let mut one = family.encode_family(&labels)?;
                one.encode_gauge(&get(c))?;
            }
        }
        for (name, help, get) in COUNTERS {
            let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
            for c in &all {
                let labels = [("cluster", c.name.as_str())];
                let mut one = family.encode_family(&labels)?;
                one.encode_counter::<NoLabelSet, u64, u64>(&get(c), None)?;
            }
        }
        let (name, help) = (
            "warren_cluster_overflows",
            "Times that a bound of the destination was met",
        );
        let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
        for c in &all {
            for (bound, times) in BOUNDS.into_iter().zip(c.overflows) {
                let labels = [("cluster", c.name.as_str()), ("bound", bound)];
                let mut one = family.encode_family(&labels)?;
                one.encode_counter::<NoLabelSet, u64, u64>(&times, None)?;
            }
        }
        let (name, help) = (
            "warren_cluster_endpoints",
            "Endpoints that requests may go to, and those left out because they failed too often",
        );
        let mut family = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
        for c in &all {
            let ejected = c.ejected();
            let healthy = c.endpoints.len() as u64 - ejected;
            for (state, number) in [("healthy", healthy), ("ejected", ejected)] {
                let labels = [("cluster", c.name.as_str()), ("state", state)];
                family.encode_family(&labels)?.encode_gauge(&number)?;
            }
        }
        endpoints(&mut encoder, &all)
    }
}

fn endpoints(encoder: &mut DescriptorEncoder<'_>, all: &[ClusterFigures]) -> fmt::Result {
    let known = || {
        let told = all.iter().filter(|c| c.name != OTHERS);
        let each = told.flat_map(|c| c.endpoints.iter().map(|e| (c.name.as_str(), e)));
        each.take(ENDPOINTS)
    };
    let rows: [Row<EndpointFigures>; 2] = [
        (
            "warren_endpoint_requests_active",
            "Requests under way to an endpoint",
            |e| e.active,
        ),
        (
            "warren_endpoint_ejected",
            "Whether an endpoint is left out because it failed too often",
            |e| e.ejected.into(),
        ),
    ];
    for (name, help, get) in rows {
        let mut family = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
        for (cluster, endpoint) in known() {
            let labels = [
                ("cluster", cluster),
                ("workload", endpoint.workload.as_str()),
            ];
            family
                .encode_family(&labels)?
                .encode_gauge(&get(endpoint))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observe::Metrics;

    fn cluster(name: &str, ejected: &[bool]) -> ClusterFigures {
        let endpoint = |(n, ejected): (usize, &bool)| EndpointFigures {
            workload: format!("{name}-{n}"),
            active: 3,
            ejected: *ejected,
        };
        ClusterFigures {
            name: name.to_owned(),
            connections: 1,
            overflows: [1, 2, 3, 4],
            endpoints: ejected.iter().enumerate().map(endpoint).collect(),
            ..ClusterFigures::default()
        }
    }

    #[derive(Debug)]
    struct Told(Vec<ClusterFigures>);

    impl ClusterSource for Told {
        fn figures(&self) -> Vec<ClusterFigures> {
            self.0.clone()
        }
    }

    #[test]
    fn figures_are_shown_by_cluster_and_by_endpoint() {
        let metrics = Metrics::new();
        let told = Told(vec![cluster("b", &[]), cluster("a", &[true, false, false])]);
        metrics.add_clusters(Box::new(told));
        let text = metrics.text().expect("text");
        for line in [
            "warren_cluster_connections_open{cluster=\"a\"} 1",
            "warren_cluster_overflows_total{cluster=\"a\",bound=\"pending\"} 2",
            "warren_cluster_endpoints{cluster=\"a\",state=\"healthy\"} 2",
            "warren_cluster_endpoints{cluster=\"a\",state=\"ejected\"} 1",
            "warren_cluster_endpoints{cluster=\"b\",state=\"healthy\"} 0",
            "warren_endpoint_ejected{cluster=\"a\",workload=\"a-0\"} 1",
            "warren_endpoint_ejected{cluster=\"a\",workload=\"a-1\"} 0",
            "warren_endpoint_requests_active{cluster=\"a\",workload=\"a-2\"} 3",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} is not in\n{text}");
        }
    }

    #[test]
    fn what_is_too_many_is_added_up() {
        let all = (0..7).map(|n| cluster(&n.to_string(), &[true]));
        let shown = bounded(all.collect(), 5);
        assert_eq!(shown.len(), 6);
        let others = &shown[5];
        assert_eq!((others.name.as_str(), others.connections), (OTHERS, 2));
        assert_eq!(others.overflows, [2, 4, 6, 8]);
        assert_eq!((others.endpoints.len(), others.ejected()), (2, 2));
    }

    #[test]
    fn many_endpoints_have_no_figures_of_their_own() {
        let metrics = Metrics::new();
        let many = vec![false; ENDPOINTS + 5];
        metrics.add_clusters(Box::new(Told(vec![cluster("a", &many)])));
        let text = metrics.text().expect("text");
        let lines = text
            .lines()
            .filter(|l| l.starts_with("warren_endpoint_ejected{"));
        assert_eq!(lines.count(), ENDPOINTS);
        let sum = format!(
            "warren_cluster_endpoints{{cluster=\"a\",state=\"healthy\"}} {}",
            many.len()
        );
        assert!(text.contains(&sum));
    }
}
