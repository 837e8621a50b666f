//! Publishes the mesh to its nodes: what is to be known is encoded once, and every subscriber is brought to the
//! newest state at its own pace.
//!
//! Invariants: nothing is served before the first whole state; a subscriber costs a bounded window and two shared
//! views, however slow it is; a node gets companions of workloads elsewhere only where a client needs them.

mod foreign;
mod outside;
mod refusals;
mod service;
mod store;
#[cfg(test)]
mod tests;

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use mesh_api::{
    delta::{Outside, View},
    resource::Kind,
};
use mesh_model::{
    mesh::Change,
    name::{NodeName, WorkloadUid},
};
use tokio::{sync::watch, time::sleep};
use tracing::warn;

pub use refusals::{Refusal, Refusals};
pub use service::DiscoveryService;

use crate::monitor::Metrics;
use outside::OutsideMesh;
use store::Objects;

/// After a publication the next one waits so long, and takes with it what came in the meantime.
const DEBOUNCE: Duration = Duration::from_millis(5);

/// What all subscribers are brought to.
#[derive(Clone, Debug)]
struct Published {
    view: View,
    /// The same for data planes that speak Istio's types only; made when the first of them asks.
    foreign: Arc<OnceLock<View>>,
    /// Whether there has been a whole state.
    whole: bool,
    at: Instant,
}

/// A node that is connected.
#[derive(Clone, Debug, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Subscriber {
    /// The node.
    pub node: String,
    /// Whether it is one of ours.
    pub ours: bool,
    /// Messages that it has not answered yet.
    pub unanswered: usize,
    /// Whether it has what was published last.
    pub current: bool,
}

/// Where changes go in.
#[derive(Clone)]
pub struct Handle {
    inner: Arc<Inner>,
}

struct Inner {
    objects: Mutex<Objects>,
    staged: watch::Sender<Published>,
    published: watch::Sender<Published>,
    refusals: Refusals,
    outside: OutsideMesh,
    subscribers: Mutex<BTreeMap<u64, Subscriber>>,
    next_id: AtomicU64,
    metrics: Arc<Metrics>,
}

/// A publisher: its handle, the service that nodes call, and the task that publishes.
pub fn publisher(
    metrics: Arc<Metrics>,
) -> (
    Handle,
    DiscoveryService,
    impl Future<Output = ()> + Send + 'static,
) {
    let empty = Published {
        view: View::default(),
        foreign: Arc::default(),
        whole: false,
        at: Instant::now(),
    };
    let inner = Arc::new(Inner {
        objects: Mutex::default(),
        staged: watch::Sender::new(empty.clone()),
        published: watch::Sender::new(empty),
        refusals: Refusals::default(),
        outside: OutsideMesh::default(),
        subscribers: Mutex::default(),
        next_id: AtomicU64::default(),
        metrics,
    });
    let handle = Handle { inner };
    let service = DiscoveryService::new(handle.clone());
    // Subscribed here and not by the task: what is staged before the task first runs must not count as seen.
    let task = forward(handle.clone(), handle.inner.staged.subscribe());
    (handle, service, task)
}

/// Publishes the first change at once, and further ones together.
async fn forward(handle: Handle, mut staged: watch::Receiver<Published>) {
    while staged.changed().await.is_ok() {
        let newest = staged.borrow_and_update().clone();
        for kind in Kind::ALL {
            handle.inner.metrics.published(kind, newest.view.len(kind));
        }
        handle.inner.metrics.set_ready(newest.whole);
        let view = newest.view.clone();
        handle.inner.published.send_replace(newest);
        handle.inner.refusals.settle(&view);
        sleep(DEBOUNCE).await;
    }
}

impl Handle {
    /// Makes this the whole state: what is not among it is removed.
    pub fn replace(&self, changes: Vec<Change>) {
        let view = locked(&self.inner.objects).replace(changes);
        self.stage(view, true);
    }

    /// Changes parts of the state; `Complete` among the changes says that it is whole from now on.
    pub fn apply(&self, changes: Vec<Change>) {
        let whole = changes.iter().any(|c| matches!(c, Change::Complete));
        let view = locked(&self.inner.objects).apply(changes);
        self.stage(view, whole);
    }

    /// Tells nodes which roots to trust, PEM; the one that signs first.
    pub fn set_roots(&self, roots: &[String]) {
        let view = locked(&self.inner.objects).set_roots(roots);
        self.stage(view, false);
    }

    /// What nodes have refused of the present state.
    pub fn refusals(&self) -> Vec<Refusal> {
        self.inner
            .refusals
            .current(&self.inner.published.borrow().view)
    }

    /// Wakes when `refusals` may have changed.
    pub fn watch_refusals(&self) -> watch::Receiver<u64> {
        self.inner.refusals.watch()
    }

    /// Pods that should be in the mesh and are not served there, with their nodes, which say so.
    pub fn outside(&self) -> Vec<(NodeName, Outside)> {
        self.inner.outside.current(self.places())
    }

    /// Wakes when nodes tell something else for `outside`.
    pub fn watch_outside(&self) -> watch::Receiver<()> {
        self.inner.outside.watch()
    }

    /// Where workloads are.
    fn places(&self) -> impl Fn(&WorkloadUid) -> Option<NodeName> {
        |uid| locked(&self.inner.objects).place(uid).cloned()
    }

    /// Who is connected.
    pub fn subscribers(&self) -> Vec<Subscriber> {
        locked(&self.inner.subscribers).values().cloned().collect()
    }

    fn stage(&self, view: View, whole: bool) {
        self.inner.staged.send_if_modified(|staged| {
            if staged.view.same(&view) && (staged.whole || !whole) {
                return false;
            }
            let foreign = Arc::default();
            *staged = Published {
                view,
                foreign,
                whole: staged.whole || whole,
                at: Instant::now(),
            };
            true
        });
    }

    /// Keeps a subscriber in the list until the value is dropped.
    fn enter(&self, node: &NodeName, ours: bool) -> Entry {
        let id = self.inner.next_id.fetch_add(1, Ordering::Relaxed);
        let subscriber = Subscriber {
            node: node.to_string(),
            ours,
            unanswered: 0,
            current: false,
        };
        locked(&self.inner.subscribers).insert(id, subscriber);
        self.inner.metrics.subscribers.inc();
        Entry {
            handle: self.clone(),
            id,
        }
    }
}

/// A subscriber's place in the list.
struct Entry {
    handle: Handle,
    id: u64,
}

impl Entry {
    fn update(&self, unanswered: usize, current: bool) {
        if let Some(s) = locked(&self.handle.inner.subscribers).get_mut(&self.id) {
            (s.unanswered, s.current) = (unanswered, current);
        }
    }

    /// Takes what a node tells of its pods.
    fn tell(&self, node: &NodeName, pods: Vec<Outside>) {
        let (outside, places) = (&self.handle.inner.outside, self.handle.places());
        if let Some(pod) = outside.tell(self.id, node, pods, places) {
            warn!(%node, %pod, "a node speaks of a pod that is not on it; nobody is told that, and this is said once");
        }
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        locked(&self.handle.inner.subscribers).remove(&self.id);
        self.handle.inner.outside.end(self.id);
        self.handle.inner.metrics.subscribers.dec();
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
