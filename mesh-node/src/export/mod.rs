//! Sends spans to collectors: OTLP over gRPC, in batches.
//!
//! Invariants: it runs on a thread of its own, so that no request waits for a collector; what waits is bounded for each
//! collector, and what is dropped is counted by why (`warren_spans`); a collector is reached as the waypoint's pod reaches
//! anybody, with its identity and through the mesh where it is a service of the mesh.

mod collector;
mod lane;
mod otlp;

use std::{collections::HashMap, io, rc::Rc, sync::Arc, thread::JoinHandle, time::Duration};

use mesh_model::mesh::Collector;
use tokio::{
    sync::{mpsc, oneshot, watch},
    task::{JoinHandle as Task, LocalSet},
};

use self::{collector::Reach, lane::Lane};
use crate::{
    accept::Pod,
    dial::Tunnels,
    observe::{Finished, Spans},
    serve::Shared,
};

/// Collectors that are sent to at the same time.
const COLLECTORS: usize = 16;
/// Spans that wait for one collector.
const WAITING: usize = 2048;
/// How long what is left at the end may take.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// The thread that sends spans.
#[derive(Debug)]
pub struct Exporter {
    stop: oneshot::Sender<()>,
    thread: JoinHandle<()>,
}

impl Exporter {
    /// Starts it; it sends as `pod`, once that is known.
    pub fn start(
        shared: Arc<Shared>,
        finished: mpsc::Receiver<Box<Finished>>,
        pod: watch::Receiver<Option<Arc<Pod>>>,
    ) -> io::Result<Self> {
        let (stop, stopped) = oneshot::channel();
        let run = move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build();
            let runtime =
                runtime.expect("a runtime needs a few descriptors, which a starting process has");
            LocalSet::new().block_on(&runtime, run(shared, finished, pod, stopped));
        };
        let thread = std::thread::Builder::new().name("spans".to_owned());
        Ok(Self {
            stop,
            thread: thread.spawn(run)?,
        })
    }

    /// Sends what is left, for a bounded time.
    pub async fn end(self) {
        // It may have ended by itself.
        let _ = self.stop.send(());
        let joined = tokio::task::spawn_blocking(move || drop(self.thread.join()));
        let _ = tokio::time::timeout(LAST_WORDS * 2, joined).await;
    }
}

/// What is on its way to one collector.
type Lanes = HashMap<Collector, (mpsc::Sender<Finished>, Task<()>)>;

async fn run(
    shared: Arc<Shared>,
    mut finished: mpsc::Receiver<Box<Finished>>,
    mut pod: watch::Receiver<Option<Arc<Pod>>>,
    mut stopped: oneshot::Receiver<()>,
) {
    let known = async {
        let found = pod.wait_for(Option::is_some).await;
        found.ok().and_then(|pod| pod.clone())
    };
    let known = tokio::select! {
        known = known => known,
        _ = &mut stopped => None,
    };
    let Some(pod) = known else {
        return;
    };
    let mut limits = crate::wire::Limits::client();
    limits.idle = shared.limits.tunnel_idle;
    let patience = shared.limits.connect_timeout;
    let reach = Rc::new(Reach {
        tunnels: Rc::new(Tunnels::new(shared.certificates.clone(), limits, patience)),
        shared,
        pod,
    });
    let mut lanes = Lanes::new();
    loop {
        tokio::select! {
            next = finished.recv() => match next {
                Some(span) => pass(&reach, &mut lanes, span),
                None => break,
            },
            _ = &mut stopped => break,
        }
    }
    while let Ok(span) = finished.try_recv() {
        pass(&reach, &mut lanes, span);
    }
    let ending = async {
        for (_, (sender, task)) in lanes {
            drop(sender);
            // A lane that panicked has nothing left to send.
            let _ = task.await;
        }
    };
    if tokio::time::timeout(LAST_WORDS, ending).await.is_err() {
        tracing::warn!("some spans could not be sent before the end");
    }
    reach.tunnels.retire_all();
}

/// Passes a span to its collector's lane.
fn pass(reach: &Rc<Reach>, lanes: &mut Lanes, span: Box<Finished>) {
    let spans: &Spans = &reach.shared.spans;
    let Some(collector) = span.rule.collector.clone() else {
        return spans.count("no_collector", 1);
    };
    // One that had nothing to send for long has ended.
    lanes.retain(|_, (sender, _)| !sender.is_closed());
    if !lanes.contains_key(&collector) && lanes.len() >= COLLECTORS {
        return spans.count("no_collector", 1);
    }
    let begin = || {
        let (sender, waiting) = mpsc::channel(WAITING);
        let lane = Lane::new(reach.clone(), collector.clone());
        (sender, tokio::task::spawn_local(lane.run(waiting)))
    };
    let (lane, _) = lanes.entry(collector.clone()).or_insert_with(begin);
    if lane.try_send(*span).is_err() {
        spans.count("queue_full", 1);
    }
}
