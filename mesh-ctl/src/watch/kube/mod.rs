//! A cluster's API as a source of objects.
//!
//! Invariants: the first batch is told when every kind was listed, or is known not to be served; a kind that is
//! forbidden or unreadable holds it back, because a mesh without its policies would let through what they deny. Kinds that
//! are not honoured anyway are watched too, for whoever writes one to be told, and hold nothing back.
//! Secrets are never asked for here.

mod kind;
mod raw;
mod serve;

pub(crate) use self::serve::find;

use std::collections::BTreeSet;

use kube::Client;
use mesh_k8s::{KINDS, KindInfo, UNHONOURED};
use tokio::{sync::mpsc, task::JoinSet};
use tracing::{info, warn};

use self::{
    kind::{Told, Watch},
    serve::{Trouble, chain},
};
use super::{Delta, Source, WatchError};

/// What is told and not yet taken; a watch that is ahead waits.
const QUEUE: usize = 256;
/// At most so many changes are taken in one batch.
const BATCH: usize = 4096;

/// The kinds of a cluster, each watched by a task of its own.
pub struct Cluster {
    kinds: Vec<KindInfo>,
    /// So many of them, the first ones, have to be known before anything is told.
    needed: usize,
    told: mpsc::Receiver<(usize, Told)>,
    /// What was told before the first batch is whole.
    first: Option<First>,
    /// Dropped with this.
    _watches: JoinSet<()>,
}

#[derive(Default)]
struct First {
    deltas: Vec<Delta>,
    /// Kinds of which everything is known.
    known: BTreeSet<usize>,
}

impl Cluster {
    /// Watches every kind that has a type, and those that are not honoured. Needs a runtime.
    pub fn new(client: &Client) -> Self {
        Self::of(client, KINDS, UNHONOURED)
    }

    fn of(client: &Client, needed: &[KindInfo], others: &[KindInfo]) -> Self {
        let (told, queue) = mpsc::channel(QUEUE);
        let mut watches = JoinSet::new();
        let kinds = [needed, others].concat();
        for (index, kind) in kinds.iter().enumerate() {
            watches.spawn(Watch::new(client.clone(), *kind, index, told.clone()).run());
        }
        Self {
            kinds,
            needed: needed.len(),
            told: queue,
            first: Some(First::default()),
            _watches: watches,
        }
    }

    /// Takes in what one kind told; `true` when a batch may be told from it.
    fn take(&mut self, index: usize, told: Told, batch: &mut Vec<Delta>) {
        let (deltas, known) = match told {
            Told::All(deltas) | Told::Absent(deltas) => (deltas, true),
            Told::One(delta) => (vec![delta], false),
            Told::Trouble(trouble) => {
                self.held_back(index, &trouble);
                return;
            }
        };
        let Some(first) = &mut self.first else {
            batch.extend(deltas);
            return;
        };
        first.deltas.extend(deltas);
        if known && index < self.needed {
            first.known.insert(index);
        }
        if first.known.len() == self.needed {
            let First { deltas, .. } = self.first.take().unwrap_or_default();
            info!(objects = deltas.len(), "everything in the cluster was read");
            batch.extend(deltas);
        }
    }

    fn held_back(&self, index: usize, trouble: &Trouble) {
        let missing = |first: &First| index < self.needed && !first.known.contains(&index);
        if self.first.as_ref().is_some_and(missing) {
            warn!(kind = self.kinds[index].kind, %trouble, "nothing is published before this kind was read");
        }
    }
}

impl Source for Cluster {
    async fn next(&mut self) -> Result<Vec<Delta>, WatchError> {
        let mut batch = Vec::new();
        let begins = self.first.is_some();
        loop {
            let (index, told) = self.told.recv().await.ok_or(WatchError::Ended)?;
            self.take(index, told, &mut batch);
            while batch.len() < BATCH
                && let Ok((index, told)) = self.told.try_recv()
            {
                self.take(index, told, &mut batch);
            }
            if !batch.is_empty() || begins && self.first.is_none() {
                return Ok(batch);
            }
        }
    }
}

/// Connects as the environment says: inside a pod by its service account, else by KUBECONFIG. What is the mesh's own is
/// kept in `namespace`.
pub async fn connect(namespace: &str) -> anyhow::Result<Client> {
    let mut config = kube::Config::infer().await.map_err(|e| {
        anyhow::anyhow!(
            "no cluster to connect to: {}; run in a pod with a service account, or set KUBECONFIG",
            chain(&e)
        )
    })?;
    namespace.clone_into(&mut config.default_namespace);
    let server = config.cluster_url.clone();
    let client = Client::try_from(config)
        .map_err(|e| anyhow::anyhow!("cannot connect to the cluster at {server}: {}", chain(&e)))?;
    info!(%server, "objects are read from the cluster");
    Ok(client)
}

#[cfg(test)]
mod tests;
