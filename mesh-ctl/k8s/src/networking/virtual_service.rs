//! VirtualService: what becomes of requests to hosts.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{Kind, ObjectMeta};

/// Rules for requests to hosts.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, rename_all = "camelCase")]
pub struct VirtualService {
    /// Metadata.
    pub metadata: ObjectMeta,
    /// What it says.
    pub spec: VirtualServiceSpec,
}

/// What a virtual service says.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, rename_all = "camelCase")]
pub struct VirtualServiceSpec {
    /// The hosts it speaks of: short names, full names, or `*.` and a suffix. None: it is a delegate.
    pub hosts: Vec<String>,
    /// The gateways it holds at; `mesh` (also when empty) is every client in the mesh.
    pub gateways: Vec<String>,
    /// Rules for HTTP, in order.
    pub http: Vec<HttpRoute>,
    /// Rules for TLS that is passed on unread, in order.
    pub tls: Vec<TlsRoute>,
    /// Rules for TCP, in order.
    pub tcp: Vec<TcpRoute>,
    /// Namespaces that see it.
    pub export_to: Vec<String>,
}

/// A rule for HTTP.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, rename_all = "camelCase")]
pub struct HttpRoute {
    /// Its name.
    pub name: String,
    /// Requests it is for: any of these; all when empty.
    #[serde(rename = "match")]
    pub matches: Vec<HttpMatchRequest>,
    /// Where they go.
    pub route: Vec<HttpRouteDestination>,
    /// Where clients are sent instead.
    pub redirect: Option<HttpRedirect>,
    /// What is answered instead.
    pub direct_response: Option<HttpDirectResponse>,
    /// The virtual service that has the rules for these requests.
    pub delegate: Option<Delegate>,
    /// Changes to the target.
    pub rewrite: Option<HttpRewrite>,
    /// The longest time of a whole request; none when absent.
    pub timeout: Option<String>,
    /// When a request is tried again.
    pub retries: Option<HttpRetry>,
    /// Failures put in on purpose.
    pub fault: Option<HttpFaultInjection>,
    /// Who gets a copy.
    pub mirror: Option<Destination>,
    /// Further ones who get a copy.
    pub mirrors: Vec<HttpMirrorPolicy>,
    /// How many requests are copied to `mirror`, in whole per cent (deprecated).
    #[serde(alias = "mirror_percent")]
    pub mirror_percent: Option<u32>,
    /// How many requests are copied to `mirror`.
    pub mirror_percentage: Option<Percent>,
    /// Cross-origin requests.
    pub cors_policy: Option<CorsPolicy>,
    /// Changes to headers.
    pub headers: Option<Headers>,
}

/// What a request must be like: everything that is given.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, rename_all = "camelCase")]
pub struct HttpMatchRequest {
    /// Its name.
    pub name: String,
    /// Its path.
    pub uri: Option<StringMatch>,
    /// Its scheme.
    pub scheme: Option<StringMatch>,
    /// Its method.
    pub method: Option<StringMatch>,
    /// Its authority.
    pub authority: Option<StringMatch>,
    /// Its headers.
    pub headers: BTreeMap<String, StringMatch>,
    /// Headers that it must not have, or not like this.
    pub without_headers: BTreeMap<String, StringMatch>,
    /// Its query parameters.
    pub query_params: BTreeMap<String, StringMatch>,
    /// The port that was addressed; any when 0.
    pub port: u32,
    /// Labels of its client.
    pub source_labels: BTreeMap<String, String>,
    /// The namespace of its client.
    pub source_namespace: String,
    /// The gateways where this holds.
    pub gateways: Vec<String>,
    /// Whether the path's case is ignored.
    pub ignore_uri_case: bool,
    /// A prefix for statistics.
    pub stat_prefix: String,
}

/// How a text is compared; presence when nothing is given.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, rename_all = "camelCase")]
pub struct StringMatch {
    /// As a whole.
    pub exact: Option<String>,
    /// By its beginning.
    pub prefix: Option<String>,
    /// By an expression of RE2 for the whole text.
    pub regex: Option<String>,
}

