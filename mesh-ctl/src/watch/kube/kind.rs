//! The watch of one kind: found, listed, followed, and begun anew when it breaks.
//!
//! Invariants: what vanished while nobody looked is said to be gone together with the new list, in one batch; a watch
//! that broke begins with a new list, because an API server whose objects are those of a backup again counts versions
//! anew and would tell only of what comes after the last one that we saw; a kind that cannot be read for any reason other
//! than its absence keeps what is known of it; every failure waits before the next attempt.

use std::{collections::HashSet, time::Duration};

use futures_util::StreamExt;
use kube::{
    Api, Client,
    core::ApiResource,
    runtime::watcher::{self, Event, watcher},
};
use mesh_k8s::{KindInfo, ObjectRef};
use mesh_translate::Origin;
use tokio::{sync::mpsc, time::sleep};
use tracing::{debug, info, warn};

use super::{
    raw::Raw,
    serve::{Trouble, find},
};
use crate::watch::{
    Delta,
    typed::{Typed, typed},
};

/// How long a failed attempt waits, first and at most.
const BACK_OFF: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(15));
/// How often an absent kind is looked for.
const LOOK_AGAIN: Duration = Duration::from_secs(5);
/// A kind that was served counts as gone after so many looks in a row, this far apart: a server that starts may not
/// know it yet.
const LOOKS_BEFORE_GONE: (u32, Duration) = (4, Duration::from_secs(1));
/// So many failures in a row, after a watch broke, are worth a word: API servers are started again now and then.
const FAILURES_BEFORE_SAID: u32 = 3;
/// API groups whose objects the server itself has checked; what is unknown there is newer, not misspelt.
const CHECKED_GROUPS: [&str; 3] = ["", "apps", "discovery.k8s.io"];

/// What the watch of a kind tells.
pub(super) enum Told {
    /// Everything there is of the kind, as the difference from what was known.
    All(Vec<Delta>),
    /// A change.
    One(Delta),
    /// The cluster does not have the kind; what was known of it is gone.
    Absent(Vec<Delta>),
    /// It cannot be read at present.
    Trouble(Trouble),
}

/// The watch of one kind.
pub(super) struct Watch {
    client: Client,
    kind: KindInfo,
    index: usize,
    told: mpsc::Sender<(usize, Told)>,
    known: HashSet<ObjectRef>,
    failures: u32,
    /// Whether it was listed and followed before what fails now.
    followed: bool,
    /// Looks in a row that did not find the kind.
    missed: u32,
    /// What was last said to be wrong, so that it is said once.
    trouble: Option<Trouble>,
}

/// The receiver is gone: nothing is left to be done.
struct Closed;

impl Watch {
    pub(super) fn new(
        client: Client,
        kind: KindInfo,
        index: usize,
        told: mpsc::Sender<(usize, Told)>,
    ) -> Self {
        Self {
            client,
            kind,
            index,
            told,
            known: HashSet::new(),
            failures: 0,
            followed: false,
            missed: 0,
            trouble: None,
        }
    }

    /// Watches until nobody listens.
    pub(super) async fn run(mut self) {
        loop {
            let trouble = match find(&self.client, &self.kind).await {
                Ok(resource) => {
                    self.missed = 0;
                    self.follow(&resource).await
                }
                Err(trouble) => Ok(trouble),
            };
            let Ok(trouble) = trouble else { return };
            if self.rest(trouble).await.is_err() {
                return;
            }
        }
    }

    /// Lists and follows; returns what ended it.
    async fn follow(&mut self, resource: &ApiResource) -> Result<Trouble, Closed> {
        let api: Api<Raw> = Api::all_with(self.client.clone(), resource);
        let mut events = std::pin::pin!(watcher(api, watcher::Config::default()));
        let mut listing: Option<(HashSet<ObjectRef>, Vec<Delta>)> = None;
        let name = match resource.group.as_str() {
            "" => resource.plural.clone(),
            group => format!("{}.{group}", resource.plural),
        };
        while let Some(event) = events.next().await {
            let event = match event {
                Ok(event) => event,
                Err(error) => return Ok(read_error(&error, &name)),
            };
            // The first event of a list comes before the server was asked.
            if !matches!(event, Event::Init) {
                self.well();
            }
            match event {
                Event::Init => listing = Some(Default::default()),
                Event::InitApply(raw) => {
                    let (found, deltas) = listing.get_or_insert_default();
                    let (reference, delta) = self.read(raw, resource);
                    found.insert(reference);
                    deltas.push(delta);
                }
                Event::InitDone => {
                    let (found, mut deltas) = listing.take().unwrap_or_default();
                    let gone = self.known.difference(&found).cloned();
                    deltas.extend(gone.map(Delta::Removed));
                    info!(kind = self.kind.kind, version = %resource.version, objects = found.len(), "listed");
                    self.known = found;
                    self.followed = true;
                    self.tell(Told::All(deltas)).await?;
                }
                Event::Apply(raw) => {
                    let (reference, delta) = self.read(raw, resource);
                    self.known.insert(reference);
                    self.tell(Told::One(delta)).await?;
                }
                Event::Delete(raw) => {
                    let (reference, _) = self.read(raw, resource);
                    self.known.remove(&reference);
                    self.tell(Told::One(Delta::Removed(reference))).await?;
                }
            }
        }
        Ok(Trouble::Failed("the watch ended".to_owned()))
    }

