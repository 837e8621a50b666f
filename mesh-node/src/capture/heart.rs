//! The sign of life that the kernel programs look for, and their counters for the metrics.
//!
//! Invariant: the beat comes from the control runtime, so that a process that hangs there stops it, and new
//! connections are refused rather than left waiting.

use std::{sync::Arc, time::Duration};

use super::Kernel;
use crate::observe::{KernelCounters, Metrics};

/// How often the proxy says that it is alive. The programs wait several times as long.
const EVERY: Duration = Duration::from_secs(1);

/// Beats until the future is dropped.
pub async fn beat(kernel: Arc<dyn Kernel>, metrics: Metrics) {
    let mut every = tokio::time::interval(EVERY);
    every.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
    loop {
        every.tick().await;
        if let Err(error) = kernel.beat() {
            metrics.node().heartbeat_failures.inc();
            tracing::error!(%error, "the sign of life could not be written; the kernel will refuse new connections");
        }
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
