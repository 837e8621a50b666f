//! DestinationRule: how the endpoints of a host are used.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Percent, PortSelector};
use crate::{Kind, ObjectMeta, security::WorkloadSelector};

/// How the endpoints of a host are used.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, rename_all = "camelCase")]
pub struct DestinationRule {
    /// Metadata.
    pub metadata: ObjectMeta,
    /// What it says.
    pub spec: DestinationRuleSpec,
}

/// What a destination rule says.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, rename_all = "camelCase")]
pub struct DestinationRuleSpec {
    /// The host: a short name, a full name, or `*.` and a suffix.
    pub host: String,
    /// For all of its endpoints.
    pub traffic_policy: Option<TrafficPolicy>,
    /// Named parts of its endpoints.
    pub subsets: Vec<Subset>,
    /// Namespaces that see it.
    pub export_to: Vec<String>,
    /// The clients it holds for; all when absent.
    pub workload_selector: Option<WorkloadSelector>,
}

/// A named part of the endpoints.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, rename_all = "camelCase")]
pub struct Subset {
    /// Its name.
    pub name: String,
    /// Labels of its endpoints.
    pub labels: BTreeMap<String, String>,
    /// For its endpoints, instead of what holds for all, field by field.
    pub traffic_policy: Option<TrafficPolicy>,
}

/// How endpoints are used.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, rename_all = "camelCase")]
pub struct TrafficPolicy {
    /// Which endpoint is next.
    pub load_balancer: Option<LoadBalancerSettings>,
    /// Bounds of connections and requests.
    pub connection_pool: Option<ConnectionPoolSettings>,
    /// When an endpoint is left out.
    pub outlier_detection: Option<OutlierDetection>,
    /// TLS towards endpoints.
    pub tls: Option<ClientTlsSettings>,
    /// For single ports. Nothing is inherited there.
    pub port_level_settings: Vec<PortTrafficPolicy>,
    /// A tunnel through another proxy.
    pub tunnel: Option<TunnelSettings>,
    /// A PROXY protocol header on each connection.
    pub proxy_protocol: Option<ProxyProtocol>,
    /// How many requests may be retries.
    pub retry_budget: Option<RetryBudget>,
}

/// How endpoints are used on one port.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, rename_all = "camelCase")]
pub struct PortTrafficPolicy {
    /// The service's port.
    pub port: Option<PortSelector>,
    /// Which endpoint is next.
    pub load_balancer: Option<LoadBalancerSettings>,
    /// Bounds of connections and requests.
    pub connection_pool: Option<ConnectionPoolSettings>,
    /// When an endpoint is left out.
    pub outlier_detection: Option<OutlierDetection>,
    /// TLS towards endpoints.
    pub tls: Option<ClientTlsSettings>,
}

/// Which endpoint is next.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, rename_all = "camelCase")]
pub struct LoadBalancerSettings {
    /// `UNSPECIFIED` (also when empty), `LEAST_REQUEST`, `LEAST_CONN` (deprecated), `ROUND_ROBIN`, `RANDOM` or
    /// `PASSTHROUGH`.
    pub simple: String,
    /// By a hash of something of the request.
    pub consistent_hash: Option<ConsistentHashLb>,
    /// Which places come first.
    pub locality_lb_setting: Option<LocalityLbSetting>,
    /// Weighting by zones' sizes.
    pub zone_aware_lb_setting: Option<serde_json::Map<String, serde_json::Value>>,
    /// How new endpoints begin.
    pub warmup: Option<WarmupConfiguration>,
    /// How long new endpoints take to their full share (deprecated).
    pub warmup_duration_secs: Option<String>,
}

/// Balancing by a hash.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, rename_all = "camelCase")]
pub struct ConsistentHashLb {
    /// Of a header.
    pub http_header_name: Option<String>,
    /// Of a cookie.
    pub http_cookie: Option<HttpCookie>,
    /// Of the client's address.
    pub use_source_ip: Option<bool>,
    /// Of a query parameter.
    pub http_query_parameter_name: Option<String>,
    /// A ring.
    pub ring_hash: Option<RingHash>,
    /// Maglev.
    pub maglev: Option<MagLev>,
    /// The ring's least size (deprecated).
    pub minimum_ring_size: Option<u64>,
}

/// A cookie.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, rename_all = "camelCase")]
pub struct HttpCookie {
    /// Its name.
    pub name: String,
    /// Its path.
    pub path: String,
    /// How long it lives, when it is to be made; zero: for the session.
    pub ttl: Option<String>,
    /// Further attributes.
    pub attributes: Vec<CookieAttribute>,
}

/// An attribute of a cookie.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, rename_all = "camelCase")]
pub struct CookieAttribute {
    /// Its name.
    pub name: String,
    /// Its value.
    pub value: String,
}

/// A ring.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, rename_all = "camelCase")]
pub struct RingHash {
    /// Its least size; 1024 when absent.
    pub minimum_ring_size: Option<u64>,
}

/// Maglev.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, rename_all = "camelCase")]
pub struct MagLev {
    /// The table's size, a prime; 65537 when absent.
    pub table_size: Option<u64>,
}

/// Which places come first.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, rename_all = "camelCase")]
pub struct LocalityLbSetting {
    /// So much to each place.
    pub distribute: Vec<Distribute>,
    /// Which region comes after one's own.
    pub failover: Vec<Failover>,
    /// Labels that client and endpoint should share, the most important first.
    pub failover_priority: Vec<String>,
    /// Whether any of it holds; yes when absent.
    pub enabled: Option<bool>,
}

/// From a place, so much to each place.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, rename_all = "camelCase")]
pub struct Distribute {
    /// The client's place, `region/zone/subzone` with `*` for any.
    pub from: String,
    /// Shares in per cent by place.
    pub to: BTreeMap<String, u32>,
}

