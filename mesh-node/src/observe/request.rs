//! The record of one HTTP request at a waypoint, and the guard that reports it however the request ends.
//!
//! Invariants: a guard that is dropped writes exactly one access-log line and counts exactly one request; a request
//! that was not answered to its end says so by a response flag; labels come from configuration, from statuses and from
//! our own flags only, so that their number is bounded.

use std::{
    fmt,
    time::{Duration, Instant},
};

use http::HeaderMap;

use super::{FlowRecord, Observer, Span, access, requests::RequestLabels};

/// The flag of a client that went away.
const GONE: &str = "DC";

/// Everything that is reported about a request beside the flow that it came in.
#[derive(Clone, Debug, Default)]
pub struct RequestRecord {
    /// `GET`, ...
    pub method: String,
    /// Path and query, as they came.
    pub path: String,
    /// The authority, as it came.
    pub authority: String,
    /// `HTTP/1.1`, ...
    pub protocol: &'static str,
    /// Whether it is one of gRPC.
    pub grpc: bool,
    /// The status of the response.
    pub status: u16,
    /// The gRPC status of the response.
    pub grpc_status: Option<u16>,
    /// What went wrong or was done on purpose, as Envoy's flags.
    pub flags: Vec<&'static str>,
    /// The same in words: why the answer is our own, and what could not be done for the request.
    pub details: Vec<&'static str>,
    /// Why the endpoint of the last try could not be reached, where that is why the answer is our own.
    pub failure: Option<String>,
    /// The rule that decided.
    pub route: Option<String>,
    /// Where it went.
    pub cluster: Option<String>,
    /// How often it was sent.
    pub attempts: u32,
    /// How long the endpoint took to begin its answer.
    pub upstream: Option<Duration>,
    /// `x-request-id`.
    pub id: Option<String>,
    /// `user-agent`.
    pub agent: Option<String>,
    /// `x-forwarded-for`, as it went on.
    pub forwarded_for: Option<String>,
    /// Bytes of the request's body.
    pub received: u64,
    /// Bytes of the response's body.
    pub sent: u64,
    /// Messages of gRPC in the request's body.
    pub messages_received: u64,
    /// The same of the response's.
    pub messages_sent: u64,
}

impl RequestRecord {
    /// The flags as metrics and log show them.
    pub fn shown_flags(&self) -> String {
        match self.flags.is_empty() {
            true => "-".to_owned(),
            false => self.flags.join(","),
        }
    }

    /// The details as the log shows them.
    pub fn shown_details(&self) -> String {
        self.details.join(",")
    }
}

/// Reports a request when it is dropped.
pub struct RequestGuard {
    observer: Observer,
    /// Who talks to whom.
    pub flow: FlowRecord,
    /// What is asked and answered.
    pub record: RequestRecord,
    /// The request's span, where it is traced.
    pub span: Option<Box<Span>>,
    started: Instant,
    complete: bool,
}

impl fmt::Debug for RequestGuard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.record.fmt(f)
    }
}

impl RequestGuard {
    pub(super) fn new(observer: Observer, flow: FlowRecord) -> Self {
        Self {
            observer,
            flow,
            record: RequestRecord::default(),
            span: None,
            started: Instant::now(),
            complete: false,
        }
    }

    /// Adds a response flag.
    pub fn flag(&mut self, flag: &'static str) {
        if flag != "-" && !self.record.flags.contains(&flag) {
            self.record.flags.push(flag);
        }
    }

    /// Adds a detail.
    pub fn detail(&mut self, detail: &'static str) {
        if !detail.is_empty() && !self.record.details.contains(&detail) {
            self.record.details.push(detail);
        }
    }

    /// Reads the gRPC status of headers or trailers.
    pub fn grpc(&mut self, headers: &HeaderMap) {
        let status = headers.get("grpc-status").and_then(|v| v.to_str().ok());
        if let Some(status) = status.and_then(|s| s.parse().ok()) {
            self.record.grpc_status = Some(status);
        }
    }

    /// Bytes that went to the client.
    pub fn sent(&mut self, bytes: u64) {
        self.record.sent += bytes;
    }

    /// The response went to its end; reports.
    pub fn complete(mut self) {
        self.complete = true;
    }
}

impl Drop for RequestGuard {
    fn drop(&mut self) {
        if !self.complete && self.record.flags.is_empty() {
            self.flag(GONE);
        }
        let took = self.started.elapsed();
        let labels = RequestLabels {
            flow: &self.flow,
            request: &self.record,
        };
        self.observer.metrics().requests().count(labels, took);
        if let Some(span) = self.span.take() {
            span.finish(&self.flow, &self.record, took);
        }
        if self.observer.logs_access() {
            let line = access::request(self.observer.format(), &self.flow, &self.record, took);
            self.observer.line(line);
        }
    }
}
