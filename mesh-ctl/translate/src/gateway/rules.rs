//! Rules of HTTP and gRPC routes, each with how specific it is.
//!
//! Invariants: a rule of several matches becomes one rule for each, because their places among other routes' rules
//! differ. A rule that cannot be understood keeps its place and refuses; a backend that is not there is answered 500.

use std::{cmp::Reverse, sync::Arc};

use mesh_k8s::{
    Kind,
    core::Service,
    gateway::{
        BackendRef, GrpcRouteMatch, GrpcRouteRule, HttpPathMatch, HttpRouteMatch, HttpRouteRule,
        NameValueMatch, SessionPersistence,
    },
};
use mesh_model::{
    resilience::{Retries, RetryOn},
    route::http::{
        Action, Backend, Filters, HeaderMatch, Match, Mirror, PathMatch, QueryMatch, Rule, Text,
    },
};

use super::{
    filters::{self, escaped},
    session,
};
use crate::{
    istio::http_rule::refusing,
    settings::Settings,
    traffic::{
        hosts::{Hosts, unknown},
        reader::Reader,
        values,
    },
};

/// How specific a match is; the lower, the earlier it is looked at.
pub(super) type Rank = Reverse<[usize; 6]>;

/// What rules are read beside.
pub(super) struct Around<'r, 'a> {
    pub(super) settings: &'r Settings,
    pub(super) hosts: &'r Hosts<'r, 'a>,
    /// The route's namespace.
    pub(super) namespace: &'r str,
    /// Paths in the route that no type knows.
    pub(super) unknown: &'r [String],
    /// What becomes of a backend's share that cannot be used.
    pub(super) fate: &'static str,
}

/// What becomes of requests to a backend that cannot be used.
pub(super) const ANSWERED: &str = "its share of requests is answered 500";

/// Parts that rules of both kinds have.
struct Parts<'w> {
    path: &'w str,
    name: Arc<str>,
    matches: Vec<(Rank, Match)>,
    filters: &'w [mesh_k8s::gateway::RouteFilter],
    backends: &'w [BackendRef],
    session: Option<&'w SessionPersistence>,
}

impl Around<'_, '_> {
    /// A rule of an HTTP route, once for each of its matches.
    pub(super) fn http(
        &self,
        reader: &mut Reader,
        path: &str,
        name: Arc<str>,
        wire: &HttpRouteRule,
    ) -> Vec<(Rank, Rule)> {
        reader.invalid = None;
        let all = [HttpRouteMatch::default()];
        let matches = match wire.matches.as_slice() {
            [] => &all,
            given => given,
        };
        let matches = matches.iter().enumerate();
        let matches =
            matches.map(|(i, one)| http_match(reader, &format!("{path}.matches[{i}]"), one));
        let parts = Parts {
            path,
            name,
            matches: matches.collect(),
            filters: &wire.filters,
            backends: &wire.backend_refs,
            session: wire.session_persistence.as_ref(),
        };
        let retries = retries(reader, path, wire);
        let request = wire.timeouts.as_ref().and_then(|t| t.request.as_ref());
        let timeout =
            request.and_then(|text| time(reader, &format!("{path}.timeouts.request"), text));
        self.rules(reader, parts, timeout, retries)
    }

    /// A rule of a gRPC route, once for each of its matches.
    pub(super) fn grpc(
        &self,
        reader: &mut Reader,
        path: &str,
        name: Arc<str>,
        wire: &GrpcRouteRule,
    ) -> Vec<(Rank, Rule)> {
        reader.invalid = None;
        let all = [GrpcRouteMatch::default()];
        let matches = match wire.matches.as_slice() {
            [] => &all,
            given => given,
        };
        let matches = matches.iter().enumerate();
        let matches =
            matches.map(|(i, one)| grpc_match(reader, &format!("{path}.matches[{i}]"), one));
        let parts = Parts {
            path,
            name,
            matches: matches.collect(),
            filters: &wire.filters,
            backends: &wire.backend_refs,
            session: wire.session_persistence.as_ref(),
        };
        self.rules(reader, parts, None, Some(Retries::default_of_istio()))
    }

