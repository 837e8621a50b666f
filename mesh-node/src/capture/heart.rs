//! The sign of life that the kernel programs look for, and their counters for the metrics.
//!
//! Invariant: the beat comes from the control runtime, so that a process that hangs there stops it, and new
//! connections are refused rather than left waiting.

use std::{sync::Arc, time::Duration};

use super::Kernel;
use crate::observe::{KernelCounters, Metrics};

/// How often the proxy says that it is alive. The programs wait several times as long.
const EVERY: Duration = Duration::from_secs(1);
/// How often, in beats, the kernel's maps are cleared of what nobody will ask about, and how old that is.
const SWEEP: u64 = 60;
const LEFT: Duration = Duration::from_secs(60);
/// After how many beats programs of earlier layouts go: their flows are over, or have had an hour.
const PURGE: u64 = 3600;

/// Beats, and keeps the kernel's maps tidy, until the future is dropped.
pub async fn beat(kernel: Arc<dyn Kernel>, metrics: Metrics) {
    let mut every = tokio::time::interval(EVERY);
    every.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
    for count in 1.. {
        every.tick().await;
        if let Err(error) = kernel.beat() {
            metrics.node().heartbeat_failures.inc();
            tracing::error!(%error, "the sign of life could not be written; the kernel will refuse new connections");
        }
        tidy(&kernel, count).await;
    }
}

async fn tidy(kernel: &Arc<dyn Kernel>, count: u64) {
    if !count.is_multiple_of(SWEEP) {
        return;
    }
    let kernel = kernel.clone();
    let work = move || {
        match kernel.sweep(LEFT) {
            Ok(0) => {}
            Ok(swept) => tracing::info!(
                swept,
                "captured connections that no proxy took were forgotten"
            ),
            Err(error) => {
                tracing::warn!(%error, "the kernel's maps could not be cleared of old entries")
            }
        }
        if count == PURGE
            && let Err(error) = kernel.purge_older()
        {
            tracing::warn!(%error, "programs of an earlier layout could not be removed");
        }
    };
    if let Err(error) = tokio::task::spawn_blocking(work).await {
        tracing::error!(%error, "tidying the kernel's maps failed");
    }
}

/// The kernel's counters, as the metrics want them.
#[derive(Debug)]
pub struct KernelMetrics(pub Arc<dyn Kernel>);

impl KernelCounters for KernelMetrics {
    fn read(&self) -> Vec<(&'static str, &'static str, u64)> {
        self.0.counters().unwrap_or_else(|error| {
            tracing::warn!(%error, "the kernel's counters could not be read");
            Vec::new()
        })
    }
}
