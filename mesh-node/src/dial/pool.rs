//! The tunnels of one thread, shared by the flows that may share them.
//!
//! Invariants: a tunnel is shared only under one [`Key`], so never across identities; at most one tunnel per
//! key is being made at a time, and everyone who needs it waits for that one; waiting is bounded in number
//! and in time; a tunnel that was retired, or is older than a tunnel may be, takes no new flows and ends with those it has.

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    fmt,
    future::{Future, poll_fn},
    net::{IpAddr, SocketAddr},
    rc::{Rc, Weak},
    task::{Poll, Waker},
    time::Duration,
};

use mesh_model::{name::Identity, reason::Reason, resilience::Keepalive};
use tokio::time::Instant;

use crate::tunnel::{ClientTunnel, ConnectRequest, OpenError, Stream};

/// Tunnels under one key: enough for thousands of flows, and a bound for a peer that allows one stream each.
const TUNNELS: usize = 64;
/// Flows that wait for one tunnel.
const WAITERS: usize = 4096;

/// As whom a tunnel is opened.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Speaker {
    /// A workload.
    Workload(Identity),
    /// The node itself, for clients outside the mesh: to waypoints only.
    Node,
}

impl fmt::Display for Speaker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Workload(identity) => identity.fmt(f),
            Self::Node => f.write_str("the node"),
        }
    }
}

impl From<Identity> for Speaker {
    fn from(identity: Identity) -> Self {
        Self::Workload(identity)
    }
}

/// What flows must have in common to share a tunnel.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Key {
    /// Who opens it.
    pub source: Speaker,
    /// From which pod.
    pub pod: IpAddr,
    /// Where to.
    pub address: SocketAddr,
    /// Whom the far side may prove to be: sorted, each once.
    identities: Box<[Identity]>,
    /// How its connection is kept alive, where not as the proxy's own are.
    keepalive: Option<Keepalive>,
}

impl Key {
    /// A key; the order of `identities` does not matter.
    pub fn new(
        source: impl Into<Speaker>,
        pod: IpAddr,
        address: SocketAddr,
        identities: &[Identity],
    ) -> Self {
        let mut identities = identities.to_vec();
        identities.sort();
        identities.dedup();
        Self {
            source: source.into(),
            pod,
            address,
            identities: identities.into(),
            keepalive: None,
        }
    }

    /// The same with a keepalive of its own.
    pub fn kept_alive_by(self, keepalive: Option<Keepalive>) -> Self {
        Self { keepalive, ..self }
    }

    /// Whom the far side may prove to be.
    pub fn identities(&self) -> &[Identity] {
        &self.identities
    }
}

/// Why a pool gave no stream. `E` is why a tunnel could not be made.
#[derive(Debug, thiserror::Error)]
pub enum PoolError<E> {
    /// No tunnel could be made; all who waited for it share the error.
    #[error("{0}")]
    Connect(Rc<E>),
    /// No tunnel was made in time.
    #[error("no tunnel was made in {0:?}")]
    Timeout(Duration),
    /// Too many flows wait, or too many tunnels are full.
    #[error("too many flows need a tunnel to this destination")]
    Overloaded,
    /// The stream was not opened.
    #[error(transparent)]
    Open(OpenError),
}

impl<E> PoolError<E> {
    /// The reason that the flow shows; `connect` tells the reason of a failed connect.
    pub fn reason(&self, connect: impl FnOnce(&E) -> Reason) -> Reason {
        match self {
            Self::Connect(e) => connect(e),
            Self::Timeout(_) => Reason::ConnectTimeout,
            Self::Overloaded => Reason::Overloaded,
            Self::Open(e) => e.reason(),
        }
    }
}

/// The pool of one thread. Clones are handles to the same pool.
#[derive(Debug)]
pub struct Pool<E>(Rc<Inner<E>>);

#[derive(Debug)]
struct Inner<E> {
    groups: RefCell<HashMap<Rc<Key>, Rc<Group<E>>>>,
    /// How long making a tunnel may take.
    patience: Duration,
    /// How long a tunnel takes new flows.
    age: Duration,
    /// Attempts to make a tunnel so far, under any key.
    attempts: Cell<u64>,
}

/// The tunnels under one key.
#[derive(Debug)]
struct Group<E>(RefCell<State<E>>);

#[derive(Debug)]
struct State<E> {
    tunnels: Vec<Made>,
    making: Making<E>,
    waiters: Vec<Waker>,
    /// The number of the latest attempt: whoever waits for one can tell that it is over.
    attempt: u64,
    /// No longer in the pool.
    retired: bool,
}

