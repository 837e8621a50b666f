//! Rules for requests to a service.
//!
//! Invariants: they are never dropped and never narrowed: what cannot be understood whole becomes rules that need a
//! feature no build has, which refuse. Unknown fields count as not understood.

use std::{sync::Arc, time::Duration};

use http::{HeaderName, HeaderValue};
use mesh_model::{
    name::ServiceName,
    resilience::{Abort, AffinityKey, Fault, Retries, RetryOn, Session, Share},
    route::http::{
        Action, Backend, Cors, Filters, HeaderEdits, HeaderMatch, Match, Mirror, PathMatch,
        PathRewrite, Pattern, QueryMatch, Redirect, Respond, Rewrite, RouteSet, Routes, Rule,
        Selector, Text,
    },
};
use prost::Message;

use super::{
    destination::{cookie, cookie_wire},
    field::{
        Bad, Problem, all, duration, namespace, need, not_understood, opt_text, port, service_name,
        share, strings, texts, within,
    },
    streams,
};
use crate::warren as wire;

/// More values than this in one service's rules are an attack or an accident.
const MAX_RULES: usize = 50_000;

pub(super) fn encode(r: &Routes) -> wire::Routes {
    wire::Routes {
        service: r.service.to_string(),
        sets: r.sets.iter().map(set_wire).collect(),
        features: strings(&r.features),
    }
}

fn set_wire(s: &RouteSet) -> wire::RouteSet {
    wire::RouteSet {
        clients: s.clients.as_ref().map(ToString::to_string),
        ports: s.ports.iter().map(|p| u32::from(*p)).collect(),
        rules: s.rules.iter().map(rule_wire).collect(),
        streams: s.streams.iter().map(streams::encode).collect(),
    }
}

fn rule_wire(r: &Rule) -> wire::RouteRule {
    use wire::route_rule::Action as Wire;
    let action = match &r.action {
        Action::Forward(backends) => Wire::Forward(wire::Forward {
            backends: backends.iter().map(backend_wire).collect(),
        }),
        Action::Redirect(r) => Wire::Redirect(wire::Redirect {
            status: r.status.into(),
            scheme: opt_text(&r.scheme),
            host: opt_text(&r.host),
            port: r.port.map(u32::from),
            path: r.path.as_ref().map(path_rewrite_wire),
        }),
        Action::Respond(r) => Wire::Respond(wire::Respond {
            status: r.status.into(),
            body: r.body.to_vec(),
        }),
        Action::Invalid(reason) => Wire::Invalid(wire::Invalid {
            reason: reason.to_string(),
        }),
    };
    wire::RouteRule {
        name: r.name.to_string(),
        matches: r.matches.iter().map(match_wire).collect(),
        filters: filters_wire(&r.filters),
        action: Some(action),
        timeout: r.timeout.map(duration::wire),
        retries: r.retries.as_ref().map(retries_wire),
        fault: r.fault.as_ref().map(fault_wire),
        mirrors: r.mirrors.iter().map(mirror_wire).collect(),
        cors: r.cors.as_ref().map(cors_wire),
        session: r.session.as_ref().map(session_wire),
    }
}

fn match_wire(m: &Match) -> wire::RouteMatch {
    use wire::path_match::Kind;
    let path = |p: &PathMatch| wire::PathMatch {
        kind: Some(match p {
            PathMatch::Exact(t) => Kind::Exact(t.to_string()),
            PathMatch::Prefix(t) => Kind::Prefix(t.to_string()),
            PathMatch::Segments(t) => Kind::Segments(t.to_string()),
            PathMatch::Regex(p) => Kind::Regex(p.as_str().to_owned()),
        }),
    };
    let header = |h: &HeaderMatch| wire::HeaderMatch {
        name: h.name.to_string(),
        value: Some(text_wire(&h.value)),
        negated: h.negated,
    };
    let query = |q: &QueryMatch| wire::QueryMatch {
        name: q.name.to_string(),
        value: Some(text_wire(&q.value)),
    };
    wire::RouteMatch {
        path: m.path.as_ref().map(path),
        ignore_case: m.ignore_case,
        scheme: m.scheme.as_ref().map(text_wire),
        method: m.method.as_ref().map(text_wire),
        authority: m.authority.as_ref().map(text_wire),
        headers: m.headers.iter().map(header).collect(),
        query: m.query.iter().map(query).collect(),
        port: m.port.map(u32::from),
        source: m.source.as_ref().map(|s| s.0.to_string()),
        source_namespace: m.source_namespace.as_ref().map(ToString::to_string),
    }
}

