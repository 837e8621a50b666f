//! Finding the pods that run on this node already, so that nobody has to start them anew: at start, and whenever the
//! configuration or the runtime's namespaces change.
//!
//! Invariants: a pod is registered as a CNI plugin would register it, and both may; which pod a namespace belongs to is
//! never guessed when two would fit; a registered pod is deleted only when its namespace is not there any more.
//! Bounded: namespaces are opened only while a pod is missing, and then less and less often.
//!
//! A pod is known by its addresses. One that may change its own interfaces (CAP_NET_ADMIN) can pretend to be another
//! before both are registered; from then on it cannot, because a registered pod's namespace is nobody else's.

mod expected;
mod outside;
mod places;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, HashSet},
    io,
    os::fd::OwnedFd,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use mesh_model::name::{ClusterId, NodeName, WorkloadUid};
use serde_json::{Value, json};
use tokio::{
    sync::watch,
    time::{Instant, sleep},
};

pub use outside::{OutsideMesh, OutsideParts};
pub use places::Places;

use self::{
    expected::{Open, Suspect, choose, compare, expected},
    places::Namespaces,
};
use crate::{
    capture::{Capture, CaptureGone, Registration},
    observe::Metrics,
    state::{Diffs, MeshState},
    watch::Watch,
};

/// How long changes are gathered before a look.
const GATHER: Duration = Duration::from_millis(50);
/// How long after a look in vain the next one comes; each further one twice as late.
const AGAIN: Duration = Duration::from_millis(250);
/// How often it is looked when nothing changes.
const EVERY: Duration = Duration::from_secs(30);
/// How long a pod may be missing before that is told: pods that end are for a while.
const PATIENCE: Duration = Duration::from_secs(10);

/// What the search needs.
#[derive(Clone, Debug)]
pub struct ScanParts {
    /// This node.
    pub node: NodeName,
    /// Its cluster.
    pub cluster: ClusterId,
    /// The configuration.
    pub state: MeshState,
    /// Where pods are registered.
    pub capture: Capture,
    /// Where namespaces are.
    pub places: Places,
    /// Metrics.
    pub metrics: Metrics,
}

/// What is known of pods that are not found.
#[derive(Clone, Debug, Default)]
pub struct Missing(Arc<Mutex<BTreeMap<String, Absence>>>);

#[derive(Clone, Debug)]
struct Absence {
    why: String,
    since: Instant,
    told: bool,
}

impl Missing {
    /// For the configuration dump.
    pub fn describe(&self) -> Value {
        let all = self.lock();
        let pods = all.iter().map(|(pod, a)| (pod.clone(), json!(a.why)));
        Value::Object(pods.collect())
    }

    /// Those that have been missing for long, as `namespace/name`, and why.
    fn for_long(&self, now: Instant) -> Vec<(String, String)> {
        let all = self.lock();
        let long = all
            .iter()
            .filter(|(_, a)| now.duration_since(a.since) >= PATIENCE);
        long.map(|(pod, a)| (pod.clone(), a.why.clone())).collect()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Absence>> {
        self.0
            .lock()
            .expect("no code panics while it holds what is missing")
    }

    /// Takes in who is missing now, and tells of those who have been for long.
    fn replace(&self, now: BTreeMap<String, String>, metrics: &Metrics) {
        let count = i64::try_from(now.len()).unwrap_or(i64::MAX);
        metrics.node().pods_missing.set(count);
        let mut all = self.lock();
        let mut earlier = std::mem::take(&mut *all);
        for (pod, why) in now {
            let before = earlier.remove(&pod);
            let since = before.as_ref().map_or_else(Instant::now, |b| b.since);
            let told = before.is_some_and(|b| b.told && b.why == why);
            let due = since.elapsed() >= PATIENCE;
            if due && !told {
                tracing::warn!(
                    pod,
                    why,
                    "a pod of this node is not registered, and so not captured"
                );
            }
            let told = told || due;
            all.insert(pod, Absence { why, since, told });
        }
    }
}

/// The search.
#[derive(Debug)]
pub struct Scan {
    parts: ScanParts,
    missing: Missing,
    workloads: HashSet<WorkloadUid>,
    /// Namespaces of registered pods that have been seen where namespaces are.
    seen: HashSet<u64>,
    first: watch::Sender<bool>,
}

impl Scan {
    /// The search, and what it tells: who is missing, and whether a look with a complete configuration is over.
    pub fn new(parts: ScanParts) -> (Self, Missing, watch::Receiver<bool>) {
        let missing = Missing::default();
        let (first, done) = watch::channel(false);
        let scan = Self {
            parts,
            missing: missing.clone(),
            workloads: HashSet::new(),
            seen: HashSet::new(),
            first,
        };
        (scan, missing, done)
    }

