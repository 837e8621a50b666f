//! The addresses of endpoints that are known by host name only, kept for as long as they hold.
//!
//! Invariants: an answer is used no longer than its time to live, within bounds; when resolving fails, what
//! was known stays in use and is asked for again after a pause; a bounded number of names is kept, and those
//! longest unused go first; the data path waits a bounded time and never resolves by itself.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use mesh_model::name::Hostname;
use tokio::{
    sync::{Semaphore, mpsc, watch},
    time::{Instant, timeout},
};

use super::resolve::{Found, ResolveError, Resolvers};
use crate::observe::{Metrics, ResultLabel};

/// Names kept at once.
const MOST: usize = 4096;
/// Names that may wait to be resolved.
const QUEUE: usize = 1024;
/// Names being resolved at once.
const AT_ONCE: usize = 32;
/// How long a flow waits for an answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// Within which bounds an answer's time to live is respected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TtlBounds {
    /// The shortest time; also the pause after a failure.
    pub least: Duration,
    /// The longest time.
    pub most: Duration,
}

/// Why a name has no addresses.
#[derive(Clone, Debug, thiserror::Error)]
pub enum NameError {
    /// It does not exist, or has none.
    #[error("the host name {0:?} has no address")]
    NoAddress(Hostname),
    /// It could not be resolved, and nothing is known from before.
    #[error("the host name {0:?} could not be resolved: {1}")]
    Failed(Hostname, Arc<str>),
    /// The answer took too long.
    #[error("the host name {0:?} was not resolved in time")]
    Late(Hostname),
    /// Too many names are being resolved.
    #[error("too many host names are being resolved; {0:?} has to wait")]
    Full(Hostname),
}

/// The known names. Cloning shares them.
#[derive(Clone, Debug)]
pub struct Names(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    table: Mutex<HashMap<Hostname, Entry>>,
    questions: mpsc::Sender<Hostname>,
}

#[derive(Debug)]
struct Entry {
    known: watch::Sender<Known>,
    used: Instant,
}

#[derive(Clone, Debug)]
struct Known {
    addresses: Arc<[IpAddr]>,
    good_until: Instant,
    asking: bool,
    failure: Option<Arc<str>>,
}

/// The task that resolves.
#[derive(Debug)]
pub struct NameTask {
    names: Names,
    asked: mpsc::Receiver<Hostname>,
    resolvers: Resolvers,
    bounds: TtlBounds,
    metrics: Metrics,
}

impl Names {
    /// No names yet, and the task that finds them out.
    pub fn new(resolvers: Resolvers, bounds: TtlBounds, metrics: Metrics) -> (Self, NameTask) {
        let (questions, asked) = mpsc::channel(QUEUE);
        let names = Self(Arc::new(Inner {
            table: Mutex::default(),
            questions,
        }));
        let task = NameTask {
            names: names.clone(),
            asked,
            resolvers,
            bounds,
            metrics,
        };
        (names, task)
    }

    /// The addresses of a host, at least one.
    pub async fn lookup(&self, host: &Hostname) -> Result<Arc<[IpAddr]>, NameError> {
        let mut answer = match self.ask(host)? {
            Asked::Known(known) => return known.outcome(host),
            Asked::Waits(answer) => answer,
        };
        let waited = timeout(PATIENCE, answer.wait_for(|k| !k.asking)).await;
        // When the name was displaced by others or its answer is late, what was known before must do.
        drop(waited);
        let known = answer.borrow().clone();
        match known.outcome(host) {
            Err(NameError::NoAddress(host)) if known.asking => Err(NameError::Late(host)),
            other => other,
        }
    }

    /// What is known, or the answer to wait for; asks for it when nobody has.
    fn ask(&self, host: &Hostname) -> Result<Asked, NameError> {
        let now = Instant::now();
        let mut table = self.table();
        if !table.contains_key(host) && table.len() >= MOST {
            make_room(&mut table).ok_or_else(|| NameError::Full(host.clone()))?;
        }
        let entry = table.entry(host.clone()).or_insert_with(|| Entry {
            known: watch::Sender::new(Known {
                addresses: Arc::new([]),
                good_until: now,
                asking: false,
                failure: None,
            }),
            used: now,
        });
        entry.used = now;
        let known = entry.known.borrow().clone();
        if now < known.good_until {
            return Ok(Asked::Known(known));
        }
        if !known.asking {
            if self.0.questions.try_send(host.clone()).is_err() {
                if known.addresses.is_empty() {
                    return Err(NameError::Full(host.clone()));
                }
                return Ok(Asked::Known(known));
            }
            entry.known.send_modify(|k| k.asking = true);
        }
        Ok(Asked::Waits(entry.known.subscribe()))
    }

    fn settle(&self, host: &Hostname, outcome: Result<Found, ResolveError>, bounds: TtlBounds) {
        let now = Instant::now();
        // The name may have been displaced meanwhile: nobody waits for it then.
        let table = self.table();
        let Some(entry) = table.get(host) else { return };
        entry.known.send_modify(|known| {
            known.asking = false;
            match outcome {
                Ok(found) => {
                    known.addresses = found.addresses.into();
                    known.failure = None;
                    known.good_until = now + found.ttl.clamp(bounds.least, bounds.most);
                }
                Err(error) => {
                    // Said once, and again when it has worked in between.
                    if known.failure.is_none() {
                        tracing::warn!(%host, %error, "a host name could not be resolved; what was known of it stays in use");
                    }
                    known.failure = Some(error.to_string().into());
                    known.good_until = now + bounds.least;
                }
            }
        });
    }

    fn table(&self) -> MutexGuard<'_, HashMap<Hostname, Entry>> {
        self.0.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

enum Asked {
    Known(Known),
    Waits(watch::Receiver<Known>),
}

impl Known {
    fn outcome(&self, host: &Hostname) -> Result<Arc<[IpAddr]>, NameError> {
        match &self.failure {
            _ if !self.addresses.is_empty() => Ok(self.addresses.clone()),
            Some(failure) => Err(NameError::Failed(host.clone(), failure.clone())),
            None => Err(NameError::NoAddress(host.clone())),
        }
    }
}

/// Forgets the name that was not used for the longest time; none when all are being resolved.
fn make_room(table: &mut HashMap<Hostname, Entry>) -> Option<()> {
    let oldest = table
        .iter()
        .filter(|(_, e)| !e.known.borrow().asking)
        .min_by_key(|(_, e)| e.used)
        .map(|(host, _)| host.clone())?;
    table.remove(&oldest);
    Some(())
}

impl NameTask {
    /// Resolves what is asked for, for ever.
    pub async fn run(mut self) {
        let room = Arc::new(Semaphore::new(AT_ONCE));
        while let Some(host) = self.asked.recv().await {
            let Ok(permit) = room.clone().acquire_owned().await else {
                return;
            };
            let (names, resolvers, bounds) =
                (self.names.clone(), self.resolvers.clone(), self.bounds);
            let lookups = self.metrics.node().name_lookups.clone();
            tokio::spawn(async move {
                let outcome = resolvers.addresses(host.as_str()).await;
                let result = match &outcome {
                    Ok(found) if found.addresses.is_empty() => "empty",
                    Ok(_) => "answered",
                    Err(_) => "failed",
                };
                lookups.get_or_create(&ResultLabel { result }).inc();
                names.settle(&host, outcome, bounds);
                drop(permit);
            });
        }
    }
}

#[cfg(test)]
#[path = "names_tests.rs"]
mod tests;
