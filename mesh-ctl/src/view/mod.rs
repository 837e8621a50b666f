//! The cluster as it is known, and what of the mesh has changed since the last time it was asked.
//!
//! Invariants: a refresh says exactly the resources whose content changed; `Complete` is said once, after the
//! first whole batch. An object that cannot be read leaves its last good version in force.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    time::{Duration, Instant},
};

use mesh_model::{
    mesh::Change,
    name::{Identity, NodeName, PolicyName, ServiceName, WorkloadUid},
};
use mesh_translate::{ClusterView, Status, translate};

use crate::watch::Delta;

/// The cluster and what was made of it.
#[derive(Debug, Default)]
pub struct View {
    cluster: ClusterView,
    published: HashMap<Resource, Change>,
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
    /// What is to be said about objects, all of it.
    pub statuses: Vec<Status>,
    /// One line for each message that is not merely informative.
    pub warnings: Vec<String>,
    /// The identities that pods of a node have: what the CA may sign for it.
    pub hosted: BTreeMap<NodeName, BTreeSet<Identity>>,
    /// How long it took.
    pub took: Duration,
}

/// The name of a resource.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Resource {
    Config,
    Policy(PolicyName),
    Service(ServiceName),
    ServiceExtra(ServiceName),
    Workload(WorkloadUid),
    WorkloadExtra(WorkloadUid),
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
                } => self.cluster.apply(object, origin, unknown),
                Delta::Removed(object) => self.cluster.remove(&object),
                Delta::Bad(object, broken) => self.cluster.set_broken(object, broken),
            }
        }
    }

    /// The objects.
    pub fn cluster(&self) -> &ClusterView {
        &self.cluster
    }

    /// Translates and compares; `None` when nothing was taken in since the last time, or ever.
    pub fn refresh(&mut self) -> Option<Refresh> {
        if !self.fed || self.complete && !self.dirty {
            return None;
        }
        self.dirty = false;
        let start = Instant::now();
        let output = translate(&self.cluster);
        let mut gone: BTreeSet<Resource> = self.published.keys().cloned().collect();
        let mut changes = Vec::new();
        for change in output.changes {
            let Some(resource) = resource(&change) else {
                continue;
            };
            gone.remove(&resource);
            if self.published.get(&resource) != Some(&change) {
                self.published.insert(resource, change.clone());
                changes.push(change);
            }
        }
        for resource in &gone {
            self.published.remove(resource);
            // A removed workload or service takes what belongs to it along.
            let parent = match resource {
                Resource::WorkloadExtra(uid) => Some(Resource::Workload(uid.clone())),
                Resource::ServiceExtra(name) => Some(Resource::Service(name.clone())),
                _ => None,
            };
            if !parent.is_some_and(|parent| gone.contains(&parent)) {
                changes.extend(removal(resource));
            }
        }
        if !std::mem::replace(&mut self.complete, true) {
            changes.push(Change::Complete);
        }
        let (statuses, warnings, hosted) = (output.statuses, output.warnings, output.hosted);
        Some(Refresh {
            changes,
            statuses,
            warnings,
            hosted,
            took: start.elapsed(),
        })
    }
}

fn resource(change: &Change) -> Option<Resource> {
    Some(match change {
        Change::Config(_) => Resource::Config,
        Change::Policy(policy) => Resource::Policy(policy.name.clone()),
        Change::Service(service) => Resource::Service(service.name.clone()),
        Change::ServiceExtra(name, _) => Resource::ServiceExtra(name.clone()),
        Change::Workload(workload) => Resource::Workload(workload.uid.clone()),
        Change::WorkloadExtra(uid, _) => Resource::WorkloadExtra(uid.clone()),
        // A translation is a full set: it removes nothing and completes nothing.
        Change::RemoveWorkload(_)
        | Change::RemoveWorkloadExtra(_)
        | Change::RemoveService(_)
        | Change::RemoveServiceExtra(_)
        | Change::RemovePolicy(_)
        | Change::Complete => return None,
    })
}

fn removal(resource: &Resource) -> Option<Change> {
    Some(match resource {
        Resource::Config => return None,
        Resource::Policy(name) => Change::RemovePolicy(name.clone()),
        Resource::Service(name) => Change::RemoveService(name.clone()),
        Resource::ServiceExtra(name) => Change::RemoveServiceExtra(name.clone()),
        Resource::Workload(uid) => Change::RemoveWorkload(uid.clone()),
        Resource::WorkloadExtra(uid) => Change::RemoveWorkloadExtra(uid.clone()),
    })
}

#[cfg(test)]
mod tests;
