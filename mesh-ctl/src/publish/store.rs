//! What is published, so that only what changed is encoded, once for all subscribers.
//!
//! Invariant: the view has exactly the resources of the objects, with the scope that their workloads give them.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use mesh_api::{
    convert,
    delta::View,
    resource::{Kind, Resource, Update},
};
use mesh_model::{
    mesh::{Change, MtlsMode, WorkloadExtra},
    name::{NodeName, WorkloadUid},
};

/// The companion that no object stands for.
const ROOTS: &str = "roots";

/// What is published, as resources, with what decides who gets them.
#[derive(Debug, Default)]
pub(super) struct Objects {
    nodes: HashMap<WorkloadUid, NodeName>,
    /// Workloads whose companions clients elsewhere need.
    elsewhere: HashSet<WorkloadUid>,
    view: View,
}

impl Objects {
    /// Takes the whole state; the roots stay.
    pub fn replace(&mut self, changes: Vec<Change>) -> View {
        (self.nodes, self.elsewhere) = (HashMap::new(), HashSet::new());
        changes.iter().for_each(|change| drop(self.note(change)));
        let roots = self.view.get(Kind::Companion, ROOTS);
        let mut resources: Vec<Resource> = roots.map(|r| Resource::clone(r)).into_iter().collect();
        for update in changes.iter().flat_map(|change| self.encode(change)) {
            if let Update::Set(resource) = update {
                resources.push(resource);
            }
        }
        let updates = self.view.replaced_by(resources);
        self.publish(updates)
    }

    /// Takes changes and removals.
    pub fn apply(&mut self, changes: Vec<Change>) -> View {
        let moved: Vec<WorkloadUid> = changes.iter().filter_map(|c| self.note(c)).collect();
        // A workload that moved takes its companion with it; one that changed itself comes after.
        let mut updates: Vec<Update> = moved.iter().filter_map(|uid| self.rescoped(uid)).collect();
        updates.extend(changes.iter().flat_map(|change| self.encode(change)));
        self.publish(updates)
    }

    /// Replaces the roots.
    pub fn set_roots(&mut self, roots: &[String]) -> View {
        self.publish(vec![convert::encode_roots(roots)])
    }

    /// The node that a workload is on.
    pub fn place(&self, uid: &WorkloadUid) -> Option<&NodeName> {
        self.nodes.get(uid)
    }

    /// Remembers where a workload is and who needs its companion; says which one moved.
    fn note(&mut self, change: &Change) -> Option<WorkloadUid> {
        match change {
            Change::Workload(w) => {
                let before = self.nodes.get(&w.uid);
                if before == Some(&w.node) {
                    return None;
                }
                let moved = before.is_some();
                self.nodes.insert(w.uid.clone(), w.node.clone());
                return moved.then(|| w.uid.clone());
            }
            Change::WorkloadExtra(uid, extra) if needed_elsewhere(extra) => {
                self.elsewhere.insert(uid.clone());
            }
            Change::WorkloadExtra(uid, _) | Change::RemoveWorkloadExtra(uid) => {
                self.elsewhere.remove(uid);
            }
            Change::RemoveWorkload(uid) => {
                self.elsewhere.remove(uid);
                self.nodes.remove(uid);
            }
            Change::Service(_)
            | Change::ServiceExtra(..)
            | Change::RemoveService(_)
            | Change::RemoveServiceExtra(_)
            | Change::Policy(_)
            | Change::RemovePolicy(_)
            | Change::Routes(_)
            | Change::RemoveRoutes(_)
            | Change::Destination(_)
            | Change::RemoveDestination(_)
            | Change::Config(_)
            | Change::Complete => {}
        }
        None
    }

    fn encode(&self, change: &Change) -> Vec<Update> {
        let mut updates = convert::encode(change);
        if let Change::WorkloadExtra(uid, _) = change {
            for update in &mut updates {
                if let Update::Set(resource) = update {
                    resource.node = self.scope(uid);
                }
            }
        }
        updates
    }

    /// The companion of a workload, for the node that it is on now.
    fn rescoped(&self, uid: &WorkloadUid) -> Option<Update> {
        let companion = self.view.get(Kind::Companion, &format!("workload/{uid}"))?;
        Some(Update::Set(Resource {
            node: self.scope(uid),
            ..Resource::clone(companion)
        }))
    }

    /// The only node that gets a workload's companion; `None` when all do.
    fn scope(&self, uid: &WorkloadUid) -> Option<Arc<str>> {
        let node = self.nodes.get(uid).filter(|n| !n.as_str().is_empty());
        node.filter(|_| !self.elsewhere.contains(uid))
            .map(|n| n.as_str().into())
    }

    fn publish(&mut self, updates: Vec<Update>) -> View {
        self.view = self.view.apply(updates);
        self.view.clone()
    }
}

/// A client elsewhere looks at a companion only to see that its workload takes no mutual TLS.
fn needed_elsewhere(extra: &WorkloadExtra) -> bool {
    extra.mtls == MtlsMode::Disable
        || extra
            .mtls_ports
            .iter()
            .any(|(_, m)| *m == MtlsMode::Disable)
}