/// A tunnel, and how it was made.
#[derive(Debug)]
struct Made {
    /// The number of the attempt.
    attempt: u64,
    at: Instant,
    tunnel: ClientTunnel,
}

/// What became of the latest attempt to make a tunnel.
#[derive(Debug)]
enum Making<E> {
    Idle,
    Running,
    Failed(Failure<E>),
}

#[derive(Debug)]
enum Failure<E> {
    Connect(Rc<E>),
    Timeout,
}

/// What a flow does next.
enum Next<E> {
    Use(ClientTunnel),
    Fail(PoolError<E>),
    /// The group was retired: look again.
    Again,
}

impl<E> Clone for Pool<E> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<E: 'static> Pool<E> {
    /// An empty pool; making a tunnel may take `patience`, and it takes new flows until it is of that `age`. Tunnels close
    /// when idle by their own limits.
    pub fn new(patience: Duration, age: Duration) -> Self {
        Self(Rc::new(Inner {
            groups: RefCell::default(),
            patience,
            age,
            attempts: Cell::new(0),
        }))
    }

    /// Opens a stream in a tunnel under `key`; `connect` makes one if there is none with room. Once made, a
    /// tunnel stays even if the flow that asked for it is gone.
    pub async fn open<F, C>(
        &self,
        key: Key,
        connect: C,
        request: ConnectRequest,
    ) -> Result<Stream, PoolError<E>>
    where
        C: Fn() -> F,
        F: Future<Output = Result<ClientTunnel, E>> + 'static,
    {
        let key = Rc::new(key);
        let mut retried = false;
        // Only a tunnel that was made after this attempt will do.
        let mut after = 0;
        loop {
            let group = self.group(&key);
            let attempts = self.0.attempts.get();
            let tunnel = match self.tunnel(&key, &group, &connect, after).await {
                Next::Use(tunnel) => tunnel,
                Next::Fail(error) => return Err(error),
                Next::Again => continue,
            };
            match tunnel.open(request.clone()).await {
                Ok(stream) => return Ok(stream),
                // Others were faster; nothing was sent.
                Err(OpenError::Saturated) => {}
                Err(error) if error.may_retry() && !retried => {
                    retried = true;
                    group.forget(&tunnel);
                    after = attempts;
                }
                Err(error) => return Err(PoolError::Open(error)),
            }
        }
    }

    /// Lets go of the tunnels whose key matches: they end with the flows they have.
    pub fn retire(&self, matches: impl Fn(&Key) -> bool) {
        self.0.groups.borrow_mut().retain(|key, group| {
            let retire = matches(key);
            if retire {
                group.retire();
            }
            !retire
        });
    }

    /// Tunnels in the pool.
    pub fn tunnels(&self) -> usize {
        self.0
            .groups
            .borrow()
            .values()
            .map(|group| group.0.borrow().tunnels.len())
            .sum()
    }

    /// Streams open in them.
    pub fn streams(&self) -> usize {
        let groups = self.0.groups.borrow();
        groups
            .values()
            .map(|g| {
                g.0.borrow()
                    .tunnels
                    .iter()
                    .map(|made| made.tunnel.streams())
                    .sum::<usize>()
            })
            .sum()
    }

    fn group(&self, key: &Rc<Key>) -> Rc<Group<E>> {
        let mut groups = self.0.groups.borrow_mut();
        groups
            .entry(key.clone())
            .or_insert_with(|| Rc::new(Group::new()))
            .clone()
    }

    /// Waits for a tunnel with room, and starts making one if nobody does.
    async fn tunnel<F, C>(
        &self,
        key: &Rc<Key>,
        group: &Rc<Group<E>>,
        connect: &C,
        after: u64,
    ) -> Next<E>
    where
        C: Fn() -> F,
        F: Future<Output = Result<ClientTunnel, E>> + 'static,
    {
        let mut waits_for = None;
        poll_fn(|cx| {
            let mut state = group.0.borrow_mut();
            state.let_go_of_the_old(self.0.age);
            if let Some(made) = state
                .tunnels
                .iter()
                .find(|made| made.attempt > after && made.tunnel.capacity() > 0)
            {
                return Poll::Ready(Next::Use(made.tunnel.clone()));
            }
            // A failure counts for those who waited for that attempt.
            if let (Some(attempt), Making::Failed(failure)) = (waits_for, &state.making)
                && attempt == state.attempt
            {
                return Poll::Ready(Next::Fail(failure.error(self.0.patience)));
            }
            if state.retired {
                return Poll::Ready(Next::Again);
            }
            if !matches!(state.making, Making::Running) {
                // A peer that takes no streams at all would take none in a further tunnel either.
                let hopeless =
                    |t: &ClientTunnel| t.streams() == 0 && t.capacity() == 0 && !t.is_closed();
                if state.tunnels.len() >= TUNNELS
                    || state.tunnels.iter().any(|made| hopeless(&made.tunnel))
                {
                    return Poll::Ready(Next::Fail(PoolError::Overloaded));
                }
                state.making = Making::Running;
                state.attempt = self.0.attempts.get() + 1;
                self.0.attempts.set(state.attempt);
                tokio::task::spawn_local(make(
                    Rc::downgrade(&self.0),
                    key.clone(),
                    group.clone(),
                    connect(),
                ));
            }
            if state.waiters.len() >= WAITERS {
                return Poll::Ready(Next::Fail(PoolError::Overloaded));
            }
            waits_for = Some(state.attempt);
            state.waiters.push(cx.waker().clone());
            Poll::Pending
        })
        .await
    }
}