    /// Searches until the registry ends.
    pub async fn run(mut self) {
        let mut diffs = self.parts.state.diffs();
        let mut watch = Watch::on(&self.parts.places.named).inspect_err(|error| {
            tracing::warn!(%error, "the runtime's namespaces cannot be watched; they are looked at from time to time");
        }).ok();
        let mut again = AGAIN;
        loop {
            let Ok(whole) = self.look().await else { return };
            let pause = if whole { EVERY } else { again };
            let news = tokio::select! {
                () = self.concerned(&mut diffs) => true,
                () = changed(&mut watch) => true,
                () = sleep(pause) => false,
            };
            again = if news { AGAIN } else { (again * 2).min(EVERY) };
            sleep(GATHER).await;
        }
    }

    /// Waits for a change that has to do with this node's pods.
    async fn concerned(&self, diffs: &mut Diffs) {
        loop {
            let diff = diffs.next().await;
            let snapshot = self.parts.state.load();
            let here = |uid: &WorkloadUid| {
                let workload = snapshot.mesh.workload(uid);
                self.workloads.contains(uid) || workload.is_some_and(|w| w.node == self.parts.node)
            };
            if diff.config || diff.workloads.iter().any(here) {
                return;
            }
        }
    }

    /// Looks once. Says whether every pod that should be registered is.
    async fn look(&mut self) -> Result<bool, CaptureGone> {
        let snapshot = self.parts.state.load();
        let mesh = &snapshot.mesh;
        let mut expected = expected(mesh, &self.parts.cluster, &self.parts.node);
        self.workloads = std::mem::take(&mut expected.workloads);
        // Before the namespaces: that of a pod which is registered meanwhile must not count as gone.
        let known = self.parts.capture.known().await?;
        let Open {
            missing,
            suspects,
            taken,
        } = compare(&mut expected, &known, mesh.is_complete());
        let places = self.parts.places.clone();
        let searched = tokio::task::spawn_blocking(move || search(&places, &taken, missing)).await;
        let (visible, found) = match searched.unwrap_or_else(|e| Err(io::Error::other(e))) {
            Ok(found) => found,
            Err(error) => {
                tracing::warn!(%error, "the network namespaces of this node cannot be looked at; pods are registered by the CNI plugin only");
                return Ok(false);
            }
        };
        self.bury(&suspects, &visible).await?;
        let mut absent = expected.hopeless;
        let mut whole = true;
        for (pod, netns) in found {
            let netns = match netns {
                Ok(netns) => netns,
                Err(why) => {
                    whole = false;
                    absent.insert(format!("{}/{}", pod.namespace, pod.name), why);
                    continue;
                }
            };
            // The configuration is known already: there is nothing to wait for.
            let reply = self.parts.capture.add(pod, netns, Duration::ZERO).await?;
            match reply.error {
                None => drop(self.parts.metrics.node().pods_found.inc()),
                Some(error) => tracing::warn!(error, "a running pod could not be registered"),
            }
        }
        self.missing.replace(absent, &self.parts.metrics);
        if mesh.is_complete() {
            self.first.send_replace(true);
        }
        Ok(whole)
    }

    /// Deletes registered pods whose namespace is gone. One that could never be seen counts as gone only when the
    /// configuration knows nothing of the pod either.
    async fn bury(
        &mut self,
        suspects: &[Suspect],
        visible: &HashSet<u64>,
    ) -> Result<(), CaptureGone> {
        for suspect in suspects {
            let was_there = self.seen.contains(&suspect.inode);
            if !visible.contains(&suspect.inode) && (was_there || !suspect.configured) {
                self.parts.capture.del(suspect.uid.clone()).await?;
            }
        }
        let inodes = suspects.iter().map(|s| s.inode);
        self.seen = inodes.filter(|i| visible.contains(i)).collect();
        Ok(())
    }
}

/// A pod and its namespace, or why there is none.
type Sought = (Registration, Result<OwnedFd, String>);

/// Looks for the namespaces of missing pods. Blocking.
fn search(
    places: &Places,
    taken: &HashSet<u64>,
    missing: Vec<Registration>,
) -> io::Result<(HashSet<u64>, Vec<Sought>)> {
    let Namespaces { visible, free } = places.look(taken, !missing.is_empty())?;
    let sought = |pod: Registration| {
        let named = choose(&pod, free.iter().map(|f| (&f.addresses, &f.netns)));
        let netns = match named {
            Ok(netns) => netns.duplicate().map_err(|e| e.to_string()),
            Err(why) => match places.of_pod(&pod.uid, &pod.addresses) {
                Some(netns) => netns.duplicate().map_err(|e| e.to_string()),
                None => Err(why.to_owned()),
            },
        };
        (pod, netns)
    };
    Ok((visible, missing.into_iter().map(sought).collect()))
}

/// Without a watch, never.
async fn changed(watch: &mut Option<Watch>) {
    match watch {
        Some(watch) => watch.changed().await,
        None => std::future::pending().await,
    }
}
