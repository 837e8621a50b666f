//! A request's way to a backend: what the rule does to it, which cluster it goes to, and copies for mirrors.
//!
//! Invariant: what is sent is made once and sent anew by each try (`tries.rs`), on a connection of `connect.rs`.

mod connect;
mod tries;

use std::{rc::Rc, sync::Arc, time::Duration};

use base64::Engine;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, header, request::Parts};
use hyper::{ext::Protocol, upgrade::OnUpgrade};
use mesh_model::{
    authz::Egress,
    balance::Viewpoint,
    mesh::{AppProtocol, Service, Workload},
    resilience::TrafficPolicy,
    route::http::{Action, Backend, Endpoint, Mirror, Rule, choose},
};

use super::{
    Session,
    head::{self, Head},
};
use crate::{
    authorize::Permitted,
    exchange::{
        Cluster, ClusterKey, Kept, Local, Outgoing, Reply, Upgrade, Wish, forwarded, strip, upgrade,
    },
    observe::{Mark, RequestGuard},
};

/// The longest try where no timeout ends it.
const FOREVER: Duration = Duration::from_secs(365 * 24 * 3600);
/// How long a mirrored request may take where its rule has no timeout.
const MIRRORED: Duration = Duration::from_secs(15);

/// A request that is on its way to an endpoint of a backend.
pub(super) struct Forward<'a> {
    session: &'a Rc<Session>,
    permitted: Permitted<Egress>,
    client: Option<Arc<Workload>>,
    service: &'a Service,
    port: u16,
    rule: Option<&'a Rule>,
    mark: Option<Mark>,
}

/// One backend's endpoints, and how requests get there.
struct Way {
    session: Rc<Session>,
    permitted: Permitted<Egress>,
    client: Option<Arc<Workload>>,
    cluster: Arc<Cluster>,
    policy: Arc<TrafficPolicy>,
    h2: bool,
    /// The one endpoint that it goes to, where it arrived there already.
    pinned: Option<Endpoint>,
}

/// What is sent, each time anew.
struct Message {
    method: Method,
    uri: http::Uri,
    headers: HeaderMap,
    /// What the connection is to become when the answer says so.
    switch: Option<Switch>,
    /// The client's side then, where it is a stream among others.
    near: Option<OnUpgrade>,
}

/// What a connection becomes.
enum Switch {
    /// One of another protocol (RFC 9110, 7.8).
    Upgrade(Upgrade),
    /// A tunnel (RFC 9110, 9.3.6).
    Connect,
}

/// What tries are made by, beside what is sent.
#[derive(Clone, Copy)]
struct Asking<'a> {
    /// The query, as it came.
    query: Option<&'a str>,
    /// The session that the request says it belongs to.
    session: Option<u64>,
    /// The rule.
    rule: Option<&'a Rule>,
}

/// Why a try brought no answer.
enum Failed {
    /// A bound is reached.
    Overflow,
    /// No connection could be made.
    Connect,
    /// The endpoint's node refused, by policy.
    Denied,
    /// The endpoint refused the stream before it looked at it.
    Refused,
    /// The connection ended without an answer; whether any of the request may have been sent on it.
    Broken {
        /// It may have been.
        sent: bool,
    },
    /// The try took too long.
    Late,
}

