//! The objects as they were last published, so that only what changed is encoded again.
//!
//! Invariant: the view has exactly the resources of the objects, with the scope that their workloads give them.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use mesh_api::{
    convert,
    delta::View,
    resource::{Kind, Update},
};
use mesh_model::{
    mesh::{Change, MtlsMode, WorkloadExtra},
    name::{NodeName, WorkloadUid},
};

type Key = (Kind, Arc<str>);

/// What is published, as objects and as resources.
#[derive(Debug, Default)]
pub(super) struct Objects {
    objects: HashMap<Key, Change>,
    nodes: HashMap<WorkloadUid, NodeName>,
    view: View,
}

impl Objects {
    /// Takes the whole state; the roots stay.
    pub fn replace(&mut self, changes: Vec<Change>) -> View {
        let before = std::mem::take(&mut self.nodes);
        self.nodes = changes.iter().filter_map(place).collect();
        let mut seen = HashSet::with_capacity(changes.len());
        let mut updates = Vec::new();
        for change in changes {
            if let Some(key) = key(&change) {
                self.set(key.clone(), change, &before, &mut updates);
                seen.insert(key);
            }
        }
        let gone: Vec<Key> = self
            .objects
            .keys()
            .filter(|k| !seen.contains(*k))
            .cloned()
            .collect();
        for key in gone {
            self.objects.remove(&key);
            updates.push(Update::Remove(key.0, key.1));
        }
        self.publish(updates)
    }

    /// Takes changes and removals.
    pub fn apply(&mut self, changes: Vec<Change>) -> View {
        let mut updates = Vec::new();
        for change in changes {
            let before = place(&change).and_then(|(uid, node)| {
                let old = self.nodes.insert(uid.clone(), node);
                Some((uid, old?))
            });
            let before: HashMap<_, _> = before.into_iter().collect();
            match key(&change) {
                Some(key) => {
                    let companion = match &change {
                        Change::Workload(w) => Some((Kind::Companion, convert_name(&w.uid))),
                        _ => None,
                    };
                    self.set(key, change, &before, &mut updates);
                    // A workload that moved takes its companion with it.
                    if let Some(key) = companion
                        && let Some(extra) = self.objects.get(&key).cloned()
                    {
                        self.set(key, extra, &before, &mut updates);
                    }
                }
                None => self.remove(&change, &mut updates),
            }
        }
        self.publish(updates)
    }

    /// Replaces the roots.
    pub fn set_roots(&mut self, roots: &[String]) -> View {
        self.publish(vec![convert::encode_roots(roots)])
    }

    fn set(
        &mut self,
        key: Key,
        change: Change,
        before: &HashMap<WorkloadUid, NodeName>,
        updates: &mut Vec<Update>,
    ) {
        let scope = |nodes: &HashMap<WorkloadUid, NodeName>, change: &Change| match change {
            Change::WorkloadExtra(uid, extra) if !needed_elsewhere(extra) => {
                nodes.get(uid).cloned()
            }
            _ => None,
        };
        let now = scope(&self.nodes, &change);
        if let Some(old) = self.objects.get(&key)
            && *old == change
            && (scope(before, old) == now)
        {
            return;
        }
        let node: Option<Arc<str>> = now
            .filter(|n| !n.as_str().is_empty())
            .map(|n| n.as_str().into());
        for mut update in convert::encode(&change) {
            if let Update::Set(resource) = &mut update {
                resource.node.clone_from(&node);
            }
            updates.push(update);
        }
        self.objects.insert(key, change);
    }

    fn remove(&mut self, change: &Change, updates: &mut Vec<Update>) {
        if let Change::RemoveWorkload(uid) = change {
            self.nodes.remove(uid);
        }
        for update in convert::encode(change) {
            let (kind, name) = update.key();
            self.objects.remove(&(kind, name.clone()));
            updates.push(update);
        }
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

fn place(change: &Change) -> Option<(WorkloadUid, NodeName)> {
    match change {
        Change::Workload(w) => Some((w.uid.clone(), w.node.clone())),
        _ => None,
    }
}

fn convert_name(uid: &WorkloadUid) -> Arc<str> {
    format!("workload/{uid}").into()
}

/// The resource that a change sets; none for removals and markers.
fn key(change: &Change) -> Option<Key> {
    Some(match change {
        Change::Workload(w) => (Kind::Address, w.uid.as_str().into()),
        Change::WorkloadExtra(uid, _) => (Kind::Companion, convert_name(uid)),
        Change::Service(s) => (Kind::Address, s.name.to_string().into()),
        Change::ServiceExtra(name, _) => (Kind::Companion, format!("service/{name}").into()),
        Change::Policy(p) => (Kind::Authorization, p.name.to_string().into()),
        Change::Config(_) => (Kind::Companion, "mesh".into()),
        Change::RemoveWorkload(_)
        | Change::RemoveWorkloadExtra(_)
        | Change::RemoveService(_)
        | Change::RemoveServiceExtra(_)
        | Change::RemovePolicy(_)
        | Change::Complete => return None,
    })
}
