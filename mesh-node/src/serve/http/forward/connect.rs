//! One try: a connection to the endpoint, the request on it, and the answer that comes back.
//!
//! Invariant: bounds are asked before anything is dialed.

use http::{HeaderName, HeaderValue, Response, StatusCode};
use hyper::body::Incoming;
use mesh_model::{
    reason::Reason,
    resilience::UpstreamTls,
    route::{Plan, Via, http::Endpoint},
};
use tokio::time::{Instant, sleep_until};

use super::{Failed, Message, Session, Way};
use crate::{
    dial::{self, Behalf, Upstream},
    exchange::{
        Bounds, Kept, Key, Opened, Outgoing, Picked, Reply, SendError, open, strip, upgrade,
    },
    tunnel::{Io, Link},
};

impl Way {
    /// One try. A connection that was idle may have ended meanwhile: then nothing was sent, and another one is used.
    pub(super) async fn send(
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
    pub(super) async fn connection(
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

    pub(super) fn bounds(&self) -> Bounds {
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
    pub(super) fn answered(
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
}
