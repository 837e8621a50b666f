//! Port 15014: `/metrics`, `/readyz`, `/livez`, `/debug/istio`. Read-only, plain HTTP.
//!
//! Invariant: nothing here changes anything, whatever the method or the path.

mod istio;

use std::{
    convert::Infallible,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

pub use istio::look_for_istio;

use arc_swap::ArcSwapOption;
use http_body_util::Full;
use hyper::{
    Method, Request, Response, StatusCode, body::Bytes, body::Incoming, server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use mesh_api::resource::Kind;
use mesh_translate::IstioPresence;
use prometheus_client::{
    encoding::{EncodeLabelSet, text::encode},
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::Registry,
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    time::timeout,
};
use tracing::warn;

/// Requests that are answered at once.
const AT_ONCE: usize = 64;
/// A connection may stay this long.
const CONNECTION: Duration = Duration::from_secs(30);

/// What the controller counts.
pub struct Metrics {
    registry: Registry,
    ready: AtomicBool,
    /// Subscribers that are connected.
    pub subscribers: Gauge,
    resources: Family<KindLabel, Gauge>,
    sent: Family<KindLabel, Counter>,
    refused: Family<KindLabel, Counter>,
    certificates: Family<CodeLabel, Counter>,
    reviews: Family<OutcomeLabel, Counter>,
    istio: ArcSwapOption<IstioPresence>,
    istio_parts: Gauge,
    istio_namespaces: Family<TakenLabel, Gauge>,
    /// Seconds from a change's publication until it was handed to a subscriber's stream.
    pub push_seconds: Histogram,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct KindLabel {
    kind: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct CodeLabel {
    code: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct OutcomeLabel {
    outcome: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct TakenLabel {
    taken_by: &'static str,
}

impl Default for Metrics {
    fn default() -> Self {
        let buckets = [0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0];
        let mut metrics = Self {
            registry: Registry::with_prefix("warren_ctl"),
            ready: AtomicBool::new(false),
            subscribers: Gauge::default(),
            resources: Family::default(),
            sent: Family::default(),
            refused: Family::default(),
            certificates: Family::default(),
            reviews: Family::default(),
            istio: ArcSwapOption::empty(),
            istio_parts: Gauge::default(),
            istio_namespaces: Family::default(),
            push_seconds: Histogram::new(buckets),
        };
        let r = &mut metrics.registry;
        r.register(
            "subscribers",
            "Nodes that are connected",
            metrics.subscribers.clone(),
        );
        r.register(
            "resources",
            "Resources that are published",
            metrics.resources.clone(),
        );
        r.register(
            "resources_sent",
            "Resources that were sent",
            metrics.sent.clone(),
        );
        r.register(
            "resources_refused",
            "Resources that a node did not understand",
            metrics.refused.clone(),
        );
        r.register(
            "certificates",
            "Requests for certificates by outcome",
            metrics.certificates.clone(),
        );
        r.register(
            "reviews",
            "Objects that the webhook was asked about, by outcome",
            metrics.reviews.clone(),
        );
        r.register(
            "istio_parts",
            "Deployments and daemon sets of an Istio in the same cluster",
            metrics.istio_parts.clone(),
        );
        r.register(
            "istio_namespaces",
            "Namespaces that are labelled for Istio, by who takes their pods",
            metrics.istio_namespaces.clone(),
        );
        r.register(
            "push_seconds",
            "Time from publication to a subscriber's stream",
            metrics.push_seconds.clone(),
        );
        metrics
    }
}

impl Metrics {
    /// Says whether configuration is being served.
    pub fn set_ready(&self, ready: bool) {
        self.ready.store(ready, Ordering::Relaxed);
    }

    /// Counts what is published.
    pub fn published(&self, kind: Kind, resources: usize) {
        self.resources
            .get_or_create(&label(kind))
            .set(i64::try_from(resources).unwrap_or(i64::MAX));
    }

    /// Counts what was sent.
    pub fn sent(&self, kind: Kind, resources: usize) {
        self.sent
            .get_or_create(&label(kind))
            .inc_by(resources as u64);
    }

    /// Counts what was not understood.
    pub fn refused(&self, kind: Kind, resources: usize) {
        self.refused
            .get_or_create(&label(kind))
            .inc_by(resources as u64);
    }

    /// Counts a request for a certificate; `None` when it was granted.
    pub fn certificate(&self, refused: Option<tonic::Code>) {
        let code = refused.map_or_else(|| "Ok".to_owned(), |c| format!("{c:?}"));
        self.certificates.get_or_create(&CodeLabel { code }).inc();
    }

    /// Counts an object that the webhook was asked about.
    pub fn reviewed(&self, outcome: &'static str) {
        self.reviews.get_or_create(&OutcomeLabel { outcome }).inc();
    }

    /// Notes what is known of an Istio in the cluster; returns what was known before.
    pub fn set_istio(&self, now: Option<IstioPresence>) -> Option<Arc<IstioPresence>> {
        let count = |names: usize| i64::try_from(names).unwrap_or(i64::MAX);
        let none = IstioPresence::default();
        let found = now.as_ref().unwrap_or(&none);
        self.istio_parts.set(count(found.parts.len()));
        for (taken_by, names) in [("both", &found.both), ("istio", &found.theirs)] {
            let label = TakenLabel { taken_by };
            self.istio_namespaces
                .get_or_create(&label)
                .set(count(names.len()));
        }
        self.istio.swap(now.map(Arc::new))
    }

    /// What is known of an Istio in the cluster, as JSON; `null` when there is none.
    fn istio(&self) -> String {
        let known = self.istio.load_full();
        let text = serde_json::to_string(&known.as_deref());
        text.unwrap_or_else(|_| "null".to_owned())
    }

    pub(crate) fn text(&self) -> String {
        let mut text = String::new();
        // Writing to a string does not fail.
        let _ = encode(&mut text, &self.registry);
        text
    }
}

fn label(kind: Kind) -> KindLabel {
    KindLabel {
        kind: kind.to_string(),
    }
}

/// Answers until the listener is gone. Never ends by itself.
pub async fn serve(listener: TcpListener, metrics: Arc<Metrics>) {
    let slots = Arc::new(Semaphore::new(AT_ONCE));
    loop {
        let Ok(slot) = slots.clone().acquire_owned().await else {
            return;
        };
        match listener.accept().await {
            Ok((socket, _)) => {
                let metrics = metrics.clone();
                tokio::spawn(async move {
                    answer(socket, metrics).await;
                    drop(slot);
                });
            }
            Err(error) => {
                warn!(%error, "accepting a monitoring connection failed");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

async fn answer(socket: TcpStream, metrics: Arc<Metrics>) {
    let service = service_fn(move |request: Request<Incoming>| {
        let response = respond(&request, &metrics);
        async move { Ok::<_, Infallible>(response) }
    });
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new())
        .header_read_timeout(Duration::from_secs(5))
        .max_buf_size(16 * 1024);
    // A client that breaks off is of no interest.
    let _ = timeout(
        CONNECTION,
        http.serve_connection(TokioIo::new(socket), service),
    )
    .await;
}

fn respond<B>(request: &Request<B>, metrics: &Metrics) -> Response<Full<Bytes>> {
    let (status, text) = match (request.method(), request.uri().path()) {
        (&Method::GET, "/metrics") => (StatusCode::OK, metrics.text()),
        (&Method::GET, "/debug/istio") => (StatusCode::OK, metrics.istio()),
        (&Method::GET, "/livez") => (StatusCode::OK, "ok\n".to_owned()),
        (&Method::GET, "/readyz") if metrics.ready.load(Ordering::Relaxed) => {
            (StatusCode::OK, "ok\n".to_owned())
        }
        (&Method::GET, "/readyz") => (
            StatusCode::SERVICE_UNAVAILABLE,
            "the configuration has not been read yet\n".to_owned(),
        ),
        (&Method::GET, _) => (
            StatusCode::NOT_FOUND,
            "there are /metrics, /readyz, /livez and /debug/istio\n".to_owned(),
        ),
        _ => (
            StatusCode::METHOD_NOT_ALLOWED,
            "this port only answers GET\n".to_owned(),
        ),
    };
    let kind = if text.starts_with('#') {
        "application/openmetrics-text; version=1.0.0; charset=utf-8"
    } else {
        "text/plain"
    };
    let mut response = Response::new(Full::new(Bytes::from(text)));
    *response.status_mut() = status;
    let value = hyper::header::HeaderValue::from_static(kind);
    response
        .headers_mut()
        .insert(hyper::header::CONTENT_TYPE, value);
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_reading_is_answered() {
        let metrics = Metrics::default();
        let status = |method: &str, path: &str| {
            let request = Request::builder()
                .method(method)
                .uri(path)
                .body(())
                .expect("is one");
            respond(&request, &metrics).status().as_u16()
        };
        assert_eq!(status("GET", "/livez"), 200);
        assert_eq!(status("GET", "/readyz"), 503);
        metrics.set_ready(true);
        assert_eq!(status("GET", "/readyz"), 200);
        assert_eq!(status("POST", "/livez"), 405);
        assert_eq!(status("GET", "/debug/xds"), 404);
        metrics.set_istio(Some(IstioPresence {
            both: vec!["shop".to_owned()],
            ..IstioPresence::default()
        }));
        let istio = respond(
            &Request::get("/debug/istio").body(()).expect("is one"),
            &metrics,
        );
        assert_eq!(istio.status().as_u16(), 200);
        assert!(metrics.istio().contains("\"both\":[\"shop\"]"));
        metrics.sent(Kind::Address, 3);
        metrics.certificate(None);
        let text = metrics.text();
        assert!(
            text.contains("warren_ctl_resources_sent_total{kind=\"Address\"} 3"),
            "{text}"
        );
        assert!(
            text.contains("warren_ctl_istio_namespaces{taken_by=\"both\"} 1"),
            "{text}"
        );
        assert!(
            text.contains("warren_ctl_certificates_total{code=\"Ok\"} 1"),
            "{text}"
        );
    }
}
