//! The sign of life that the kernel programs look for, and their counters for the metrics.
//!
//! Invariants: the beat comes from the control runtime, so that a process that hangs there stops it, and new
//! connections are refused rather than left waiting; programs of an earlier layout go when nothing needs them,
//! however long that takes.

use std::{sync::Arc, time::Duration};

use super::Kernel;
use crate::lifecycle::Part;
use crate::observe::{KernelCounters, Metrics};

/// How often the proxy says that it is alive. The programs wait several times as long.
const EVERY: Duration = Duration::from_secs(1);
/// How often, in beats, the kernel's maps are cleared of what nobody will ask about, and how old that is.
const SWEEP: u64 = 60;
const LEFT: Duration = Duration::from_secs(60);
/// How often, in beats, the log says that programs of earlier layouts are still needed.
const REMIND: u64 = 3600;

/// Follows whether the pods of this node are being taken out of the mesh, which whoever uninstalls it does behind the
/// process's back: the process is then not ready, and says why.
pub async fn follow_leaving(kernel: Arc<dyn Kernel>, part: Part) {
    let mut every = tokio::time::interval(EVERY);
    let mut was = false;
    loop {
        every.tick().await;
        let leaves = kernel.is_leaving();
        match (was, leaves) {
            (false, true) => {
                tracing::warn!(
                    "this node's pods leave the mesh: from now on they talk in plaintext, and only flows under way go on here"
                );
                part.waits(
                    "a restart: the mesh was taken off this node, whose pods talk in plaintext",
                );
            }
            (_, false) => part.ready(),
            (true, true) => {}
        }
        was = leaves;
    }
}

/// Beats, and keeps the kernel's maps tidy, until the future is dropped.
pub async fn beat(kernel: Arc<dyn Kernel>, metrics: Metrics) {
    let mut every = tokio::time::interval(EVERY);
    every.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
    for count in 1u64.. {
        every.tick().await;
        if let Err(error) = kernel.beat() {
            metrics.node().heartbeat_failures.inc();
            tracing::error!(%error, "the sign of life could not be written; the kernel will refuse new connections");
        }
        if count.is_multiple_of(SWEEP) {
            let (kernel, metrics) = (kernel.clone(), metrics.clone());
            let tidied = tokio::task::spawn_blocking(move || tidy(&*kernel, &metrics, count)).await;
            if let Err(error) = tidied {
                tracing::error!(%error, "tidying the kernel's maps failed");
            }
        }
    }
}

fn tidy(kernel: &dyn Kernel, metrics: &Metrics, count: u64) {
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
    match kernel.purge_older() {
        Ok(sockets) => {
            let shown = i64::try_from(sockets).unwrap_or(i64::MAX);
            metrics.node().elder_sockets.set(shown);
            if sockets > 0 && count.is_multiple_of(REMIND) {
                tracing::warn!(
                    sockets,
                    "programs of an earlier layout are kept for connections that are older than the present one; they go when those end"
                );
            }
        }
        Err(error) => {
            tracing::warn!(%error, "programs of an earlier layout could not be removed; that is tried again")
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{capture::FakeDatapath, lifecycle::Readiness};

    #[tokio::test]
    async fn a_node_that_the_mesh_leaves_is_not_ready() {
        let (kernel, all) = (Arc::new(FakeDatapath::default()), Readiness::default());
        let followed = follow_leaving(kernel.clone(), all.part("capture", "its start"));
        let task = tokio::spawn(followed);
        let until = async |ready: bool| {
            while all.check().is_ok() != ready {
                tokio::task::yield_now().await;
            }
        };
        until(true).await;
        kernel.told().leaving = true;
        until(false).await;
        assert!(all.check().unwrap_err().contains("talk in plaintext"));
        task.abort();
    }

    #[test]
    fn an_earlier_layout_goes_with_its_last_connection_and_not_before() {
        let (kernel, metrics) = (FakeDatapath::default(), Metrics::new());
        let shown = |count: u64| {
            let text = metrics.text().expect("it encodes");
            text.contains(&format!("warren_earlier_layout_sockets {count}"))
        };
        kernel.told().elders = Some(2);
        for minute in 1..=180 {
            tidy(&kernel, &metrics, minute * SWEEP);
        }
        assert_eq!(kernel.told().elders, Some(2), "it went under a connection");
        assert!(shown(2));
        kernel.told().elders = Some(0);
        tidy(&kernel, &metrics, 181 * SWEEP);
        assert_eq!(kernel.told().elders, None, "it outlived its connections");
        assert!(shown(0));
    }
}
