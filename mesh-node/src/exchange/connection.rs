//! Connections to endpoints: made over what was dialed, kept for the next request of the same client.
//!
//! Invariants: a connection is used for one client, endpoint and protocol only; idle ones are kept for a bounded time
//! and let go when somebody else needs their place; one of HTTP/2 carries as many requests at once as its bounds allow,
//! and while it is made others wait for it; everything stays on the thread that dialed.

use std::{
    cell::{Cell, RefCell},
    collections::{HashMap, HashSet},
    future::Future,
    net::{IpAddr, SocketAddr},
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use hyper::{
    Request, Response,
    body::Incoming,
    client::conn::{http1, http2},
};
use hyper_util::rt::{TokioIo, TokioTimer};
use mesh_model::{
    name::{Identity, WorkloadUid},
    resilience::{Http2Keepalive, UpstreamTls},
};
use tokio::{
    io::AsyncWriteExt,
    sync::{Notify, oneshot},
    time::Instant,
};

use super::{Cluster, ClusterKey, Counted, Outgoing};
use crate::tunnel::Link;

/// Idle connections under one key.
const IDLE: usize = 64;
/// Windows of HTTP/2 towards endpoints: a stream's, a connection's.
const WINDOWS: (u32, u32) = (1 << 20, 4 << 20);

/// What requests must have in common to share a connection.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Key {
    /// The cluster, whose policy bounds it.
    pub cluster: ClusterKey,
    /// The endpoint.
    pub endpoint: WorkloadUid,
    /// Its address; its name's when absent.
    pub address: Option<SocketAddr>,
    /// Whether HTTP/2 is spoken.
    pub h2: bool,
    /// The TLS below it, where it is not the mesh's own as usual.
    pub tls: Option<UpstreamTls>,
    /// The client, who is told to the endpoint's node.
    pub client: (Option<Identity>, IpAddr),
    /// Whether that takes our word for it.
    pub vouched: bool,
}

/// Runs what HTTP/2 needs on this thread.
#[derive(Clone, Copy, Debug)]
pub struct OnThread;

impl<F> hyper::rt::Executor<F> for OnThread
where
    F: Future + 'static,
    F::Output: 'static,
{
    fn execute(&self, future: F) {
        drop(tokio::task::spawn_local(future));
    }
}

/// What sends requests on a connection.
#[derive(Debug)]
pub enum Sender {
    /// One after the other.
    Http1(http1::SendRequest<Outgoing>),
    /// Many at a time.
    Http2(http2::SendRequest<Outgoing>),
}

/// A connection that may take a request.
#[derive(Debug)]
pub struct Opened {
    /// What sends.
    pub sender: Sender,
    since: Instant,
    requests: u32,
    /// What came and went after an upgrade; HTTP/1 only.
    pub upgraded: Option<oneshot::Receiver<(Link, Bytes)>>,
    /// Its place on the connection, until the answer has ended; HTTP/2 only.
    pub streaming: Option<Streaming>,
}

/// A connection that carries several requests at once.
#[derive(Debug)]
struct Shared {
    sender: http2::SendRequest<Outgoing>,
    since: Instant,
    /// How many requests it was used for.
    requests: Cell<u32>,
    /// How many are under way.
    active: Cell<u32>,
    /// When the last one ended.
    idle: Cell<Instant>,
}

/// One request on a connection that carries several, until this is dropped.
#[derive(Debug)]
pub struct Streaming {
    shared: Rc<Shared>,
    cluster: Arc<Cluster>,
}

impl Streaming {
    fn begin(shared: &Rc<Shared>, cluster: &Arc<Cluster>) -> Self {
        shared.requests.set(shared.requests.get() + 1);
        shared.active.set(shared.active.get() + 1);
        Self {
            shared: shared.clone(),
            cluster: cluster.clone(),
        }
    }
}