/// A place that requests go to, with its share.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, rename_all = "camelCase")]
pub struct HttpRouteDestination {
    /// The place.
    pub destination: Destination,
    /// Its share, relative to the others'; all when it is the only one.
    pub weight: i32,
    /// Changes to headers.
    pub headers: Option<Headers>,
}

/// A place.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, rename_all = "camelCase")]
pub struct Destination {
    /// The service's name.
    pub host: String,
    /// A subset that a destination rule names.
    pub subset: String,
    /// The service's port.
    pub port: Option<PortSelector>,
}

/// A port.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, rename_all = "camelCase")]
pub struct PortSelector {
    /// Its number.
    pub number: u32,
}

/// Where a client is sent.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, rename_all = "camelCase")]
pub struct HttpRedirect {
    /// The new path; with `%PREFIX()%` before it, what stands instead of the matched prefix.
    pub uri: String,
    /// The new authority.
    pub authority: String,
    /// The new port.
    pub port: u32,
    /// `FROM_PROTOCOL_DEFAULT` or `FROM_REQUEST_PORT`.
    pub derive_port: String,
    /// The new scheme.
    pub scheme: String,
    /// The status; 301 when 0.
    pub redirect_code: u32,
}

/// An answer without a backend.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, rename_all = "camelCase")]
pub struct HttpDirectResponse {
    /// Its status.
    pub status: u32,
    /// Its body.
    pub body: Option<HttpBody>,
}

/// A body.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, rename_all = "camelCase")]
pub struct HttpBody {
    /// As text.
    pub string: Option<String>,
    /// As bytes, in base64.
    pub bytes: Option<String>,
}

/// A virtual service by name.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, rename_all = "camelCase")]
pub struct Delegate {
    /// Its name.
    pub name: String,
    /// Its namespace; that of the delegating one when empty.
    pub namespace: String,
}

/// Changes to a target.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, rename_all = "camelCase")]
pub struct HttpRewrite {
    /// Instead of the path, or of its matched prefix.
    pub uri: String,
    /// The new authority.
    pub authority: String,
    /// Instead of what an expression matches in the path.
    pub uri_regex_rewrite: Option<RegexRewrite>,
}

/// Replacing by expression.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, rename_all = "camelCase")]
pub struct RegexRewrite {
    /// The expression.
    #[serde(rename = "match")]
    pub matches: String,
    /// What stands there instead, with `\1` for its groups.
    pub rewrite: String,
}

/// When a request is tried again.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, rename_all = "camelCase")]
pub struct HttpRetry {
    /// How often.
    pub attempts: i32,
    /// The longest time of each try; the request's own when absent.
    pub per_try_timeout: Option<String>,
    /// Conditions and statuses, joined by commas.
    pub retry_on: String,
    /// Whether other localities may take it.
    pub retry_remote_localities: Option<bool>,
    /// Whether endpoints that failed already are avoided; yes when absent.
    pub retry_ignore_previous_hosts: Option<bool>,
    /// The pause before the first retry.
    pub backoff: Option<String>,
}

/// Failures put in on purpose.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, rename_all = "camelCase")]
pub struct HttpFaultInjection {
    /// A pause.
    pub delay: Option<FaultDelay>,
    /// An answer of our own.
    pub abort: Option<FaultAbort>,
}

/// A pause.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, rename_all = "camelCase")]
pub struct FaultDelay {
    /// Of how many requests, in whole per cent (deprecated).
    pub percent: Option<i32>,
    /// Of how many requests.
    pub percentage: Option<Percent>,
    /// How long.
    pub fixed_delay: Option<String>,
    /// How long on average; never implemented by anybody.
    pub exponential_delay: Option<String>,
}

/// An answer of our own.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, rename_all = "camelCase")]
pub struct FaultAbort {
    /// For how many requests.
    pub percentage: Option<Percent>,
    /// An HTTP status.
    pub http_status: Option<i32>,
    /// A gRPC status by name or number.
    pub grpc_status: Option<String>,
    /// An HTTP/2 error; never implemented by anybody.
    pub http2_error: Option<String>,
}

