//! A request's way to an endpoint: edits, a choice, a connection, and another try where the rule wants one.
//!
//! Invariants: bounds are asked before anything is dialed; what was tried is avoided while there is something else; a
//! body that is gone is not tried again; what comes of each try is known to the cluster before the next one.

use std::{rc::Rc, sync::Arc, time::Duration};

use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, request::Parts,
};
use hyper::body::Incoming;
use mesh_model::{
    authz::Egress,
    balance::Viewpoint,
    mesh::{AppProtocol, Service, Workload},
    name::WorkloadUid,
    reason::Reason,
    resilience::{Affinity, Retries, TrafficPolicy, UpstreamTls, retry::Outcome},
    route::{
        Plan, Via,
        http::{Action, Backend, Endpoint, Mirror, Rule, choose},
    },
};
use tokio::time::{Instant, sleep, sleep_until, timeout_at};

use super::{
    Session,
    head::{self, Head},
};
use crate::{
    authorize::Permitted,
    dial::{self, Behalf, Upstream},
    exchange::{
        Bounds, Cluster, ClusterKey, Counted, Kept, Key, Local, Opened, Outgoing, Picked, Reply,
        SendError, Upgrade, forwarded, open, strip, upgrade,
    },
    observe::RequestGuard,
    serve::parties,
    tunnel::{Io, Link},
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
}

/// One backend's endpoints, and how requests get there.
struct Way {
    session: Rc<Session>,
    permitted: Permitted<Egress>,
    client: Option<Arc<Workload>>,
    cluster: Arc<Cluster>,
    policy: Arc<TrafficPolicy>,
    h2: bool,
}

/// What is sent, each time anew.
struct Message {
    method: Method,
    uri: http::Uri,
    headers: HeaderMap,
    upgrade: Option<Upgrade>,
}

/// Why a try brought no answer.
enum Failed {
    /// A bound is reached.
    Overflow,
    /// No connection could be made.
    Connect,
    /// The endpoint's node refused, by policy.
    Denied,
    /// The connection ended without an answer.
    Broken,
    /// The try took too long.
    Late,
}

