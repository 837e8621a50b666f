//! Routes and destinations as JSON: a rule is a few short lines.

use std::{fmt::Write, time::Duration};

use mesh_model::{
    resilience::{
        Abort, Affinity, AffinityKey, Destination, Fault, HashTable, LocalityPreference, Outlier,
        Pool, Retries, RetryOn, Session, Share, Simple, TrafficPolicy, UpstreamTls, Weighing,
    },
    route::{
        http::{
            Action, Backend, Cors, Filters, HeaderEdits, Match, Mirror, PathMatch, PathRewrite,
            RouteSet, Routes, Rule, Text,
        },
        stream::{StreamAction, StreamMatch, StreamRule},
    },
};
use serde_json::{Map, Value, json};

use super::{only, texts, word};

pub(super) fn routes(routes: &Routes) -> Map<String, Value> {
    only(json!({
        "features": texts(&routes.features),
        "sets": routes.sets.iter().map(set).collect::<Vec<_>>(),
    }))
}

fn set(set: &RouteSet) -> Value {
    Value::Object(only(json!({
        "clients": set.clients.as_ref().map(ToString::to_string),
        "ports": set.ports,
        "rules": set.rules.iter().map(rule).collect::<Vec<_>>(),
        "streams": set.streams.iter().map(stream).collect::<Vec<_>>(),
    })))
}

fn stream(rule: &StreamRule) -> Value {
    let (what, value) = match &rule.action {
        StreamAction::Forward(backends) => {
            let to: Vec<Value> = backends.iter().map(backend).collect();
            ("to", Value::Array(to))
        }
        StreamAction::Invalid(reason) => ("invalid", json!(&**reason)),
    };
    let mut fields = only(json!({
        "rule": &*rule.name,
        "matches": rule.matches.iter().map(connecting).collect::<Vec<_>>(),
    }));
    fields.insert(what.to_owned(), value);
    Value::Object(fields)
}

/// One line: what a connection must be like.
fn connecting(wanted: &StreamMatch) -> String {
    let mut parts = Vec::new();
    if !wanted.hosts.is_empty() {
        parts.push(format!("TLS for {}", texts(&wanted.hosts).join(" or ")));
    }
    if !wanted.networks.is_empty() {
        parts.push(format!("to {}", texts(&wanted.networks).join(" or ")));
    }
    parts.extend(wanted.port.map(|port| format!("port {port}")));
    let labels = wanted.source.as_ref();
    parts.extend(labels.map(|labels| format!("from {}", labels.0)));
    let namespace = wanted.source_namespace.as_ref();
    parts.extend(namespace.map(|namespace| format!("from namespace {namespace}")));
    match parts.is_empty() {
        true => "everything".to_owned(),
        false => parts.join(", "),
    }
}

fn rule(rule: &Rule) -> Value {
    let (what, value) = match &rule.action {
        Action::Forward(backends) => {
            let to: Vec<Value> = backends.iter().map(backend).collect();
            ("to", Value::Array(to))
        }
        Action::Redirect(to) => {
            let part = |text: &Option<std::sync::Arc<str>>| text.as_deref().map(str::to_owned);
            let fields = only(json!({
                "status": to.status,
                "scheme": part(&to.scheme),
                "host": part(&to.host),
                "port": to.port,
                "path": to.path.as_ref().map(path_rewrite),
            }));
            ("redirect", Value::Object(fields))
        }
        Action::Respond(answer) => {
            let body = String::from_utf8_lossy(&answer.body);
            ("respond", json!(format!("{} {body}", answer.status).trim()))
        }
        Action::Invalid(reason) => ("invalid", json!(&**reason)),
    };
    let mut fields = only(json!({
        "rule": &*rule.name,
        "matches": rule.matches.iter().map(matched).collect::<Vec<_>>(),
        "timeout": rule.timeout.map(time),
        "retries": rule.retries.as_ref().map(retries),
        "fault": rule.fault.as_ref().map(fault),
        "mirrors": rule.mirrors.iter().map(mirror).collect::<Vec<_>>(),
        "cors": rule.cors.as_ref().map(cors),
        "session": rule.session.as_ref().map(session),
    }));
    fields.extend(filters(&rule.filters));
    fields.insert(what.to_owned(), value);
    Value::Object(fields)
}

fn text(text: &Text) -> String {
    match text {
        Text::Exact(text) => format!("= {text}"),
        Text::Prefix(text) => format!("{text}..."),
        Text::Regex(pattern) => format!("~ {}", pattern.as_str()),
        Text::Present => "*".to_owned(),
    }
}