impl<'a> Forward<'a> {
    /// Prepares the way of a request to `port` of `service` by a rule, or to the service itself; `mark` is the trace context
    /// that goes along.
    pub fn new(
        session: &'a Rc<Session>,
        permitted: Permitted<Egress>,
        client: Option<Arc<Workload>>,
        (service, port): (&'a Service, u16),
        rule: Option<&'a Rule>,
        mark: Option<Mark>,
    ) -> Self {
        Self {
            session,
            permitted,
            client,
            service,
            port,
            rule,
            mark,
        }
    }

    /// Goes it.
    pub async fn go(
        self,
        parts: &Parts,
        head: &Head,
        covered: usize,
        kept: &Kept,
        guard: &mut RequestGuard,
    ) -> Result<Response<Reply>, Local> {
        let session = self.rule.and_then(|r| r.session.as_ref());
        let session = session.and_then(|key| key.session(&parts.headers));
        let backend = match self.rule.map(|r| &r.action) {
            Some(Action::Forward(backends)) => {
                let kept = session.and_then(|session| self.kept(backends, session));
                let chosen = kept.or_else(|| choose(backends, fastrand::u64(..)));
                Some(chosen.ok_or(Local::NO_CLUSTER)?)
            }
            Some(_) | None => None,
        };
        let mut way = self.way(backend)?;
        // Only the request itself goes back, copies go wherever they are sent otherwise.
        let ClusterKey { service, port, .. } = &way.cluster.key;
        let pinned = self.permitted.pinned(service, *port);
        way.pinned = pinned.map_err(tries::unpicked)?;
        guard.record.cluster = Some(way.cluster.key.to_string());
        guard.flow.service = Some(way.cluster.key.service.clone());
        let message = self.message(parts, head, covered, backend, way.h2)?;
        let shown = message.headers.get("x-forwarded-for");
        guard.record.forwarded_for = shown.and_then(|v| v.to_str().ok()).map(str::to_owned);
        let id = message.headers.get("x-request-id");
        guard.record.id = id.and_then(|v| v.to_str().ok()).map(str::to_owned);
        let asked = Asking {
            query: head.query.as_deref(),
            session,
            rule: self.rule,
        };
        let answer = way.tries(&message, asked, kept, guard).await;
        if let Some(rule) = self.rule {
            self.mirror(rule, parts, head, covered, kept);
        }
        let mut response = answer?;
        if let Some(backend) = backend {
            backend.filters.response.apply(response.headers_mut());
        }
        Ok(response)
    }

    /// The backend that has a session's endpoint, whatever its share is.
    fn kept<'b>(&self, backends: &'b [Backend], session: u64) -> Option<&'b Backend> {
        let snapshot = &self.permitted.snapshot;
        let shared = &self.session.data.shared;
        let from = Viewpoint::of(&shared.node, &self.permitted.permit.subject().source);
        let now = std::time::Instant::now();
        let has = |backend: &&Backend| {
            let cluster = shared.clusters.get(&self.key(Some(backend)));
            let view = (&snapshot.mesh, snapshot.generation, from);
            cluster.has_session(view, session, now)
        };
        let usable = backends
            .iter()
            .filter(|b| b.weight > 0 && b.invalid.is_none());
        usable.into_iter().find(has)
    }

    fn key(&self, backend: Option<&Backend>) -> ClusterKey {
        ClusterKey::of(&self.service.name, self.port, backend)
    }

    /// The way to a backend, or to the service itself.
    fn way(&self, backend: Option<&Backend>) -> Result<Way, Local> {
        if let Some(why) = backend.and_then(|b| b.invalid.as_ref()) {
            tracing::debug!(%why, "a backend that cannot be used refused a request");
            return Err(Local::NO_CLUSTER);
        }
        let key = self.key(backend);
        let snapshot = &self.permitted.snapshot;
        let service = snapshot.mesh.service(&key.service);
        let service = service.ok_or(Local::NO_CLUSTER)?;
        let declared = service.ports.iter().find(|p| p.port == key.port);
        let declared = declared.ok_or(Local::NO_CLUSTER)?.protocol;
        let shared = &self.session.data.shared;
        let cluster = shared.clusters.get(&key);
        let from = Viewpoint::of(&shared.node, &self.permitted.permit.subject().source);
        let policy = cluster.policy(&snapshot.mesh, snapshot.generation, from);
        let same = self.session.h2;
        let h2 = match declared {
            _ if policy.pool.use_client_protocol => same,
            AppProtocol::Http2 | AppProtocol::Grpc => true,
            AppProtocol::Http11 => policy.pool.upgrade,
            AppProtocol::Unknown | AppProtocol::Tcp | AppProtocol::Tls => {
                same || policy.pool.upgrade
            }
        };
        Ok(Way {
            session: self.session.clone(),
            permitted: self.permitted.clone(),
            client: self.client.clone(),
            cluster,
            policy,
            h2,
            pinned: None,
        })
    }

    /// The request as it goes on.
    fn message(
        &self,
        parts: &Parts,
        head: &Head,
        covered: usize,
        backend: Option<&Backend>,
        h2: bool,
    ) -> Result<Message, Local> {
        let mut headers = parts.headers.clone();
        let protocol = parts.extensions.get::<Protocol>();
        let switch = match (&parts.method, protocol) {
            (&Method::CONNECT, None) => Some(Switch::Connect),
            // An upgrade as HTTP/2 says it (RFC 8441) is one of HTTP/1.1 on the other side.
            (&Method::CONNECT, Some(protocol)) => {
                let upgrade = Upgrade::to(protocol.as_str()).ok_or(Local::MALFORMED)?;
                Some(Switch::Upgrade(upgrade))
            }
            _ => upgrade(&headers)
                .filter(|_| !self.session.h2)
                .map(Switch::Upgrade),
        };
        strip(&mut headers);
        forwarded(&mut headers, self.session.carry.client.ip());
        if let Some(mark) = self.mark {
            mark.put(&mut headers);
        }
        let filters = [self.rule.map(|r| &r.filters), backend.map(|b| &b.filters)];
        let mut authority = head.authority.clone();
        for filters in filters.into_iter().flatten() {
            if let Some(value) = filters.request.apply(&mut headers) {
                let value = value.to_str().map_err(|_| Local::MALFORMED)?;
                authority = value.to_owned();
            }
        }
        // A backend's own rewrite goes before its rule's.
        let mut rewrites = filters.into_iter().rev().flatten();
        let rewrite = rewrites.find_map(|f| f.rewrite.as_ref());
        let mut target = None;
        if let Some(rewrite) = rewrite {
            if let Some(new) = &rewrite.authority {
                authority = new.to_string();
            }
            target = rewrite.target(&head.path, head.query.as_deref(), covered);
        }
        let target = target.unwrap_or_else(|| head.target());
        let h2 = h2 && switch.is_none();
        let mut uri = head::target(h2, &authority, &target, &mut headers)?;
        let mut method = parts.method.clone();
        match &switch {
            Some(Switch::Upgrade(upgrade)) => {
                upgrade.put(&mut headers);
                if protocol.is_some() {
                    method = Method::GET;
                    if upgrade.is_websocket() {
                        let key = base64::engine::general_purpose::STANDARD
                            .encode(fastrand::u128(..).to_be_bytes());
                        let key = HeaderValue::try_from(key).map_err(|_| Local::MALFORMED)?;
                        headers.insert(header::SEC_WEBSOCKET_KEY, key);
                    }
                }
            }
            Some(Switch::Connect) => uri = authority.parse().map_err(|_| Local::MALFORMED)?,
            None => {}
        }
        Ok(Message {
            method,
            uri,
            headers,
            switch,
            near: parts.extensions.get::<OnUpgrade>().cloned(),
        })
    }

    /// Sends copies to whom the rule names, as far as all of the body is here.
    fn mirror(&self, rule: &Rule, parts: &Parts, head: &Head, covered: usize, kept: &Kept) {
        for Mirror { backend, share } in &rule.mirrors {
            if !share.covers(fastrand::u64(..)) {
                continue;
            }
            let prepared = self.way(Some(backend)).and_then(|way| {
                let shadow = Head {
                    authority: shadow(&head.authority),
                    path: head.path.clone(),
                    query: head.query.clone(),
                };
                let message = self.message(parts, &shadow, covered, Some(backend), way.h2)?;
                Ok((way, message))
            });
            let (Ok((way, message)), Some(body)) = (prepared, kept.copy()) else {
                tracing::debug!(rule = %rule.name, "a request could not be mirrored: its body was too large or had not come yet, or there is no such backend");
                continue;
            };
            let patience = rule.timeout.unwrap_or(MIRRORED);
            tokio::task::spawn_local(async move {
                let sent = way.mirrored(&message, body);
                if tokio::time::timeout(patience, sent).await.is_err() {
                    tracing::debug!("a mirrored request took too long");
                }
            });
        }
    }
}

