//! What nodes did not understand, so that it can be told on the user's object.
//!
//! Invariants: bounded; a refusal lasts until the resource changes or goes.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
};

use mesh_api::{
    delta::{Rejection, View},
    resource::{Kind, Version},
};
use mesh_model::name::NodeName;
use tokio::sync::watch;

use super::locked;

/// More refusals than this are not kept.
const MAX: usize = 10_000;

/// A resource that a node did not understand.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The kind of resource.
    pub kind: Kind,
    /// Its name; of a policy or a service `namespace/name`.
    pub name: Arc<str>,
    /// The node.
    pub node: NodeName,
    /// What the node says is wrong.
    pub message: String,
}

/// Which resource, and who refuses it.
type Refused = (Kind, Arc<str>, NodeName);

/// Refusals of the present state.
#[derive(Debug)]
pub struct Refusals {
    all: Mutex<BTreeMap<Refused, (Version, String)>>,
    count: watch::Sender<u64>,
}

impl Default for Refusals {
    fn default() -> Self {
        Self {
            all: Mutex::default(),
            count: watch::Sender::new(0),
        }
    }
}

impl Refusals {
    pub(super) fn add(&self, view: &View, kind: Kind, node: &NodeName, rejections: Vec<Rejection>) {
        let mut all = locked(&self.all);
        all.retain(|(kind, name, _), (version, _)| {
            view.get(*kind, name).is_some_and(|r| r.version == *version)
        });
        for rejection in rejections {
            // One that is gone by now is of no interest.
            if let Some(resource) = view.get(kind, &rejection.name)
                && all.len() < MAX
            {
                let key = (kind, resource.name.clone(), node.clone());
                all.insert(key, (resource.version, rejection.message));
            }
        }
        drop(all);
        self.count.send_modify(|n| *n += 1);
    }

    /// Forgets what no longer holds of a newer state.
    pub(super) fn settle(&self, view: &View) {
        let mut all = locked(&self.all);
        let before = all.len();
        all.retain(|(kind, name, _), (version, _)| {
            view.get(*kind, name).is_some_and(|r| r.version == *version)
        });
        let settled = all.len() != before;
        drop(all);
        if settled {
            self.count.send_modify(|n| *n += 1);
        }
    }

    pub(super) fn current(&self, view: &View) -> Vec<Refusal> {
        let all = locked(&self.all);
        let still = all.iter().filter(|((kind, name, _), (version, _))| {
            view.get(*kind, name).is_some_and(|r| r.version == *version)
        });
        still
            .map(|((kind, name, node), (_, message))| Refusal {
                kind: *kind,
                name: name.clone(),
                node: node.clone(),
                message: message.clone(),
            })
            .collect()
    }

    pub(super) fn watch(&self) -> watch::Receiver<u64> {
        self.count.subscribe()
    }
}
