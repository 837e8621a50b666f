//! How a service's endpoints are used: subsets, balancing, pools, outliers, TLS. What a DestinationRule says.
//!
//! Invariant: policies are complete; the controller has merged what subsets and ports inherit, field by field.

use std::{sync::Arc, time::Duration};

use super::{Share, SubsetName};
use crate::{
    name::{Identity, ServiceName},
    route::http::Selector,
};

/// How the endpoints of one service are used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Destination {
    /// The service.
    pub service: ServiceName,
    /// The object that says so, `namespace/name`; empty when nothing could be read, which a feature then says.
    pub by: Arc<str>,
    /// For every port that has none of its own.
    pub policy: Arc<TrafficPolicy>,
    /// For single ports of the service.
    pub ports: Box<[(u16, Arc<TrafficPolicy>)]>,
    /// Named parts of its endpoints.
    pub subsets: Box<[Subset]>,
    /// Features that it needs; one that this build does not know refuses every request to the service.
    pub features: Box<[Arc<str>]>,
}

/// A named part of a service's endpoints.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subset {
    /// Its name.
    pub name: SubsetName,
    /// The labels of its endpoints.
    pub selector: Selector,
    /// For every port that has none of its own.
    pub policy: Arc<TrafficPolicy>,
    /// For single ports of the service.
    pub ports: Box<[(u16, Arc<TrafficPolicy>)]>,
}

impl Destination {
    /// The policy for a port, in a subset or for the whole service; `None` when there is no such subset.
    pub fn policy(&self, subset: Option<&str>, port: u16) -> Option<&Arc<TrafficPolicy>> {
        let (policy, ports) = match subset {
            None => (&self.policy, &self.ports),
            Some(name) => {
                let subset = self.subsets.iter().find(|s| &*s.name == name)?;
                (&subset.policy, &subset.ports)
            }
        };
        let own = ports.iter().find(|(p, _)| *p == port);
        Some(own.map_or(policy, |(_, p)| p))
    }

    /// Whether it says anything of connections to a port, as far as is known: what could not be read may.
    pub fn concerns_connections(&self, port: u16) -> bool {
        let policy = self.policy(None, port);
        self.by.is_empty() || policy.is_some_and(|p| p.concerns_connections())
    }
}

/// How endpoints are used.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TrafficPolicy {
    /// Which endpoint is next.
    pub balancing: LoadBalancing,
    /// Bounds of connections and requests.
    pub pool: Pool,
    /// When an endpoint is left out for a while; never when absent.
    pub outlier: Option<Outlier>,
    /// TLS towards the endpoints; the mesh's own when absent.
    pub tls: Option<UpstreamTls>,
    /// A PROXY protocol header on each connection.
    pub proxy_protocol: Option<ProxyProtocol>,
    /// The share of active requests that may be retries, and how many always may.
    pub retry_budget: Option<(Share, u32)>,
}

impl TrafficPolicy {
    /// Whether it says anything that can be kept to for connections alone, by whoever sees no requests.
    pub fn concerns_connections(&self) -> bool {
        let (pool, default) = (&self.pool, Pool::default());
        pool.max_connections.is_some()
            || pool.connect_timeout != default.connect_timeout
            || pool.keepalive.is_some()
            || pool.max_duration.is_some()
            || pool.tcp_idle != default.tcp_idle
            || self.outlier.as_ref().is_some_and(Outlier::counts_connects)
    }
}

impl Outlier {
    /// Whether connections that cannot be made count.
    pub fn counts_connects(&self) -> bool {
        match self.split_local {
            true => self.consecutive_local != 0,
            false => self.consecutive_5xx != 0 || self.consecutive_gateway != 0,
        }
    }
}

/// Which endpoint is next.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LoadBalancing {
    /// How.
    pub weighing: Weighing,
    /// Which places come first.
    pub locality: Option<LocalityPreference>,
    /// How new endpoints begin.
    pub warmup: Option<Warmup>,
}

