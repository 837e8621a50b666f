//! How the process ends: it serves, it drains, it is over.
//!
//! Invariants: phases only move forward; a drain ends when the last flow has, or at its deadline; a second
//! signal ends it at once, a first one cuts no drain short.

use std::{io, sync::Arc, time::Duration};

use tokio::{
    signal::unix::{SignalKind, signal},
    sync::watch,
    time::Instant,
};

/// How often live flows are counted while the process drains.
const LOOK: Duration = Duration::from_millis(50);

/// Where the process is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// It takes new flows.
    Serving,
    /// It takes no new flows and waits for those it has.
    Draining {
        /// When they are ended by force.
        until: Instant,
        /// Why.
        ending: Ending,
    },
    /// It ends.
    Over,
}

/// Why a process drains.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// It was told to stop: listeners close, peers are told to go away.
    Stop,
    /// A successor serves the same listeners: they stay open, only the flows end here.
    HandedOver,
}

/// The phase, for everybody to see. Cloning shares it.
#[derive(Clone, Debug)]
pub struct Lifecycle {
    phase: Arc<watch::Sender<Phase>>,
}

impl Default for Lifecycle {
    fn default() -> Self {
        Self {
            phase: Arc::new(watch::Sender::new(Phase::Serving)),
        }
    }
}

impl Lifecycle {
    /// The phase now.
    pub fn phase(&self) -> Phase {
        *self.phase.borrow()
    }

    /// To be told of changes.
    pub fn subscribe(&self) -> watch::Receiver<Phase> {
        self.phase.subscribe()
    }

    /// Begins to drain, if it has not begun yet; says whether it does now.
    pub fn drain(&self, limit: Duration, ending: Ending) -> bool {
        self.phase.send_if_modified(|phase| {
            let serving = *phase == Phase::Serving;
            if serving {
                *phase = Phase::Draining {
                    until: Instant::now() + limit,
                    ending,
                };
            }
            serving
        })
    }

    /// Ends now.
    pub fn end(&self) {
        self.phase.send_replace(Phase::Over);
    }

    /// Waits until the process drains, and says why.
    pub async fn draining(&self) -> Ending {
        let mut phase = self.phase.subscribe();
        let found = phase.wait_for(|p| *p != Phase::Serving).await;
        match found.map(|p| *p) {
            Ok(Phase::Draining { ending, .. }) => ending,
            // The sender is `self`, so that the channel cannot have closed.
            Ok(Phase::Over | Phase::Serving) | Err(_) => Ending::Stop,
        }
    }

    /// Waits until nothing is live any more, the deadline has passed, or somebody ended it; then it is over.
    /// Says how many flows were left.
    pub async fn drained(&self, live: impl Fn() -> usize) -> usize {
        self.draining().await;
        loop {
            let left = live();
            match self.phase() {
                Phase::Draining { until, .. } if left > 0 && Instant::now() < until => {
                    tokio::time::sleep(LOOK).await
                }
                Phase::Serving | Phase::Draining { .. } | Phase::Over => {
                    self.end();
                    return left;
                }
            }
        }
    }
}

/// Drains on SIGTERM or SIGINT; ends at the second one. Runs until then.
pub async fn end_of_signals(lifecycle: Lifecycle, limit: Duration) -> io::Result<()> {
    let (mut term, mut interrupt) = (
        signal(SignalKind::terminate())?,
        signal(SignalKind::interrupt())?,
    );
    for count in 0.. {
        tokio::select! {
            _ = term.recv() => {}
            _ = interrupt.recv() => {}
        }
        if count > 0 {
            tracing::warn!("told to stop again: ending now");
            lifecycle.end();
            return Ok(());
        }
        if lifecycle.drain(limit, Ending::Stop) {
            tracing::info!(limit = ?limit, "told to stop: no new flows, waiting for those under way");
        } else {
            // Whoever replaces a process tells it to stop once the successor is ready: its flows are not over yet.
            tracing::info!("told to stop while draining: waiting on for the flows under way");
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

    use super::*;

    #[tokio::test]
    async fn a_drain_waits_for_flows_until_its_deadline() {
        let check = async |flows: usize,
                           ends_after: Duration,
                           limit: Duration,
                           left: usize,
                           at_least: Duration| {
            let lifecycle = Lifecycle::default();
            let live = Arc::new(AtomicUsize::new(flows));
            let ending = live.clone();
            tokio::spawn(async move {
                tokio::time::sleep(ends_after).await;
                ending.store(0, SeqCst);
            });
            let begun = Instant::now();
            assert!(lifecycle.drain(limit, Ending::HandedOver));
            assert!(!lifecycle.drain(LONG, Ending::Stop), "a drain began twice");
            assert_eq!(lifecycle.draining().await, Ending::HandedOver);
            assert_eq!(lifecycle.drained(|| live.load(SeqCst)).await, left);
            assert!(
                begun.elapsed() >= at_least && begun.elapsed() < LONG,
                "it took {:?}",
                begun.elapsed()
            );
            assert_eq!(lifecycle.phase(), Phase::Over);
        };
        const LONG: Duration = Duration::from_secs(60);
        const SHORT: Duration = Duration::from_millis(20);
        check(0, LONG, LONG, 0, Duration::ZERO).await;
        check(3, SHORT, LONG, 0, SHORT).await;
        check(3, LONG, SHORT, 3, SHORT).await;
    }
}
