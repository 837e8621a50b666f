//! Random routes and destinations.

use std::{sync::OnceLock, time::Duration};

use fastrand::Rng;
use http::{HeaderName, HeaderValue};
use mesh_model::{
    name::Identity,
    resilience::*,
    route::{
        http::{
            Action, Backend, Cors, Filters, HeaderEdits, HeaderMatch, Match, Mirror, PathMatch,
            PathRewrite, Pattern, QueryMatch, Redirect, Respond, Rewrite, RouteSet, Routes, Rule,
            Selector, Text,
        },
        stream::{StreamAction, StreamMatch, StreamRule},
    },
};

use super::{list, opt, pick, service_name, word};

fn duration(r: &mut Rng) -> Duration {
    Duration::new(r.u64(0..86_400), r.u32(0..1_000_000_000))
}

fn share(r: &mut Rng) -> Share {
    Share::per_million(pick(r, &[0, 1, 1_000, 50_000, 1_000_000]))
}

fn selector(r: &mut Rng) -> Selector {
    Selector(format!("app={},version=v{}", word(r), r.u8(..)).into())
}

fn pattern(r: &mut Rng) -> Pattern {
    static COMPILED: OnceLock<Vec<Pattern>> = OnceLock::new();
    let texts = ["", ".*", "/a/(b|c)", "[0-9]{3}", r"\d+\.html"];
    let one = |text: &&str| Pattern::new(text).expect("is one");
    pick(r, COMPILED.get_or_init(|| texts.iter().map(one).collect()))
}

fn text(r: &mut Rng) -> Text {
    match r.u8(0..4) {
        0 => Text::Exact(word(r).into()),
        1 => Text::Prefix(word(r).into()),
        2 => Text::Regex(pattern(r)),
        _ => Text::Present,
    }
}

fn header_name(r: &mut Rng) -> HeaderName {
    format!("x-{}", word(r)).parse().expect("is one")
}

fn header_value(r: &mut Rng) -> HeaderValue {
    let bytes: Vec<u8> = list(r, 6, |r| pick(r, b"a1 ,;\xfc\xff")).into();
    HeaderValue::from_bytes(&bytes).expect("is one")
}

fn path_rewrite(r: &mut Rng) -> PathRewrite {
    match r.u8(0..3) {
        0 => PathRewrite::Full(word(r).into()),
        1 => PathRewrite::Prefix(word(r).into()),
        _ => PathRewrite::Regex(pattern(r), pick(r, &["", r"/x\0", r"\\"]).into()),
    }
}

fn edits(r: &mut Rng) -> HeaderEdits {
    HeaderEdits {
        remove: list(r, 2, header_name),
        set: list(r, 2, |r| (header_name(r), header_value(r))),
        add: list(r, 2, |r| (header_name(r), header_value(r))),
    }
}

fn filters(r: &mut Rng) -> Filters {
    Filters {
        rewrite: opt(r, |r| Rewrite {
            authority: opt(r, |r| word(r).into()),
            path: opt(r, path_rewrite),
        }),
        request: if r.bool() {
            edits(r)
        } else {
            HeaderEdits::default()
        },
        response: if r.bool() {
            edits(r)
        } else {
            HeaderEdits::default()
        },
    }
}

fn one_match(r: &mut Rng) -> Match {
    Match {
        path: opt(r, |r| match r.u8(0..4) {
            0 => PathMatch::Exact(word(r).into()),
            1 => PathMatch::Prefix(word(r).into()),
            2 => PathMatch::Segments(word(r).into()),
            _ => PathMatch::Regex(pattern(r)),
        }),
        ignore_case: r.bool(),
        scheme: opt(r, text),
        method: opt(r, text),
        authority: opt(r, text),
        headers: list(r, 2, |r| HeaderMatch {
            name: header_name(r),
            value: text(r),
            negated: r.bool(),
        }),
        query: list(r, 2, |r| QueryMatch {
            name: word(r).into(),
            value: text(r),
        }),
        port: opt(r, |r| r.u16(..)),
        source: opt(r, selector),
        source_namespace: opt(r, |r| word(r).as_str().into()),
    }
}

fn backend(r: &mut Rng) -> Backend {
    Backend {
        service: service_name(r),
        port: opt(r, |r| r.u16(..)),
        subset: opt(r, |r| word(r).into()),
        weight: r.u32(0..200),
        filters: filters(r),
        invalid: opt(r, |r| word(r).into()),
    }
}

