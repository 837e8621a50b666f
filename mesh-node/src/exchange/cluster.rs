//! The endpoints of a service's port, or of a subset of them, as this process uses them: which is next, who is left
//! out, how much is under way.
//!
//! Invariants: all threads see one state, so that a bound is a bound of the process; what is counted is given back by
//! a guard; the list is that of one snapshot, made anew when the snapshot changes; locks are held for look-ups only.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Instant,
};

use mesh_model::{
    balance::{self, Maglev, Ring, RoundRobin, Viewpoint},
    mesh::Mesh,
    name::WorkloadUid,
    reason::Reason,
    resilience::{
        Affinity, HashTable, Outlier, Simple, TrafficPolicy, Weighing,
        outlier::{Ejections, Failure},
        session_of, warmed,
    },
    route::http::{Endpoint, endpoints},
};
use tokio::sync::Notify;

use super::{Count, Counted, Streaming};

mod all;
mod figures;
mod key;
mod places;

pub use all::Clusters;
pub use key::ClusterKey;

/// The endpoints of one name, and what is under way to them.
#[derive(Debug)]
pub struct Cluster {
    /// What it is.
    pub key: ClusterKey,
    /// Connections that are open.
    pub connections: Arc<Count>,
    /// Requests that wait for a connection.
    pub pending: Arc<Count>,
    /// Requests under way.
    pub requests: Arc<Count>,
    /// Retries under way.
    pub retries: Arc<Count>,
    /// Connections that could not be made, ever.
    connect_failures: AtomicU64,
    /// How often an endpoint was left out.
    ejected: AtomicU64,
    /// Told when a connection may have become free.
    pub freed: Notify,
    /// Told when somebody waits for one, so that idle ones are let go.
    pub wanted: Notify,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// The snapshot that the list is of.
    generation: Option<u64>,
    listed: Option<Listed>,
    ejections: Option<(Outlier, Ejections<WorkloadUid>)>,
    /// Since when each endpoint has been one without a break, and what it does.
    known: HashMap<WorkloadUid, (Instant, Arc<Count>)>,
    turns: RoundRobin,
}

#[derive(Debug)]
struct Listed {
    endpoints: Result<Vec<Member>, Reason>,
    policy: Arc<TrafficPolicy>,
    table: Option<Table>,
}

#[derive(Debug)]
struct Member {
    rank: usize,
    weight: u32,
    since: Instant,
    endpoint: Endpoint,
    active: Arc<Count>,
}

#[derive(Debug)]
enum Table {
    Ring(Ring),
    Maglev(Maglev),
}

/// An endpoint that was picked, and busy until `taken` is dropped.
#[derive(Debug)]
pub struct Picked {
    /// The endpoint.
    pub endpoint: Endpoint,
    /// That it is busy.
    pub taken: Taken,
}

/// That an endpoint is busy with a request.
#[derive(Debug)]
pub struct Taken {
    _endpoint: Counted,
    /// The request among those of the cluster.
    pub request: Option<Counted>,
    /// The request among those of its connection.
    pub streaming: Option<Streaming>,
}

/// What a request wants, and does not want, of its endpoint.
#[derive(Clone, Copy, Debug, Default)]
pub struct Wish<'a> {
    /// The endpoint of its session ([`mesh_model::resilience::session_of`]), if it has one.
    pub session: Option<u64>,
    /// What it was tried on. Not taken while there are others that fit as well.
    pub tried: &'a [WorkloadUid],
    /// Whether what was tried is avoided by a request that has a hash, too: the next in its table is taken.
    pub leave_hash: bool,
    /// Whether others that fit less well will do (`retryRemoteLocalities`).
    pub elsewhere: bool,
    /// The address that its client dialed, which `PASSTHROUGH` means.
    pub dialed: Option<SocketAddr>,
}

/// A connection that carries no requests, among those of its cluster until this is dropped.
#[derive(Debug)]
pub struct Joined {
    cluster: Arc<Cluster>,
    counted: Option<Counted>,
    _taken: Option<Taken>,
}