    fn rules(
        &self,
        reader: &mut Reader,
        parts: Parts<'_>,
        timeout: Option<std::time::Duration>,
        retries: Option<Retries>,
    ) -> Vec<(Rank, Rule)> {
        let path = parts.path;
        let beside = format!("{path}.matches[");
        if let Some(field) = self.unknown.iter().find(|f| f.starts_with(&beside)) {
            reader.fail(
                field,
                "is not a condition that this version knows".to_owned(),
            );
        }
        let session = parts
            .session
            .and_then(|wire| session::read(reader, path, &parts.name, wire));
        let found = filters::read(reader, path, parts.filters);
        let mirrors = found.mirrors.iter().map(|(field, wire, share)| Mirror {
            backend: self.backend(reader, field, &wire.backend_ref),
            share: *share,
        });
        let mirrors: Box<[Mirror]> = mirrors.collect();
        let action = match found.redirect {
            Some(redirect) => Action::Redirect(redirect),
            None => {
                let backends = parts.backends.iter().enumerate();
                let backends = backends.map(|(i, wire)| {
                    self.backend(reader, &format!("{path}.backendRefs[{i}]"), wire)
                });
                Action::Forward(backends.collect())
            }
        };
        let refused = reader.invalid.take();
        let rule = |one: Match, sticky| match &refused {
            Some(reason) => refusing(parts.name.clone(), [one].into(), reason.clone()),
            None => Rule {
                name: parts.name.clone(),
                matches: [one].into(),
                filters: found.filters.clone(),
                action: action.clone(),
                timeout,
                retries: retries.clone(),
                fault: None,
                mirrors: mirrors.clone(),
                cors: found.cors.clone(),
                session: sticky,
            },
        };
        let matches = parts.matches.into_iter();
        matches
            .map(|(rank, one)| {
                let sticky = session.as_ref().map(|s| session::for_match(s, &one));
                (rank, rule(one, sticky))
            })
            .collect()
    }

    pub(super) fn backend(&self, reader: &mut Reader, path: &str, wire: &BackendRef) -> Backend {
        let namespace = match wire.namespace.as_str() {
            "" => self.namespace,
            namespace => namespace,
        };
        let hostname = self.settings.hostname(namespace, &wire.name);
        let host = hostname.as_str();
        let before = reader.invalid.take();
        let found = filters::read(reader, path, &wire.filters);
        let mut wrong = reader.invalid.take();
        reader.invalid = before;
        if found.redirect.is_some() || found.cors.is_some() || !found.mirrors.is_empty() {
            wrong.get_or_insert(
                "only changes to headers and target can be made for one backend".to_owned(),
            );
        }
        let is_service = matches!(wire.group.as_str(), "" | "core")
            && wire
                .kind
                .as_deref()
                .is_none_or(|kind| kind == Service::KIND);
        let service = self.hosts.service(namespace, host);
        const GONE: &str = "BackendNotFound";
        let problem = match (is_service, service, wire.port) {
            (false, _, _) => Some((
                "InvalidKind",
                format!(
                    "{} of {:?} is no backend; it has to be a Service",
                    wire.kind.as_deref().unwrap_or_default(),
                    wire.group
                ),
            )),
            (true, None, _) => {
                let text = format!("Service {namespace}/{} is not known", wire.name);
                Some((GONE, text))
            }
            (true, Some(_), None) => Some((GONE, "needs a port".to_owned())),
            (true, Some(index), Some(port)) => {
                let known = &self.hosts.get(index).service.ports;
                let missing = !known.iter().any(|known| known.port == port);
                missing.then(|| {
                    let text = format!("Service {namespace}/{} has no port {port}", wire.name);
                    (GONE, text)
                })
            }
        };
        if let Some((reason, text)) = &problem {
            let unresolved = || (*reason, format!("{path}: {text}"));
            reader.unresolved.get_or_insert_with(unresolved);
        }
        let problem = problem.map(|(_, text)| text);
        if let Some(text) = problem.as_ref().or(wrong.as_ref()) {
            reader.error(path, format!("{text}; {}", self.fate));
        }
        let name = match service {
            Some(index) => self.hosts.get(index).service.name.clone(),
            None => unknown(self.settings, namespace, host),
        };
        Backend {
            service: name,
            port: wire.port,
            subset: None,
            weight: wire.weight.unwrap_or(1),
            filters: match wrong {
                None => found.filters,
                Some(_) => Filters::default(),
            },
            invalid: problem.or(wrong).map(Arc::from),
        }
    }
}