impl Drop for Streaming {
    fn drop(&mut self) {
        self.shared.active.set(self.shared.active.get() - 1);
        self.shared.idle.set(Instant::now());
        self.cluster.freed.notify_one();
    }
}

/// Why a request was not answered.
#[derive(Debug)]
pub enum SendError {
    /// It was not sent at all.
    Unsent,
    /// The endpoint did not look at it (REFUSED_STREAM; RFC 9113, 8.7).
    Refused,
    /// It may have been, in part.
    Broken(hyper::Error),
}

/// Speaks HTTP on what was dialed; over HTTP/2 `pings` find out whether the endpoint is still there. `counted` is its place
/// among the cluster's connections.
pub async fn open(
    link: Link,
    h2: bool,
    pings: Option<Http2Keepalive>,
    cluster: Arc<Cluster>,
    counted: Counted,
) -> Result<Opened, hyper::Error> {
    let io = TokioIo::new(link);
    let freed = move || {
        drop(counted);
        cluster.freed.notify_one();
    };
    let mut upgraded = None;
    let sender = if h2 {
        let mut builder = http2::Builder::new(OnThread);
        builder
            .timer(TokioTimer::new())
            .initial_stream_window_size(WINDOWS.0)
            .initial_connection_window_size(WINDOWS.1);
        if let Some(pings) = pings {
            builder
                .keep_alive_interval(pings.interval)
                .keep_alive_timeout(pings.timeout)
                .keep_alive_while_idle(true);
        }
        let (sender, connection) = builder.handshake(io).await?;
        tokio::task::spawn_local(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "a connection to an endpoint failed");
            }
            freed();
        });
        Sender::Http2(sender)
    } else {
        let (sender, connection) = http1::Builder::new().handshake(io).await?;
        let (told, other) = oneshot::channel();
        upgraded = Some(other);
        tokio::task::spawn_local(async move {
            match connection.without_shutdown().await {
                Ok(parts) => {
                    let link = parts.io.into_inner();
                    // Nobody waits for it when the connection ended in the ordinary way.
                    if let Err((mut link, _)) = told.send((link, parts.read_buf)) {
                        let _ = link.shutdown().await;
                    }
                }
                Err(error) => tracing::debug!(%error, "a connection to an endpoint failed"),
            }
            freed();
        });
        Sender::Http1(sender)
    };
    Ok(Opened {
        sender,
        since: Instant::now(),
        requests: 0,
        upgraded,
        streaming: None,
    })
}

impl Opened {
    /// Sends a request and waits for the beginning of its answer.
    pub async fn send(
        &mut self,
        request: Request<Outgoing>,
    ) -> Result<Response<Incoming>, SendError> {
        self.requests += 1;
        let answer = match &mut self.sender {
            Sender::Http1(sender) => sender.try_send_request(request).await,
            Sender::Http2(sender) => sender.try_send_request(request).await,
        };
        answer.map_err(|mut error| match error.take_message() {
            Some(_) => SendError::Unsent,
            None => match error.into_error() {
                error if is_refusal(&error) => SendError::Refused,
                error => SendError::Broken(error),
            },
        })
    }

    fn is_usable(&self) -> bool {
        match &self.sender {
            Sender::Http1(sender) => sender.is_ready(),
            Sender::Http2(sender) => !sender.is_closed(),
        }
    }

    /// Whether it may take one more request under these bounds.
    fn is_fresh(&self, bounds: Bounds) -> bool {
        bounds.allow(self.requests, self.since)
    }
}

/// Whether a stream ended because the peer refused it.
fn is_refusal(error: &hyper::Error) -> bool {
    let source = std::error::Error::source(error);
    let cause = source.and_then(|e| e.downcast_ref::<h2::Error>());
    cause.is_some_and(|e| e.is_remote() && e.reason() == Some(h2::Reason::REFUSED_STREAM))
}

/// What bounds a connection's use.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Requests; 0 is no bound.
    pub requests: u32,
    /// Its age.
    pub life: Option<Duration>,
    /// How long it may be idle; zero is for ever.
    pub idle: Duration,
    /// Requests at a time on one connection of HTTP/2.
    pub streams: Option<u32>,
}

