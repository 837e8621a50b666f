//! Spans as OTLP has them: OpenTelemetry's semantic conventions for HTTP (1.27), Envoy's and Istio's names for what
//! these do not know, `warren.` for what neither does.
//!
//! Invariant: a query is never told, because it may be somebody's secret.

use std::time::{SystemTime, UNIX_EPOCH};

use opentelemetry_proto::tonic::{
    collector::trace::v1::ExportTraceServiceRequest,
    common::v1::{AnyValue, InstrumentationScope, KeyValue, any_value::Value},
    resource::v1::Resource,
    trace::v1::{ResourceSpans, ScopeSpans, Span, Status, span::SpanKind, status::StatusCode},
};

use super::collector::Own;
use crate::observe::{Finished, FlowRecord, RequestRecord};

/// The flag that a span's parent is known to be of another process, and that this is known (OTLP, `SpanFlags`).
const REMOTE_PARENT: u32 = 0x300;
/// Methods that are told as they are; others are `_OTHER`.
const METHODS: [&str; 9] = [
    "GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH",
];

/// A batch.
pub(super) fn request(own: &Own, batch: &[Finished]) -> ExportTraceServiceRequest {
    let scope = InstrumentationScope {
        name: "warren".to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        ..InstrumentationScope::default()
    };
    let spans = ScopeSpans {
        scope: Some(scope),
        spans: batch.iter().map(span).collect(),
        schema_url: String::new(),
    };
    ExportTraceServiceRequest {
        resource_spans: vec![ResourceSpans {
            resource: Some(resource(own)),
            scope_spans: vec![spans],
            schema_url: String::new(),
        }],
    }
}

/// Who says it: as with Istio, the waypoint's name and namespace.
fn resource(own: &Own) -> Resource {
    let pod = &own.pod;
    let workload = own.workload.as_ref();
    let canonical = workload
        .map(|w| &*w.canonical.name)
        .filter(|n| !n.is_empty());
    let canonical = canonical.unwrap_or(pod.service_account.as_str());
    let mut attributes = Attributes::default();
    attributes.text("service.name", format!("{canonical}.{}", pod.namespace));
    attributes.text("service.namespace", pod.namespace.as_str());
    attributes.text("service.instance.id", pod.workload.as_str());
    attributes.text("k8s.namespace.name", pod.namespace.as_str());
    attributes.text("k8s.pod.name", &*pod.name);
    if let Some(workload) = workload {
        attributes.text("k8s.node.name", workload.node.as_str());
        attributes.text("k8s.cluster.name", workload.cluster.as_str());
        if &*workload.canonical.workload_type == "deployment" {
            attributes.text("k8s.deployment.name", &*workload.canonical.workload_name);
        }
    }
    Resource {
        attributes: attributes.0,
        ..Resource::default()
    }
}

fn span(finished: &Finished) -> Span {
    let Finished {
        mark,
        state,
        rule: _,
        asked,
        tags,
        began,
        took,
        flow,
        request,
    } = finished;
    let mut attributes = Attributes::default();
    conventional(&mut attributes, flow, request);
    proxied(&mut attributes, flow, request);
    for (name, value) in tags {
        attributes.text(name, value.as_str());
    }
    let failed = request.status >= 500 || request.status == 0;
    let parent = match mark.parent {
        0 => Vec::new(),
        parent => parent.to_be_bytes().to_vec(),
    };
    let began = nanos(*began);
    Span {
        trace_id: mark.trace.to_be_bytes().to_vec(),
        span_id: mark.span.to_be_bytes().to_vec(),
        trace_state: state.clone(),
        flags: u32::from(mark.sampled) | REMOTE_PARENT,
        parent_span_id: parent,
        // As Istio's proxies call it: bounded in number, which paths are not.
        name: format!("{asked}/*"),
        kind: SpanKind::Server.into(),
        start_time_unix_nano: began,
        end_time_unix_nano: began.saturating_add(u64::try_from(took.as_nanos()).unwrap_or(0)),
        attributes: attributes.0,
        status: failed.then(|| Status {
            code: StatusCode::Error.into(),
            message: request.shown_details(),
        }),
        ..Span::default()
    }
}

