//! What a destination rule says of endpoints, as the model has it.
//!
//! Invariants: what is left out is what Istio documents; what cannot be understood is said by field, and where it would
//! have protected something the destination refuses.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use mesh_k8s::networking::destination_rule::{
    ClientTlsSettings, ConnectionPoolSettings, ConsistentHashLb, HttpSettings,
    LoadBalancerSettings, LocalityLbSetting, OutlierDetection, ProxyProtocol as WireProxyProtocol,
    RetryBudget, TcpSettings, TrafficPolicy as Wire,
};
use mesh_model::{
    balance::KNOWN_LABELS,
    resilience::{
        Affinity, AffinityKey, HashTable, Http2Keepalive, LoadBalancing, LocalityPreference,
        Outlier, Pool, ProxyProtocol, Share, Simple, TrafficPolicy, Warmup, Weighing,
    },
};

use super::{http_match, upstream_tls};
use crate::{
    gateway::needs,
    traffic::{reader::Reader, values},
};

/// Istio's default sizes of hash tables.
const RING: u64 = 1024;
const MAGLEV: u64 = 65_537;
/// The largest table that is built; Envoy's own bound.
const LARGEST_TABLE: u64 = 8 * 1024 * 1024;
/// Where somebody is, the widest first.
const PLACE: [&str; 3] = [
    "topology.kubernetes.io/region",
    "topology.kubernetes.io/zone",
    "topology.istio.io/subzone",
];