fn text_wire(t: &Text) -> wire::TextMatch {
    use wire::text_match::Kind;
    wire::TextMatch {
        kind: Some(match t {
            Text::Exact(t) => Kind::Exact(t.to_string()),
            Text::Prefix(t) => Kind::Prefix(t.to_string()),
            Text::Regex(p) => Kind::Regex(p.as_str().to_owned()),
            Text::Present => Kind::Present(()),
        }),
    }
}

fn filters_wire(f: &Filters) -> Option<wire::Filters> {
    let rewrite = |r: &Rewrite| wire::Rewrite {
        authority: opt_text(&r.authority),
        path: r.path.as_ref().map(path_rewrite_wire),
    };
    (*f != Filters::default()).then(|| wire::Filters {
        rewrite: f.rewrite.as_ref().map(rewrite),
        request: edits_wire(&f.request),
        response: edits_wire(&f.response),
    })
}

fn edits_wire(e: &HeaderEdits) -> Option<wire::HeaderEdits> {
    let header = |(name, value): &(HeaderName, HeaderValue)| wire::Header {
        name: name.to_string(),
        value: value.as_bytes().to_vec(),
    };
    (!e.is_empty()).then(|| wire::HeaderEdits {
        remove: e.remove.iter().map(ToString::to_string).collect(),
        set: e.set.iter().map(header).collect(),
        add: e.add.iter().map(header).collect(),
    })
}

fn path_rewrite_wire(p: &PathRewrite) -> wire::PathRewrite {
    use wire::path_rewrite::Kind;
    wire::PathRewrite {
        kind: Some(match p {
            PathRewrite::Full(t) => Kind::Full(t.to_string()),
            PathRewrite::Prefix(t) => Kind::Prefix(t.to_string()),
            PathRewrite::Regex(pattern, template) => Kind::Regex(wire::Substitution {
                pattern: pattern.as_str().to_owned(),
                template: template.to_string(),
            }),
        }),
    }
}

pub(super) fn backend_wire(b: &Backend) -> wire::Backend {
    wire::Backend {
        service: b.service.to_string(),
        port: b.port.map(u32::from),
        subset: opt_text(&b.subset),
        weight: b.weight,
        filters: filters_wire(&b.filters),
        invalid: opt_text(&b.invalid),
    }
}

fn retries_wire(r: &Retries) -> wire::Retries {
    let on = &r.on;
    wire::Retries {
        attempts: r.attempts,
        per_try_timeout: r.per_try_timeout.map(duration::wire),
        on: Some(wire::RetryOn {
            server_error: on.server_error,
            gateway_error: on.gateway_error,
            reset: on.reset,
            reset_before_request: on.reset_before_request,
            connect_failure: on.connect_failure,
            retriable_4xx: on.retriable_4xx,
            refused_stream: on.refused_stream,
            rate_limited: on.rate_limited,
            grpc: on.grpc.iter().map(|c| u32::from(*c)).collect(),
            statuses: on.statuses.iter().map(|s| u32::from(*s)).collect(),
            headers: on.headers.iter().map(ToString::to_string).collect(),
        }),
        avoid_previous: r.avoid_previous,
        avoid_hashed: r.avoid_hashed,
        remote_localities: r.remote_localities,
        backoff: Some(duration::wire(r.backoff)),
    }
}

fn fault_wire(f: &Fault) -> wire::Fault {
    use wire::abort::Status;
    let delay = |(share, length): &(Share, Duration)| wire::Delay {
        share: share.parts(),
        duration: Some(duration::wire(*length)),
    };
    let abort = |(share, abort): &(Share, Abort)| wire::Abort {
        share: share.parts(),
        status: Some(match abort {
            Abort::Http(status) => Status::Http((*status).into()),
            Abort::Grpc(code) => Status::Grpc((*code).into()),
        }),
    };
    wire::Fault {
        delay: f.delay.as_ref().map(delay),
        abort: f.abort.as_ref().map(abort),
    }
}

