//! How requests survive failing endpoints, and how failures are put in on purpose: retries, faults, pools, outliers.
//!
//! Invariants: pure; time and dice are arguments. Defaults are those of Istio's documentation (DestinationRule,
//! VirtualService), so that an empty policy behaves as users expect.

mod affinity;
mod destination;
pub mod outlier;
pub mod retry;
mod session;
mod warmup;

pub use session::{Held, Session, session_of};
pub use warmup::warmed;

pub use destination::{
    Affinity, AffinityKey, CookieAttribute, Destination, HashTable, Http2Keepalive, Keepalive,
    LoadBalancing, LocalityPreference, Outlier, PlaceShares, Pool, ProxyProtocol, Simple, Subset,
    TlsFiles, TrafficPolicy, UpstreamTls, Warmup, Weighing,
};

use std::{sync::Arc, time::Duration};

/// A share of requests in parts per million: 0.1 % is 1,000.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Share(u32);

impl Share {
    /// No request.
    pub const NONE: Share = Share(0);
    /// Every request.
    pub const ALL: Share = Share(1_000_000);

    /// Parts per million, at most a million.
    pub fn per_million(parts: u32) -> Self {
        Self(parts.min(1_000_000))
    }

    /// Per cent, rounded to parts per million; `None` below 0, above 100, and for what is no number.
    pub fn percent(percent: f64) -> Option<Self> {
        (0.0..=100.0)
            .contains(&percent)
            .then(|| Self((percent * 10_000.0).round() as u32))
    }

    /// Parts per million.
    pub fn parts(self) -> u32 {
        self.0
    }

    /// Whether a draw (uniform over all of `u64`) falls into the share.
    pub fn covers(self, draw: u64) -> bool {
        // The high part of draw * million is uniform over 0..1,000,000.
        let at = ((u128::from(draw) * 1_000_000) >> 64) as u32;
        at < self.0
    }
}

/// When and how a request is tried again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Retries {
    /// Tries after the first.
    pub attempts: u32,
    /// How long each try may take; the rule's timeout when absent.
    pub per_try_timeout: Option<Duration>,
    /// What is tried again.
    pub on: RetryOn,
    /// Whether endpoints that failed this request are avoided.
    pub avoid_previous: bool,
    /// Whether they are avoided by requests that go where a hash says, too.
    pub avoid_hashed: bool,
    /// Whether endpoints of other localities may take retries.
    pub remote_localities: bool,
    /// The pause before the first retry, which then grows (Envoy's jittered exponential backoff); 25 ms by default.
    pub backoff: Duration,
}

/// Conditions for a retry (Envoy's `x-envoy-retry-on` and `x-envoy-retry-grpc-on`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RetryOn {
    /// Any 5xx, or no response at all.
    pub server_error: bool,
    /// 502, 503, 504.
    pub gateway_error: bool,
    /// No response: disconnect, reset, read timeout.
    pub reset: bool,
    /// No response, and the request was not sent yet.
    pub reset_before_request: bool,
    /// The connection could not be made.
    pub connect_failure: bool,
    /// 409.
    pub retriable_4xx: bool,
    /// The stream was refused (REFUSED_STREAM).
    pub refused_stream: bool,
    /// `x-envoy-ratelimited` in the response.
    pub rate_limited: bool,
    /// gRPC statuses by number.
    pub grpc: Box<[u8]>,
    /// HTTP statuses.
    pub statuses: Box<[u16]>,
    /// Response headers, by name.
    pub headers: Box<[http::HeaderName]>,
}

/// Failures put in on purpose.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fault {
    /// A pause before the request goes on.
    pub delay: Option<(Share, Duration)>,
    /// An answer instead of the request; drawn independently of the delay, and after it.
    pub abort: Option<(Share, Abort)>,
}

/// The answer of an abort.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Abort {
    /// An HTTP status.
    Http(u16),
    /// A gRPC status by number, with HTTP 200.
    Grpc(u8),
}

/// A name within a service's destination: a subset.
pub type SubsetName = Arc<str>;