/// The authority of a mirrored request, as Envoy marks it.
fn shadow(authority: &str) -> String {
    match authority.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => format!("{host}-shadow:{port}"),
        _ => format!("{authority}-shadow"),
    }
}

impl Way {
    /// Sends a copy, whose answer nobody hears.
    async fn mirrored(self, message: &Message, body: Outgoing) {
        let Some(_request) = self.cluster.requests.take(self.policy.pool.max_requests) else {
            return;
        };
        let query = message.uri.query();
        let Ok(picked) = self.pick(message, query, Wish::default(), &mut None) else {
            return;
        };
        let Ok((key, mut opened)) = self.connection(&picked.endpoint, message, false).await else {
            return;
        };
        if let Ok(response) = opened.send(message.request(body, 1)).await {
            use http_body_util::BodyExt;
            let mut body = response.into_body();
            while let Some(Ok(_)) = body.frame().await {}
            let connections = &self.session.data.connections;
            connections.keep(key, opened, self.bounds(), self.cluster.clone());
        }
    }
}

impl Message {
    fn request(&self, body: Outgoing, attempt: u32) -> Request<Outgoing> {
        let mut request = Request::new(body);
        *request.method_mut() = self.method.clone();
        *request.uri_mut() = self.uri.clone();
        *request.headers_mut() = self.headers.clone();
        let name = HeaderName::from_static("x-envoy-attempt-count");
        request.headers_mut().insert(name, attempt.into());
        request
    }
}

impl Failed {
    /// What the client is told.
    fn local(&self) -> Local {
        match self {
            Self::Overflow => Local::OVERFLOW,
            Self::Connect => Local::UNREACHED,
            Self::Denied => Local::DENIED,
            Self::Refused => Local::REFUSED,
            Self::Broken { .. } => Local::TERMINATED,
            Self::Late => Local::TIMEOUT,
        }
    }
}