fn mirror_wire(m: &Mirror) -> wire::Mirror {
    wire::Mirror {
        backend: Some(backend_wire(&m.backend)),
        share: m.share.parts(),
    }
}

fn cors_wire(c: &Cors) -> wire::Cors {
    wire::Cors {
        origins: c.origins.iter().map(text_wire).collect(),
        methods: strings(&c.methods),
        headers: strings(&c.headers),
        expose: strings(&c.expose),
        max_age: c.max_age.map(duration::wire),
        credentials: c.credentials,
        forward_unmatched: c.forward_unmatched,
    }
}

/// What is no part of a message is left out, and then not understood.
fn session_wire(s: &Session) -> wire::Session {
    use wire::session::Key;
    wire::Session {
        absolute: s.absolute.map(duration::wire),
        idle: s.idle.map(duration::wire),
        key: match &s.key {
            AffinityKey::Header(name) => Some(Key::Header(name.to_string())),
            key @ AffinityKey::Cookie { .. } => cookie_wire(key).map(Key::Cookie),
            AffinityKey::Source | AffinityKey::Query(_) => None,
        },
    }
}

/// The rules, and what was not understood of them. Fails only when the resource's name is not a service's name.
pub(super) fn decode(resource: &str, body: &[u8]) -> Result<(Routes, Option<Bad>), Bad> {
    let service = service_name("", resource)?;
    match understood(&service, body) {
        Ok(routes) => Ok((routes, None)),
        Err(bad) => Ok((refusing(service, &bad), Some(bad))),
    }
}

/// Rules that refuse every request.
pub(super) fn refusing(service: ServiceName, bad: &Bad) -> Routes {
    Routes {
        service,
        sets: Box::default(),
        features: [not_understood(bad)].into(),
    }
}

fn understood(service: &ServiceName, body: &[u8]) -> Result<Routes, Bad> {
    let wire = whole::<wire::Routes>(body)?;
    if wire.service != service.to_string() {
        return Err(Bad::new("service", Problem::NameMismatch(wire.service)));
    }
    let size = |s: &wire::RouteSet| 1 + s.rules.len() + s.streams.len();
    let count: usize = wire.sets.iter().map(size).sum();
    if count > MAX_RULES {
        return Err(Bad::new("sets", Problem::TooMany(MAX_RULES)));
    }
    Ok(Routes {
        service: service.clone(),
        sets: all("sets", wire.sets, set)?,
        features: texts(wire.features),
    })
}

/// A message without any field that this build does not know: prost leaves those out, which would widen or narrow.
pub(super) fn whole<M: Message + Default>(body: &[u8]) -> Result<M, Bad> {
    let message = M::decode(body).map_err(|e| Bad::new("", Problem::Malformed(e.to_string())))?;
    if message.encoded_len() == body.len() {
        Ok(message)
    } else {
        Err(Bad::new("", Problem::UnknownFields))
    }
}

fn set(s: wire::RouteSet) -> Result<RouteSet, Bad> {
    let clients = s.clients.map(|n| namespace("clients", &n));
    Ok(RouteSet {
        clients: clients.transpose()?,
        ports: all("ports", s.ports, |p| port("", p))?,
        rules: all("rules", s.rules, rule)?,
        streams: all("streams", s.streams, streams::decode)?,
    })
}

fn rule(r: wire::RouteRule) -> Result<Rule, Bad> {
    use wire::route_rule::Action as Wire;
    let action = match need("action", r.action)? {
        Wire::Forward(f) => {
            let backends = all("backends", f.backends, backend);
            Action::Forward(backends.map_err(|b| b.within("forward"))?)
        }
        Wire::Redirect(r) => Action::Redirect(redirect(r).map_err(|b| b.within("redirect"))?),
        Wire::Respond(r) => Action::Respond(Respond {
            status: status("respond.status", r.status)?,
            body: r.body.into(),
        }),
        Wire::Invalid(i) => Action::Invalid(i.reason.into()),
    };
    Ok(Rule {
        name: r.name.into(),
        matches: all("matches", r.matches, one_match)?,
        filters: within("filters", r.filters, filters)?.unwrap_or_default(),
        action,
        timeout: within("timeout", r.timeout, duration::read)?,
        retries: within("retries", r.retries, retries)?,
        fault: within("fault", r.fault, fault)?,
        mirrors: all("mirrors", r.mirrors, mirror)?,
        cors: within("cors", r.cors, cors)?,
        session: within("session", r.session, session)?,
    })
}

