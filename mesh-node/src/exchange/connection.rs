//! Connections to endpoints: made over what was dialed, kept for the next request of the same client.
//!
//! Invariants: a connection is used for one client, endpoint and protocol only; idle ones are kept for a bounded time
//! and let go when somebody else needs their place; everything stays on the thread that dialed.

use std::{
    cell::RefCell,
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
use mesh_model::name::{Identity, WorkloadUid};
use tokio::{io::AsyncWriteExt, sync::oneshot, time::Instant};

use super::{
    Outgoing,
    cluster::{Cluster, ClusterKey, Counted},
};
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
    /// The client, who is told to the endpoint's node.
    pub client: (Identity, IpAddr),
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
}

/// Why a request was not answered.
#[derive(Debug)]
pub enum SendError {
    /// It was not sent at all.
    Unsent,
    /// It may have been, in part.
    Broken(hyper::Error),
}

/// Speaks HTTP on what was dialed. `counted` is its place among the cluster's connections.
pub async fn open(
    link: Link,
    h2: bool,
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
            None => SendError::Broken(error.into_error()),
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
        let used_up = bounds.requests > 0 && self.requests >= bounds.requests;
        !used_up && bounds.life.is_none_or(|life| self.since.elapsed() < life)
    }
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
}

/// The connections of one thread.
#[derive(Clone, Debug, Default)]
pub struct Connections(Rc<RefCell<Held>>);

#[derive(Debug, Default)]
struct Held {
    idle: HashMap<Key, Vec<(Instant, Duration, Opened)>>,
    shared: HashMap<Key, http2::SendRequest<Outgoing>>,
    /// Clusters with a bound of connections, whose idle ones others may want.
    attended: HashSet<ClusterKey>,
}

impl Connections {
    /// One that is there and may be used now.
    pub fn take(&self, key: &Key, bounds: Bounds) -> Option<Opened> {
        let mut held = self.0.borrow_mut();
        if key.h2 {
            let sender = held.shared.get(key)?.clone();
            if sender.is_closed() {
                held.shared.remove(key);
                return None;
            }
            return Some(Opened {
                sender: Sender::Http2(sender),
                since: Instant::now(),
                requests: 0,
                upgraded: None,
            });
        }
        let list = held.idle.get_mut(key)?;
        let found = loop {
            match list.pop() {
                Some((_, _, opened)) if opened.is_usable() && opened.is_fresh(bounds) => {
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

    /// Keeps a connection for further requests: one of HTTP/2 at once, one of HTTP/1 when its response has ended.
    pub fn keep(&self, key: Key, opened: Opened, bounds: Bounds, cluster: Arc<Cluster>) {
        match opened.sender {
            // Its age and requests are the endpoint's own affair: streams end by GOAWAY.
            Sender::Http2(ref sender) => {
                self.0.borrow_mut().shared.insert(key, sender.clone());
            }
            Sender::Http1(_) if opened.is_fresh(bounds) => {
                let this = self.clone();
                tokio::task::spawn_local(async move {
                    this.when_idle(key, opened, bounds, &cluster).await
                });
            }
            Sender::Http1(_) => {}
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
                list.push((Instant::now(), bounds.idle, opened));
            }
        }
        cluster.freed.notify_one();
    }

    /// Lets go of a cluster's idle connections.
    pub fn let_go(&self, cluster: &ClusterKey) {
        let mut held = self.0.borrow_mut();
        held.idle.retain(|key, _| key.cluster != *cluster);
    }

    /// From now on lets go of a cluster's idle connections whenever somebody on any thread waits for one.
    pub fn attend(&self, cluster: &Arc<Cluster>) {
        if !self.0.borrow_mut().attended.insert(cluster.key.clone()) {
            return;
        }
        let (this, cluster) = (Rc::downgrade(&self.0), cluster.clone());
        tokio::task::spawn_local(async move {
            loop {
                cluster.wanted.notified().await;
                let Some(held) = this.upgrade() else { return };
                Self(held).let_go(&cluster.key);
            }
        });
    }

    /// Lets go of what was idle for too long, or has ended.
    pub fn sweep(&self) {
        let mut held = self.0.borrow_mut();
        held.shared.retain(|_, sender| !sender.is_closed());
        held.idle.retain(|_, list| {
            list.retain(|(since, idle, opened)| {
                opened.is_usable() && (idle.is_zero() || since.elapsed() < *idle)
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
