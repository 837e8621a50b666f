//! How the endpoints of a service are used.
//!
//! Invariants: as with routes, what cannot be understood whole becomes a destination that needs a feature no build
//! has, so that the service's requests are refused. Unknown fields count as not understood.

use std::sync::Arc;

use mesh_model::{
    name::{Identity, ServiceName},
    resilience::{
        Affinity, AffinityKey, CookieAttribute, Destination, HashTable, Http2Keepalive, Keepalive,
        LoadBalancing, LocalityPreference, Outlier, PlaceShares, Pool, ProxyProtocol, Simple,
        Subset, TlsFiles, TrafficPolicy, UpstreamTls, Warmup, Weighing,
    },
    route::http::Selector,
};

use super::{
    field::{
        Bad, Problem, all, duration, known, need, not_understood, opt_text, real_port,
        service_name, share, strings, texts, within,
    },
    routes::{header_name, whole},
};
use crate::warren as wire;

type Ports = Box<[(u16, Arc<TrafficPolicy>)]>;

pub(super) fn encode(d: &Destination) -> wire::Destination {
    let subset = |s: &Subset| wire::Subset {
        name: s.name.to_string(),
        selector: s.selector.0.to_string(),
        policy: Some(policy_wire(&s.policy)),
        ports: ports_wire(&s.ports),
    };
    wire::Destination {
        service: d.service.to_string(),
        by: d.by.to_string(),
        policy: Some(policy_wire(&d.policy)),
        ports: ports_wire(&d.ports),
        subsets: d.subsets.iter().map(subset).collect(),
        features: strings(&d.features),
    }
}

fn ports_wire(ports: &[(u16, Arc<TrafficPolicy>)]) -> Vec<wire::PortPolicy> {
    let port = |(port, policy): &(u16, Arc<TrafficPolicy>)| wire::PortPolicy {
        port: (*port).into(),
        policy: Some(policy_wire(policy)),
    };
    ports.iter().map(port).collect()
}

fn policy_wire(p: &TrafficPolicy) -> wire::TrafficPolicy {
    let proxy_protocol = match p.proxy_protocol {
        None => wire::ProxyProtocol::Unspecified,
        Some(ProxyProtocol::V1) => wire::ProxyProtocol::V1,
        Some(ProxyProtocol::V2) => wire::ProxyProtocol::V2,
    };
    let budget = |(share, least)| wire::RetryBudget {
        share: mesh_model::resilience::Share::parts(share),
        least,
    };
    wire::TrafficPolicy {
        balancing: Some(balancing_wire(&p.balancing)),
        pool: Some(pool_wire(&p.pool)),
        outlier: p.outlier.as_ref().map(outlier_wire),
        tls: p.tls.as_ref().map(tls_wire),
        proxy_protocol: proxy_protocol.into(),
        retry_budget: p.retry_budget.map(budget),
    }
}

fn balancing_wire(b: &LoadBalancing) -> wire::Balancing {
    use wire::balancing::{Locality, Weighing as Wire};
    let weighing = match &b.weighing {
        Weighing::Simple(simple) => Wire::Simple(
            match simple {
                Simple::LeastRequest => wire::SimpleBalancing::LeastRequest,
                Simple::RoundRobin => wire::SimpleBalancing::RoundRobin,
                Simple::Random => wire::SimpleBalancing::Random,
                Simple::Passthrough => wire::SimpleBalancing::Passthrough,
            }
            .into(),
        ),
        Weighing::Consistent(affinity) => Wire::Consistent(affinity_wire(affinity)),
    };
    let locality = |l: &LocalityPreference| match l {
        LocalityPreference::Distribute(table) => Locality::Distribute(wire::Distribute {
            from: table.iter().map(from_wire).collect(),
        }),
        LocalityPreference::Failover(pairs) => Locality::Failover(wire::Failover {
            pairs: pairs
                .iter()
                .map(|(from, to)| wire::FailoverPair {
                    from: from.to_string(),
                    to: to.to_string(),
                })
                .collect(),
        }),
        LocalityPreference::Labels(keys) => Locality::Labels(wire::FailoverLabels {
            keys: strings(keys),
        }),
    };
    let warmup = |w: &Warmup| wire::Warmup {
        duration: Some(duration::wire(w.duration)),
        minimum: w.minimum.parts(),
        aggression: w.aggression,
    };
    wire::Balancing {
        weighing: Some(weighing),
        locality: b.locality.as_ref().map(locality),
        warmup: b.warmup.as_ref().map(warmup),
    }
}

