//! Pods that nodes should capture and do not serve, as each node tells, so that it can be told at the pods.
//!
//! Invariants: bounded; a node's newest stream speaks for it, and only as long as it lasts; a node is heard only of
//! pods that are on it at the moment when somebody asks.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Mutex,
};

use mesh_api::delta::Outside;
use mesh_model::name::{NodeName, WorkloadUid};
use tokio::sync::watch;

use super::locked;

/// More pods than this are not kept.
const MAX: usize = 10_000;

/// What nodes tell, by stream; a later stream has a greater number.
#[derive(Debug)]
pub(super) struct OutsideMesh {
    told: Mutex<BTreeMap<u64, Told>>,
    changes: watch::Sender<()>,
}

#[derive(Debug)]
struct Told {
    node: NodeName,
    pods: Vec<Outside>,
    /// Whether it was said already that the node speaks of others' pods.
    warned: bool,
}

impl Default for OutsideMesh {
    fn default() -> Self {
        Self {
            told: Mutex::default(),
            changes: watch::Sender::new(()),
        }
    }
}

impl OutsideMesh {
    /// Takes what a node tells on a stream in place of what it told there before. Gives a pod of which it speaks
    /// although that is known to be elsewhere, once in a stream's life.
    pub fn tell(
        &self,
        stream: u64,
        node: &NodeName,
        mut pods: Vec<Outside>,
        place: impl Fn(&WorkloadUid) -> Option<NodeName>,
    ) -> Option<WorkloadUid> {
        let elsewhere = |pod: &&Outside| place(&pod.uid).is_some_and(|there| there != *node);
        let stranger = pods.iter().find(elsewhere).map(|pod| pod.uid.clone());
        let mut told = locked(&self.told);
        let others = told.iter().filter(|(of, _)| **of != stream);
        let kept: usize = others.map(|(_, told)| told.pods.len()).sum();
        pods.truncate(MAX.saturating_sub(kept));
        let now = told.entry(stream).or_insert_with(|| Told {
            node: node.clone(),
            pods: Vec::new(),
            warned: false,
        });
        let warn = stranger.filter(|_| !now.warned);
        now.warned |= warn.is_some();
        let changed = now.pods != pods;
        now.pods = pods;
        drop(told);
        if changed {
            self.changes.send_replace(());
        }
        warn
    }

    /// Forgets what was told on a stream that has ended.
    pub fn end(&self, stream: u64) {
        let gone = locked(&self.told).remove(&stream);
        if gone.is_some_and(|told| !told.pods.is_empty()) {
            self.changes.send_replace(());
        }
    }

    /// What each node tells of pods that are on it.
    pub fn current(
        &self,
        place: impl Fn(&WorkloadUid) -> Option<NodeName>,
    ) -> Vec<(NodeName, Outside)> {
        let told = locked(&self.told);
        let newest: HashMap<&NodeName, &Told> = told.values().map(|t| (&t.node, t)).collect();
        let mut all: Vec<_> = newest
            .into_iter()
            .flat_map(|(node, told)| told.pods.iter().map(move |pod| (node, pod)))
            .filter(|(node, pod)| place(&pod.uid).as_ref() == Some(node))
            .map(|(node, pod)| (node.clone(), pod.clone()))
            .collect();
        all.sort_by(|(_, a), (_, b)| a.uid.cmp(&b.uid));
        all
    }

    pub fn watch(&self) -> watch::Receiver<()> {
        self.changes.subscribe()
    }
}