impl Joined {
    /// One more, and its endpoint where it was picked among those of the cluster.
    pub fn new(cluster: Arc<Cluster>, counted: Counted, taken: Option<Taken>) -> Self {
        Self {
            cluster,
            counted: Some(counted),
            _taken: taken,
        }
    }
}

impl Drop for Joined {
    fn drop(&mut self) {
        drop(self.counted.take());
        self.cluster.freed.notify_one();
    }
}

impl Cluster {
    fn new(key: ClusterKey) -> Self {
        Self {
            key,
            connections: Arc::default(),
            pending: Arc::default(),
            requests: Arc::default(),
            retries: Arc::default(),
            connect_failures: AtomicU64::new(0),
            ejected: AtomicU64::new(0),
            freed: Notify::new(),
            wanted: Notify::new(),
            state: Mutex::default(),
        }
    }

    /// What holds for it in a snapshot.
    pub fn policy(&self, mesh: &Mesh, generation: u64, from: Viewpoint<'_>) -> Arc<TrafficPolicy> {
        self.listed(mesh, generation, from, Instant::now()).1
    }

    /// The endpoint for a request. `affinity` gives the request's hash; a request that has one goes where its hash says,
    /// whatever it was tried on, unless it asks for others (as Istio, whose retries by themselves avoid nothing beside
    /// consistent hashing).
    pub fn pick(
        &self,
        (mesh, generation, from): (&Mesh, u64, Viewpoint<'_>),
        affinity: impl Fn(&Affinity) -> Option<u64>,
        wish: Wish<'_>,
        now: Instant,
    ) -> Result<Picked, Reason> {
        let mut state = self.listed(mesh, generation, from, now).0;
        let State {
            listed,
            ejections,
            turns,
            ..
        } = &mut *state;
        let listed = listed.as_ref().expect("it was just made");
        let members = listed.endpoints.as_ref().map_err(|reason| *reason)?;
        let out = |m: &Member| {
            ejections
                .as_ref()
                .is_some_and(|(_, e)| e.is_ejected(&m.endpoint.workload.uid, now))
        };
        let policy = &listed.policy.balancing.weighing;
        let hashed = matches!(policy, Weighing::Consistent(_));
        let stays = hashed && !wish.leave_hash;
        let fresh = |m: &Member| stays || !wish.tried.contains(&m.endpoint.workload.uid);
        let usable = |m: &&Member| !out(m) && m.weight > 0;
        let best = |among: &dyn Fn(&Member) -> bool| {
            let ranks = members.iter().filter(usable).filter(|m| among(m));
            ranks.map(|m| m.rank).max()
        };
        let anywhere = best(&|_| true).ok_or(Reason::NoEndpoints)?;
        let session = wish.session.and_then(|session| {
            let is = |m: &Member| session_of(&m.endpoint.workload.uid) == session;
            members
                .iter()
                .position(|m| is(m) && m.weight > 0 && !out(m) && fresh(m))
        });
        let draw = || fastrand::u64(..);
        // Asking for one may make a cookie, which a request with a session has no use for.
        let hash = match policy {
            Weighing::Consistent(wanted) if session.is_none() => affinity(wanted),
            Weighing::Consistent(_) | Weighing::Simple(_) => None,
        };
        let anywhere = places::spilled(members, out, anywhere, || hash.unwrap_or_else(draw));
        let other = best(&|m| fresh(m) && (wish.elsewhere || m.rank == anywhere));
        let fits = |m: &Member| match other {
            Some(best) => m.rank == best && !out(m) && fresh(m),
            None => m.rank == anywhere && !out(m),
        };
        let weight = |m: &Member| if fits(m) { m.weight } else { 0 };
        let weights: Vec<u32> = members.iter().map(weight).collect();
        let active = |at: usize| members[at].active.get() as usize;
        let weights = match (policy, listed.policy.balancing.warmup) {
            (Weighing::Simple(Simple::LeastRequest | Simple::RoundRobin), Some(warmup)) => {
                let age = |at: usize| now.saturating_duration_since(members[at].since);
                warmed(&weights, |at| warmup.share(age(at)))
            }
            _ => weights,
        };
        let at = session.or_else(|| match policy {
            Weighing::Simple(Simple::LeastRequest) => {
                balance::least_request(&weights, active, [draw(), draw()])
            }
            Weighing::Simple(Simple::RoundRobin) => turns.next(&weights),
            Weighing::Simple(Simple::Random) => balance::random(&weights, draw()),
            Weighing::Simple(Simple::Passthrough) => {
                // The service's own address is nobody's: then any endpoint is as good.
                let at = members.iter().zip(&weights).position(|(m, weight)| {
                    *weight > 0 && wish.dialed.is_some() && m.endpoint.address == wish.dialed
                });
                at.or_else(|| balance::random(&weights, draw()))
            }
            Weighing::Consistent(_) => match (hash, &listed.table) {
                (Some(hash), Some(Table::Ring(ring))) => ring.pick(hash, |at| weights[at] > 0),
                (Some(hash), Some(Table::Maglev(table))) => table.pick(hash, |at| weights[at] > 0),
                (None, _) | (_, None) => balance::random(&weights, draw()),
            },
        });
        let member = &members[at.ok_or(Reason::NoEndpoints)?];
        let busy = member.active.take(None).ok_or(Reason::Overloaded)?;
        Ok(Picked {
            endpoint: member.endpoint.clone(),
            taken: Taken {
                _endpoint: busy,
                request: None,
                streaming: None,
            },
        })
    }

    /// This endpoint, whichever would be picked otherwise.
    pub fn take(
        &self,
        (mesh, generation, from): (&Mesh, u64, Viewpoint<'_>),
        endpoint: Endpoint,
        now: Instant,
    ) -> Result<Picked, Reason> {
        let state = self.listed(mesh, generation, from, now).0;
        let known = state.known.get(&endpoint.workload.uid);
        // One that is not among those that would be picked is busy with nothing else here.
        let active = known.map_or_else(Arc::default, |(_, active)| active.clone());
        let busy = active.take(None).ok_or(Reason::Overloaded)?;
        Ok(Picked {
            endpoint,
            taken: Taken {
                _endpoint: busy,
                request: None,
                streaming: None,
            },
        })
    }

    /// What bounds connections in a snapshot, and which endpoints are left out now.
    pub fn ejected(
        &self,
        (mesh, generation, from): (&Mesh, u64, Viewpoint<'_>),
        now: Instant,
    ) -> (Arc<TrafficPolicy>, Vec<WorkloadUid>) {
        let (state, policy) = self.listed(mesh, generation, from, now);
        let known = state.known.keys();
        let out = known.filter(|uid| {
            let ejections = state.ejections.as_ref();
            ejections.is_some_and(|(_, e)| e.is_ejected(uid, now))
        });
        let out = out.cloned().collect();
        (policy, out)
    }

    /// Whether a session's endpoint is among those that may be picked.
    pub fn has_session(
        &self,
        (mesh, generation, from): (&Mesh, u64, Viewpoint<'_>),
        session: u64,
        now: Instant,
    ) -> bool {
        let state = self.listed(mesh, generation, from, now).0;
        let members = state.listed.as_ref().map(|l| l.endpoints.as_deref());
        let Some(Ok(members)) = members else {
            return false;
        };
        let ejections = state.ejections.as_ref();
        members.iter().any(|m| {
            let uid = &m.endpoint.workload.uid;
            session_of(uid) == session
                && m.weight > 0
                && !ejections.is_some_and(|(_, e)| e.is_ejected(uid, now))
        })
    }

    /// An endpoint answered with this status; true when it is left out for it.
    pub fn answered(&self, who: &WorkloadUid, status: u16, now: Instant) -> bool {
        let mut state = self.state();
        let ejections = state.ejections.as_mut();
        let out = ejections.is_some_and(|(_, e)| e.answered(who, status, now));
        self.ejected.fetch_add(out.into(), Relaxed);
        out
    }

    /// An endpoint could be connected to.
    pub fn connected(&self, who: &WorkloadUid) {
        if let Some((_, ejections)) = &mut self.state().ejections {
            ejections.succeeded(who);
        }
    }

    /// An endpoint could not be connected to; true when it is left out for it.
    pub fn unreached(&self, who: &WorkloadUid, now: Instant) -> bool {
        self.connect_failures.fetch_add(1, Relaxed);
        self.failed(who, now)
    }

    /// An endpoint did not answer; true when it is left out for it.
    pub fn failed(&self, who: &WorkloadUid, now: Instant) -> bool {
        let mut state = self.state();
        let ejections = state.ejections.as_mut();
        let out = ejections.is_some_and(|(_, e)| e.failed(who, Failure::Local, now));
        self.ejected.fetch_add(out.into(), Relaxed);
        out
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The state with the list of this snapshot.
    fn listed(
        &self,
        mesh: &Mesh,
        generation: u64,
        from: Viewpoint<'_>,
        now: Instant,
    ) -> (MutexGuard<'_, State>, Arc<TrafficPolicy>) {
        let mut state = self.state();
        // Another thread may be ahead: the newest list serves both.
        if state.generation.is_none_or(|held| held < generation) {
            state.generation = Some(generation);
            self.list(&mut state, mesh, from, now);
        }
        let policy = state.listed.as_ref().map(|l| l.policy.clone());
        (state, policy.unwrap_or_default())
    }

    fn list(&self, state: &mut State, mesh: &Mesh, from: Viewpoint<'_>, now: Instant) {
        let (policy, found) = match &self.key {
            ClusterKey::Service {
                service,
                port,
                subset,
            } => {
                let subset = subset.as_deref();
                let destination = mesh.destination(service);
                let policy = destination.and_then(|d| d.policy(subset, *port));
                let found = match mesh.service(service) {
                    Some(service) => endpoints(mesh, service, *port, subset, from),
                    None => Err(Reason::NoEndpoints),
                };
                (policy.cloned(), found)
            }
            ClusterKey::Addressed => (None, Err(Reason::NoEndpoints)),
        };
        let policy = policy.unwrap_or_default();
        let endpoints = found.map(|found| {
            let member = |(rank, weight, endpoint): (usize, u32, Endpoint)| {
                let known = state.known.entry(endpoint.workload.uid.clone());
                let (since, active) = known.or_insert_with(|| (now, Arc::default()));
                Member {
                    rank,
                    weight,
                    since: *since,
                    active: active.clone(),
                    endpoint,
                }
            };
            found.into_iter().map(member).collect::<Vec<_>>()
        });
        let members = endpoints.as_deref().unwrap_or_default();
        let uids: Vec<&WorkloadUid> = members.iter().map(|m| &m.endpoint.workload.uid).collect();
        state.known.retain(|uid, _| uids.contains(&uid));
        eject(&mut state.ejections, policy.outlier.as_ref(), &uids);
        let table = match &policy.balancing.weighing {
            Weighing::Simple(_) => None,
            Weighing::Consistent(affinity) => {
                let named: Vec<(&str, u32)> = members
                    .iter()
                    .map(|m| (m.endpoint.workload.uid.as_str(), m.weight))
                    .collect();
                Some(match affinity.table {
                    HashTable::Ring(size) => Table::Ring(Ring::new(&named, size)),
                    HashTable::Maglev(size) => Table::Maglev(Maglev::new(&named, size)),
                })
            }
        };
        if state.listed.as_ref().is_some_and(|l| l.policy != policy) {
            // Whose turn it is was counted in other units.
            state.turns = RoundRobin::default();
        }
        state.listed = Some(Listed {
            endpoints,
            policy,
            table,
        });
    }
}

/// Keeps what is known of failures when only the endpoints or the rules change.
fn eject(
    held: &mut Option<(Outlier, Ejections<WorkloadUid>)>,
    rules: Option<&Outlier>,
    members: &[&WorkloadUid],
) {
    let Some(rules) = rules else {
        *held = None;
        return;
    };
    let (known, ejections) = held.get_or_insert_with(|| {
        let ejections = Ejections::new(rules.clone(), Instant::now());
        (rules.clone(), ejections)
    });
    if known != rules {
        ejections.set_rules(rules.clone());
        *known = rules.clone();
    }
    ejections.set_members(members.iter().copied());
}