fn from_wire((place, to): &(Arc<str>, PlaceShares)) -> wire::DistributeFrom {
    let to = to.iter().map(|(place, share)| wire::DistributeTo {
        place: place.to_string(),
        share: *share,
    });
    wire::DistributeFrom {
        place: place.to_string(),
        to: to.collect(),
    }
}

fn affinity_wire(a: &Affinity) -> wire::Affinity {
    use wire::affinity::{Key, Table};
    let key = match &a.key {
        AffinityKey::Header(name) => Some(Key::Header(name.to_string())),
        AffinityKey::Cookie { .. } => cookie_wire(&a.key).map(Key::Cookie),
        AffinityKey::Source => Some(Key::Source(())),
        AffinityKey::Query(name) => Some(Key::Query(name.to_string())),
    };
    let table = match a.table {
        HashTable::Ring(size) => Table::Ring(size),
        HashTable::Maglev(size) => Table::Maglev(size),
    };
    wire::Affinity {
        key,
        table: Some(table),
    }
}

/// The cookie of a key that is one.
pub(super) fn cookie_wire(key: &AffinityKey) -> Option<wire::Cookie> {
    let AffinityKey::Cookie {
        name,
        path,
        ttl,
        attributes,
    } = key
    else {
        return None;
    };
    let attribute = |(name, value): &CookieAttribute| wire::CookieAttribute {
        name: name.to_string(),
        value: opt_text(value),
    };
    Some(wire::Cookie {
        name: name.to_string(),
        path: path.to_string(),
        ttl: ttl.map(duration::wire),
        attributes: attributes.iter().map(attribute).collect(),
    })
}

fn pool_wire(p: &Pool) -> wire::Pool {
    let keepalive = |(probes, idle, interval): Keepalive| wire::Keepalive {
        probes,
        idle: idle.map(duration::wire),
        interval: interval.map(duration::wire),
    };
    wire::Pool {
        max_connections: p.max_connections,
        connect_timeout: Some(duration::wire(p.connect_timeout)),
        keepalive: p.keepalive.map(keepalive),
        max_duration: p.max_duration.map(duration::wire),
        tcp_idle: Some(duration::wire(p.tcp_idle)),
        max_pending: p.max_pending,
        max_requests: p.max_requests,
        requests_per_connection: p.requests_per_connection,
        max_retries: p.max_retries,
        http_idle: Some(duration::wire(p.http_idle)),
        upgrade: p.upgrade,
        use_client_protocol: p.use_client_protocol,
        max_streams: p.max_streams,
        http2_keepalive: p.http2_keepalive.map(|k| wire::Http2Keepalive {
            interval: Some(duration::wire(k.interval)),
            timeout: Some(duration::wire(k.timeout)),
        }),
    }
}

fn outlier_wire(o: &Outlier) -> wire::Outlier {
    wire::Outlier {
        consecutive_5xx: o.consecutive_5xx,
        consecutive_gateway: o.consecutive_gateway,
        consecutive_local: o.consecutive_local,
        split_local: o.split_local,
        statuses: o.statuses.iter().map(|s| u32::from(*s)).collect(),
        interval: Some(duration::wire(o.interval)),
        base_ejection: Some(duration::wire(o.base_ejection)),
        max_ejected: o.max_ejected,
        min_healthy: o.min_healthy,
    }
}

fn tls_wire(t: &UpstreamTls) -> wire::UpstreamTls {
    use wire::upstream_tls::Mode;
    let mode = match t {
        UpstreamTls::Disable => Mode::Disable(()),
        UpstreamTls::Mesh(identities) => Mode::Mesh(wire::MeshTls {
            identities: identities.iter().map(Identity::to_string).collect(),
        }),
        UpstreamTls::Origin {
            sni,
            names,
            roots,
            credential,
            files,
            insecure,
        } => Mode::Origin(wire::OriginTls {
            sni: opt_text(sni),
            names: strings(names),
            roots: opt_text(roots),
            credential: opt_text(credential),
            insecure: *insecure,
            roots_file: opt_text(&files.roots),
            chain_file: opt_text(&files.chain),
            key_file: opt_text(&files.key),
            revoked_file: opt_text(&files.revoked),
        }),
    };
    wire::UpstreamTls { mode: Some(mode) }
}