/// One line: what a request must be like.
fn matched(wanted: &Match) -> String {
    let mut parts = Vec::new();
    let path = wanted.path.as_ref().map(|path| match path {
        PathMatch::Exact(text) => format!("= {text}"),
        PathMatch::Prefix(text) => format!("{text}..."),
        PathMatch::Segments(text) => format!("{text}/..."),
        PathMatch::Regex(pattern) => format!("~ {}", pattern.as_str()),
    });
    let case = if wanted.ignore_case {
        " (any case)"
    } else {
        ""
    };
    parts.extend(path.map(|path| format!("path {path}{case}")));
    for (name, value) in [
        ("scheme", &wanted.scheme),
        ("method", &wanted.method),
        ("authority", &wanted.authority),
    ] {
        parts.extend(
            value
                .as_ref()
                .map(|value| format!("{name} {}", text(value))),
        );
    }
    for header in &wanted.headers {
        let not = if header.negated { "not " } else { "" };
        parts.push(format!(
            "{not}header {} {}",
            header.name,
            text(&header.value)
        ));
    }
    let query = wanted.query.iter();
    parts.extend(query.map(|query| format!("query {} {}", query.name, text(&query.value))));
    parts.extend(wanted.port.map(|port| format!("port {port}")));
    parts.extend(
        wanted
            .source
            .as_ref()
            .map(|labels| format!("from {}", labels.0)),
    );
    let namespace = wanted.source_namespace.as_ref();
    parts.extend(namespace.map(|namespace| format!("from namespace {namespace}")));
    match parts.is_empty() {
        true => "everything".to_owned(),
        false => parts.join(", "),
    }
}

/// `host:port subset (weight)`.
fn place(backend: &Backend) -> String {
    let mut line = backend.service.to_string();
    if let Some(port) = backend.port {
        let _ = write!(line, ":{port}");
    }
    if let Some(subset) = &backend.subset {
        let _ = write!(line, " {subset}");
    }
    line
}

fn backend(backend: &Backend) -> Value {
    let line = format!("{} ({})", place(backend), backend.weight);
    let mut fields = filters(&backend.filters);
    if let Some(reason) = &backend.invalid {
        fields.insert("invalid".to_owned(), json!(&**reason));
    }
    if fields.is_empty() {
        return json!(line);
    }
    fields.insert("backend".to_owned(), json!(line));
    Value::Object(fields)
}

fn mirror(mirror: &Mirror) -> Value {
    let line = format!("{} of {}", place(&mirror.backend), share(mirror.share));
    match &mirror.backend.invalid {
        None => json!(line),
        Some(reason) => json!(format!("{line}: {reason}")),
    }
}

fn filters(filters: &Filters) -> Map<String, Value> {
    let rewrite = filters.rewrite.as_ref().map(|rewrite| {
        only(json!({
            "authority": rewrite.authority.as_deref(),
            "path": rewrite.path.as_ref().map(path_rewrite),
        }))
    });
    only(json!({
        "rewrite": rewrite,
        "request": edits(&filters.request),
        "response": edits(&filters.response),
    }))
}

fn edits(edits: &HeaderEdits) -> Vec<String> {
    let value = |value: &http::HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
    let remove = edits.remove.iter().map(|name| format!("remove {name}"));
    let set = edits
        .set
        .iter()
        .map(|(name, v)| format!("set {name}: {}", value(v)));
    let add = edits
        .add
        .iter()
        .map(|(name, v)| format!("add {name}: {}", value(v)));
    remove.chain(set).chain(add).collect()
}

fn path_rewrite(rewrite: &PathRewrite) -> String {
    match rewrite {
        PathRewrite::Full(path) => format!("= {path}"),
        PathRewrite::Prefix(path) => format!("{path}..."),
        PathRewrite::Regex(pattern, to) => format!("s/{}/{to}/", pattern.as_str()),
    }
}

fn time(time: Duration) -> String {
    format!("{time:?}")
}

fn share(share: Share) -> String {
    format!("{}%", f64::from(share.parts()) / 10_000.0)
}

fn retries(retries: &Retries) -> String {
    let mut line = format!("{} on {}", retries.attempts, conditions(&retries.on));
    if let Some(each) = retries.per_try_timeout {
        let _ = write!(line, ", {} each", time(each));
    }
    let _ = write!(line, ", after {}", time(retries.backoff));
    if !retries.avoid_previous {
        line.push_str(", also where it failed");
    }
    if retries.avoid_hashed {
        line.push_str(", elsewhere than its hash says");
    }
    if retries.remote_localities {
        line.push_str(", also elsewhere");
    }
    line
}