fn action(r: &mut Rng) -> Action {
    match r.u8(0..4) {
        0 => Action::Forward(list(r, 3, backend)),
        1 => Action::Redirect(Redirect {
            status: pick(r, &[301, 302, 303, 307, 308]),
            scheme: opt(r, |r| word(r).into()),
            host: opt(r, |r| word(r).into()),
            port: opt(r, |r| r.u16(..)),
            path: opt(r, path_rewrite),
        }),
        2 => Action::Respond(Respond {
            status: pick(r, &[200, 404, 503]),
            body: word(r).into_bytes().into(),
        }),
        _ => Action::Invalid(word(r).into()),
    }
}

fn retries(r: &mut Rng) -> Retries {
    Retries {
        attempts: r.u32(..),
        per_try_timeout: opt(r, duration),
        on: RetryOn {
            server_error: r.bool(),
            gateway_error: r.bool(),
            reset: r.bool(),
            reset_before_request: r.bool(),
            connect_failure: r.bool(),
            retriable_4xx: r.bool(),
            refused_stream: r.bool(),
            rate_limited: r.bool(),
            grpc: list(r, 3, |r| r.u8(..)),
            statuses: list(r, 3, |r| r.u16(..)),
            headers: list(r, 2, header_name),
        },
        avoid_previous: r.bool(),
        avoid_hashed: r.bool(),
        remote_localities: r.bool(),
        backoff: duration(r),
    }
}

fn rule(r: &mut Rng) -> Rule {
    Rule {
        name: word(r).into(),
        matches: list(r, 2, one_match),
        filters: filters(r),
        action: action(r),
        timeout: opt(r, duration),
        retries: opt(r, retries),
        fault: opt(r, |r| Fault {
            delay: opt(r, |r| (share(r), duration(r))),
            abort: opt(r, |r| {
                let how = [Abort::Http(r.u16(200..600)), Abort::Grpc(r.u8(..))];
                (share(r), pick(r, &how))
            }),
        }),
        mirrors: list(r, 2, |r| Mirror {
            backend: backend(r),
            share: share(r),
        }),
        cors: opt(r, |r| Cors {
            origins: list(r, 2, text),
            methods: list(r, 2, |r| word(r).into()),
            headers: list(r, 2, |r| word(r).into()),
            expose: list(r, 2, |r| word(r).into()),
            max_age: opt(r, duration),
            credentials: r.bool(),
            forward_unmatched: r.bool(),
        }),
        session: opt(r, |r| Session {
            key: match r.bool() {
                true => AffinityKey::Header(header_name(r)),
                false => cookie(r),
            },
            absolute: opt(r, duration),
            idle: opt(r, duration),
        }),
    }
}

fn cookie(r: &mut Rng) -> AffinityKey {
    AffinityKey::Cookie {
        name: word(r).into(),
        path: word(r).into(),
        ttl: opt(r, duration),
        attributes: list(r, 2, |r| (word(r).into(), opt(r, |r| word(r).into()))),
    }
}

fn stream(r: &mut Rng) -> StreamRule {
    let network = |r: &mut Rng| {
        pick(r, &["10.0.0.0/8", "fd00::/8"])
            .parse()
            .expect("is one")
    };
    StreamRule {
        name: word(r).into(),
        matches: list(r, 2, |r| StreamMatch {
            port: opt(r, |r| r.u16(..)),
            hosts: list(r, 2, |r| word(r).into()),
            networks: list(r, 2, network),
            source: opt(r, selector),
            source_namespace: opt(r, |r| word(r).as_str().into()),
        }),
        action: match r.bool() {
            true => StreamAction::Forward(list(r, 2, backend)),
            false => StreamAction::Invalid(word(r).into()),
        },
    }
}

pub(crate) fn routes(r: &mut Rng) -> Routes {
    Routes {
        service: service_name(r),
        sets: list(r, 2, |r| RouteSet {
            clients: opt(r, |r| word(r).as_str().into()),
            ports: list(r, 2, |r| r.u16(..)),
            rules: list(r, 2, rule),
            streams: list(r, 2, stream),
        }),
        features: list(r, 1, |r| word(r).into()),
    }
}