/// A policy's parts with the paths at which they stand: what is left when subsets and ports are merged.
#[derive(Clone, Default)]
pub(super) struct Parts<'w> {
    pub(super) balancer: Option<(String, &'w LoadBalancerSettings)>,
    pub(super) pool: Option<(String, &'w ConnectionPoolSettings)>,
    pub(super) outlier: Option<(String, &'w OutlierDetection)>,
    pub(super) tls: Option<(String, &'w ClientTlsSettings)>,
    pub(super) proxy_protocol: Option<(String, &'w WireProxyProtocol)>,
    pub(super) budget: Option<(String, &'w RetryBudget)>,
}

impl<'w> Parts<'w> {
    /// These, with what a policy at a path has instead. A port of its own inherits nothing but what ports cannot have.
    pub(super) fn under(mut self, path: &str, wire: &'w Wire, port: Option<u16>) -> Self {
        fn over<'w, T>(slot: &mut Option<(String, &'w T)>, path: String, own: Option<&'w T>) {
            if let Some(own) = own {
                *slot = Some((path, own));
            }
        }
        let at = |name: &str| format!("{path}.{name}");
        over(
            &mut self.balancer,
            at("loadBalancer"),
            wire.load_balancer.as_ref(),
        );
        over(
            &mut self.pool,
            at("connectionPool"),
            wire.connection_pool.as_ref(),
        );
        over(
            &mut self.outlier,
            at("outlierDetection"),
            wire.outlier_detection.as_ref(),
        );
        over(&mut self.tls, at("tls"), wire.tls.as_ref());
        over(
            &mut self.proxy_protocol,
            at("proxyProtocol"),
            wire.proxy_protocol.as_ref(),
        );
        over(
            &mut self.budget,
            at("retryBudget"),
            wire.retry_budget.as_ref(),
        );
        let own = wire
            .port_level_settings
            .iter()
            .enumerate()
            .find(|(_, own)| {
                own.port.map(|own| own.number) == port.map(u32::from) && port.is_some()
            });
        if let Some((i, own)) = own {
            let at = |name: &str| format!("{path}.portLevelSettings[{i}].{name}");
            self.balancer = own.load_balancer.as_ref().map(|p| (at("loadBalancer"), p));
            self.pool = own
                .connection_pool
                .as_ref()
                .map(|p| (at("connectionPool"), p));
            self.outlier = own
                .outlier_detection
                .as_ref()
                .map(|p| (at("outlierDetection"), p));
            self.tls = own.tls.as_ref().map(|p| (at("tls"), p));
        }
        self
    }

    /// The policy. What makes it refuse is left in the reader.
    pub(super) fn read(&self, reader: &mut Reader) -> TrafficPolicy {
        let mut balancing = read(reader, &self.balancer, balancing).unwrap_or_default();
        let balancer = self.balancer.as_ref().map(|(_, wire)| *wire);
        if self.outlier.is_some() && leaves_places_open(balancer) {
            balancing.locality = Some(LocalityPreference::unasked());
        }
        TrafficPolicy {
            balancing,
            pool: read(reader, &self.pool, pool).unwrap_or_default(),
            outlier: read(reader, &self.outlier, outlier),
            tls: read(reader, &self.tls, upstream_tls::tls).flatten(),
            proxy_protocol: read(reader, &self.proxy_protocol, proxy_protocol).flatten(),
            retry_budget: read(reader, &self.budget, budget),
        }
    }
}

fn read<T, R>(
    reader: &mut Reader,
    part: &Option<(String, &T)>,
    with: impl FnOnce(&mut Reader, &str, &T) -> R,
) -> Option<R> {
    let (path, wire) = part.as_ref()?;
    Some(with(reader, path, wire))
}

fn time(reader: &mut Reader, field: String, text: Option<&String>) -> Option<Duration> {
    reader.want(&field, values::duration(text?), "taken for absent")
}

fn balancing(reader: &mut Reader, path: &str, wire: &LoadBalancerSettings) -> LoadBalancing {
    let simple = match wire.simple.as_str() {
        "" | "UNSPECIFIED" | "LEAST_REQUEST" | "LEAST_CONN" => Simple::LeastRequest,
        "ROUND_ROBIN" => Simple::RoundRobin,
        "RANDOM" => Simple::Random,
        "PASSTHROUGH" => {
            let text = "means the endpoint whose own address was dialed; of a service's address, any endpoint by chance";
            reader.info(format!("{path}.simple"), text);
            Simple::Passthrough
        }
        other => {
            let text = format!("{other:?} is not known; taken for LEAST_REQUEST");
            reader.error(format!("{path}.simple"), text);
            Simple::LeastRequest
        }
    };
    let consistent = wire
        .consistent_hash
        .as_ref()
        .and_then(|hash| affinity(reader, &format!("{path}.consistentHash"), hash));
    if consistent.is_some() && !wire.simple.is_empty() {
        let text = "is not looked at: consistentHash says which endpoint is next";
        reader.warn(format!("{path}.simple"), text);
    }
    if wire.zone_aware_lb_setting.is_some() {
        reader.warn(format!("{path}.zoneAwareLbSetting"), "is not honoured");
    }
    let locality = wire
        .locality_lb_setting
        .as_ref()
        .filter(|setting| setting.enabled != Some(false))
        .and_then(|setting| locality(reader, &format!("{path}.localityLbSetting"), setting));
    LoadBalancing {
        weighing: consistent.map_or(Weighing::Simple(simple), Weighing::Consistent),
        locality,
        warmup: warmup(reader, path, wire),
    }
}

/// Whether nothing is said of places where endpoints are chosen at all: as in Istio, where some are left out for a while
/// those near the client then come first.
pub(super) fn leaves_places_open(wire: Option<&LoadBalancerSettings>) -> bool {
    wire.is_none_or(|wire| wire.locality_lb_setting.is_none() && wire.simple != "PASSTHROUGH")
}

fn affinity(reader: &mut Reader, path: &str, wire: &ConsistentHashLb) -> Option<Affinity> {
    let mut keys = Vec::new();
    if let Some(name) = &wire.http_header_name {
        let name = values::header_name(name);
        let field = format!("{path}.httpHeaderName");
        let name = reader.want(&field, name, "requests are balanced without it");
        keys.extend(name.map(AffinityKey::Header));
    }
    if let Some(cookie) = &wire.http_cookie {
        let attributes = cookie.attributes.iter().map(|attribute| {
            let value = attribute.value.as_str();
            let value = (!value.is_empty()).then(|| value.into());
            (attribute.name.as_str().into(), value)
        });
        keys.push(AffinityKey::Cookie {
            name: cookie.name.as_str().into(),
            path: cookie.path.as_str().into(),
            ttl: time(
                reader,
                format!("{path}.httpCookie.ttl"),
                cookie.ttl.as_ref(),
            ),
            attributes: attributes.collect(),
        });
    }
    if wire.use_source_ip == Some(true) {
        keys.push(AffinityKey::Source);
    }
    if let Some(name) = &wire.http_query_parameter_name {
        keys.push(AffinityKey::Query(name.as_str().into()));
    }
    if keys.len() > 1 {
        reader.error(
            path,
            "says of several things that they are hashed; the first is",
        );
    }
    let Some(key) = keys.into_iter().next() else {
        reader.warn(
            path,
            "says of nothing that it is hashed; requests are balanced without it",
        );
        return None;
    };
    for (name, given) in [
        ("ringHash", wire.ring_hash.is_some()),
        ("minimumRingSize", wire.minimum_ring_size.is_some()),
    ] {
        if given && wire.maglev.is_some() {
            let text = "is not looked at: maglev makes the table";
            reader.warn(format!("{path}.{name}"), text);
        }
    }
    let ring = wire.ring_hash.and_then(|ring| ring.minimum_ring_size);
    if ring.is_some() && wire.maglev.is_none() && wire.minimum_ring_size.is_some() {
        let text = "is not looked at: ringHash says how large the ring is";
        reader.warn(format!("{path}.minimumRingSize"), text);
    }
    let table = match wire.maglev {
        Some(maglev) => HashTable::Maglev(maglev.table_size.unwrap_or(MAGLEV)),
        None => HashTable::Ring(ring.or(wire.minimum_ring_size).unwrap_or(RING)),
    };
    let (HashTable::Ring(size) | HashTable::Maglev(size)) = table;
    let table = match size {
        1..=LARGEST_TABLE => table,
        _ => {
            let text = format!("a table of {size} places is not built; taken for {RING}");
            reader.error(path, text);
            HashTable::Ring(RING)
        }
    };
    Some(Affinity { key, table })
}

fn locality(
    reader: &mut Reader,
    path: &str,
    wire: &LocalityLbSetting,
) -> Option<LocalityPreference> {
    let given = [
        !wire.distribute.is_empty(),
        !wire.failover.is_empty(),
        !wire.failover_priority.is_empty(),
    ];
    if given == [true, true, false] || given[0] && given[2] {
        let text = "has distribute beside failover or failoverPriority; distribute decides";
        reader.error(path, text);
    }
    if given[0] {
        let shares = wire.distribute.iter().enumerate().map(|(i, from)| {
            let sum: u64 = from.to.values().map(|share| u64::from(*share)).sum();
            if sum != 100 {
                let text = format!("its shares come to {sum}, not 100");
                reader.error(format!("{path}.distribute[{i}].to"), text);
            }
            let to = from
                .to
                .iter()
                .map(|(place, share)| (place.as_str().into(), *share));
            (from.from.as_str().into(), to.collect())
        });
        return Some(LocalityPreference::Distribute(shares.collect()));
    }
    if given[2] {
        if given[1] {
            let text = "is not looked at: failoverPriority says what comes first";
            reader.warn(format!("{path}.failover"), text);
        }
        let mut all = wire.failover_priority.iter().enumerate();
        if let Some((i, text)) = all.find(|(_, text)| label(text).is_none()) {
            let text = format!(
                "{text:?} is neither a label's name nor name=value; what comes behind it has no effect either"
            );
            reader.error(format!("{path}.failoverPriority[{i}]"), text);
        }
        let labels = wire.failover_priority.iter();
        return Some(LocalityPreference::Labels(
            labels.map(|label| label.as_str().into()).collect(),
        ));
    }
    if wire.failover.is_empty() {
        // The same order as when nobody asks for it, but asked for.
        return Some(LocalityPreference::Labels(PLACE.map(Arc::from).into()));
    }
    let regions = wire.failover.iter();
    let regions = regions.map(|next| (next.from.as_str().into(), next.to.as_str().into()));
    Some(LocalityPreference::Failover(regions.collect()))
}

/// A label that client and endpoint are compared by, and its value where that is given; `None` where it is no label.
fn label(text: &str) -> Option<(&str, Option<&str>)> {
    let (key, value) = match text.split_once('=') {
        Some((key, value)) => (key, Some(value)),
        None => (text, None),
    };
    let made = BTreeMap::from([(key.to_owned(), value.unwrap_or_default().to_owned())]);
    (!key.is_empty() && http_match::are_labels(&made)).then_some((key, value))
}

/// The labels that clients and endpoints are compared by, beside those that say where they are.
pub(super) fn compared(policy: &Wire) -> impl Iterator<Item = (&str, Option<&str>)> {
    let ports = policy.port_level_settings.iter();
    let ports = ports.filter_map(|port| port.load_balancer.as_ref());
    let all = policy.load_balancer.iter().chain(ports);
    let all = all.filter_map(|balancer| balancer.locality_lb_setting.as_ref());
    let all = all.flat_map(|setting| &setting.failover_priority);
    all.filter_map(|text| label(text))
        .filter(|(key, _)| !KNOWN_LABELS.contains(key))
}

fn warmup(reader: &mut Reader, path: &str, wire: &LoadBalancerSettings) -> Option<Warmup> {
    if wire.warmup.is_some() && wire.warmup_duration_secs.is_some() {
        let text = "is not looked at: warmup says how new endpoints begin";
        reader.warn(format!("{path}.warmupDurationSecs"), text);
    }
    let (field, text, minimum, aggression) = match &wire.warmup {
        Some(warmup) => (
            format!("{path}.warmup.duration"),
            warmup.duration.as_ref(),
            warmup.minimum_percent,
            warmup.aggression,
        ),
        None => (
            format!("{path}.warmupDurationSecs"),
            Some(wire.warmup_duration_secs.as_ref()?),
            None,
            None,
        ),
    };
    if !needs::warms_up(wire) {
        let text =
            "says nothing of how these endpoints are chosen; write LEAST_REQUEST or ROUND_ROBIN";
        reader.warn(field, text);
        return None;
    }
    if text.is_none() {
        reader.warn(field, "is missing; new endpoints begin like all others");
        return None;
    }
    let duration = time(reader, field, text)?;
    let minimum = values::percent(minimum.unwrap_or(10.0));
    let field = format!("{path}.warmup.minimumPercent");
    let minimum = reader.want(&field, minimum, "taken for 10");
    let aggression = aggression.unwrap_or(1.0);
    let aggression = match (1.0..=1000.0).contains(&aggression) {
        true => (aggression * 1000.0).round() as u32,
        false => {
            let text = format!("{aggression} is not between 1 and 1000; taken for 1");
            reader.error(format!("{path}.warmup.aggression"), text);
            1000
        }
    };
    Some(Warmup {
        duration,
        minimum: minimum.unwrap_or(Share::per_million(100_000)),
        aggression,
    })
}

/// A bound; none when it is left out, 0, or as large as can be.
fn bound(reader: &mut Reader, field: String, number: Option<i32>) -> Option<u32> {
    match number {
        None | Some(0 | i32::MAX) => None,
        Some(number) => u32::try_from(number)
            .map_err(|_| reader.error(field, format!("{number} is less than 0; taken for none")))
            .ok(),
    }
}

fn pool(reader: &mut Reader, path: &str, wire: &ConnectionPoolSettings) -> Pool {
    let mut pool = Pool::default();
    if let Some(tcp) = &wire.tcp {
        connections(reader, &format!("{path}.tcp"), tcp, &mut pool);
    }
    if let Some(http) = &wire.http {
        requests(reader, &format!("{path}.http"), http, &mut pool);
    }
    pool
}

fn connections(reader: &mut Reader, path: &str, wire: &TcpSettings, pool: &mut Pool) {
    let at = |name: &str| format!("{path}.{name}");
    pool.max_connections = bound(reader, at("maxConnections"), wire.max_connections);
    let connect = time(reader, at("connectTimeout"), wire.connect_timeout.as_ref());
    pool.connect_timeout = connect.unwrap_or(pool.connect_timeout);
    pool.keepalive = wire.tcp_keepalive.as_ref().map(|keepalive| {
        let idle = time(reader, at("tcpKeepalive.time"), keepalive.time.as_ref());
        let pause = time(
            reader,
            at("tcpKeepalive.interval"),
            keepalive.interval.as_ref(),
        );
        (keepalive.probes.filter(|n| *n != 0), idle, pause)
    });
    let longest = wire.max_connection_duration.as_ref();
    pool.max_duration = time(reader, at("maxConnectionDuration"), longest);
    let idle = time(reader, at("idleTimeout"), wire.idle_timeout.as_ref());
    pool.tcp_idle = idle.unwrap_or(pool.tcp_idle);
}

fn requests(reader: &mut Reader, path: &str, wire: &HttpSettings, pool: &mut Pool) {
    let at = |name: &str| format!("{path}.{name}");
    let pending = wire.http1_max_pending_requests;
    pool.max_pending = bound(reader, at("http1MaxPendingRequests"), pending);
    pool.max_requests = bound(reader, at("http2MaxRequests"), wire.http2_max_requests);
    let each = wire.max_requests_per_connection;
    pool.requests_per_connection = bound(reader, at("maxRequestsPerConnection"), each).unwrap_or(0);
    pool.max_retries = bound(reader, at("maxRetries"), wire.max_retries);
    let idle = time(reader, at("idleTimeout"), wire.idle_timeout.as_ref());
    pool.http_idle = idle.unwrap_or(pool.http_idle);
    pool.upgrade = match wire.h2_upgrade_policy.as_str() {
        "" | "DEFAULT" | "DO_NOT_UPGRADE" => false,
        "UPGRADE" => true,
        other => {
            let text =
                format!("{other:?} is none of DEFAULT, DO_NOT_UPGRADE, UPGRADE; taken for DEFAULT");
            reader.error(at("h2UpgradePolicy"), text);
            false
        }
    };
    pool.use_client_protocol = wire.use_client_protocol.unwrap_or(false);
    let streams = wire.max_concurrent_streams;
    pool.max_streams = bound(reader, at("maxConcurrentStreams"), streams);
    let pings = wire.http2_keep_alive.as_ref();
    pool.http2_keepalive = pings.and_then(|pings| keepalive(reader, &at("http2KeepAlive"), pings));
}

/// Envoy demands a time for the answer; where none is written it is this.
const PING_TIMEOUT: Duration = Duration::from_secs(20);

fn keepalive(
    reader: &mut Reader,
    path: &str,
    wire: &serde_json::Map<String, serde_json::Value>,
) -> Option<Http2Keepalive> {
    for name in wire.keys() {
        if !matches!(name.as_str(), "interval" | "timeout") {
            reader.warn(format!("{path}.{name}"), "is not honoured");
        }
    }
    let mut part = |name: &str| {
        let text = wire.get(name)?.as_str().map(str::to_owned);
        let field = format!("{path}.{name}");
        if text.is_none() {
            reader.error(field.clone(), "is no duration; taken for absent".to_owned());
        }
        time(reader, field, text.as_ref())
    };
    let (interval, timeout) = (part("interval"), part("timeout"));
    let Some(interval) = interval.filter(|t| !t.is_zero()) else {
        reader.warn(format!("{path}.interval"), "is missing; there are no pings");
        return None;
    };
    Some(Http2Keepalive {
        interval,
        timeout: timeout.filter(|t| !t.is_zero()).unwrap_or(PING_TIMEOUT),
    })
}

fn outlier(reader: &mut Reader, path: &str, wire: &OutlierDetection) -> Outlier {
    let at = |name: &str| format!("{path}.{name}");
    let default = Outlier::default();
    if wire.consecutive_errors.is_some() {
        let text = "is Istio's former name and not honoured; write consecutive5xxErrors";
        reader.warn(at("consecutiveErrors"), text);
    }
    let mut per_cent = |name: &str, number: Option<i32>, default: u32| match number {
        None => default,
        Some(number @ 0..=100) => number.unsigned_abs(),
        Some(number) => {
            let text = format!("{number} is not between 0 and 100; taken for {default}");
            reader.error(at(name), text);
            default
        }
    };
    let max_ejected = per_cent(
        "maxEjectionPercent",
        wire.max_ejection_percent,
        default.max_ejected,
    );
    let min_healthy = per_cent(
        "minHealthPercent",
        wire.min_health_percent,
        default.min_healthy,
    );
    let mut statuses = Vec::new();
    for (i, code) in wire.outlier_detection_http_error_codes.iter().enumerate() {
        let field = at(&format!("outlierDetectionHttpErrorCodes[{i}]"));
        match u16::try_from(*code).ok().filter(|c| (100..600).contains(c)) {
            Some(code) => statuses.push(code),
            None => reader.error(field, format!("{code} is not a status; it does not count")),
        }
    }
    let interval = time(reader, at("interval"), wire.interval.as_ref());
    let base = time(
        reader,
        at("baseEjectionTime"),
        wire.base_ejection_time.as_ref(),
    );
    Outlier {
        consecutive_5xx: wire
            .consecutive_5xx_errors
            .unwrap_or(default.consecutive_5xx),
        consecutive_gateway: wire
            .consecutive_gateway_errors
            .unwrap_or(default.consecutive_gateway),
        consecutive_local: wire
            .consecutive_local_origin_failures
            .unwrap_or(default.consecutive_local),
        split_local: wire.split_external_local_origin_errors.unwrap_or(false),
        statuses: statuses.into(),
        interval: interval.unwrap_or(default.interval),
        base_ejection: base.unwrap_or(default.base_ejection),
        max_ejected,
        min_healthy,
    }
}

fn proxy_protocol(
    reader: &mut Reader,
    path: &str,
    wire: &WireProxyProtocol,
) -> Option<ProxyProtocol> {
    match wire.version.as_str() {
        "" | "V1" => Some(ProxyProtocol::V1),
        "V2" => Some(ProxyProtocol::V2),
        other => {
            let text = format!("{other:?} is neither V1 nor V2");
            reader.fail(&format!("{path}.version"), text);
            None
        }
    }
}

fn budget(reader: &mut Reader, path: &str, wire: &RetryBudget) -> (Share, u32) {
    let percent = values::percent(wire.percent.map_or(20.0, |p| p.value));
    let share = reader.want(&format!("{path}.percent"), percent, "taken for 20");
    (
        share.unwrap_or(Share::per_million(200_000)),
        wire.min_retry_concurrency.unwrap_or(3),
    )
}
