//! The cluster as it is known, and what of the mesh has changed since the last time it was asked.
//!
//! Invariants: a refresh says exactly the resources whose content changed; `Complete` is said once, after the
//! first whole batch. An object that cannot be read leaves its last good version in force.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use mesh_k8s::ObjectRef;
use mesh_model::{
    mesh::Change,
    name::{Identity, NodeName},
};
use mesh_translate::{ClusterView, Refreshed, Status, Translator, Wanted};

use crate::watch::Delta;

/// The cluster and what was made of it.
#[derive(Debug, Default)]
pub struct View {
    translator: Translator,
    /// Whether a first whole batch was taken in: before that nothing is known, which is not the same as nothing.
    fed: bool,
    complete: bool,
    dirty: bool,
}

/// What a refresh found.
#[derive(Debug, Default)]
pub struct Refresh {
    /// What changed, removals last.
    pub changes: Vec<Change>,
    /// Statuses that are new or different; `None` where nothing is to be said any more.
    pub statuses: BTreeMap<ObjectRef, Option<Status>>,
    /// Nodes on which other identities have pods now, with all of those: what the CA may sign for them.
    pub hosted: BTreeMap<NodeName, BTreeSet<Identity>>,
    /// All waypoints that somebody has to make, when they are others than before, and at the first time.
    pub waypoints: Option<Vec<Wanted>>,
    /// How many objects were translated again.
    pub translated: usize,
    /// How long it took.
    pub took: Duration,
}

impl View {
    /// Takes in what a source said.
    pub fn apply(&mut self, deltas: Vec<Delta>) {
        self.fed = true;
        self.dirty |= !deltas.is_empty();
        for delta in deltas {
            match delta {
                Delta::Applied {
                    object,
                    origin,
                    unknown,
                } => self.translator.apply(object, origin, unknown),
                Delta::Removed(object) => self.translator.remove(&object),
                Delta::Bad(object, broken) => self.translator.set_broken(&object, broken),
            }
        }
    }

    /// The objects.
    pub fn cluster(&self) -> &ClusterView {
        self.translator.view()
    }

    /// Whether everything there is was read and translated once.
    pub fn is_complete(&self) -> bool {
        self.complete
    }

    /// What would be said about an object if `change` were made to it; see [`Translator::would_say`].
    pub fn would_say(
        &self,
        object: &ObjectRef,
        change: impl Fn(&mut ClusterView),
    ) -> Option<Status> {
        self.translator.would_say(object, change)
    }

    /// Translates and compares; `None` when nothing was taken in since the last time, or ever.
    pub fn refresh(&mut self) -> Option<Refresh> {
        if !self.fed || self.complete && !self.dirty {
            return None;
        }
        self.dirty = false;
        let start = Instant::now();
        let Refreshed {
            mut changes,
            statuses,
            hosted,
            mut waypoints,
            translated,
        } = self.translator.refresh();
        if !std::mem::replace(&mut self.complete, true) {
            changes.push(Change::Complete);
            // That none is wanted is known from now on.
            waypoints.get_or_insert_default();
        }
        Some(Refresh {
            changes,
            statuses,
            hosted,
            waypoints,
            translated,
            took: start.elapsed(),
        })
    }
}

#[cfg(test)]
mod tests;