/// How an endpoint is drawn.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Weighing {
    /// By a simple rule.
    Simple(Simple),
    /// By a hash of something of the request.
    Consistent(Affinity),
}

impl Default for Weighing {
    fn default() -> Self {
        Self::Simple(Simple::LeastRequest)
    }
}

/// The simple rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Simple {
    /// The less busy of two drawn at random by weight.
    LeastRequest,
    /// One after the other, by weight.
    RoundRobin,
    /// At random, by weight.
    Random,
    /// The address that the client dialed.
    Passthrough,
}

/// A cookie's attribute and its value, if it has one.
pub type CookieAttribute = (Arc<str>, Option<Arc<str>>);

/// Places and how much each gets, in per cent.
pub type PlaceShares = Box<[(Arc<str>, u32)]>;

/// Consistent hashing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Affinity {
    /// What is hashed.
    pub key: AffinityKey,
    /// Into which table.
    pub table: HashTable,
}

/// What is hashed. A request without it is balanced at random.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AffinityKey {
    /// A header.
    Header(http::HeaderName),
    /// A cookie, which is made when a time to live is given (zero: for the session) and the request has none.
    Cookie {
        /// Its name.
        name: Arc<str>,
        /// Its path.
        path: Arc<str>,
        /// How long it lives.
        ttl: Option<Duration>,
        /// Further attributes, as written.
        attributes: Box<[CookieAttribute]>,
    },
    /// The client's address.
    Source,
    /// A query parameter.
    Query(Arc<str>),
}

/// The table of a consistent hash.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HashTable {
    /// A ring of at least so many places.
    Ring(u64),
    /// Maglev with so many places, a prime.
    Maglev(u64),
}

/// Which places come first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LocalityPreference {
    /// From a place (`region/zone/subzone`, `*` at the end for any) so much to each place, in per cent.
    Distribute(Box<[(Arc<str>, PlaceShares)]>),
    /// The client's own place first; then, from a region to a region, these before any other. Without any it is what
    /// holds where nobody asked for it.
    Failover(Box<[(Arc<str>, Arc<str>)]>),
    /// By how many leading labels of these client and endpoint share: `key`, or `key=value` for the endpoint's alone.
    Labels(Box<[Arc<str>]>),
}

impl LocalityPreference {
    /// The client's own place first, though nobody asked for it: a service's own preference comes before it.
    pub fn unasked() -> Self {
        Self::Failover(Box::default())
    }

    /// Whether nobody asked for it.
    pub fn is_unasked(&self) -> bool {
        matches!(self, Self::Failover(pairs) if pairs.is_empty())
    }
}

/// How a new endpoint begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Warmup {
    /// How long it takes to its full share.
    pub duration: Duration,
    /// Its share at the beginning, of its full one.
    pub minimum: Share,
    /// The curve's exponent in thousandths; 1,000 is a straight line.
    pub aggression: u32,
}

/// TCP keepalive: probes, idle time, interval; the system's where absent.
pub type Keepalive = (Option<u32>, Option<Duration>, Option<Duration>);

/// Bounds of connections and requests; `None` is no bound.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pool {
    /// Connections to an endpoint of one proxy.
    pub max_connections: Option<u32>,
    /// How long a connection may take to be made.
    pub connect_timeout: Duration,
    /// TCP keepalive; that of the proxy itself when absent.
    pub keepalive: Option<Keepalive>,
    /// The longest life of a connection.
    pub max_duration: Option<Duration>,
    /// How long an idle TCP connection lives; for ever when zero.
    pub tcp_idle: Duration,
    /// Requests that may wait for a connection.
    pub max_pending: Option<u32>,
    /// Requests under way.
    pub max_requests: Option<u32>,
    /// Requests on one connection; 0 is no bound.
    pub requests_per_connection: u32,
    /// Retries under way.
    pub max_retries: Option<u32>,
    /// How long an idle HTTP connection lives; for ever when zero.
    pub http_idle: Duration,
    /// Whether HTTP/1.1 is carried to the endpoint as HTTP/2 (`h2UpgradePolicy: UPGRADE`).
    pub upgrade: bool,
    /// Whether the client's protocol is kept whatever the port declares.
    pub use_client_protocol: bool,
    /// Streams on one HTTP/2 connection.
    pub max_streams: Option<u32>,
    /// Pings on HTTP/2 connections; none when absent.
    pub http2_keepalive: Option<Http2Keepalive>,
}

