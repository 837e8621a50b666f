//! The access log's line: the keys of CONTRACTS.md section 6 in their order, as text or JSON.
//!
//! Invariants: key order is fixed; an unknown value is left out; text from outside is escaped, so that
//! one flow is one line.

use std::{
    fmt::{Display, Write as _},
    time::Duration,
};

use tracing_subscriber::fmt::{
    format::Writer,
    time::{FormatTime, SystemTime},
};

use super::{
    RequestRecord,
    flow::{FlowRecord, Party, Verdict, Wire},
};

/// How lines are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AccessFormat {
    /// `key=value` pairs.
    #[default]
    Text,
    /// One JSON object per line.
    Json,
}

/// A flow that has ended.
pub(super) struct Ended<'a> {
    pub record: &'a FlowRecord,
    pub opened: bool,
    pub from_client: u64,
    pub to_client: u64,
    pub duration: Duration,
    pub wire: Option<Wire>,
}

impl Ended<'_> {
    fn message(&self) -> &'static str {
        match (self.record.reason, self.opened, self.record.policy) {
            (None, _, _) => "connection complete",
            (Some(_), false, Some(Verdict::Deny)) => "connection refused",
            (Some(_), _, _) => "connection failed",
        }
    }
}

/// The line of an ended flow, with its newline.
pub(super) fn line(format: AccessFormat, ended: &Ended<'_>) -> Vec<u8> {
    let mut out = Keys {
        out: String::with_capacity(512),
        format,
    };
    out.begin(ended.message());
    let r = ended.record;
    out.text("direction", Some(r.direction.as_str()));
    out.party("src", &r.source, None);
    out.party("dst", &r.destination, Some(r));
    out.shown("via", r.via.as_ref());
    out.text("path", r.path.map(|p| p.as_str()));
    out.text(
        "mtls",
        r.path.map(|_| if r.mtls() { "true" } else { "none" }),
    );
    out.text("policy", r.policy.map(|p| p.as_str()));
    out.shown("policy_name", r.policy_name.as_ref());
    out.text("reason", r.reason.map(|r| r.shown().key));
    out.number("bytes_sent", ended.from_client);
    out.number("bytes_recv", ended.to_client);
    out.shown("duration", Some(Milliseconds(ended.duration)));
    if let Some(wire) = ended.wire {
        out.number("rtt_us", micros(wire.rtt));
        out.number("retransmits", wire.retransmits.into());
    }
    out.text("error", r.error.as_deref());
    out.end()
}

/// The line of a request that has ended, with its newline.
pub(super) fn request(
    format: AccessFormat,
    flow: &FlowRecord,
    request: &RequestRecord,
    took: Duration,
) -> Vec<u8> {
    let mut out = Keys {
        out: String::with_capacity(768),
        format,
    };
    out.begin("request complete");
    let some = |text: &'static str| Some(text).filter(|t| !t.is_empty());
    out.text("direction", Some(flow.direction.as_str()));
    out.party("src", &flow.source, None);
    out.party("dst", &flow.destination, Some(flow));
    out.shown("via", flow.via.as_ref());
    out.text("method", Some(&request.method));
    out.text("path", Some(&request.path));
    out.text("protocol", some(request.protocol));
    out.number("response_code", request.status.into());
    out.text("response_flags", Some(&request.shown_flags()));
    let details = request.shown_details();
    let details = Some(&*details).filter(|d| !d.is_empty());
    out.text("response_code_details", details);
    out.text(
        "upstream_transport_failure_reason",
        request.failure.as_deref(),
    );
    out.shown("grpc_status", request.grpc_status);
    out.number("bytes_received", request.received);
    out.number("bytes_sent", request.sent);
    out.shown("duration", Some(Milliseconds(took)));
    out.shown("upstream_service_time", request.upstream.map(Milliseconds));
    out.text("x_forwarded_for", request.forwarded_for.as_deref());
    out.text("user_agent", request.agent.as_deref());
    out.text("request_id", request.id.as_deref());
    out.text("authority", Some(&request.authority));
    out.text("upstream_cluster", request.cluster.as_deref());
    out.text("route_name", request.route.as_deref());
    out.number("attempts", request.attempts.into());
    out.end()
}

/// Whole microseconds, at most what fits.
fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

struct Milliseconds(Duration);

impl Display for Milliseconds {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}ms", self.0.as_millis())
    }
}

struct Keys {
    out: String,
    format: AccessFormat,
}

// Writing to a String cannot fail, so that the results of `write!` are dropped here.
impl Keys {
    fn begin(&mut self, message: &str) {
        let mut time = String::with_capacity(32);
        if SystemTime.format_time(&mut Writer::new(&mut time)).is_err() {
            time.push_str("unknown time");
        }
        let _ = match self.format {
            AccessFormat::Text => write!(self.out, "{time}  INFO access: {message}"),
            AccessFormat::Json => {
                write!(
                    self.out,
                    r#"{{"timestamp":"{time}","level":"INFO","target":"access","message":"{message}""#
                )
            }
        };
    }

    fn party(&mut self, side: &str, party: &Party, destination: Option<&FlowRecord>) {
        let workload = party.workload.as_deref();
        let key = |name: &str| format!("{side}.{name}");
        self.shown(&key("addr"), party.addr);
        if let Some(record) = destination {
            self.shown("dst.hbone_addr", record.hbone_addr);
            self.text(
                "dst.service",
                record.service.as_ref().map(|s| s.hostname.as_str()),
            );
        }
        self.text(&key("workload"), workload.map(|w| &*w.name));
        let namespace = workload
            .map(|w| &w.namespace)
            .or(party.identity.as_ref().map(|i| &i.namespace));
        self.text(&key("namespace"), namespace.map(|n| n.as_str()));
        self.shown(&key("identity"), party.identity.as_ref());
        self.text(
            &key("node"),
            workload.map(|w| w.node.as_str()).filter(|n| !n.is_empty()),
        );
    }

    fn shown(&mut self, key: &str, value: Option<impl Display>) {
        if let Some(value) = value {
            self.text(key, Some(&value.to_string()));
        }
    }

    fn text(&mut self, key: &str, value: Option<&str>) {
        let Some(value) = value else { return };
        match self.format {
            AccessFormat::Text if value.bytes().all(plain) && !value.is_empty() => {
                let _ = write!(self.out, " {key}={value}");
            }
            AccessFormat::Text => {
                let _ = write!(self.out, " {key}={value:?}");
            }
            AccessFormat::Json => {
                let value = serde_json::Value::from(value);
                let _ = write!(self.out, r#","{key}":{value}"#);
            }
        }
    }

    fn number(&mut self, key: &str, value: u64) {
        let _ = match self.format {
            AccessFormat::Text => write!(self.out, " {key}={value}"),
            AccessFormat::Json => write!(self.out, r#","{key}":{value}"#),
        };
    }

    fn end(mut self) -> Vec<u8> {
        self.out.push_str(match self.format {
            AccessFormat::Text => "\n",
            AccessFormat::Json => "}\n",
        });
        self.out.into_bytes()
    }
}

/// Bytes that need no quotes in a `key=value` line.
fn plain(b: u8) -> bool {
    b.is_ascii_graphic() && !matches!(b, b'"' | b'=' | b'\\')
}