impl Bounds {
    /// Whether a connection of this age that was used so often may take one more request.
    fn allow(&self, requests: u32, since: Instant) -> bool {
        let used_up = self.requests > 0 && requests >= self.requests;
        !used_up && self.is_young(since)
    }

    fn is_young(&self, since: Instant) -> bool {
        self.life.is_none_or(|life| since.elapsed() < life)
    }

    fn is_awake(&self, idle: Instant) -> bool {
        self.idle.is_zero() || idle.elapsed() < self.idle
    }
}

/// The connections of one thread.
#[derive(Clone, Debug, Default)]
pub struct Connections(Rc<RefCell<Held>>);

#[derive(Debug, Default)]
struct Held {
    idle: HashMap<Key, Vec<Idle>>,
    shared: HashMap<Key, Vec<(Bounds, Rc<Shared>)>>,
    /// Connections of HTTP/2 that are being made.
    opening: HashMap<Key, Rc<Notify>>,
    /// Clusters with a bound of connections, whose idle ones others may want.
    attended: HashSet<ClusterKey>,
}

#[derive(Debug)]
struct Idle {
    since: Instant,
    bounds: Bounds,
    opened: Opened,
}

/// That a connection of HTTP/2 is being made; whoever waits for it is told when this is dropped.
#[derive(Debug)]
pub struct Opening {
    connections: Connections,
    key: Key,
}

impl Drop for Opening {
    fn drop(&mut self) {
        let told = self.connections.0.borrow_mut().opening.remove(&self.key);
        if let Some(told) = told {
            told.notify_waiters();
        }
    }
}

impl Connections {
    /// One that is there and may be used now.
    pub fn take(&self, key: &Key, bounds: Bounds, cluster: &Arc<Cluster>) -> Option<Opened> {
        let mut held = self.0.borrow_mut();
        if key.h2 {
            return held.join(key, bounds, cluster);
        }
        let list = held.idle.get_mut(key)?;
        let found = loop {
            match list.pop() {
                Some(Idle { since, opened, .. })
                    if opened.is_usable() && opened.is_fresh(bounds) && bounds.is_awake(since) =>
                {
                    break Some(opened);
                }
                Some(_) => {}
                None => break None,
            }
        };
        if list.is_empty() {
            held.idle.remove(key);
        }
        found
    }

    /// Lets others use a connection of HTTP/2 that was just made, beside the request that it was made for.
    pub fn share(&self, key: &Key, opened: &mut Opened, bounds: Bounds, cluster: &Arc<Cluster>) {
        let Sender::Http2(sender) = &opened.sender else {
            return;
        };
        let shared = Rc::new(Shared {
            sender: sender.clone(),
            since: opened.since,
            requests: Cell::new(0),
            active: Cell::new(0),
            idle: Cell::new(opened.since),
        });
        opened.streaming = Some(Streaming::begin(&shared, cluster));
        let mut held = self.0.borrow_mut();
        let list = held.shared.entry(key.clone()).or_default();
        list.push((bounds, shared));
        cluster.freed.notify_waiters();
    }

    /// Waits until a connection of HTTP/2 that is being made is there, or was not to be had; at once when none is made.
    pub async fn opened(&self, key: &Key) {
        let opening = self.0.borrow().opening.get(key).cloned();
        if let Some(opening) = opening {
            // Nothing else ran on this thread since it was looked up.
            opening.notified().await;
        }
    }

    /// Says that a connection of HTTP/2 is being made.
    pub fn opening(&self, key: &Key) -> Option<Opening> {
        let mut held = self.0.borrow_mut();
        if !key.h2 || held.opening.contains_key(key) {
            return None;
        }
        held.opening.insert(key.clone(), Rc::default());
        Some(Opening {
            connections: self.clone(),
            key: key.clone(),
        })
    }