/// Pings that find out whether the other side of an HTTP/2 connection is still there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Http2Keepalive {
    /// How often.
    pub interval: Duration,
    /// How long an answer may take; then the connection is closed.
    pub timeout: Duration,
}

impl Default for Pool {
    fn default() -> Self {
        Self {
            max_connections: None,
            connect_timeout: Duration::from_secs(10),
            keepalive: None,
            max_duration: None,
            tcp_idle: Duration::from_secs(3600),
            max_pending: None,
            max_requests: None,
            requests_per_connection: 0,
            max_retries: None,
            http_idle: Duration::from_secs(3600),
            upgrade: false,
            use_client_protocol: false,
            max_streams: None,
            http2_keepalive: None,
        }
    }
}

/// When an endpoint is left out for a while.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outlier {
    /// 5xx in a row; never when 0.
    pub consecutive_5xx: u32,
    /// 502, 503 or 504 in a row; never when 0.
    pub consecutive_gateway: u32,
    /// Failures of our own (connects, resets) in a row, where they are counted apart.
    pub consecutive_local: u32,
    /// Whether failures of our own are counted apart.
    pub split_local: bool,
    /// Statuses that count as errors beside the 5xx.
    pub statuses: Box<[u16]>,
    /// How often ejections end are looked at.
    pub interval: Duration,
    /// The first ejection's length; the nth lasts n times as long.
    pub base_ejection: Duration,
    /// At most so many endpoints, in per cent; always at least one.
    pub max_ejected: u32,
    /// Below so many healthy endpoints, in per cent, nothing is ejected and all are used.
    pub min_healthy: u32,
}

impl Default for Outlier {
    fn default() -> Self {
        Self {
            consecutive_5xx: 5,
            consecutive_gateway: 0,
            consecutive_local: 5,
            split_local: false,
            statuses: Box::default(),
            interval: Duration::from_secs(10),
            base_ejection: Duration::from_secs(30),
            max_ejected: 10,
            min_healthy: 0,
        }
    }
}

/// TLS towards endpoints outside the mesh's own.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum UpstreamTls {
    /// None at all, not even the mesh's.
    Disable,
    /// The mesh's own (`ISTIO_MUTUAL`): whom the server may be; whoever its workload is when empty.
    Mesh(Box<[Identity]>),
    /// TLS to a server that is no part of the mesh.
    Origin {
        /// The name that is asked for, and checked where no alternative names are given.
        sni: Option<Arc<str>>,
        /// Names that the server may prove.
        names: Box<[Arc<str>]>,
        /// Roots, PEM; the system's when absent.
        roots: Option<Arc<str>>,
        /// The client's certificate chain and key by the name of their secret (`MUTUAL`).
        credential: Option<Arc<str>>,
        /// Where whoever dials finds them and its roots.
        files: TlsFiles,
        /// Whether the server's certificate is not checked.
        insecure: bool,
    },
}

/// Files of PEM where whoever dials runs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct TlsFiles {
    /// Roots; the system's when absent.
    pub roots: Option<Arc<str>>,
    /// The client's certificate chain.
    pub chain: Option<Arc<str>>,
    /// Its key.
    pub key: Option<Arc<str>>,
    /// Lists of what has been revoked, of every authority of the server's chain; nothing is looked up when absent.
    pub revoked: Option<Arc<str>>,
}

/// The version of a PROXY protocol header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProxyProtocol {
    /// Text.
    V1,
    /// Binary.
    V2,
}
