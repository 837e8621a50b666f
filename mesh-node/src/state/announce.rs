//! Telling readers what changed, without a queue that could grow: what a reader has not taken yet is merged.
//!
//! Invariant: a reader that comes late sees every name that changed since it last looked, each once.

use std::{
    collections::HashSet,
    hash::Hash,
    sync::{Arc, Mutex, PoisonError, Weak},
};

use mesh_model::mesh::Diff;
use tokio::sync::Notify;

/// Who wants to be told.
#[derive(Debug, Default)]
pub struct Announcements {
    readers: Mutex<Vec<Weak<Mailbox>>>,
}

#[derive(Debug, Default)]
struct Mailbox {
    pending: Mutex<Option<Diff>>,
    filled: Notify,
}

/// A reader of diffs.
#[derive(Debug)]
pub struct Diffs(Arc<Mailbox>);

impl Announcements {
    /// A new reader; it sees what changes from now on.
    pub fn subscribe(&self) -> Diffs {
        let mailbox = Arc::new(Mailbox::default());
        self.readers
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(Arc::downgrade(&mailbox));
        Diffs(mailbox)
    }

    /// Tells every reader.
    pub fn announce(&self, diff: &Diff) {
        if *diff == Diff::default() {
            return;
        }
        self.readers
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .retain(|reader| {
                let Some(mailbox) = reader.upgrade() else {
                    return false;
                };
                let mut pending = mailbox
                    .pending
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner);
                match pending.as_mut() {
                    Some(earlier) => merge(earlier, diff),
                    None => *pending = Some(diff.clone()),
                }
                drop(pending);
                mailbox.filled.notify_one();
                true
            });
    }
}

impl Diffs {
    /// What changed since the last call; waits until something has.
    pub async fn next(&mut self) -> Diff {
        loop {
            if let Some(diff) = self
                .0
                .pending
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .take()
            {
                return diff;
            }
            self.0.filled.notified().await;
        }
    }
}

fn merge(into: &mut Diff, from: &Diff) {
    let Diff {
        workloads,
        services,
        policies,
        config,
        everyone,
    } = from;
    extend(&mut into.workloads, workloads);
    extend(&mut into.services, services);
    extend(&mut into.policies, policies);
    into.config |= config;
    into.everyone |= everyone;
}

fn extend<T: Clone + Eq + Hash>(into: &mut Vec<T>, from: &[T]) {
    if from.is_empty() {
        return;
    }
    let known: HashSet<T> = into.iter().cloned().collect();
    into.extend(from.iter().filter(|n| !known.contains(*n)).cloned());
}

#[cfg(test)]
mod tests {
    use super::*;

    fn diff(workloads: &[&str], config: bool) -> Diff {
        Diff {
            workloads: workloads.iter().map(|&w| w.into()).collect(),
            config,
            ..Diff::default()
        }
    }

    #[tokio::test]
    async fn what_was_not_taken_is_merged() {
        let all = Announcements::default();
        let mut reader = all.subscribe();
        all.announce(&Diff::default());
        all.announce(&diff(&["a", "b"], false));
        all.announce(&diff(&["b", "c"], true));
        assert_eq!(reader.next().await, diff(&["a", "b", "c"], true));
        all.announce(&diff(&["d"], false));
        assert_eq!(reader.next().await, diff(&["d"], false));
        drop(reader);
        all.announce(&diff(&["e"], false));
        assert!(all.readers.lock().expect("not poisoned").is_empty());
    }
}