/// What OpenTelemetry's conventions name.
fn conventional(to: &mut Attributes, flow: &FlowRecord, request: &RequestRecord) {
    let path = request.path.split_once('?');
    let path = path.map_or(request.path.as_str(), |(path, _)| path);
    match METHODS.contains(&request.method.as_str()) {
        true => to.text("http.request.method", request.method.as_str()),
        false => {
            to.text("http.request.method", "_OTHER");
            to.text("http.request.method_original", request.method.as_str());
        }
    }
    to.text("url.scheme", "http");
    to.text("url.path", path);
    let authority = request.authority.parse::<http::uri::Authority>().ok();
    if let Some(authority) = &authority {
        to.text("server.address", authority.host());
        if let Some(port) = authority.port_u16() {
            to.number("server.port", port.into());
        }
    }
    if let Some(client) = flow.source.addr {
        to.text("client.address", client.ip().to_string());
        to.number("client.port", client.port().into());
    }
    if let Some((name, version)) = request.protocol.split_once('/') {
        to.text("network.protocol.name", name.to_ascii_lowercase());
        to.text("network.protocol.version", version);
    }
    if let Some(agent) = &request.agent {
        to.text("user_agent.original", agent.as_str());
    }
    if request.status != 0 {
        to.number("http.response.status_code", request.status.into());
    }
    match request.status {
        0 => to.text("error.type", "client_gone"),
        status @ 500.. => to.text("error.type", status.to_string()),
        _ => {}
    }
    if request.grpc {
        to.text("rpc.system", "grpc");
        if let Some(status) = request.grpc_status {
            to.number("rpc.grpc.status_code", status.into());
        }
        if let Some((service, method)) = path.trim_start_matches('/').rsplit_once('/') {
            to.text("rpc.service", service);
            to.text("rpc.method", method);
        }
    }
}

/// What Envoy and Istio name, and what only we know.
fn proxied(to: &mut Attributes, flow: &FlowRecord, request: &RequestRecord) {
    to.text("component", "proxy");
    to.text("response_flags", request.shown_flags());
    to.number("request_size", request.received);
    to.number("response_size", request.sent);
    if let Some(id) = &request.id {
        to.text("guid:x-request-id", id.as_str());
    }
    if let Some(cluster) = &request.cluster {
        to.text("upstream_cluster", cluster.as_str());
    }
    if let Some(addr) = flow.destination.addr {
        to.text("upstream_address", addr.to_string());
    }
    if let Some(workload) = &flow.destination.workload {
        to.text("istio.canonical_service", &*workload.canonical.name);
        to.text("istio.canonical_revision", &*workload.canonical.revision);
        to.text("istio.namespace", workload.namespace.as_str());
        to.text("istio.cluster_id", workload.cluster.as_str());
    }
    if let Some(workload) = &flow.source.workload {
        to.text("warren.source.workload", &*workload.name);
        to.text("warren.source.namespace", workload.namespace.as_str());
    }
    if let Some(identity) = &flow.source.identity {
        to.text("warren.source.identity", identity.to_string());
    }
    if let Some(route) = &request.route {
        to.text("warren.route", route.as_str());
    }
    to.number("warren.attempts", request.attempts.into());
}

/// Nanoseconds since 1970.
fn nanos(at: SystemTime) -> u64 {
    let since = at.duration_since(UNIX_EPOCH);
    since.map_or(0, |d| u64::try_from(d.as_nanos()).unwrap_or(u64::MAX))
}

#[derive(Default)]
struct Attributes(Vec<KeyValue>);

impl Attributes {
    fn text(&mut self, name: &str, value: impl Into<String>) {
        self.put(name, Value::StringValue(value.into()));
    }

    fn number(&mut self, name: &str, value: u64) {
        self.put(
            name,
            Value::IntValue(i64::try_from(value).unwrap_or(i64::MAX)),
        );
    }

    fn put(&mut self, name: &str, value: Value) {
        self.0.push(KeyValue {
            key: name.to_owned(),
            value: Some(AnyValue { value: Some(value) }),
            ..KeyValue::default()
        });
    }
}
