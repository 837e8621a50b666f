//! Counts of what is under way, which bounds are kept by.
//!
//! Invariant: what is counted is given back by a guard, once.

use std::sync::{
    Arc,
    atomic::{AtomicU32, AtomicU64, Ordering::Relaxed},
};

/// A number of things under way.
#[derive(Debug, Default)]
pub struct Count {
    now: AtomicU32,
    ever: AtomicU64,
    refused: AtomicU64,
}

/// One of them, until it is dropped.
#[derive(Debug)]
pub struct Counted(Arc<Count>);

impl Count {
    /// One more, unless there are `most` already.
    pub fn take(self: &Arc<Self>, most: Option<u32>) -> Option<Counted> {
        let most = most.unwrap_or(u32::MAX);
        let more = |now| (now < most).then(|| now + 1);
        if self.now.fetch_update(Relaxed, Relaxed, more).is_err() {
            self.refused.fetch_add(1, Relaxed);
            return None;
        }
        self.ever.fetch_add(1, Relaxed);
        Some(Counted(self.clone()))
    }

    /// How many there are.
    pub fn get(&self) -> u32 {
        self.now.load(Relaxed)
    }

    /// How many there were, with those that there are.
    pub fn ever(&self) -> u64 {
        self.ever.load(Relaxed)
    }

    /// How often there were as many as there may be.
    pub fn refused(&self) -> u64 {
        self.refused.load(Relaxed)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.now.fetch_sub(1, Relaxed);
    }
}
