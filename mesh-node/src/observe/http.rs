//! The read-only HTTP server on the node's address: metrics, health, and how the node stands.
//!
//! Invariants: it changes nothing and takes no request body; connections are bounded in number and time,
//! so that a scraper that hangs holds nothing for long.

use std::{convert::Infallible, net::SocketAddr, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::{Value, json};
use tokio::{net::TcpListener, sync::Semaphore};

use super::Metrics;

/// How many connections are served at a time; others wait in the backlog.
const CONNECTIONS: usize = 64;
/// How long a request's headers may take.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a connection may live.
const CONNECTION_TIME: Duration = Duration::from_secs(300);

/// Says whether the process is ready; an error names what it waits for.
pub type ReadyCheck = Arc<dyn Fn() -> Result<(), String> + Send + Sync>;

/// Tells how the node stands, in counts and without names of pods, for whoever checks an installation.
pub type Standing = Arc<dyn Fn() -> Value + Send + Sync>;

/// The server: what it shows.
#[derive(Clone)]
pub struct MetricsServer {
    metrics: Metrics,
    ready: ReadyCheck,
    standing: Standing,
}

impl MetricsServer {
    /// A server for these.
    pub fn new(metrics: Metrics, ready: ReadyCheck, standing: Standing) -> Self {
        Self {
            metrics,
            ready,
            standing,
        }
    }

    /// Binds. The address is that of the node and port 15020, unless a test chooses.
    pub async fn bind(address: SocketAddr) -> std::io::Result<TcpListener> {
        TcpListener::bind(address).await
    }

    /// Serves until the future is dropped.
    pub async fn run(self, listener: TcpListener) {
        let room = Arc::new(Semaphore::new(CONNECTIONS));
        loop {
            let Ok(permit) = room.clone().acquire_owned().await else {
                return;
            };
            let stream = match listener.accept().await {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::warn!(%error, "the metrics port could not accept; trying again in a second");
                    tokio::time::sleep(Duration::from_secs(1)).await;
                    continue;
                }
            };
            let server = self.clone();
            tokio::spawn(async move {
                let service = service_fn(move |request| {
                    std::future::ready(Ok::<_, Infallible>(server.answer(&request)))
                });
                let connection = http1::Builder::new()
                    .timer(TokioTimer::new())
                    .header_read_timeout(HEADER_TIMEOUT)
                    .serve_connection(TokioIo::new(stream), service);
                // A scraper that goes away or is too slow is its own problem.
                let _ = tokio::time::timeout(CONNECTION_TIME, connection).await;
                drop(permit);
            });
        }
    }

    fn answer(&self, request: &Request<Incoming>) -> Response<Full<Bytes>> {
        if !matches!(*request.method(), Method::GET | Method::HEAD) {
            return reply(
                StatusCode::METHOD_NOT_ALLOWED,
                "this port is read-only\n".into(),
            );
        }
        match request.uri().path() {
            "/metrics" | "/stats/prometheus" => self.exposition(),
            "/readyz" | "/healthz/ready" => match (self.ready)() {
                Ok(()) => reply(StatusCode::OK, "ready\n".into()),
                Err(waiting) => reply(
                    StatusCode::SERVICE_UNAVAILABLE,
                    format!("not ready: {waiting}\n"),
                ),
            },
            "/status" => self.status(),
            "/livez" => reply(StatusCode::OK, "alive\n".into()),
            _ => reply(
                StatusCode::NOT_FOUND,
                "paths: /metrics /stats/prometheus /status /readyz /livez /healthz/ready\n".into(),
            ),
        }
    }

    fn status(&self) -> Response<Full<Bytes>> {
        let mut standing = (self.standing)();
        standing["waits"] = json!((self.ready)().err());
        let mut response = reply(StatusCode::OK, format!("{standing:#}\n"));
        let kind = header::HeaderValue::from_static("application/json");
        response.headers_mut().insert(header::CONTENT_TYPE, kind);
        response
    }

    fn exposition(&self) -> Response<Full<Bytes>> {
        match self.metrics.text() {
            Ok(text) => {
                let mut response = reply(StatusCode::OK, text);
                let kind = header::HeaderValue::from_static(
                    "application/openmetrics-text; version=1.0.0; charset=utf-8",
                );
                response.headers_mut().insert(header::CONTENT_TYPE, kind);
                response
            }
            Err(error) => reply(
                StatusCode::INTERNAL_SERVER_ERROR,
                format!("the metrics could not be written: {error}\n"),
            ),
        }
    }
}

pub(crate) fn reply(status: StatusCode, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    response.headers_mut().insert(
        header::CONTENT_TYPE,
        header::HeaderValue::from_static("text/plain; charset=utf-8"),
    );
    response
}
