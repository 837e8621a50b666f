//! A request's way to a backend: what the rule does to it, which cluster it goes to, and copies for mirrors.
//!
//! Invariant: what is sent is made once and sent anew by each try (`tries.rs`), on a connection of `connect.rs`.

mod connect;
mod tries;

use std::{
    rc::Rc,
    sync::Arc,
    time::{Duration, SystemTime},
};

use base64::Engine;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, header, request::Parts};
use hyper::{ext::Protocol, upgrade::OnUpgrade};
use mesh_model::{
    authz::{Egress, Target},
    balance::Viewpoint,
    mesh::{AppProtocol, Workload},
    resilience::{Held, TrafficPolicy},
    route::http::{self as route, Action, Backend, Endpoint, Mirror, Rule, choose},
};

use super::{
    Session,
    head::{self, Head},
};
use crate::{
    authorize::Permitted,
    exchange::{
        Cluster, ClusterKey, Kept, Local, Outgoing, Patience, Reply, Upgrade, Wish, forwarded,
        patience, strip, upgrade,
    },
    observe::{Mark, RequestGuard},
};

/// How long a mirrored request may take where its rule has no timeout.
const MIRRORED: Duration = Duration::from_secs(15);

/// A request that is on its way to an endpoint of a backend.
pub(super) struct Forward<'a> {
    session: &'a Rc<Session>,
    permitted: Permitted<Egress>,
    client: Option<Arc<Workload>>,
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
    /// The one endpoint that it goes to, where it arrived there already or was addressed to it.
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
struct Asking<'a> {
    /// The query, as it came.
    query: Option<&'a str>,
    /// The session that the request belongs to.
    session: Option<Held>,
    /// The rule.
    rule: Option<&'a Rule>,
    /// Whether it is one of gRPC.
    grpc: bool,
    /// How long it may take.
    patience: Patience,
}