fn one_match(m: wire::RouteMatch) -> Result<Match, Bad> {
    Ok(Match {
        path: within("path", m.path, path_match)?,
        ignore_case: m.ignore_case,
        scheme: within("scheme", m.scheme, text)?,
        method: within("method", m.method, text)?,
        authority: within("authority", m.authority, text)?,
        headers: all("headers", m.headers, |h| {
            Ok(HeaderMatch {
                name: header_name("name", &h.name)?,
                value: text(need("value", h.value)?).map_err(|b| b.within("value"))?,
                negated: h.negated,
            })
        })?,
        query: all("query", m.query, |q| {
            Ok(QueryMatch {
                name: q.name.into(),
                value: text(need("value", q.value)?).map_err(|b| b.within("value"))?,
            })
        })?,
        port: m.port.map(|p| port("port", p)).transpose()?,
        source: m.source.map(|s| Selector(s.into())),
        source_namespace: m
            .source_namespace
            .map(|n| namespace("source_namespace", &n))
            .transpose()?,
    })
}

fn path_match(p: wire::PathMatch) -> Result<PathMatch, Bad> {
    use wire::path_match::Kind;
    Ok(match need("kind", p.kind)? {
        Kind::Exact(t) => PathMatch::Exact(t.into()),
        Kind::Prefix(t) => PathMatch::Prefix(t.into()),
        Kind::Segments(t) => PathMatch::Segments(t.into()),
        Kind::Regex(t) => PathMatch::Regex(pattern("regex", &t)?),
    })
}

fn text(t: wire::TextMatch) -> Result<Text, Bad> {
    use wire::text_match::Kind;
    Ok(match need("kind", t.kind)? {
        Kind::Exact(t) => Text::Exact(t.into()),
        Kind::Prefix(t) => Text::Prefix(t.into()),
        Kind::Regex(t) => Text::Regex(pattern("regex", &t)?),
        Kind::Present(()) => Text::Present,
    })
}

fn pattern(field: &str, source: &str) -> Result<Pattern, Bad> {
    Pattern::new(source).map_err(|e| Bad::new(field, Problem::Malformed(e)))
}

pub(super) fn header_name(field: &str, text: &str) -> Result<HeaderName, Bad> {
    HeaderName::from_bytes(text.as_bytes())
        .map_err(|_| Bad::new(field, Problem::Name(text.to_owned())))
}

/// A status of a whole response.
fn status(field: &str, number: u32) -> Result<u16, Bad> {
    let status = u16::try_from(number).ok();
    let status = status.filter(|s| (200..600).contains(s));
    status.ok_or_else(|| Bad::new(field, Problem::OutOfRange(number.into())))
}

fn filters(f: wire::Filters) -> Result<Filters, Bad> {
    let rewrite = |r: wire::Rewrite| {
        Ok(Rewrite {
            authority: r.authority.map(Arc::from),
            path: within("path", r.path, path_rewrite)?,
        })
    };
    Ok(Filters {
        rewrite: within("rewrite", f.rewrite, rewrite)?,
        request: within("request", f.request, edits)?.unwrap_or_default(),
        response: within("response", f.response, edits)?.unwrap_or_default(),
    })
}

fn edits(e: wire::HeaderEdits) -> Result<HeaderEdits, Bad> {
    let header = |h: wire::Header| {
        let value = HeaderValue::from_bytes(&h.value);
        let value = value.map_err(|e| Bad::new("value", Problem::Malformed(e.to_string())))?;
        Ok((header_name("name", &h.name)?, value))
    };
    Ok(HeaderEdits {
        remove: all("remove", e.remove, |n| header_name("", &n))?,
        set: all("set", e.set, header)?,
        add: all("add", e.add, header)?,
    })
}

fn path_rewrite(p: wire::PathRewrite) -> Result<PathRewrite, Bad> {
    use wire::path_rewrite::Kind;
    Ok(match need("kind", p.kind)? {
        Kind::Full(t) => PathRewrite::Full(t.into()),
        Kind::Prefix(t) => PathRewrite::Prefix(t.into()),
        Kind::Regex(s) => {
            let pattern = pattern("regex.pattern", &s.pattern)?;
            pattern
                .check_template(&s.template)
                .map_err(|e| Bad::new("regex.template", Problem::Malformed(e)))?;
            PathRewrite::Regex(pattern, s.template.into())
        }
    })
}