/// The hosts of a rule's backends, as a route of a namespace names them.
pub(crate) fn backend_hosts<'w>(
    settings: &Settings,
    own: &str,
    backends: impl Iterator<Item = &'w BackendRef>,
) -> Vec<String> {
    let host = |wire: &BackendRef| {
        let namespace = match wire.namespace.as_str() {
            "" => own,
            namespace => namespace,
        };
        settings.hostname(namespace, &wire.name).as_str().to_owned()
    };
    backends.map(host).collect()
}

fn time(reader: &mut Reader, field: &str, text: &str) -> Option<std::time::Duration> {
    let time = values::duration(text);
    let time = reader.want(field, time, "requests may take for ever");
    time.filter(|time| !time.is_zero())
}

/// Retries are as without the Gateway API where the rule says nothing of them.
fn retries(reader: &mut Reader, path: &str, wire: &HttpRouteRule) -> Option<Retries> {
    let mut retries = Retries::default_of_istio();
    if let Some(retry) = &wire.retry {
        retries.attempts = retry.attempts.unwrap_or(retries.attempts);
        let codes: Vec<String> = retry.codes.iter().map(ToString::to_string).collect();
        let tokens = format!("connect-failure,refused-stream,{}", codes.join(","));
        let (on, unknown) = RetryOn::parse(&tokens);
        for code in unknown {
            reader.warn(
                format!("{path}.retry.codes"),
                format!("{code} is not a status"),
            );
        }
        retries.on = on;
        let pause = retry.backoff.as_ref().and_then(|text| {
            let field = format!("{path}.retry.backoff");
            reader.want(&field, values::duration(text), "taken for absent")
        });
        retries.backoff = pause.unwrap_or(retries.backoff);
    }
    let each = wire
        .timeouts
        .as_ref()
        .and_then(|t| t.backend_request.as_ref());
    retries.per_try_timeout =
        each.and_then(|text| time(reader, &format!("{path}.timeouts.backendRequest"), text));
    // A single try has its bound as well.
    (retries.attempts > 0 || retries.per_try_timeout.is_some()).then_some(retries)
}

fn named(reader: &mut Reader, field: &str, wire: &NameValueMatch) -> Option<Text> {
    match wire.kind.as_deref() {
        None | Some("Exact") => Some(Text::Exact(wire.value.as_str().into())),
        Some("RegularExpression") => {
            let pattern = values::pattern(&wire.value);
            reader.need(field, pattern).map(Text::Regex)
        }
        Some(other) => {
            let text = format!("{other:?} is neither Exact nor RegularExpression");
            reader.fail(field, text);
            None
        }
    }
}

fn headers(reader: &mut Reader, path: &str, wire: &[NameValueMatch]) -> Box<[HeaderMatch]> {
    let mut found: Vec<HeaderMatch> = Vec::new();
    for (i, one) in wire.iter().enumerate() {
        let field = format!("{path}.headers[{i}]");
        let name = reader.need(&field, values::header_name(&one.name));
        let value = named(reader, &field, one);
        let counts = is_first(wire, i, same_header);
        if let Some((name, value)) = name.zip(value).filter(|_| counts) {
            found.push(HeaderMatch {
                name,
                value,
                negated: false,
            });
        }
    }
    found.into()
}

/// Whether two names mean one.
type Same = fn(&str, &str) -> bool;

fn same_header(one: &str, other: &str) -> bool {
    one.eq_ignore_ascii_case(other)
}

fn same_parameter(one: &str, other: &str) -> bool {
    one == other
}

/// Whether a condition counts: of several by one name only the first does, as the API says; also where it cannot be
/// understood.
fn is_first(wire: &[NameValueMatch], at: usize, same: Same) -> bool {
    !wire[..at].iter().any(|b| same(&b.name, &wire[at].name))
}

/// How many conditions count.
fn counted(wire: &[NameValueMatch], same: Same) -> usize {
    let counts = |at: &usize| is_first(wire, *at, same);
    (0..wire.len()).filter(counts).count()
}