fn conditions(on: &RetryOn) -> String {
    let named = [
        (on.server_error, "5xx"),
        (on.gateway_error, "gateway-error"),
        (on.reset, "reset"),
        (on.reset_before_request, "reset-before-request"),
        (on.connect_failure, "connect-failure"),
        (on.retriable_4xx, "retriable-4xx"),
        (on.refused_stream, "refused-stream"),
        (on.rate_limited, "envoy-ratelimited"),
    ];
    let named = named.into_iter().filter(|(on, _)| *on);
    let mut all: Vec<String> = named.map(|(_, name)| name.to_owned()).collect();
    all.extend(on.grpc.iter().map(|status| format!("grpc {status}")));
    all.extend(on.statuses.iter().map(ToString::to_string));
    all.extend(on.headers.iter().map(ToString::to_string));
    all.join(",")
}

fn fault(fault: &Fault) -> Vec<String> {
    let delay = fault
        .delay
        .map(|(of, by)| format!("delay {} by {}", share(of), time(by)));
    let abort = fault.abort.as_ref().map(|(of, abort)| match abort {
        Abort::Http(status) => format!("abort {} with {status}", share(*of)),
        Abort::Grpc(status) => format!("abort {} with grpc {status}", share(*of)),
    });
    delay.into_iter().chain(abort).collect()
}

fn cors(cors: &Cors) -> Map<String, Value> {
    only(json!({
        "origins": cors.origins.iter().map(text).collect::<Vec<_>>(),
        "methods": texts(&cors.methods),
        "headers": texts(&cors.headers),
        "expose": texts(&cors.expose),
        "maxAge": cors.max_age.map(time),
        "credentials": cors.credentials,
        "forwardUnmatched": cors.forward_unmatched,
    }))
}

pub(super) fn destination(to: &Destination) -> Map<String, Value> {
    let subsets = to.subsets.iter().map(|subset| {
        let mut fields = only(json!({
            "policy": policy(&subset.policy),
            "ports": ports(&subset.ports),
        }));
        let line = format!("{} {}", subset.name, subset.selector.0);
        fields.insert("subset".to_owned(), json!(line.trim()));
        fields
    });
    only(json!({
        "by": &*to.by,
        "policy": policy(&to.policy),
        "ports": ports(&to.ports),
        "subsets": subsets.collect::<Vec<_>>(),
        "features": texts(&to.features),
    }))
}

fn ports(ports: &[(u16, std::sync::Arc<TrafficPolicy>)]) -> Map<String, Value> {
    let each = ports
        .iter()
        .map(|(port, own)| (port.to_string(), Value::Object(policy(own))));
    each.collect()
}

/// What differs from the defaults.
fn policy(policy: &TrafficPolicy) -> Map<String, Value> {
    let weighing = match &policy.balancing.weighing {
        Weighing::Simple(Simple::LeastRequest) => None,
        Weighing::Simple(simple) => Some(word(simple)),
        Weighing::Consistent(by) => Some(affinity(by)),
    };
    let locality = policy
        .balancing
        .locality
        .as_ref()
        .map(|preference| match preference {
            LocalityPreference::Distribute(from) => {
                let from = from.iter().map(|(from, to)| {
                    let to = to.iter().map(|(to, share)| format!("{to} {share}%"));
                    format!("{from} to {}", to.collect::<Vec<_>>().join(", "))
                });
                from.collect::<Vec<_>>()
            }
            near if near.is_unasked() => vec!["the own place".to_owned()],
            LocalityPreference::Failover(next) => next
                .iter()
                .map(|(from, to)| format!("{from} then {to}"))
                .collect(),
            LocalityPreference::Labels(labels) => texts(labels),
        });
    let warmup = policy.balancing.warmup.map(|warmup| {
        let (of, curve) = (share(warmup.minimum), f64::from(warmup.aggression) / 1000.0);
        format!("{} from {of}, exponent {curve}", time(warmup.duration))
    });
    let budget = policy
        .retry_budget
        .map(|(of, least)| format!("{}, at least {least}", share(of)));
    only(json!({
        "balancing": weighing,
        "locality": locality,
        "warmup": warmup,
        "pool": pool(&policy.pool),
        "outlier": policy.outlier.as_ref().map(outlier),
        "tls": policy.tls.as_ref().map(tls),
        "proxyProtocol": policy.proxy_protocol.map(|version| word(&version)),
        "retryBudget": budget,
    }))
}

