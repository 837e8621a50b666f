//! The way of spans to one collector: gathered for a moment, sent together.
//!
//! Invariants: one batch is under way at a time; a batch that fails is dropped and counted, once it failed on a connection
//! that was made for it; after a failure there is a pause, in which what comes waits, or is dropped when too much does.

use std::{rc::Rc, time::Duration};

use mesh_model::mesh::Collector;
use tokio::{
    sync::mpsc,
    time::{Instant, sleep, timeout, timeout_at},
};

use super::{
    collector::{Connection, ExportError, Reach},
    otlp,
};
use crate::observe::Finished;

/// Spans of one batch.
const BATCH: usize = 512;
/// How long spans are gathered.
const GATHER: Duration = Duration::from_secs(1);
/// How long a batch may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// The pauses after failures: the first, and the longest.
const PAUSES: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(30));
/// A lane that has nothing to send for so long ends.
const IDLE: Duration = Duration::from_secs(300);

/// The way to one collector.
pub(super) struct Lane {
    reach: Rc<Reach>,
    collector: Collector,
    connection: Option<Connection>,
    /// Failures since the last success.
    failures: u32,
}

impl Lane {
    pub(super) fn new(reach: Rc<Reach>, collector: Collector) -> Self {
        Self {
            reach,
            collector,
            connection: None,
            failures: 0,
        }
    }

    /// Sends until nobody has anything to send any more.
    pub(super) async fn run(mut self, mut waiting: mpsc::Receiver<Finished>) {
        let mut batch = Vec::new();
        while let Ok(Some(first)) = timeout(IDLE, waiting.recv()).await {
            batch.push(first);
            let until = Instant::now() + GATHER;
            while batch.len() < BATCH {
                let left = BATCH - batch.len();
                match timeout_at(until, waiting.recv_many(&mut batch, left)).await {
                    Ok(0) | Err(_) => break,
                    Ok(_) => {}
                }
            }
            self.deliver(std::mem::take(&mut batch)).await;
            if self.failures > 0 && !waiting.is_closed() {
                let doubled = PAUSES.0 * 2u32.saturating_pow(self.failures.min(8) - 1);
                sleep(doubled.min(PAUSES.1).mul_f64(0.75 + fastrand::f64() / 2.0)).await;
            }
        }
    }

    /// Sends a batch, and counts what became of it.
    async fn deliver(&mut self, batch: Vec<Finished>) {
        let spans = &self.reach.shared.spans;
        let sent = timeout(
            PATIENCE,
            send(&self.reach, &self.collector, &mut self.connection, &batch),
        );
        let error = match sent.await.unwrap_or(Err(ExportError::Timeout)) {
            Ok(rejected) => {
                let rejected = rejected.min(batch.len());
                spans.count("exported", batch.len() - rejected);
                spans.count("rejected", rejected);
                self.failures = 0;
                return;
            }
            Err(error) => error,
        };
        self.connection = None;
        self.failures += 1;
        spans.count(error.result(), batch.len());
        let Collector { hostname, port, .. } = &self.collector;
        if self.failures == 1 {
            tracing::warn!(%hostname, port, %error, spans = batch.len(), "spans could not be sent and are dropped");
        } else {
            tracing::debug!(%hostname, port, %error, spans = batch.len(), "spans could not be sent");
        }
    }
}

/// Sends a batch, on the connection that is there or on a new one; gives how many spans the collector did not want.
async fn send(
    reach: &Rc<Reach>,
    collector: &Collector,
    connection: &mut Option<Connection>,
    batch: &[Finished],
) -> Result<usize, ExportError> {
    let request = || otlp::request(&reach.own(), batch);
    if let Some(open) = connection
        && let Ok(rejected) = open.export(request()).await
    {
        return Ok(rejected);
    }
    let open = connection.insert(reach.connect(collector).await?);
    open.export(request()).await
}