impl<'a> Forward<'a> {
    /// Prepares the way of a request to `port` of `service` by a rule, or to the service itself.
    pub fn new(
        session: &'a Rc<Session>,
        permitted: Permitted<Egress>,
        client: Option<Arc<Workload>>,
        (service, port): (&'a Service, u16),
        rule: Option<&'a Rule>,
    ) -> Self {
        Self {
            session,
            permitted,
            client,
            service,
            port,
            rule,
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
        let backend = match self.rule.map(|r| &r.action) {
            Some(Action::Forward(backends)) => {
                let chosen = choose(backends, fastrand::u64(..));
                Some(chosen.ok_or(Local::NO_CLUSTER)?)
            }
            Some(_) | None => None,
        };
        let way = self.way(backend)?;
        guard.record.cluster = Some(way.cluster.key.to_string());
        guard.flow.service = Some(way.cluster.key.service.clone());
        let message = self.message(parts, head, covered, backend, way.h2)?;
        let shown = message.headers.get("x-forwarded-for");
        guard.record.forwarded_for = shown.and_then(|v| v.to_str().ok()).map(str::to_owned);
        let id = message.headers.get("x-request-id");
        guard.record.id = id.and_then(|v| v.to_str().ok()).map(str::to_owned);
        let query = head.query.as_deref();
        let answer = way.tries(&message, query, self.rule, kept, guard).await;
        if let Some(rule) = self.rule {
            self.mirror(rule, parts, head, covered, kept);
        }
        let mut response = answer?;
        if let Some(backend) = backend {
            backend.filters.response.apply(response.headers_mut());
        }
        Ok(response)
    }

    /// The way to a backend, or to the service itself.
    fn way(&self, backend: Option<&Backend>) -> Result<Way, Local> {
        if let Some(why) = backend.and_then(|b| b.invalid.as_ref()) {
            tracing::debug!(%why, "a backend that cannot be used refused a request");
            return Err(Local::NO_CLUSTER);
        }
        let key = ClusterKey {
            service: backend.map_or(&self.service.name, |b| &b.service).clone(),
            port: backend.and_then(|b| b.port).unwrap_or(self.port),
            subset: backend.and_then(|b| b.subset.clone()),
        };
        let snapshot = &self.permitted.snapshot;
        let service = snapshot.mesh.service(&key.service);
        let service = service.ok_or(Local::NO_CLUSTER)?;
        let declared = service.ports.iter().find(|p| p.port == key.port);
        let declared = declared.ok_or(Local::NO_CLUSTER)?.protocol;
        let shared = &self.session.data.shared;
        let cluster = shared.clusters.get(&key);
        let from = viewpoint(&shared.node, &self.permitted.permit.subject().source);
        let policy = cluster.policy(&snapshot.mesh, snapshot.generation, from);
        if let Some(UpstreamTls::Origin { .. }) = policy.tls {
            tracing::debug!(cluster = %key, "TLS to a server outside the mesh is not supported yet");
            return Err(Local::UNSUPPORTED_TLS);
        }
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
        let upgrade = upgrade(&headers).filter(|_| !self.session.h2);
        strip(&mut headers);
        forwarded(&mut headers, self.session.carry.client.ip());
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
        let h2 = h2 && upgrade.is_none();
        let uri = head::target(h2, &authority, &target, &mut headers)?;
        if let Some(upgrade) = &upgrade {
            upgrade.put(&mut headers);
        }
        Ok(Message {
            method: parts.method.clone(),
            uri,
            headers,
            upgrade,
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

fn viewpoint<'a>(node: &'a mesh_model::name::NodeName, own: &'a Workload) -> Viewpoint<'a> {
    Viewpoint {
        node,
        locality: &own.locality,
        cluster: &own.cluster,
        network: &own.network,
    }
}

impl Way {
    /// Tries until there is an answer to give.
    async fn tries(
        self,
        message: &Message,
        query: Option<&str>,
        rule: Option<&Rule>,
        kept: &Kept,
        guard: &mut RequestGuard,
    ) -> Result<Response<Reply>, Local> {
        let under_way = self.cluster.requests.take(self.policy.pool.max_requests);
        let mut under_way = Some(under_way.ok_or(Local::OVERFLOW)?);
        let standard;
        let retries = match rule {
            Some(rule) => rule.retries.as_ref(),
            None => {
                standard = Retries::default_of_istio();
                Some(&standard)
            }
        };
        let now = Instant::now();
        let limit = rule.and_then(|r| r.timeout).map(|t| now + t);
        let (mut tried, mut cookie) = (Vec::new(), None);
        let mut retrying: Option<Counted> = None;
        for attempt in 1.. {
            let avoided: &[WorkloadUid] = match retries {
                Some(retries) if retries.avoid_previous => &tried,
                Some(_) | None => &[],
            };
            let mut picked = self.pick(message, query, avoided, &mut cookie)?;
            self.to(&picked.endpoint, guard);
            guard.record.attempts = attempt;
            let per_try = retries
                .and_then(|r| r.per_try_timeout)
                .map(|t| Instant::now() + t);
            let until = [per_try, limit].into_iter().flatten().min();
            let until = until.unwrap_or_else(|| Instant::now() + FOREVER);
            let began = Instant::now();
            let body = kept.begin().ok_or(Local::TERMINATED)?;
            let sent = self.send(message, &picked.endpoint, body, kept, attempt);
            let outcome = timeout_at(until, sent).await.unwrap_or(Err(Failed::Late));
            self.learn(&picked.endpoint.workload.uid, &outcome);
            if limit.is_some_and(|l| Instant::now() >= l) && outcome.is_err() {
                return Err(Local::TIMEOUT);
            }
            let again = retries.filter(|r| attempt <= r.attempts && wants(r, &outcome, kept));
            drop(retrying.take());
            if let Some(retries) = again
                && kept.begin().is_some()
                && let Some(counted) = self.may_retry()
            {
                tried.push(picked.endpoint.workload.uid.clone());
                retrying = Some(counted);
                let pause = retries.pause(attempt, fastrand::u64(..));
                let limit = limit.unwrap_or_else(|| Instant::now() + FOREVER);
                if timeout_at(limit, sleep(pause)).await.is_err() {
                    return Err(Local::TIMEOUT);
                }
                continue;
            }
            if again.is_some()
                || retries.is_some_and(|r| {
                    r.attempts > 0 && attempt > r.attempts && wants(r, &outcome, kept)
                })
            {
                guard.flag("URX");
            }
            let response = outcome.map_err(|failed| failed.local())?;
            guard.record.upstream = Some(began.elapsed());
            picked.taken.request = under_way.take();
            let mut response = self.answered(response, picked, limit, began);
            if let Some(cookie) = cookie {
                response
                    .headers_mut()
                    .append(http::header::SET_COOKIE, cookie);
            }
            return Ok(response);
        }
        Err(Local::TERMINATED)
    }

    /// The endpoint for the next try; a cookie that is to be made is made once.
    fn pick(
        &self,
        message: &Message,
        query: Option<&str>,
        avoided: &[WorkloadUid],
        cookie: &mut Option<HeaderValue>,
    ) -> Result<Picked, Local> {
        let client = self.session.carry.client.ip();
        let made = std::cell::RefCell::new(None);
        let hash = |affinity: &Affinity| {
            let found = affinity.hash(&message.headers, query, client);
            found.or_else(|| {
                let (hash, text) = affinity.new_cookie(fastrand::u64(..))?;
                *made.borrow_mut() = HeaderValue::try_from(text).ok();
                Some(hash)
            })
        };
        let snapshot = &self.permitted.snapshot;
        let shared = &self.session.data.shared;
        let from = viewpoint(&shared.node, &self.permitted.permit.subject().source);
        let view = (&snapshot.mesh, snapshot.generation, from);
        let now = Instant::now().into_std();
        let picked = self.cluster.pick(view, hash, avoided, now);
        if cookie.is_none() {
            *cookie = made.into_inner();
        }
        picked.map_err(|reason| {
            tracing::debug!(cluster = %self.cluster.key, reason = reason.shown().key, "no endpoint");
            match reason {
                Reason::NoSuchPort => Local::NO_CLUSTER,
                Reason::RouteInvalid => Local::NO_CLUSTER,
                _ => Local::UNHEALTHY,
            }
        })
    }

    /// Says in the report where a try goes.
    fn to(&self, endpoint: &Endpoint, guard: &mut RequestGuard) {
        parties::chosen(&endpoint.candidate, &mut guard.flow);
    }

    /// One more retry, where the destination's bounds allow it.
    fn may_retry(&self) -> Option<Counted> {
        let by_budget = self.policy.retry_budget.map(|(share, least)| {
            let active = u64::from(self.cluster.requests.get()) * u64::from(share.parts());
            u32::try_from(active / 1_000_000)
                .unwrap_or(u32::MAX)
                .max(least)
        });
        let most = [by_budget, self.policy.pool.max_retries];
        self.cluster.retries.take(most.into_iter().flatten().min())
    }

    /// Tells the cluster what came of a try.
    fn learn(
        &self,
        who: &WorkloadUid,
        outcome: &Result<(Response<Incoming>, Opened, Key), Failed>,
    ) {
        let now = Instant::now().into_std();
        let out = match outcome {
            Ok((response, ..)) => self.cluster.answered(who, response.status().as_u16(), now),
            Err(Failed::Connect | Failed::Broken | Failed::Late) => self.cluster.failed(who, now),
            // Neither says anything of the endpoint.
            Err(Failed::Overflow | Failed::Denied) => false,
        };
        if out {
            tracing::info!(cluster = %self.cluster.key, workload = %who, "an endpoint failed too often and is left out for a while");
        }
    }

    /// One try. A connection that was idle may have ended meanwhile: then nothing was sent, and another one is used.
    async fn send(
        &self,
        message: &Message,
        endpoint: &Endpoint,
        body: Outgoing,
        kept: &Kept,
        attempt: u32,
    ) -> Result<(Response<Incoming>, Opened, Key), Failed> {
        let mut body = Some(body);
        for fresh in [false, true] {
            let (key, mut opened) = self.connection(endpoint, message, fresh).await?;
            let body = body.take().or_else(|| kept.begin()).ok_or(Failed::Broken)?;
            match opened.send(message.request(body, attempt)).await {
                Ok(response) => return Ok((response, opened, key)),
                Err(SendError::Unsent) => {}
                Err(SendError::Broken(error)) => {
                    tracing::debug!(%error, cluster = %self.cluster.key, "no answer");
                    return Err(Failed::Broken);
                }
            }
        }
        Err(Failed::Broken)
    }

    /// A connection to an endpoint: an idle one, unless it must be fresh, or a new one as far as bounds allow.
    async fn connection(
        &self,
        endpoint: &Endpoint,
        message: &Message,
        fresh: bool,
    ) -> Result<(Key, Opened), Failed> {
        let key = Key {
            cluster: self.cluster.key.clone(),
            endpoint: endpoint.workload.uid.clone(),
            address: endpoint.address,
            h2: self.h2 && message.upgrade.is_none(),
            client: (
                self.session.carry.arrived.identity.clone(),
                self.session.carry.client.ip(),
            ),
        };
        let connections = &self.session.data.connections;
        let idle = || match fresh || message.upgrade.is_some() {
            true => None,
            false => connections.take(&key, self.bounds()),
        };
        if let Some(opened) = idle() {
            return Ok((key, opened));
        }
        let pool = &self.policy.pool;
        let pending = self.cluster.pending.take(pool.max_pending);
        let _pending = pending.ok_or(Failed::Overflow)?;
        let counted = loop {
            let mut freed = std::pin::pin!(self.cluster.freed.notified());
            // From here on nothing that becomes free is missed.
            freed.as_mut().enable();
            if let Some(opened) = idle() {
                return Ok((key, opened));
            }
            if let Some(counted) = self.cluster.connections.take(pool.max_connections) {
                break counted;
            }
            connections.let_go(&self.cluster.key);
            self.cluster.wanted.notify_waiters();
            freed.await;
        };
        if pool.max_connections.is_some() {
            connections.attend(&self.cluster);
        }
        let link = self.dial(endpoint).await?;
        let opened = open(link, key.h2, self.cluster.clone(), counted).await;
        match opened {
            Ok(opened) => Ok((key, opened)),
            Err(error) => {
                tracing::debug!(%error, "an endpoint does not speak HTTP");
                Err(Failed::Broken)
            }
        }
    }

    fn bounds(&self) -> Bounds {
        let pool = &self.policy.pool;
        Bounds {
            requests: pool.requests_per_connection,
            life: pool.max_duration,
            idle: pool.http_idle,
        }
    }

    /// Dials an endpoint with the waypoint's own certificate, for the client.
    async fn dial(&self, endpoint: &Endpoint) -> Result<Link, Failed> {
        let Session { data, carry, .. } = &*self.session;
        let mut candidate = endpoint.candidate.clone();
        if let (Some(UpstreamTls::Disable), Some(address)) = (&self.policy.tls, endpoint.address) {
            candidate.via = Via::Plain(address);
        }
        let plan = Plan {
            service: Some(self.cluster.key.service.clone()),
            candidates: vec![candidate],
        };
        let request = dial::Request {
            pod: &carry.arrived.pod,
            permit: &self.permitted.permit,
            client: carry.client,
            behalf: Some(Behalf {
                identity: &carry.arrived.identity,
                workload: self.client.as_deref(),
            }),
            timeout: self.policy.pool.connect_timeout,
            names: &data.shared.names,
        };
        match dial::outbound(&data.tunnels, &request, &plan).await {
            Ok((Upstream::Tunnel(stream), _)) => Ok(Link::Tunnel(Io::new(stream))),
            Ok((Upstream::Plain(tcp), _)) => Ok(Link::Plain(tcp, Default::default())),
            Err(error) if error.reason() == Reason::PeerDenied => Err(Failed::Denied),
            Err(error) => {
                tracing::debug!(%error, workload = %endpoint.workload.uid, "an endpoint could not be reached");
                Err(Failed::Connect)
            }
        }
    }

    /// The response as it goes back; its connection is kept for the next request.
    fn answered(
        &self,
        (response, mut opened, key): (Response<Incoming>, Opened, Key),
        picked: Picked,
        limit: Option<Instant>,
        began: Instant,
    ) -> Response<Reply> {
        let (mut parts, body) = response.into_parts();
        let switched = upgrade(&parts.headers);
        strip(&mut parts.headers);
        let took = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
        let name = HeaderName::from_static("x-envoy-upstream-service-time");
        parts.headers.insert(name, HeaderValue::from(took));
        if let (StatusCode::SWITCHING_PROTOCOLS, Some(to)) = (parts.status, switched) {
            to.put(&mut parts.headers);
            *self.session.upgraded.borrow_mut() = opened.upgraded.take();
        } else {
            let connections = &self.session.data.connections;
            connections.keep(key, opened, self.bounds(), self.cluster.clone());
        }
        let limit = limit.map(sleep_until);
        Response::from_parts(parts, Reply::from_endpoint(body, picked.taken, limit))
    }

    /// Sends a copy, whose answer nobody hears.
    async fn mirrored(self, message: &Message, body: Outgoing) {
        let Some(_request) = self.cluster.requests.take(self.policy.pool.max_requests) else {
            return;
        };
        let Ok(picked) = self.pick(message, None, &[], &mut None) else {
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

/// Whether a rule's retries want another try after this.
fn wants(
    retries: &Retries,
    outcome: &Result<(Response<Incoming>, Opened, Key), Failed>,
    kept: &Kept,
) -> bool {
    retries.on.wants(match outcome {
        Ok((response, ..)) => Outcome::Response {
            status: response.status().as_u16(),
            headers: response.headers(),
            grpc: response
                .headers()
                .get("grpc-status")
                .and_then(|v| v.to_str().ok()?.parse().ok()),
        },
        Err(Failed::Connect) => Outcome::ConnectFailure,
        Err(Failed::Broken) => Outcome::Reset {
            request_sent: kept.begun(),
        },
        Err(Failed::Late) => Outcome::TimedOut,
        Err(Failed::Overflow | Failed::Denied) => return false,
    })
}

impl Failed {
    /// What the client is told.
    fn local(&self) -> Local {
        match self {
            Self::Overflow => Local::OVERFLOW,
            Self::Connect => Local::UNREACHED,
            Self::Denied => Local::DENIED,
            Self::Broken => Local::TERMINATED,
            Self::Late => Local::TIMEOUT,
        }
    }
}