    /// Keeps a connection of HTTP/1 for further requests when its response has ended. Others are kept from the beginning.
    pub fn keep(&self, key: Key, opened: Opened, bounds: Bounds, cluster: Arc<Cluster>) {
        if let Sender::Http1(_) = opened.sender
            && opened.is_fresh(bounds)
        {
            let this = self.clone();
            tokio::task::spawn_local(
                async move { this.when_idle(key, opened, bounds, &cluster).await },
            );
        }
    }

    async fn when_idle(&self, key: Key, mut opened: Opened, bounds: Bounds, cluster: &Cluster) {
        if let Sender::Http1(sender) = &mut opened.sender
            && sender.ready().await.is_err()
        {
            return;
        }
        {
            let mut held = self.0.borrow_mut();
            let list = held.idle.entry(key).or_default();
            if list.len() < IDLE {
                list.push(Idle {
                    since: Instant::now(),
                    bounds,
                    opened,
                });
            }
        }
        cluster.freed.notify_one();
    }

    /// Lets go of a cluster's idle connections.
    pub fn let_go(&self, cluster: &ClusterKey) {
        let mut held = self.0.borrow_mut();
        held.idle.retain(|key, _| key.cluster != *cluster);
        held.shared.retain(|key, list| {
            list.retain(|(_, s)| key.cluster != *cluster || s.active.get() > 0);
            !list.is_empty()
        });
    }

    /// From now on lets go of a cluster's idle connections whenever somebody on any thread waits for one.
    pub fn attend(&self, cluster: &Arc<Cluster>) {
        if !self.0.borrow_mut().attended.insert(cluster.key.clone()) {
            return;
        }
        let (this, cluster) = (Rc::downgrade(&self.0), cluster.clone());
        tokio::task::spawn_local(async move {
            loop {
                // Made before anything is let go, so that nobody's wish is missed meanwhile.
                let wanted = cluster.wanted.notified();
                let Some(held) = this.upgrade() else { return };
                Self(held).let_go(&cluster.key);
                wanted.await;
            }
        });
    }

    /// Lets go of what was idle for too long, is too old, or has ended.
    pub fn sweep(&self) {
        let mut held = self.0.borrow_mut();
        held.shared.retain(|_, list| {
            list.retain(|(bounds, s)| {
                let awake = s.active.get() > 0 || bounds.is_awake(s.idle.get());
                !s.sender.is_closed() && bounds.is_young(s.since) && awake
            });
            !list.is_empty()
        });
        held.idle.retain(|_, list| {
            list.retain(|idle| {
                let bounds = idle.bounds;
                let young = bounds.is_young(idle.opened.since);
                idle.opened.is_usable() && young && bounds.is_awake(idle.since)
            });
            !list.is_empty()
        });
    }

    /// Lets go of all that is idle.
    pub fn clear(&self) {
        let mut held = self.0.borrow_mut();
        held.idle.clear();
        held.shared.clear();
    }
}

impl Held {
    /// A place on a connection of HTTP/2; those that take no more requests are left to the ones they carry.
    fn join(&mut self, key: &Key, bounds: Bounds, cluster: &Arc<Cluster>) -> Option<Opened> {
        let list = self.shared.get_mut(key)?;
        list.retain(|(_, s)| {
            let awake = s.active.get() > 0 || bounds.is_awake(s.idle.get());
            !s.sender.is_closed() && bounds.allow(s.requests.get(), s.since) && awake
        });
        let room = |s: &Shared| bounds.streams.is_none_or(|most| s.active.get() < most);
        let found = list.iter().find(|(_, s)| room(s)).map(|(_, s)| Opened {
            sender: Sender::Http2(s.sender.clone()),
            since: s.since,
            requests: 0,
            upgraded: None,
            streaming: Some(Streaming::begin(s, cluster)),
        });
        if list.is_empty() {
            self.shared.remove(key);
        }
        found
    }
}