fn affinity(by: &Affinity) -> String {
    let key = hashed(&by.key);
    match by.table {
        HashTable::Ring(size) => format!("hash of {key}, ring {size}"),
        HashTable::Maglev(size) => format!("hash of {key}, maglev {size}"),
    }
}

fn session(session: &Session) -> String {
    let Session {
        key,
        absolute,
        idle,
    } = session;
    let bound = |what: &str, bound: Option<Duration>| {
        let bound = bound.map(|bound| format!(", {what} {}", time(bound)));
        bound.unwrap_or_default()
    };
    let (absolute, idle) = (bound("at most", *absolute), bound("unused", *idle));
    format!("{}{absolute}{idle}", hashed(key))
}

fn hashed(key: &AffinityKey) -> String {
    match key {
        AffinityKey::Header(name) => format!("header {name}"),
        AffinityKey::Cookie {
            name, path, ttl, ..
        } => {
            let ttl = ttl
                .map(|ttl| format!(" for {}", time(ttl)))
                .unwrap_or_default();
            format!("cookie {name}{path}{ttl}")
        }
        AffinityKey::Source => "source address".to_owned(),
        AffinityKey::Query(name) => format!("query {name}"),
    }
}

fn pool(pool: &Pool) -> Map<String, Value> {
    let default = Pool::default();
    let differs = |own: Duration, default: Duration| (own != default).then(|| time(own));
    let keepalive = pool.keepalive.map(|(probes, idle, interval)| {
        let part = |name: &str, text: Option<String>| text.map(|text| format!("{name} {text}"));
        let parts = [
            part("probes", probes.map(|n| n.to_string())),
            part("time", idle.map(time)),
            part("interval", interval.map(time)),
        ];
        parts.into_iter().flatten().collect::<Vec<_>>().join(", ")
    });
    only(json!({
        "maxConnections": pool.max_connections,
        "connectTimeout": differs(pool.connect_timeout, default.connect_timeout),
        "keepalive": keepalive,
        "maxDuration": pool.max_duration.map(time),
        "tcpIdle": differs(pool.tcp_idle, default.tcp_idle),
        "maxPending": pool.max_pending,
        "maxRequests": pool.max_requests,
        "requestsPerConnection": pool.requests_per_connection,
        "maxRetries": pool.max_retries,
        "httpIdle": differs(pool.http_idle, default.http_idle),
        "upgrade": pool.upgrade,
        "useClientProtocol": pool.use_client_protocol,
        "maxStreams": pool.max_streams,
        "http2Keepalive": pool.http2_keepalive.map(|k| format!("interval {}, timeout {}", time(k.interval), time(k.timeout))),
    }))
}

fn outlier(outlier: &Outlier) -> String {
    let mut line = format!("5xx {}", outlier.consecutive_5xx);
    if outlier.consecutive_gateway != 0 {
        let _ = write!(line, ", gateway {}", outlier.consecutive_gateway);
    }
    if outlier.split_local {
        let _ = write!(line, ", local {}", outlier.consecutive_local);
    }
    if !outlier.statuses.is_empty() {
        let _ = write!(line, ", also {}", texts(&outlier.statuses).join(" "));
    }
    let _ = write!(
        line,
        ", every {} for {}, at most {}%",
        time(outlier.interval),
        time(outlier.base_ejection),
        outlier.max_ejected
    );
    if outlier.min_healthy != 0 {
        let _ = write!(line, ", not below {}%", outlier.min_healthy);
    }
    line
}

fn tls(tls: &UpstreamTls) -> Value {
    match tls {
        UpstreamTls::Disable => json!("disable"),
        UpstreamTls::Mesh(whom) if whom.is_empty() => json!("mesh"),
        UpstreamTls::Mesh(whom) => {
            json!({"mesh": whom.iter().map(ToString::to_string).collect::<Vec<_>>()})
        }
        UpstreamTls::Origin {
            sni,
            names,
            roots,
            credential,
            files,
            insecure,
        } => Value::Object(only(json!({
            "origin": sni.as_deref().unwrap_or("*"),
            "names": texts(names),
            "roots": roots.is_some(),
            "credential": credential.as_deref(),
            "rootsFile": files.roots.as_deref(),
            "chainFile": files.chain.as_deref(),
            "keyFile": files.key.as_deref(),
            "revokedFile": files.revoked.as_deref(),
            "insecure": insecure,
        }))),
    }
}
