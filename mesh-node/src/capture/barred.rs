//! Captured pods that begin to carry traffic of others: barred, and admitted again when that is over.
//!
//! Invariants: a barred pod stays captured, because letting go of it would open it; none of its flows is served,
//! through the proxy or direct; a look never holds up the registry, and the looks are spread over time.

use std::sync::Arc;

use tokio::task::JoinError;

use super::{
    Netns,
    enrol::{EnrolError, foreign, forwarding},
    registration::Registration,
    registry::CaptureTask,
    wanted::Terms,
};

/// How often each captured pod is looked at, in ticks of the registry.
const EVERY: u32 = 5;

/// What a look at a pod found.
#[derive(Debug)]
pub(super) struct Look {
    uid: String,
    netns: Arc<Netns>,
    found: Result<Option<String>, EnrolError>,
}

/// A pod whose turn it is.
struct Due {
    pod: Registration,
    netns: Arc<Netns>,
    terms: Terms,
    barred: bool,
}

impl Due {
    fn look(self) -> Look {
        let found = if self.barred || self.terms.allow_forwarded {
            // Whatever barred it has to be over.
            foreign(&self.pod, &self.netns, &self.terms)
        } else {
            forwarding(&self.netns)
        };
        Look {
            uid: self.pod.uid,
            netns: self.netns,
            found,
        }
    }
}

impl CaptureTask {
    /// Begins to look at the pods whose turn it is, unless earlier looks still last.
    pub(super) fn look(&mut self) {
        if !self.looks.is_empty() {
            return;
        }
        let now = self.ticks % EVERY;
        let turn = self.pods.iter().filter(|(uid, _)| turn(uid) == now);
        let due: Vec<Due> = turn
            .filter_map(|(_, entry)| {
                let live = entry.live.as_ref()?;
                Some(Due {
                    pod: entry.report.pod.clone(),
                    netns: entry.netns.clone()?,
                    terms: live.terms.clone(),
                    barred: live.barred.is_some(),
                })
            })
            .collect();
        if !due.is_empty() {
            self.looks
                .spawn_blocking(|| due.into_iter().map(Due::look).collect());
        }
    }

    /// Takes in what looks found.
    pub(super) async fn looked(&mut self, looks: Result<Vec<Look>, JoinError>) {
        if self.paused {
            return;
        }
        let looks = looks.unwrap_or_else(|error| {
            tracing::error!(%error, "looking at captured pods failed");
            Vec::new()
        });
        for Look { uid, netns, found } in looks {
            let Some(entry) = self.pods.get_mut(&uid) else {
                continue;
            };
            let same = entry.netns.as_ref().is_some_and(|n| Arc::ptr_eq(n, &netns));
            let Some(live) = entry.live.as_mut().filter(|_| same) else {
                continue;
            };
            match found {
                Ok(found) if live.barred == found && live.direct == found.is_none() => {}
                Ok(found) => {
                    live.barred = found;
                    self.judge(&uid).await;
                }
                Err(error) => {
                    tracing::warn!(pod = entry.report.pod.title(), %error, "whether it carries traffic of others could not be seen");
                }
            }
        }
        self.publish_counts();
    }
}

/// The tick, of `EVERY`, at which a pod is looked at.
fn turn(uid: &str) -> u32 {
    let sum = uid.bytes().fold(0u32, |sum, byte| {
        sum.wrapping_mul(31).wrapping_add(byte.into())
    });
    sum % EVERY
}
