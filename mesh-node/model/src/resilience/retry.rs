//! When a request is tried again, and after which pause.
//!
//! As Envoy's `x-envoy-retry-on` and `x-envoy-retry-grpc-on` say, with the defaults of Istio. Invariant: what came of a
//! try and the dice are arguments; a token that is not known is named, never taken for another.

use std::time::Duration;

use http::HeaderMap;

use super::{Retries, RetryOn, TrafficPolicy};

/// The most that a pause grows, as a multiple of the first one's bound.
const GROWTH: u32 = 10;

/// What came of a try.
#[derive(Clone, Copy, Debug)]
pub enum Outcome<'a> {
    /// A response came.
    Response {
        /// Its status.
        status: u16,
        /// Its headers.
        headers: &'a HeaderMap,
        /// Its gRPC status, where the headers have one.
        grpc: Option<u8>,
    },
    /// No connection could be made.
    ConnectFailure,
    /// The stream was refused (REFUSED_STREAM).
    RefusedStream,
    /// The connection or the stream ended without a response.
    Reset {
        /// Whether any of the request was sent on it.
        request_sent: bool,
    },
    /// The try took longer than it may (`per_try_timeout`).
    TimedOut,
}

impl RetryOn {
    /// Whether this outcome is one to try again after.
    pub fn wants(&self, outcome: Outcome<'_>) -> bool {
        // Without a response the client would be told 503 or 504, so that these count as such.
        let silent = self.server_error || self.gateway_error || self.reset;
        match outcome {
            Outcome::Response {
                status,
                headers,
                grpc,
            } => self.wants_response(status, headers, grpc),
            Outcome::ConnectFailure => silent || self.connect_failure || self.reset_before_request,
            Outcome::RefusedStream => silent || self.refused_stream,
            Outcome::Reset { request_sent } => {
                silent || (self.reset_before_request && !request_sent)
            }
            Outcome::TimedOut => silent,
        }
    }

    fn wants_response(&self, status: u16, headers: &HeaderMap, grpc: Option<u8>) -> bool {
        // Whoever says that it has too much to do is not asked again.
        if headers.contains_key("x-envoy-overloaded") {
            return false;
        }
        if headers.contains_key("x-envoy-ratelimited") {
            return self.rate_limited;
        }
        (self.server_error && (500..600).contains(&status))
            || (self.gateway_error && matches!(status, 502..=504))
            || (self.retriable_4xx && status == 409)
            || self.statuses.contains(&status)
            || self.headers.iter().any(|name| headers.contains_key(name))
            || grpc.is_some_and(|code| self.grpc.contains(&code))
    }

    /// Reads a list of tokens as `retryOn` has it, separated by commas; what is not known is returned as it was written.
    /// A number is a status. `retriable-status-codes`, `retriable-headers` and `http3-post-connect-failure` are known and
    /// add nothing by themselves: what they need is not in the list.
    pub fn parse(tokens: &str) -> (Self, Vec<String>) {
        let (mut on, mut unknown) = (Self::default(), Vec::new());
        let (mut grpc, mut statuses) = (Vec::new(), Vec::new());
        for token in tokens.split(',').map(str::trim).filter(|t| !t.is_empty()) {
            match token {
                "5xx" => on.server_error = true,
                "gateway-error" => on.gateway_error = true,
                "reset" => on.reset = true,
                "reset-before-request" => on.reset_before_request = true,
                "connect-failure" => on.connect_failure = true,
                "retriable-4xx" => on.retriable_4xx = true,
                "refused-stream" => on.refused_stream = true,
                "envoy-ratelimited" => on.rate_limited = true,
                "retriable-status-codes" | "retriable-headers" | "http3-post-connect-failure" => {}
                "cancelled" => grpc.push(1),
                "deadline-exceeded" => grpc.push(4),
                "resource-exhausted" => grpc.push(8),
                "internal" => grpc.push(13),
                "unavailable" => grpc.push(14),
                other => match other.parse::<u16>() {
                    Ok(status) if (100..600).contains(&status) => statuses.push(status),
                    Ok(_) | Err(_) => unknown.push(other.to_owned()),
                },
            }
        }
        statuses.sort_unstable();
        statuses.dedup();
        grpc.sort_unstable();
        grpc.dedup();
        (on.grpc, on.statuses) = (grpc.into(), statuses.into());
        (on, unknown)
    }
}

impl Retries {
    /// What Istio does where nothing is written: two more tries, on other endpoints, when nothing was done yet or the
    /// answer was 503.
    pub fn default_of_istio() -> Self {
        let tokens = "connect-failure,refused-stream,unavailable,cancelled,503";
        Self {
            attempts: 2,
            per_try_timeout: None,
            on: RetryOn::parse(tokens).0,
            avoid_previous: true,
            avoid_hashed: false,
            remote_localities: false,
            backoff: Duration::from_millis(25),
        }
    }

    /// The pause before the retry of this number, from 1 on: uniform below `2^attempt - 1` times the backoff, at most ten
    /// times it. `draw` is uniform over all of `u64`.
    pub fn pause(&self, attempt: u32, draw: u64) -> Duration {
        let grown = 1u32.checked_shl(attempt).map_or(GROWTH, |n| n - 1);
        let bound = self.backoff.saturating_mul(grown.min(GROWTH));
        let nanos = u64::try_from(bound.as_nanos()).unwrap_or(u64::MAX);
        Duration::from_nanos(((u128::from(draw) * u128::from(nanos)) >> 64) as u64)
    }
}

impl TrafficPolicy {
    /// How many retries may be under way, of so many requests under way (retries included); `None` is no bound. A budget
    /// holds instead of `max_retries`.
    pub fn most_retries(&self, requests: u32) -> Option<u32> {
        let Some((share, least)) = self.retry_budget else {
            return self.pool.max_retries;
        };
        let part = u64::from(requests) * u64::from(share.parts()) / 1_000_000;
        Some(u32::try_from(part).unwrap_or(u32::MAX).max(least))
    }
}