/// The destination, and what was not understood of it. Fails only when the resource's name is not a service's name.
pub(super) fn decode(resource: &str, body: &[u8]) -> Result<(Destination, Option<Bad>), Bad> {
    let service = service_name("", resource)?;
    match understood(&service, body) {
        Ok(destination) => Ok((destination, None)),
        Err(bad) => Ok((refusing(service, &bad), Some(bad))),
    }
}

/// A destination that refuses every request.
pub(super) fn refusing(service: ServiceName, bad: &Bad) -> Destination {
    Destination {
        service,
        by: "".into(),
        policy: Arc::default(),
        ports: Box::default(),
        subsets: Box::default(),
        features: [not_understood(bad)].into(),
    }
}

fn understood(service: &ServiceName, body: &[u8]) -> Result<Destination, Bad> {
    let wire = whole::<wire::Destination>(body)?;
    if wire.service != service.to_string() {
        return Err(Bad::new("service", Problem::NameMismatch(wire.service)));
    }
    let subset = |s: wire::Subset| {
        Ok(Subset {
            name: s.name.into(),
            selector: Selector(s.selector.into()),
            policy: policy("policy", s.policy)?,
            ports: ports(s.ports)?,
        })
    };
    Ok(Destination {
        service: service.clone(),
        by: wire.by.into(),
        policy: policy("policy", wire.policy)?,
        ports: ports(wire.ports)?,
        subsets: all("subsets", wire.subsets, subset)?,
        features: texts(wire.features),
    })
}

fn ports(list: Vec<wire::PortPolicy>) -> Result<Ports, Bad> {
    all("ports", list, |p| {
        Ok((real_port("port", p.port)?, policy("policy", p.policy)?))
    })
}

fn policy(field: &str, p: Option<wire::TrafficPolicy>) -> Result<Arc<TrafficPolicy>, Bad> {
    let read = |p: wire::TrafficPolicy| {
        Ok(TrafficPolicy {
            balancing: balancing(need("balancing", p.balancing)?)
                .map_err(|b| b.within("balancing"))?,
            pool: pool(need("pool", p.pool)?).map_err(|b| b.within("pool"))?,
            outlier: within("outlier", p.outlier, outlier)?,
            tls: within("tls", p.tls, tls)?,
            proxy_protocol: match known("proxy_protocol", p.proxy_protocol)? {
                wire::ProxyProtocol::Unspecified => None,
                wire::ProxyProtocol::V1 => Some(ProxyProtocol::V1),
                wire::ProxyProtocol::V2 => Some(ProxyProtocol::V2),
            },
            retry_budget: within("retry_budget", p.retry_budget, |b| {
                Ok((share("share", b.share)?, b.least))
            })?,
        })
    };
    read(need(field, p)?)
        .map(Arc::new)
        .map_err(|b: Bad| b.within(field))
}

fn balancing(b: wire::Balancing) -> Result<LoadBalancing, Bad> {
    use wire::balancing::{Locality, Weighing as Wire};
    let weighing = match need("weighing", b.weighing)? {
        Wire::Simple(number) => Weighing::Simple(match known("simple", number)? {
            wire::SimpleBalancing::Unspecified => return Err(Bad::new("simple", Problem::Missing)),
            wire::SimpleBalancing::LeastRequest => Simple::LeastRequest,
            wire::SimpleBalancing::RoundRobin => Simple::RoundRobin,
            wire::SimpleBalancing::Random => Simple::Random,
            wire::SimpleBalancing::Passthrough => Simple::Passthrough,
        }),
        Wire::Consistent(a) => {
            Weighing::Consistent(affinity(a).map_err(|b| b.within("consistent"))?)
        }
    };
    let locality = b.locality.map(|l| match l {
        Locality::Distribute(d) => {
            LocalityPreference::Distribute(d.from.into_iter().map(from).collect())
        }
        Locality::Failover(f) => LocalityPreference::Failover(
            f.pairs
                .into_iter()
                .map(|p| (p.from.into(), p.to.into()))
                .collect(),
        ),
        Locality::Labels(l) => LocalityPreference::Labels(texts(l.keys)),
    });
    let warmup = |w: wire::Warmup| {
        Ok(Warmup {
            duration: duration::needed("duration", w.duration)?,
            minimum: share("minimum", w.minimum)?,
            aggression: w.aggression,
        })
    };
    Ok(LoadBalancing {
        weighing,
        locality,
        warmup: within("warmup", b.warmup, warmup)?,
    })
}