/// Why a try brought no answer.
enum Failed {
    /// A bound is reached.
    Overflow,
    /// No connection could be made, and why.
    Connect(String),
    /// The endpoint's node refused, by policy, and what it said.
    Denied(String),
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
    /// Prepares the way of a request by a rule, or to what was addressed itself; `mark` is the trace context that goes along.
    pub fn new(
        session: &'a Rc<Session>,
        permitted: Permitted<Egress>,
        client: Option<Arc<Workload>>,
        rule: Option<&'a Rule>,
        mark: Option<Mark>,
    ) -> Self {
        Self {
            session,
            permitted,
            client,
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
        let session = session.and_then(|s| s.held(&parts.headers, SystemTime::now()));
        let backend = match self.rule.map(|r| &r.action) {
            Some(Action::Forward(backends)) => {
                let kept = session.and_then(|held| self.kept(backends, held.endpoint));
                let chosen = kept.or_else(|| choose(backends, fastrand::u64(..)));
                Some(chosen.ok_or(Local::NO_CLUSTER)?)
            }
            Some(_) | None => None,
        };
        let mut way = self.way(backend)?;
        // Only the request itself goes back, copies go wherever they are sent otherwise.
        way.pinned = self.pinned(&way.cluster.key)?;
        guard.record.cluster = Some(way.cluster.key.to_string());
        guard.flow.service = way.cluster.key.service().cloned();
        let message = self.message(parts, head, covered, backend, way.h2)?;
        let shown = message.headers.get("x-forwarded-for");
        guard.record.forwarded_for = shown.and_then(|v| v.to_str().ok()).map(str::to_owned);
        let id = message.headers.get("x-request-id");
        guard.record.id = id.and_then(|v| v.to_str().ok()).map(str::to_owned);
        let grpc = guard.record.grpc;
        let client = grpc.then(|| patience(&parts.headers)).flatten();
        // Envoy takes no time at all for one without a bound; who serves it decides.
        let client = client.filter(|t| !t.is_zero());
        let whole = self.rule.and_then(|r| r.timeout);
        let asked = Asking {
            query: head.query.as_deref(),
            session,
            rule: self.rule,
            grpc,
            patience: Patience::new(kept.clone(), whole, client),
        };
        let answer = way.tries(&message, asked, kept, guard).await;
        if let Some(rule) = self.rule {
            self.mirror(rule, parts, head, covered, kept, guard);
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
        let source = &self.permitted.permit.subject().source;
        let from = Viewpoint::of_waypoint(&snapshot.mesh, &shared.node, source);
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
        match &self.permitted.permit.subject().target {
            Target::Service(service, port) => ClusterKey::of(&service.name, *port, backend),
            Target::Workload(..) | Target::External => ClusterKey::Addressed,
        }
    }

    /// The one endpoint that there is, where none is to be chosen.
    fn pinned(&self, key: &ClusterKey) -> Result<Option<Endpoint>, Local> {
        match key {
            ClusterKey::Service { service, port, .. } => {
                let pinned = self.permitted.pinned(service, *port);
                pinned.map_err(tries::unpicked)
            }
            ClusterKey::Addressed => {
                let Permitted {
                    permit, snapshot, ..
                } = &self.permitted;
                let addressed = route::addressed(&snapshot.mesh, permit.subject());
                addressed.map(Some).ok_or(Local::UNSERVED)
            }
        }
    }

    /// The way to a backend, or to what was addressed itself.
    fn way(&self, backend: Option<&Backend>) -> Result<Way, Local> {
        if let Some(why) = backend.and_then(|b| b.invalid.as_ref()) {
            tracing::debug!(%why, "a backend that cannot be used refused a request");
            return Err(Local::NO_CLUSTER);
        }
        let key = self.key(backend);
        let snapshot = &self.permitted.snapshot;
        let declared = match &key {
            ClusterKey::Service { service, port, .. } => {
                let service = snapshot.mesh.service(service);
                let service = service.ok_or(Local::NO_CLUSTER)?;
                let declared = service.ports.iter().find(|p| p.port == *port);
                declared.ok_or(Local::NO_CLUSTER)?.protocol
            }
            // Who addresses a workload itself speaks what that does.
            ClusterKey::Addressed => AppProtocol::Unknown,
        };
        let shared = &self.session.data.shared;
        let cluster = shared.clusters.get(&key);
        let source = &self.permitted.permit.subject().source;
        let from = Viewpoint::of_waypoint(&snapshot.mesh, &shared.node, source);
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

    /// Sends copies to whom the rule names, as far as all of the body is here; what cannot be copied is said in the report.
    fn mirror(
        &self,
        rule: &Rule,
        parts: &Parts,
        head: &Head,
        covered: usize,
        kept: &Kept,
        guard: &mut RequestGuard,
    ) {
        let node = self.session.data.shared.observer.metrics().node();
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
            let (way, message) = match prepared {
                Ok(prepared) => prepared,
                Err(why) => {
                    tracing::debug!(rule = %rule.name, why = why.details, "a request could not be mirrored");
                    node.mirrored("no_backend");
                    guard.detail("mirror_not_sent{no_backend}");
                    continue;
                }
            };
            let Some(body) = kept.copy() else {
                // It was larger than what is kept, or had not come whole when the request was answered.
                node.mirrored("body_not_kept");
                guard.detail("mirror_not_sent{body_not_kept}");
                continue;
            };
            let patience = rule.timeout.unwrap_or(MIRRORED);
            let metrics = self.session.data.shared.observer.metrics().clone();
            tokio::task::spawn_local(async move {
                let sent = way.mirrored(&message, body);
                let result = tokio::time::timeout(patience, sent).await;
                metrics.node().mirrored(result.unwrap_or("timeout"));
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
    /// Sends a copy, whose answer nobody hears; gives what became of it, for metrics.
    async fn mirrored(self, message: &Message, body: Outgoing) -> &'static str {
        let Some(_request) = self.cluster.requests.take(self.policy.pool.max_requests) else {
            return "overflow";
        };
        let query = message.uri.query();
        let Ok(picked) = self.pick(message, query, Wish::default(), &mut None) else {
            return "no_endpoint";
        };
        let (key, mut opened) = match self.connection(&picked.endpoint, message, false).await {
            Ok(connection) => connection,
            Err(Failed::Overflow) => return "overflow",
            Err(Failed::Denied(_)) => return "denied",
            Err(Failed::Connect(_) | Failed::Refused | Failed::Broken { .. } | Failed::Late) => {
                return "failed";
            }
        };
        let Ok(response) = opened.send(message.request(body, 1, None)).await else {
            return "failed";
        };
        use http_body_util::BodyExt;
        let mut body = response.into_body();
        while let Some(Ok(_)) = body.frame().await {}
        let connections = &self.session.data.connections;
        connections.keep(key, opened, self.bounds(), self.cluster.clone());
        "answered"
    }
}

impl Message {
    /// What one try sends; `patience` is how long it is waited for (`grpc-timeout`), where that is known.
    fn request(&self, body: Outgoing, attempt: u32, patience: Option<&str>) -> Request<Outgoing> {
        let mut request = Request::new(body);
        *request.method_mut() = self.method.clone();
        *request.uri_mut() = self.uri.clone();
        *request.headers_mut() = self.headers.clone();
        let name = HeaderName::from_static("x-envoy-attempt-count");
        request.headers_mut().insert(name, attempt.into());
        if let Some(Ok(patience)) = patience.map(HeaderValue::try_from) {
            request.headers_mut().insert("grpc-timeout", patience);
        }
        request
    }
}

impl Failed {
    /// What the client is told.
    fn local(&self) -> Local {
        match self {
            Self::Overflow => Local::OVERFLOW,
            Self::Connect(_) => Local::UNREACHED,
            Self::Denied(_) => Local::DENIED,
            Self::Refused => Local::REFUSED,
            Self::Broken { .. } => Local::TERMINATED,
            Self::Late => Local::TIMEOUT,
        }
    }

    /// What stood in the way to the endpoint, for the log.
    fn why(self) -> Option<String> {
        match self {
            Self::Connect(why) | Self::Denied(why) => Some(why),
            Self::Overflow | Self::Refused | Self::Broken { .. } | Self::Late => None,
        }
    }
}