fn weighing(r: &mut Rng) -> Weighing {
    let simple = [
        Simple::LeastRequest,
        Simple::RoundRobin,
        Simple::Random,
        Simple::Passthrough,
    ];
    if r.bool() {
        return Weighing::Simple(pick(r, &simple));
    }
    let key = match r.u8(0..4) {
        0 => AffinityKey::Header(header_name(r)),
        1 => cookie(r),
        2 => AffinityKey::Source,
        _ => AffinityKey::Query(word(r).into()),
    };
    let table = [HashTable::Ring(r.u64(..)), HashTable::Maglev(r.u64(..))];
    Weighing::Consistent(Affinity {
        key,
        table: pick(r, &table),
    })
}

fn identity(r: &mut Rng) -> Identity {
    Identity {
        trust_domain: word(r).as_str().into(),
        namespace: word(r).as_str().into(),
        service_account: word(r).as_str().into(),
    }
}

fn policy(r: &mut Rng) -> std::sync::Arc<TrafficPolicy> {
    let locality = opt(r, |r| match r.u8(0..3) {
        0 => LocalityPreference::Distribute(list(r, 2, |r| {
            (word(r).into(), list(r, 2, |r| (word(r).into(), r.u32(..))))
        })),
        1 => LocalityPreference::Failover(list(r, 2, |r| (word(r).into(), word(r).into()))),
        _ => LocalityPreference::Labels(list(r, 2, |r| word(r).into())),
    });
    let tls = opt(r, |r| match r.u8(0..3) {
        0 => UpstreamTls::Disable,
        1 => UpstreamTls::Mesh(list(r, 2, identity)),
        _ => UpstreamTls::Origin {
            sni: opt(r, |r| word(r).into()),
            names: list(r, 2, |r| word(r).into()),
            roots: opt(r, |r| word(r).into()),
            credential: opt(r, |r| word(r).into()),
            files: TlsFiles {
                roots: opt(r, |r| word(r).into()),
                chain: opt(r, |r| word(r).into()),
                key: opt(r, |r| word(r).into()),
                revoked: opt(r, |r| word(r).into()),
            },
            insecure: r.bool(),
        },
    });
    TrafficPolicy {
        balancing: LoadBalancing {
            weighing: weighing(r),
            locality,
            warmup: opt(r, |r| Warmup {
                duration: duration(r),
                minimum: share(r),
                aggression: r.u32(..),
            }),
        },
        pool: pool(r),
        outlier: opt(r, |r| Outlier {
            consecutive_5xx: r.u32(..),
            consecutive_gateway: r.u32(..),
            consecutive_local: r.u32(..),
            split_local: r.bool(),
            statuses: list(r, 2, |r| r.u16(..)),
            interval: duration(r),
            base_ejection: duration(r),
            max_ejected: r.u32(..),
            min_healthy: r.u32(..),
        }),
        tls,
        proxy_protocol: opt(r, |r| pick(r, &[ProxyProtocol::V1, ProxyProtocol::V2])),
        retry_budget: opt(r, |r| (share(r), r.u32(..))),
    }
    .into()
}

fn pool(r: &mut Rng) -> Pool {
    Pool {
        max_connections: opt(r, |r| r.u32(..)),
        connect_timeout: duration(r),
        keepalive: opt(r, |r| {
            (opt(r, |r| r.u32(..)), opt(r, duration), opt(r, duration))
        }),
        max_duration: opt(r, duration),
        tcp_idle: duration(r),
        max_pending: opt(r, |r| r.u32(..)),
        max_requests: opt(r, |r| r.u32(..)),
        requests_per_connection: r.u32(..),
        max_retries: opt(r, |r| r.u32(..)),
        http_idle: duration(r),
        upgrade: r.bool(),
        use_client_protocol: r.bool(),
        max_streams: opt(r, |r| r.u32(..)),
        http2_keepalive: opt(r, |r| Http2Keepalive {
            interval: duration(r),
            timeout: duration(r),
        }),
    }
}

pub(crate) fn destination(r: &mut Rng) -> Destination {
    Destination {
        service: service_name(r),
        by: word(r).into(),
        policy: policy(r),
        ports: list(r, 2, |r| (r.u16(1..), policy(r))),
        subsets: list(r, 2, |r| Subset {
            name: word(r).into(),
            selector: selector(r),
            policy: policy(r),
            ports: list(r, 1, |r| (r.u16(1..), policy(r))),
        }),
        features: list(r, 1, |r| word(r).into()),
    }
}