fn from(f: wire::DistributeFrom) -> (Arc<str>, PlaceShares) {
    let to = f.to.into_iter().map(|t| (t.place.into(), t.share));
    (f.place.into(), to.collect())
}

fn affinity(a: wire::Affinity) -> Result<Affinity, Bad> {
    use wire::affinity::{Key, Table};
    let key = match need("key", a.key)? {
        Key::Header(name) => AffinityKey::Header(header_name("header", &name)?),
        Key::Cookie(c) => cookie(c).map_err(|b| b.within("cookie"))?,
        Key::Source(()) => AffinityKey::Source,
        Key::Query(name) => AffinityKey::Query(name.into()),
    };
    let table = match need("table", a.table)? {
        Table::Ring(size) => HashTable::Ring(size),
        Table::Maglev(size) => HashTable::Maglev(size),
    };
    Ok(Affinity { key, table })
}

pub(super) fn cookie(c: wire::Cookie) -> Result<AffinityKey, Bad> {
    let attributes = c.attributes.into_iter();
    Ok(AffinityKey::Cookie {
        name: c.name.into(),
        path: c.path.into(),
        ttl: within("ttl", c.ttl, duration::read)?,
        attributes: attributes
            .map(|a| (a.name.into(), a.value.map(Arc::from)))
            .collect(),
    })
}

fn pool(p: wire::Pool) -> Result<Pool, Bad> {
    let keepalive = |k: wire::Keepalive| {
        Ok((
            k.probes,
            within("idle", k.idle, duration::read)?,
            within("interval", k.interval, duration::read)?,
        ))
    };
    let pings = |k: wire::Http2Keepalive| {
        Ok(Http2Keepalive {
            interval: duration::needed("interval", k.interval)?,
            timeout: duration::needed("timeout", k.timeout)?,
        })
    };
    Ok(Pool {
        max_connections: p.max_connections,
        connect_timeout: duration::needed("connect_timeout", p.connect_timeout)?,
        keepalive: within("keepalive", p.keepalive, keepalive)?,
        max_duration: within("max_duration", p.max_duration, duration::read)?,
        tcp_idle: duration::needed("tcp_idle", p.tcp_idle)?,
        max_pending: p.max_pending,
        max_requests: p.max_requests,
        requests_per_connection: p.requests_per_connection,
        max_retries: p.max_retries,
        http_idle: duration::needed("http_idle", p.http_idle)?,
        upgrade: p.upgrade,
        use_client_protocol: p.use_client_protocol,
        max_streams: p.max_streams,
        http2_keepalive: within("http2_keepalive", p.http2_keepalive, pings)?,
    })
}

fn outlier(o: wire::Outlier) -> Result<Outlier, Bad> {
    let status = |n: u32| u16::try_from(n).map_err(|_| Bad::new("", Problem::OutOfRange(n.into())));
    Ok(Outlier {
        consecutive_5xx: o.consecutive_5xx,
        consecutive_gateway: o.consecutive_gateway,
        consecutive_local: o.consecutive_local,
        split_local: o.split_local,
        statuses: all("statuses", o.statuses, status)?,
        interval: duration::needed("interval", o.interval)?,
        base_ejection: duration::needed("base_ejection", o.base_ejection)?,
        max_ejected: o.max_ejected,
        min_healthy: o.min_healthy,
    })
}

fn tls(t: wire::UpstreamTls) -> Result<UpstreamTls, Bad> {
    use wire::upstream_tls::Mode;
    Ok(match need("mode", t.mode)? {
        Mode::Disable(()) => UpstreamTls::Disable,
        Mode::Mesh(m) => {
            let identity = |text: String| {
                let parsed = text.parse::<Identity>();
                parsed.map_err(|e| Bad::new("", Problem::Malformed(e.to_string())))
            };
            UpstreamTls::Mesh(all("identities", m.identities, identity)?)
        }
        Mode::Origin(o) => UpstreamTls::Origin {
            sni: o.sni.map(Arc::from),
            names: texts(o.names),
            roots: o.roots.map(Arc::from),
            credential: o.credential.map(Arc::from),
            files: TlsFiles {
                roots: o.roots_file.map(Arc::from),
                chain: o.chain_file.map(Arc::from),
                key: o.key_file.map(Arc::from),
                revoked: o.revoked_file.map(Arc::from),
            },
            insecure: o.insecure,
        },
    })
}
