//! AdmissionReview v1 over HTTPS, `POST /validate`.
//!
//! Invariants: bodies, connections and reviews are bounded, each in number and time. Whoever sends too much or waits
//! too long gets an error, which the API server takes for "allowed": nothing here can refuse by failing.

use std::{
    convert::Infallible,
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use bytes::Bytes;
use futures_util::StreamExt;
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::{
    Method, Request, Response, StatusCode,
    body::Body,
    header::{CONTENT_TYPE, HeaderValue},
    service::service_fn,
};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto,
};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::{sync::Semaphore, time::timeout};
use tokio_stream::wrappers::ReceiverStream;
use tracing::{debug, warn};

use super::{PATH, review, review::Verdict};
use crate::{listen::Conn, monitor::Metrics, view::View};

/// The largest body: the API server takes objects of up to 3 MiB.
const MAX_BODY: usize = 3 * 1024 * 1024;
/// So many bodies are held at once.
const AT_ONCE: usize = 8;
/// So many connections are open at once.
const CONNECTIONS: usize = 64;
/// So many requests may be under way on one connection.
const STREAMS: u32 = 32;
/// A request waits no longer than this for its turn, and takes no longer to arrive: the API server has given up by
/// then.
const WAIT: Duration = Duration::from_secs(super::TIMEOUT_SECONDS);
/// A connection lives no longer than this, so that those made under an old certificate go.
const CONNECTION: Duration = Duration::from_secs(3600);
/// A connection that does not answer pings this long is closed.
const PING: Duration = Duration::from_secs(10);

/// What answers reviews.
pub struct Reviewer {
    view: Arc<RwLock<View>>,
    metrics: Arc<Metrics>,
    slots: Arc<Semaphore>,
}

/// An AdmissionReview.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Review {
    api_version: String,
    kind: String,
    request: review::Request,
}

/// Answers until the listener is gone.
pub async fn serve(mut incoming: ReceiverStream<std::io::Result<Conn>>, reviewer: Arc<Reviewer>) {
    let slots = Arc::new(Semaphore::new(CONNECTIONS));
    while let Ok(slot) = slots.clone().acquire_owned().await {
        let Some(conn) = incoming.next().await else {
            return;
        };
        let Ok(conn) = conn else { continue };
        let reviewer = reviewer.clone();
        tokio::spawn(async move {
            connection(conn, reviewer).await;
            drop(slot);
        });
    }
}

async fn connection(conn: Conn, reviewer: Arc<Reviewer>) {
    let service = service_fn(move |request| {
        let reviewer = reviewer.clone();
        async move { Ok::<_, Infallible>(reviewer.answer(request).await) }
    });
    let mut http = auto::Builder::new(TokioExecutor::new());
    http.http1()
        .timer(TokioTimer::new())
        .header_read_timeout(PING);
    http.http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(PING)
        .keep_alive_timeout(PING)
        .max_concurrent_streams(STREAMS);
    let serving = http.serve_connection(TokioIo::new(conn), service);
    if let Ok(Err(error)) = timeout(CONNECTION, serving).await {
        debug!(%error, "a connection to the webhook broke");
    }
}

impl Reviewer {
    /// A reviewer that compares with this view.
    pub fn new(view: Arc<RwLock<View>>, metrics: Arc<Metrics>) -> Self {
        Self {
            view,
            metrics,
            slots: Arc::new(Semaphore::new(AT_ONCE)),
        }
    }

    async fn answer<B>(&self, request: Request<B>) -> Response<Full<Bytes>>
    where
        B: Body<Data = Bytes> + Send,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        match self.checked(request).await {
            Ok(answer) => json_response(&answer),
            Err((status, text)) => {
                self.metrics.reviewed("failed");
                warn!(%status, text, "a review failed; the API server goes on without it");
                let mut response = Response::new(Full::new(Bytes::from(format!("{text}\n"))));
                *response.status_mut() = status;
                response
            }
        }
    }

    async fn checked<B>(&self, request: Request<B>) -> Result<Value, (StatusCode, &'static str)>
    where
        B: Body<Data = Bytes> + Send,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        if request.uri().path() != PATH {
            return Err((StatusCode::NOT_FOUND, "there is only /validate"));
        }
        if *request.method() != Method::POST {
            return Err((StatusCode::METHOD_NOT_ALLOWED, "reviews are POSTed"));
        }
        let slot = timeout(WAIT, self.slots.clone().acquire_owned()).await;
        let Ok(Ok(slot)) = slot else {
            return Err((
                StatusCode::SERVICE_UNAVAILABLE,
                "too many reviews are under way",
            ));
        };
        let body = Limited::new(request.into_body(), MAX_BODY);
        let body = match timeout(WAIT, body.collect()).await {
            Ok(Ok(body)) => body.to_bytes(),
            Ok(Err(error)) if error.is::<LengthLimitError>() => {
                return Err((
                    StatusCode::PAYLOAD_TOO_LARGE,
                    "a review has more than 3 MiB",
                ));
            }
            Ok(Err(_)) => return Err((StatusCode::BAD_REQUEST, "the body broke off")),
            Err(_) => {
                return Err((
                    StatusCode::REQUEST_TIMEOUT,
                    "the body did not arrive in time",
                ));
            }
        };
        let view = self.view.clone();
        let reviewed = tokio::task::spawn_blocking(move || {
            let reviewed = decide(&view, &body);
            // Held until here: what has begun cannot be stopped, only kept from being too much.
            drop(slot);
            reviewed
        });
        let reviewed = reviewed
            .await
            .map_err(|_| (StatusCode::INTERNAL_SERVER_ERROR, "the review panicked"))?;
        let (uid, verdict) = reviewed.map_err(|text| (StatusCode::BAD_REQUEST, text))?;
        self.metrics.reviewed(match &verdict {
            Verdict {
                refused: Some(_), ..
            } => "refused",
            Verdict { warnings, .. } if warnings.is_empty() => "allowed",
            Verdict { .. } => "warned",
        });
        Ok(answer(&uid, verdict))
    }
}

fn decide(view: &RwLock<View>, body: &[u8]) -> Result<(String, Verdict), &'static str> {
    let review: Review =
        serde_json::from_slice(body).map_err(|_| "the body is no AdmissionReview")?;
    if (review.api_version.as_str(), review.kind.as_str())
        != ("admission.k8s.io/v1", "AdmissionReview")
    {
        return Err("the body is no AdmissionReview of admission.k8s.io/v1");
    }
    let uid = review.request.uid.clone();
    let view = view.read().unwrap_or_else(PoisonError::into_inner);
    Ok((uid, review::review(&view, review.request)))
}

fn answer(uid: &str, verdict: Verdict) -> Value {
    let Verdict { refused, warnings } = verdict;
    let mut response = json!({"uid": uid, "allowed": refused.is_none()});
    if let Some(message) = refused {
        response["status"] =
            json!({"status": "Failure", "reason": "Invalid", "code": 422, "message": message});
    }
    if !warnings.is_empty() {
        response["warnings"] = warnings.into();
    }
    json!({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "response": response})
}

fn json_response(value: &Value) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(value.to_string())));
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

#[cfg(test)]
mod tests;
