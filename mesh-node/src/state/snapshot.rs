//! The current snapshot and its announcement.
//!
//! Invariants: a reader takes one `Snapshot` and decides everything about a flow from it; the generation
//! grows by one with every change, so that a reader can tell whether it decided from an old one.

use std::{
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use mesh_model::{
    mesh::{Change, Diff, Mesh},
    name::NetworkId,
};
use tokio::sync::watch;

use super::{
    announce::{Announcements, Diffs},
    departed::Departed,
    strangers::Strangers,
};

/// One view of the mesh.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// The mesh.
    pub mesh: Mesh,
    /// How many changes came before.
    pub generation: u64,
}

/// A handle to the current snapshot. Cloning is cheap.
#[derive(Clone, Debug)]
pub struct MeshState(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    current: ArcSwap<Snapshot>,
    writing: Mutex<()>,
    departed: Departed,
    strangers: Strangers,
    announcements: Announcements,
    generation: watch::Sender<u64>,
}

impl Default for MeshState {
    fn default() -> Self {
        Self::new()
    }
}

impl MeshState {
    /// The empty mesh, in which every decision is "not ready".
    pub fn new() -> Self {
        Self(Arc::new(Inner {
            current: ArcSwap::from_pointee(Snapshot::default()),
            writing: Mutex::new(()),
            departed: Departed::default(),
            strangers: Strangers::default(),
            announcements: Announcements::default(),
            generation: watch::Sender::new(0),
        }))
    }

    /// The current snapshot.
    pub fn load(&self) -> Arc<Snapshot> {
        self.0.current.load_full()
    }

    /// The current generation, without taking the snapshot.
    pub fn generation(&self) -> u64 {
        self.0.current.load().generation
    }

    /// Whether an address that nobody in the current snapshot has belonged to a captured workload, or to a service of
    /// some, a moment ago.
    pub fn is_vacant(&self, network: &NetworkId, ip: IpAddr) -> bool {
        self.0.departed.lately(network, ip, Instant::now())
    }

    /// Waits until somebody at an address is known, when it lies among captured pods' addresses and nobody is: most
    /// likely a pod that started a moment ago. Who does not turn up within `most` is not waited for again for a while.
    /// Says whether it waited.
    pub async fn hear_of(&self, network: &NetworkId, ip: IpAddr, most: Duration) -> bool {
        let unheard = |s: &Snapshot| !s.mesh.is_known(network, ip);
        let now = Instant::now();
        if !unheard(&self.load())
            || self.0.strangers.knows(network, ip, now)
            || self.is_vacant(network, ip)
        {
            return false;
        }
        let neighbours = self.load().mesh.has_captured_neighbours(network, ip);
        let heard = neighbours
            && self
                .wait_for(most, |s| (!unheard(s)).then_some(()))
                .await
                .is_some();
        if !heard {
            self.0.strangers.remember(network, ip, Instant::now());
        }
        neighbours
    }

    /// Applies changes, publishes the next snapshot, and announces what changed.
    pub fn apply(&self, changes: impl IntoIterator<Item = Change>) -> Diff {
        let _writer = self
            .0
            .writing
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let old = self.0.current.load_full();
        let (mesh, diff) = old.mesh.apply(changes);
        let vacated = mesh.vacated(&old.mesh, &diff);
        self.0.departed.remember(vacated, Instant::now());
        let generation = old.generation + 1;
        self.0
            .current
            .store(Arc::new(Snapshot { mesh, generation }));
        self.0.announcements.announce(&diff);
        self.0.generation.send_replace(generation);
        diff
    }

    /// What changes from now on.
    pub fn diffs(&self) -> Diffs {
        self.0.announcements.subscribe()
    }

    /// Waits until `ready` finds what it needs in a snapshot, no longer than `most`; `None` when it did not.
    pub async fn wait_for<T>(
        &self,
        most: Duration,
        mut ready: impl FnMut(&Snapshot) -> Option<T>,
    ) -> Option<T> {
        let mut generation = self.0.generation.subscribe();
        let look = async {
            loop {
                generation.mark_unchanged();
                if let Some(found) = ready(&self.load()) {
                    return Some(found);
                }
                generation.changed().await.ok()?;
            }
        };
        tokio::time::timeout(most, look).await.ok().flatten()
    }
}