fn http_match(reader: &mut Reader, path: &str, wire: &HttpRouteMatch) -> (Rank, Match) {
    let field = format!("{path}.path");
    let (kind, length, found) = path_match(reader, &field, wire.path.as_ref());
    let mut query: Vec<QueryMatch> = Vec::new();
    for (i, one) in wire.query_params.iter().enumerate() {
        let value = named(reader, &format!("{path}.queryParams[{i}]"), one);
        let counts = is_first(&wire.query_params, i, same_parameter);
        if let Some(value) = value.filter(|_| counts) {
            let name = one.name.as_str().into();
            query.push(QueryMatch { name, value });
        }
    }
    let rank = [
        kind,
        length,
        usize::from(wire.method.is_some()),
        counted(&wire.headers, same_header),
        counted(&wire.query_params, same_parameter),
        0,
    ];
    let matched = Match {
        path: found,
        method: wire
            .method
            .as_deref()
            .map(|method| Text::Exact(method.into())),
        headers: headers(reader, path, &wire.headers),
        query: query.into(),
        ..Match::default()
    };
    (Reverse(rank), matched)
}

/// Exact before prefix before expression, the longest first.
fn path_match(
    reader: &mut Reader,
    field: &str,
    wire: Option<&HttpPathMatch>,
) -> (usize, usize, Option<PathMatch>) {
    let text = wire.and_then(|wire| wire.value.as_deref()).unwrap_or("/");
    match wire.and_then(|wire| wire.kind.as_deref()) {
        Some("Exact") => (3, text.len(), Some(PathMatch::Exact(text.into()))),
        None | Some("PathPrefix") => {
            let trimmed = text.trim_end_matches('/');
            // One for every path keeps nobody out; written down it is a prefix all the same, which a filter may replace.
            let found = match (trimmed, wire) {
                ("", None) => None,
                ("", Some(_)) => Some(PathMatch::Segments("/".into())),
                (trimmed, _) => Some(PathMatch::Segments(trimmed.into())),
            };
            (2, text.len(), found)
        }
        Some("RegularExpression") => {
            let pattern = reader.need(field, values::pattern(text));
            (1, text.len(), pattern.map(PathMatch::Regex))
        }
        Some(other) => {
            let text = format!("{other:?} is none of Exact, PathPrefix, RegularExpression");
            reader.fail(field, text);
            (2, 0, None)
        }
    }
}

fn grpc_match(reader: &mut Reader, path: &str, wire: &GrpcRouteMatch) -> (Rank, Match) {
    let method = wire.method.as_ref();
    let service = method
        .and_then(|m| m.service.as_deref())
        .filter(|s| !s.is_empty());
    let name = method
        .and_then(|m| m.method.as_deref())
        .filter(|s| !s.is_empty());
    let exact = match method.and_then(|m| m.kind.as_deref()) {
        None | Some("Exact") => true,
        Some("RegularExpression") => false,
        Some(other) => {
            let text = format!("{other:?} is neither Exact nor RegularExpression");
            reader.fail(&format!("{path}.method.type"), text);
            true
        }
    };
    let any = "[^/]+";
    let found = match (exact, service, name) {
        (_, None, None) => None,
        (true, Some(service), Some(name)) => {
            Some(PathMatch::Exact(format!("/{service}/{name}").into()))
        }
        (true, Some(service), None) => Some(PathMatch::Prefix(format!("/{service}/").into())),
        (true, None, Some(name)) => {
            let pattern = values::pattern(&format!("/{any}/{}", escaped(name)));
            reader.need(path, pattern).map(PathMatch::Regex)
        }
        (false, service, name) => {
            // Each by itself first: `a)(b` is no expression, but would be one in between.
            let mut part = |text: Option<&str>| match text {
                None => Some(any.to_owned()),
                Some(text) => {
                    let pattern = values::pattern(text);
                    reader.need(path, pattern).map(|_| text.to_owned())
                }
            };
            let (service, name) = (part(service), part(name));
            service.zip(name).and_then(|(service, name)| {
                let pattern = values::pattern(&format!("/(?:{service})/(?:{name})"));
                reader.need(path, pattern).map(PathMatch::Regex)
            })
        }
    };
    let length = |text: Option<&str>| text.map_or(0, str::len);
    // The API counts characters; that an expression has some makes it no more specific than a name.
    let kind = match (exact, service, name) {
        (_, None, None) => 0,
        (false, ..) => 1,
        (true, ..) => 2,
    };
    let rank = [
        kind,
        length(service),
        length(name),
        counted(&wire.headers, same_header),
        0,
        0,
    ];
    let matched = Match {
        path: found,
        headers: headers(reader, path, &wire.headers),
        ..Match::default()
    };
    (Reverse(rank), matched)
}

#[cfg(test)]
mod tests;