/// Which region comes after one's own.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, rename_all = "camelCase")]
pub struct Failover {
    /// The client's region.
    pub from: String,
    /// The next one.
    pub to: String,
}

/// How new endpoints begin.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, rename_all = "camelCase")]
pub struct WarmupConfiguration {
    /// How long they take to their full share.
    pub duration: Option<String>,
    /// Their share at the beginning, in per cent; 10 when absent.
    pub minimum_percent: Option<f64>,
    /// The curve's exponent; 1 when absent.
    pub aggression: Option<f64>,
}

/// Bounds of connections and requests.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, rename_all = "camelCase")]
pub struct ConnectionPoolSettings {
    /// Of connections.
    pub tcp: Option<TcpSettings>,
    /// Of requests.
    pub http: Option<HttpSettings>,
}

/// Bounds of connections.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, rename_all = "camelCase")]
pub struct TcpSettings {
    /// How many.
    pub max_connections: Option<i32>,
    /// How long one may take to be made.
    pub connect_timeout: Option<String>,
    /// Keepalive.
    pub tcp_keepalive: Option<TcpKeepalive>,
    /// The longest life of one.
    pub max_connection_duration: Option<String>,
    /// How long an idle one lives.
    pub idle_timeout: Option<String>,
}

/// Keepalive.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, rename_all = "camelCase")]
pub struct TcpKeepalive {
    /// Probes without an answer.
    pub probes: Option<u32>,
    /// Idle time before the first.
    pub time: Option<String>,
    /// Between two.
    pub interval: Option<String>,
}

/// Bounds of requests.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, rename_all = "camelCase")]
pub struct HttpSettings {
    /// Requests that wait for a connection.
    pub http1_max_pending_requests: Option<i32>,
    /// Requests under way.
    pub http2_max_requests: Option<i32>,
    /// Requests on one connection.
    pub max_requests_per_connection: Option<i32>,
    /// Retries under way.
    pub max_retries: Option<i32>,
    /// How long an idle connection lives.
    pub idle_timeout: Option<String>,
    /// `DEFAULT` (also when empty), `DO_NOT_UPGRADE` or `UPGRADE`.
    pub h2_upgrade_policy: String,
    /// Whether the client's protocol is kept.
    pub use_client_protocol: Option<bool>,
    /// Streams on one connection.
    pub max_concurrent_streams: Option<i32>,
    /// Keepalive of HTTP/2.
    #[serde(rename = "http2KeepAlive", alias = "http2Keepalive")]
    pub http2_keep_alive: Option<serde_json::Map<String, serde_json::Value>>,
}

/// When an endpoint is left out.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, rename_all = "camelCase")]
pub struct OutlierDetection {
    /// 5xx in a row (deprecated).
    pub consecutive_errors: Option<i32>,
    /// Whether failures of our own are counted apart.
    pub split_external_local_origin_errors: Option<bool>,
    /// Failures of our own in a row.
    pub consecutive_local_origin_failures: Option<u32>,
    /// 502, 503 or 504 in a row.
    pub consecutive_gateway_errors: Option<u32>,
    /// 5xx in a row.
    #[serde(rename = "consecutive5xxErrors")]
    pub consecutive_5xx_errors: Option<u32>,
    /// How often it is looked at.
    pub interval: Option<String>,
    /// The first ejection's length.
    pub base_ejection_time: Option<String>,
    /// At most so many endpoints, in per cent.
    pub max_ejection_percent: Option<i32>,
    /// Below so many healthy ones, in per cent, nobody is left out.
    pub min_health_percent: Option<i32>,
    /// Statuses that count as errors beside the 5xx.
    pub outlier_detection_http_error_codes: Vec<u32>,
}

/// TLS towards endpoints.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, rename_all = "camelCase")]
pub struct ClientTlsSettings {
    /// `DISABLE` (also when empty), `SIMPLE`, `MUTUAL` or `ISTIO_MUTUAL`.
    pub mode: String,
    /// A file with the client's chain.
    pub client_certificate: String,
    /// A file with its key.
    pub private_key: String,
    /// A file with roots.
    pub ca_certificates: String,
    /// The secret with all of these.
    pub credential_name: String,
    /// Names that the server may prove.
    pub subject_alt_names: Vec<String>,
    /// The name that is asked for.
    pub sni: String,
    /// Whether the server's certificate is not checked.
    pub insecure_skip_verify: Option<bool>,
    /// A file with revocations.
    pub ca_crl: String,
}

/// A tunnel through another proxy.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, rename_all = "camelCase")]
pub struct TunnelSettings {
    /// `CONNECT` or `POST`.
    pub protocol: String,
    /// Where the tunnel leads.
    pub target_host: String,
    /// And to which port.
    pub target_port: u32,
}

/// A PROXY protocol header.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, rename_all = "camelCase")]
pub struct ProxyProtocol {
    /// `V1` (also when empty) or `V2`.
    pub version: String,
}

/// How many requests may be retries.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, rename_all = "camelCase")]
pub struct RetryBudget {
    /// Of the active ones, in per cent; 20 when absent.
    pub percent: Option<Percent>,
    /// So many always may; 3 when absent.
    pub min_retry_concurrency: Option<u32>,
}

impl Kind for DestinationRule {
    const KIND: &'static str = "DestinationRule";
    const GROUP: &'static str = "networking.istio.io";
    const VERSIONS: &'static [&'static str] = &["v1", "v1beta1", "v1alpha3"];
    const UNREAD: &'static [&'static str] = &["status"];

    fn metadata(&self) -> &ObjectMeta {
        &self.metadata
    }
}
