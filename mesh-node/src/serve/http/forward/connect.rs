//! One try: a connection to the endpoint, the request on it, and the answer that comes back.
//!
//! Invariant: bounds are asked before anything is dialed.

use http::{HeaderName, HeaderValue, Response, StatusCode, header};
use hyper::body::Incoming;
use mesh_model::{reason::Reason, route::http::Endpoint};
use tokio::time::Instant;

use super::super::through;
use super::{Failed, Message, Session, Switch, Way};
use crate::{
    exchange::{
        Bounds, Kept, Key, Opened, Outgoing, Picked, Reply, SendError, Waiting, open, strip,
        upgrade,
    },
    serve::reach::Reaching,
    tunnel::Link,
};

impl Way {
    /// One try, which says its number and how long it is waited for, if that is known. A connection that was idle may have
    /// ended meanwhile: then nothing was sent, and another one is used.
    pub(super) async fn send(
        &self,
        message: &Message,
        endpoint: &Endpoint,
        body: Outgoing,
        kept: &Kept,
        said: (u32, Option<String>),
    ) -> Result<(Response<Incoming>, Opened, Key), Failed> {
        let mut body = Some(body);
        for fresh in [false, true] {
            let (key, mut opened) = self.connection(endpoint, message, fresh).await?;
            let body = body
                .take()
                .or_else(|| kept.begin())
                .ok_or(Failed::Broken { sent: true })?;
            match opened
                .send(message.request(body, said.0, said.1.as_deref()))
                .await
            {
                Ok(response) => return Ok((response, opened, key)),
                Err(SendError::Unsent) => {}
                Err(SendError::Refused) => return Err(Failed::Refused),
                Err(SendError::Broken(error)) => {
                    tracing::debug!(%error, cluster = %self.cluster.key, "no answer");
                    return Err(Failed::Broken { sent: true });
                }
            }
        }
        Err(Failed::Broken { sent: false })
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
            h2: self.h2 && message.switch.is_none(),
            tls: self.policy.tls.clone(),
            client: (
                self.session.carry.identity().cloned(),
                self.session.carry.client.ip(),
            ),
            vouched: endpoint.vouched,
        };
        let connections = &self.session.data.connections;
        let alone = fresh || message.switch.is_some();
        let idle = || match alone {
            true => None,
            false => connections.take(&key, self.bounds(), &self.cluster),
        };
        if let Some(opened) = idle() {
            return Ok((key, opened));
        }
        let pool = &self.policy.pool;
        let pending = self.cluster.pending.take(pool.max_pending);
        let _pending = pending.ok_or(Failed::Overflow)?;
        if !alone {
            connections.opened(&key).await;
        }
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
        let _opening = connections.opening(&key);
        let link = self.dial(endpoint, key.h2).await?;
        let opened = open(
            link,
            key.h2,
            pool.http2_keepalive,
            self.cluster.clone(),
            counted,
        )
        .await;
        match opened {
            Ok(mut opened) => {
                connections.share(&key, &mut opened, self.bounds(), &self.cluster);
                Ok((key, opened))
            }
            Err(error) => {
                tracing::debug!(%error, "an endpoint does not speak HTTP");
                Err(Failed::Broken { sent: false })
            }
        }
    }

    pub(super) fn bounds(&self) -> Bounds {
        let pool = &self.policy.pool;
        Bounds {
            requests: pool.requests_per_connection,
            life: pool.max_duration,
            idle: pool.http_idle,
            streams: pool.max_streams,
        }
    }

    /// Dials an endpoint for the client.
    async fn dial(&self, endpoint: &Endpoint, h2: bool) -> Result<Link, Failed> {
        let Session { data, carry, .. } = &*self.session;
        let reaching = Reaching {
            data,
            carry,
            permitted: &self.permitted,
            client: self.client.as_deref(),
            service: self.cluster.key.service(),
            policy: &self.policy,
        };
        let alpn = if h2 { "h2" } else { "http/1.1" };
        reaching.link(endpoint, Some(alpn)).await.map_err(|error| {
            tracing::debug!(%error, workload = %endpoint.workload.uid, "an endpoint could not be reached");
            let why = error.to_string();
            match error.reason() {
                Reason::PeerDenied | Reason::NotWaypoint => Failed::Denied(why),
                _ => Failed::Connect(why),
            }
        })
    }

    /// The response as it goes back; its connection is kept for the next request.
    pub(super) fn answered(
        &self,
        message: &Message,
        (response, mut opened, key): (Response<Incoming>, Opened, Key),
        mut picked: Picked,
        limit: Option<Waiting>,
        began: Instant,
    ) -> Response<Reply> {
        let (mut parts, body) = response.into_parts();
        let to = upgrade(&parts.headers);
        strip(&mut parts.headers);
        let took = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
        let name = HeaderName::from_static("x-envoy-upstream-service-time");
        parts.headers.insert(name, HeaderValue::from(took));
        let switched = match (&message.switch, to) {
            (Some(Switch::Upgrade(_)), Some(to)) => {
                let switched = parts.status == StatusCode::SWITCHING_PROTOCOLS;
                if switched && !self.session.h2 {
                    to.put(&mut parts.headers);
                } else if switched {
                    // What HTTP/2 says instead (RFC 8441, 5).
                    parts.status = StatusCode::OK;
                    parts.headers.remove(header::SEC_WEBSOCKET_ACCEPT);
                }
                switched
            }
            (Some(Switch::Connect), _) => {
                let switched = parts.status.is_success();
                if switched {
                    // A tunnel's answer has no content, whatever it says.
                    parts.headers.remove(header::CONTENT_LENGTH);
                }
                switched
            }
            (Some(Switch::Upgrade(_)), None) | (None, _) => false,
        };
        if switched {
            let far = opened.upgraded.take();
            match (&message.near, far) {
                (Some(near), Some(far)) if self.session.h2 => {
                    let session = self.session.clone();
                    tokio::task::spawn_local(through(session, near.clone(), far));
                }
                (_, far) => *self.session.upgraded.borrow_mut() = far,
            }
        } else {
            picked.taken.streaming = opened.streaming.take();
            let connections = &self.session.data.connections;
            connections.keep(key, opened, self.bounds(), self.cluster.clone());
        }
        Response::from_parts(parts, Reply::from_endpoint(body, picked.taken, limit))
    }
}