pub(super) fn backend(b: wire::Backend) -> Result<Backend, Bad> {
    Ok(Backend {
        service: service_name("service", &b.service)?,
        port: b.port.map(|p| port("port", p)).transpose()?,
        subset: b.subset.map(Arc::from),
        weight: b.weight,
        filters: within("filters", b.filters, filters)?.unwrap_or_default(),
        invalid: b.invalid.map(Arc::from),
    })
}

fn redirect(r: wire::Redirect) -> Result<Redirect, Bad> {
    Ok(Redirect {
        status: status("status", r.status)?,
        scheme: r.scheme.map(Arc::from),
        host: r.host.map(Arc::from),
        port: r.port.map(|p| port("port", p)).transpose()?,
        path: within("path", r.path, path_rewrite)?,
    })
}

fn retries(r: wire::Retries) -> Result<Retries, Bad> {
    let number = |n: u32| u16::try_from(n).map_err(|_| Bad::new("", Problem::OutOfRange(n.into())));
    let code = |n: u32| u8::try_from(n).map_err(|_| Bad::new("", Problem::OutOfRange(n.into())));
    let on = |on: wire::RetryOn| {
        Ok(RetryOn {
            server_error: on.server_error,
            gateway_error: on.gateway_error,
            reset: on.reset,
            reset_before_request: on.reset_before_request,
            connect_failure: on.connect_failure,
            retriable_4xx: on.retriable_4xx,
            refused_stream: on.refused_stream,
            rate_limited: on.rate_limited,
            grpc: all("grpc", on.grpc, code)?,
            statuses: all("statuses", on.statuses, number)?,
            headers: all("headers", on.headers, |n| header_name("", &n))?,
        })
    };
    Ok(Retries {
        attempts: r.attempts,
        per_try_timeout: within("per_try_timeout", r.per_try_timeout, duration::read)?,
        on: on(need("on", r.on)?).map_err(|b: Bad| b.within("on"))?,
        avoid_previous: r.avoid_previous,
        avoid_hashed: r.avoid_hashed,
        remote_localities: r.remote_localities,
        backoff: duration::needed("backoff", r.backoff)?,
    })
}

fn fault(f: wire::Fault) -> Result<Fault, Bad> {
    use wire::abort::Status;
    let delay = |d: wire::Delay| {
        Ok((
            share("share", d.share)?,
            duration::needed("duration", d.duration)?,
        ))
    };
    let abort = |a: wire::Abort| {
        let how = match need("status", a.status)? {
            Status::Http(number) => Abort::Http(status("http", number)?),
            Status::Grpc(number) => Abort::Grpc(
                u8::try_from(number)
                    .map_err(|_| Bad::new("grpc", Problem::OutOfRange(number.into())))?,
            ),
        };
        Ok((share("share", a.share)?, how))
    };
    Ok(Fault {
        delay: within("delay", f.delay, delay)?,
        abort: within("abort", f.abort, abort)?,
    })
}

fn mirror(m: wire::Mirror) -> Result<Mirror, Bad> {
    Ok(Mirror {
        backend: backend(need("backend", m.backend)?).map_err(|b| b.within("backend"))?,
        share: share("share", m.share)?,
    })
}

fn cors(c: wire::Cors) -> Result<Cors, Bad> {
    Ok(Cors {
        origins: all("origins", c.origins, text)?,
        methods: texts(c.methods),
        headers: texts(c.headers),
        expose: texts(c.expose),
        max_age: within("max_age", c.max_age, duration::read)?,
        credentials: c.credentials,
        forward_unmatched: c.forward_unmatched,
    })
}

fn session(s: wire::Session) -> Result<Session, Bad> {
    use wire::session::Key;
    Ok(Session {
        key: match need("key", s.key)? {
            Key::Header(name) => AffinityKey::Header(header_name("header", &name)?),
            Key::Cookie(c) => cookie(c).map_err(|b| b.within("cookie"))?,
        },
        absolute: within("absolute", s.absolute, duration::read)?,
        idle: within("idle", s.idle, duration::read)?,
    })
}