    /// Reads an object as every source does.
    fn read(&self, raw: Raw, resource: &ApiResource) -> (ObjectRef, Delta) {
        let meta = kube::Resource::meta(&raw);
        let namespace = meta.namespace.clone().unwrap_or_default();
        let name = meta.name.clone().unwrap_or_default();
        match typed(raw.value(resource)) {
            Typed::Object(object, unknown) => {
                let unknown = match CHECKED_GROUPS.contains(&self.kind.group) {
                    true => [].into(),
                    false => unknown,
                };
                let origin = Origin::default();
                let delta = Delta::Applied {
                    object,
                    origin,
                    unknown,
                };
                (reference_of(&delta), delta)
            }
            Typed::Bad(reference, broken) => {
                let reference =
                    reference.unwrap_or_else(|| ObjectRef::new(self.kind.kind, &namespace, &name));
                (reference.clone(), Delta::Bad(reference, broken))
            }
        }
    }

    async fn tell(&self, told: Told) -> Result<(), Closed> {
        self.told.send((self.index, told)).await.map_err(|_| Closed)
    }

    fn well(&mut self) {
        self.failures = 0;
        if self.trouble.take().is_some() {
            info!(kind = self.kind.kind, "the kind can be read again");
        }
    }

    /// Says what is wrong, once, and waits.
    async fn rest(&mut self, trouble: Trouble) -> Result<(), Closed> {
        let new = self.trouble.as_ref() != Some(&trouble);
        let wait = match &trouble {
            Trouble::Absent => {
                self.missed += 1;
                if !self.known.is_empty() && self.missed < LOOKS_BEFORE_GONE.0 {
                    LOOKS_BEFORE_GONE.1
                } else {
                    let gone: Vec<_> = self.known.drain().map(Delta::Removed).collect();
                    if new || !gone.is_empty() {
                        info!(
                            kind = self.kind.kind,
                            group = self.kind.group,
                            removed = gone.len(),
                            "the cluster does not serve this kind; it is looked for every {LOOK_AGAIN:?}"
                        );
                        self.tell(Told::Absent(gone)).await?;
                    }
                    LOOK_AGAIN
                }
            }
            Trouble::Forbidden { .. } => {
                if new {
                    warn!(kind = self.kind.kind, "{trouble}");
                    self.tell(Told::Trouble(trouble.clone())).await?;
                }
                BACK_OFF.1
            }
            Trouble::Failed(_) => {
                self.failures += 1;
                if self.followed && self.failures < FAILURES_BEFORE_SAID {
                    debug!(kind = self.kind.kind, %trouble, "a watch broke and begins anew");
                    sleep(back_off(self.failures)).await;
                    return Ok(());
                }
                self.followed = false;
                if new {
                    warn!(kind = self.kind.kind, %trouble, "the API server cannot be read; what is known stays in force");
                    self.tell(Told::Trouble(trouble.clone())).await?;
                }
                back_off(self.failures)
            }
        };
        self.trouble = Some(trouble);
        sleep(wait).await;
        Ok(())
    }
}

fn reference_of(delta: &Delta) -> ObjectRef {
    match delta {
        Delta::Applied { object, .. } => object.reference(),
        Delta::Removed(reference) | Delta::Bad(reference, _) => reference.clone(),
    }
}

/// Doubles from one attempt to the next, with a random part so that replicas do not come together.
fn back_off(failures: u32) -> Duration {
    let longest = BACK_OFF
        .0
        .saturating_mul(1 << failures.min(10))
        .min(BACK_OFF.1);
    longest.mul_f64(0.5 + fastrand::f64() / 2.0)
}

fn read_error(error: &watcher::Error, resource: &str) -> Trouble {
    match error {
        watcher::Error::InitialListFailed(error) => Trouble::of(error, "list", resource),
        watcher::Error::WatchStartFailed(error) | watcher::Error::WatchFailed(error) => {
            Trouble::of(error, "watch", resource)
        }
        watcher::Error::WatchError(status) => Trouble::answered(status, "watch", resource),
        watcher::Error::NoResourceVersion => {
            Trouble::Failed("the API server sent an object without a version".to_owned())
        }
    }
}
