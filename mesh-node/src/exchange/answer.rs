//! What the proxy answers by itself: status, response flag and text as Envoy documents them.
//!
//! Invariant: a gRPC client gets a gRPC status, whatever happened (HTTP 200, `grpc-status`, `grpc-message`).

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode, header};

use super::Reply;

/// An answer of the proxy's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Local {
    /// The HTTP status.
    pub status: u16,
    /// The response flag of metrics and log.
    pub flag: &'static str,
    /// What happened, in the log (`response_code_details`).
    pub details: &'static str,
    /// The body.
    pub text: &'static str,
    /// The gRPC status.
    pub grpc: u8,
}

impl Local {
    const fn new(
        status: u16,
        flag: &'static str,
        details: &'static str,
        text: &'static str,
    ) -> Self {
        Self {
            status,
            flag,
            details,
            text,
            grpc: grpc_of(status),
        }
    }

    /// No rule matches.
    pub const NO_ROUTE: Self = Self::new(404, "NR", "route_not_found", "");
    /// The rule leads nowhere.
    pub const NO_CLUSTER: Self = Self::new(500, "NC", "cluster_not_found", "");
    /// No endpoint can take the request.
    pub const UNHEALTHY: Self = Self::new(503, "UH", "no_healthy_upstream", "no healthy upstream");
    /// A bound of the destination's pool is reached.
    pub const OVERFLOW: Self = Self::new(
        503,
        "UO",
        "upstream_reset_before_response_started{overflow}",
        "upstream connect error or disconnect/reset before headers. reset reason: overflow",
    );
    /// No connection could be made.
    pub const UNREACHED: Self = Self::new(
        503,
        "UF",
        "upstream_reset_before_response_started{connection_failure}",
        "upstream connect error or disconnect/reset before headers. reset reason: connection failure",
    );
    /// The connection ended before the response began.
    pub const TERMINATED: Self = Self::new(
        503,
        "UC",
        "upstream_reset_before_response_started{connection_termination}",
        "upstream connect error or disconnect/reset before headers. reset reason: connection termination",
    );
    /// The endpoint refused the stream.
    pub const REFUSED: Self = Self::new(
        503,
        "UR",
        "upstream_reset_before_response_started{remote_refused_stream_reset}",
        "upstream connect error or disconnect/reset before headers. reset reason: remote refused stream reset",
    );
    /// It took too long.
    pub const TIMEOUT: Self = Self::new(504, "UT", "response_timeout", "upstream request timeout");
    /// It took longer than its client waits, who speaks gRPC (DEADLINE_EXCEEDED).
    pub const DEADLINE: Self = Self {
        grpc: 4,
        ..Self::TIMEOUT
    };
    /// The request cannot be understood.
    pub const MALFORMED: Self = Self::new(400, "DPE", "malformed_request", "");
    /// The node of the endpoint refused, by policy.
    pub const DENIED: Self = Self::new(403, "-", "rbac_access_denied", "RBAC: access denied");
    /// The waypoint does not carry this any more.
    pub const UNSERVED: Self = Self::new(503, "NR", "not_served_here", "");

    /// An abort that was asked for.
    pub const fn abort(status: u16) -> Self {
        Self::new(status, "FI", "fault_filter_abort", "fault filter abort")
    }
}

/// The response to a client; `grpc` says whether it speaks gRPC.
pub fn local(answer: Local, grpc: bool) -> Response<Reply> {
    if grpc {
        return grpc_status(answer.grpc, answer.text);
    }
    let mut response = Response::new(Reply::of(Bytes::from_static(answer.text.as_bytes())));
    *response.status_mut() =
        StatusCode::from_u16(answer.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let headers = response.headers_mut();
    if !answer.text.is_empty() {
        let text = HeaderValue::from_static("text/plain");
        headers.insert(header::CONTENT_TYPE, text);
    }
    if answer.flag == "UO" {
        let name = HeaderName::from_static("x-envoy-overloaded");
        headers.insert(name, HeaderValue::from_static("true"));
    }
    response
}

/// A gRPC status without a message of the service (trailers only).
pub fn grpc_status(code: u8, message: &'static str) -> Response<Reply> {
    let mut response = Response::new(Reply::of(Bytes::new()));
    let headers: &mut HeaderMap = response.headers_mut();
    let kind = HeaderValue::from_static("application/grpc");
    headers.insert(header::CONTENT_TYPE, kind);
    headers.insert("grpc-status", HeaderValue::from(u16::from(code)));
    if !message.is_empty() {
        // The texts above need no percent-encoding.
        headers.insert("grpc-message", HeaderValue::from_static(message));
    }
    response
}

/// The gRPC status for an HTTP status (gRPC's `http-grpc-status-mapping`).
const fn grpc_of(status: u16) -> u8 {
    match status {
        400 => 13,
        401 => 16,
        403 => 7,
        404 => 12,
        429 | 502 | 503 | 504 => 14,
        _ => 2,
    }
}