/// A share in per cent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, rename_all = "camelCase")]
pub struct Percent {
    /// From 0 to 100; 0.1 is one in a thousand.
    pub value: f64,
}

/// Who gets a copy of how many requests.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, rename_all = "camelCase")]
pub struct HttpMirrorPolicy {
    /// Who.
    pub destination: Destination,
    /// How many; all when absent.
    pub percentage: Option<Percent>,
}

/// Cross-origin requests.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, rename_all = "camelCase")]
pub struct CorsPolicy {
    /// Origins that are let in, as written (deprecated).
    pub allow_origin: Vec<String>,
    /// Origins that are let in.
    pub allow_origins: Vec<StringMatch>,
    /// Methods.
    pub allow_methods: Vec<String>,
    /// Request headers.
    pub allow_headers: Vec<String>,
    /// Response headers that scripts may read.
    pub expose_headers: Vec<String>,
    /// How long a preflight's answer may be kept.
    pub max_age: Option<String>,
    /// Whether credentials may be sent.
    pub allow_credentials: Option<bool>,
    /// `FORWARD` (also when empty) or `IGNORE`: preflights from other origins.
    pub unmatched_preflights: String,
}

/// Changes to headers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, rename_all = "camelCase")]
pub struct Headers {
    /// Of the request.
    pub request: Option<HeaderOperations>,
    /// Of the response.
    pub response: Option<HeaderOperations>,
}

/// Changes to the headers of a message.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, rename_all = "camelCase")]
pub struct HeaderOperations {
    /// Headers to have this value only.
    pub set: BTreeMap<String, String>,
    /// Values to add.
    pub add: BTreeMap<String, String>,
    /// Headers to remove.
    pub remove: Vec<String>,
}

/// A rule for TLS that is passed on unread.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, rename_all = "camelCase")]
pub struct TlsRoute {
    /// Connections it is for.
    #[serde(rename = "match")]
    pub matches: Vec<TlsMatchAttributes>,
    /// Where they go.
    pub route: Vec<RouteDestination>,
}

/// What a TLS connection must be like.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, rename_all = "camelCase")]
pub struct TlsMatchAttributes {
    /// The names that were asked for.
    pub sni_hosts: Vec<String>,
    /// Addresses that were dialed.
    pub destination_subnets: Vec<String>,
    /// The port that was addressed.
    pub port: u32,
    /// Labels of the client.
    pub source_labels: BTreeMap<String, String>,
    /// The gateways where this holds.
    pub gateways: Vec<String>,
    /// The namespace of the client.
    pub source_namespace: String,
}

/// A rule for TCP.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, rename_all = "camelCase")]
pub struct TcpRoute {
    /// Connections it is for.
    #[serde(rename = "match")]
    pub matches: Vec<L4MatchAttributes>,
    /// Where they go.
    pub route: Vec<RouteDestination>,
}

/// What a TCP connection must be like.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, rename_all = "camelCase")]
pub struct L4MatchAttributes {
    /// Addresses that were dialed.
    pub destination_subnets: Vec<String>,
    /// The port that was addressed.
    pub port: u32,
    /// The client's address.
    pub source_subnet: String,
    /// Labels of the client.
    pub source_labels: BTreeMap<String, String>,
    /// The gateways where this holds.
    pub gateways: Vec<String>,
    /// The namespace of the client.
    pub source_namespace: String,
}

/// A place that connections go to, with its share.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, rename_all = "camelCase")]
pub struct RouteDestination {
    /// The place.
    pub destination: Destination,
    /// Its share, relative to the others'.
    pub weight: i32,
}

impl Kind for VirtualService {
    const KIND: &'static str = "VirtualService";
    const GROUP: &'static str = "networking.istio.io";
    const VERSIONS: &'static [&'static str] = &["v1", "v1beta1", "v1alpha3"];
    const UNREAD: &'static [&'static str] = &["status"];

    fn metadata(&self) -> &ObjectMeta {
        &self.metadata
    }
}