impl<E> Failure<E> {
    fn error(&self, patience: Duration) -> PoolError<E> {
        match self {
            Self::Connect(error) => PoolError::Connect(error.clone()),
            Self::Timeout => PoolError::Timeout(patience),
        }
    }
}

impl<E> Group<E> {
    fn new() -> Self {
        let making = Making::Idle;
        Self(RefCell::new(State {
            tunnels: Vec::new(),
            making,
            waiters: Vec::new(),
            attempt: 0,
            retired: false,
        }))
    }

    fn retire(&self) {
        let mut state = self.0.borrow_mut();
        state.retired = true;
        state
            .tunnels
            .drain(..)
            .for_each(|made| made.tunnel.go_away());
        state.wake();
    }

    /// Forgets a tunnel that has failed; one that is only full stays.
    fn forget(&self, tunnel: &ClientTunnel) {
        if tunnel.is_closed() {
            self.0
                .borrow_mut()
                .tunnels
                .retain(|made| !made.tunnel.is_same(tunnel));
        }
    }
}

impl<E> State<E> {
    /// Tunnels of that age take no further flows; they end with those they have.
    fn let_go_of_the_old(&mut self, age: Duration) {
        self.tunnels.retain(|made| {
            let young = made.at.elapsed() < age;
            if !young {
                made.tunnel.go_away();
            }
            young
        });
    }

    fn wake(&mut self) {
        self.waiters.drain(..).for_each(Waker::wake);
        self.waiters.shrink_to(8);
    }
}

/// Makes a tunnel, gives it to the group, and removes it from the pool when it has ended.
async fn make<E, F>(pool: Weak<Inner<E>>, key: Rc<Key>, group: Rc<Group<E>>, connect: F)
where
    F: Future<Output = Result<ClientTunnel, E>>,
{
    let Some(patience) = pool.upgrade().map(|pool| pool.patience) else {
        return;
    };
    let made = tokio::time::timeout(patience, connect).await;
    let closed = {
        let mut state = group.0.borrow_mut();
        state.making = Making::Idle;
        let closed = match made {
            Ok(Ok(tunnel)) if state.retired => {
                tunnel.go_away();
                None
            }
            Ok(Ok(tunnel)) => {
                let closed = tunnel.closed();
                let made = Made {
                    attempt: state.attempt,
                    at: Instant::now(),
                    tunnel,
                };
                state.tunnels.push(made);
                Some(closed)
            }
            Ok(Err(error)) => {
                state.making = Making::Failed(Failure::Connect(Rc::new(error)));
                None
            }
            Err(_) => {
                state.making = Making::Failed(Failure::Timeout);
                None
            }
        };
        state.wake();
        closed
    };
    if let Some(closed) = closed {
        closed.await;
    }
    sweep(&pool, &key, &group);
}

/// Removes tunnels that have ended, and the group if nothing is left of it.
fn sweep<E>(pool: &Weak<Inner<E>>, key: &Rc<Key>, group: &Rc<Group<E>>) {
    let empty = {
        let mut state = group.0.borrow_mut();
        state.tunnels.retain(|made| !made.tunnel.is_closed());
        state.tunnels.is_empty() && !matches!(state.making, Making::Running)
    };
    let Some(pool) = pool.upgrade() else { return };
    let mut groups = pool.groups.borrow_mut();
    if empty
        && groups
            .get(key)
            .is_some_and(|found| Rc::ptr_eq(found, group))
    {
        // Whoever still waits looks for the group that comes after this one.
        group.0.borrow_mut().retired = true;
        groups.remove(key);
    }
}
