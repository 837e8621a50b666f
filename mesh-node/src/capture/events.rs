//! What the kernel reports, turned into log lines and metrics: direct flows, refusals at connect, drops.
//!
//! Invariants: a direct flow leaves the same access-log line and counters as one through the proxy, with
//! `path=direct` and never as mutual TLS; lines about drops are limited, counters are not; flows that are
//! remembered are bounded; a live direct flow that a change no longer allows is cut and says so.

use std::{
    collections::HashMap,
    io,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use mesh_model::{
    authz::{Denial, recheck},
    mesh::{Diff, Workload},
    name::NetworkId,
    reason::Reason,
    route::short,
};
use tokio::sync::watch;

use super::{
    Guards,
    kernel::{DirectEnd, DirectFlow, Kernel, KernelEvent},
    sys,
};
use crate::{
    observe::{Direction, FlowGuard, Observer, Party, Path, Verdict, Wire},
    state::MeshState,
};

/// How many events are taken before others get their turn.
const BATCH: usize = 256;
/// How many open direct flows are remembered.
const FLOWS: usize = 65_536;
/// How many lines about drops are written in a second.
const LINES: u32 = 20;

/// Reads and reports.
#[derive(Debug)]
pub struct KernelReporter {
    kernel: Arc<dyn Kernel>,
    state: MeshState,
    observer: Observer,
    network: NetworkId,
    guards: watch::Receiver<Option<Arc<str>>>,
    open: HashMap<(SocketAddr, SocketAddr), FlowGuard>,
    window: (Instant, u32),
    unsaid: u64,
}

impl KernelReporter {
    /// Reports what `kernel` tells, with names from `state`; cuts direct flows while `guards` says that an
    /// interface is open.
    pub fn new(
        kernel: Arc<dyn Kernel>,
        state: MeshState,
        observer: Observer,
        network: NetworkId,
        guards: &Guards,
    ) -> Self {
        Self {
            kernel,
            state,
            observer,
            network,
            guards: guards.opened(),
            open: HashMap::new(),
            window: (Instant::now(), 0),
            unsaid: 0,
        }
    }

    /// Runs until the future is dropped.
    pub async fn run(mut self) -> io::Result<()> {
        let Some(fd) = self.kernel.events_fd()? else {
            return std::future::pending().await;
        };
        let ring = sys::watch_input(fd)?;
        let mut diffs = self.state.diffs();
        loop {
            tokio::select! {
                ready = ring.readable() => {
                    let mut ready = ready?;
                    if self.take() < BATCH {
                        ready.clear_ready();
                        // What came between the last look and the clearing would not wake anybody.
                        self.take();
                    }
                }
                diff = diffs.next() => self.review(&diff),
                open = opened(&mut self.guards) => self.withdraw(&open),
            }
            tokio::task::yield_now().await;
        }
    }

    /// Cuts every live direct flow: somebody may listen who is not the pod.
    pub fn withdraw(&mut self, why: &str) {
        for flow in self.flows() {
            self.cut(flow, None, why);
        }
    }

    /// Takes and reports a batch; says how many events there were.
    pub fn take(&mut self) -> usize {
        let mut events = Vec::new();
        let count = self.kernel.take_events(BATCH, &mut |e| events.push(e));
        let node = self.observer.metrics().node();
        node.kernel_events.inc_by(count as u64);
        node.kernel_events_lost
            .inc_by((count - events.len()) as u64);
        events.into_iter().for_each(|e| self.report(e));
        count
    }

    fn report(&mut self, event: KernelEvent) {
        match event {
            KernelEvent::DirectOpened(flow) => self.opened(flow),
            KernelEvent::DirectClosed(flow, end) => self.closed(flow, end),
            KernelEvent::Refused {
                reason,
                source,
                dialed,
                ..
            } => self.refused(reason, source, dialed),
            KernelEvent::Dropped {
                reason,
                source,
                destination,
                ifindex,
            } => {
                self.dropped(reason, source, destination, ifindex);
            }
        }
    }

    /// Decides again about the live direct flows that a change may concern, and cuts those it no longer allows.
    pub fn review(&mut self, diff: &Diff) {
        let snapshot = self.state.load();
        for flow in self.flows() {
            let at = |a: SocketAddr| snapshot.mesh.workload_at(&self.network, a.ip()).cloned();
            let (Some(from), Some(to)) = (at(flow.source), at(flow.destination)) else {
                continue;
            };
            if !recheck(diff, &to) && !diff.workloads.contains(&from.uid) {
                continue;
            }
            let decision = short(&snapshot.mesh, &from, &to, flow.destination).decision;
            if let Some(Err(denial)) = decision.map(|d| d.outcome) {
                let text = denial.to_string();
                self.cut(flow, Some(denial), &text);
            }
        }
    }

    fn flows(&self) -> Vec<DirectFlow> {
        self.kernel.direct_flows().unwrap_or_else(|error| {
            tracing::error!(%error, "live direct flows cannot be listed; what changed does not reach them");
            Vec::new()
        })
    }

    fn cut(&mut self, flow: DirectFlow, denial: Option<Denial>, why: &str) {
        match self.kernel.cut(flow.source, flow.destination) {
            Ok(true) => {}
            Ok(false) => return,
            Err(error) => {
                tracing::error!(source = %flow.source, destination = %flow.destination, why, %error, "a direct flow that may not go on could not be cut");
                return;
            }
        }
        self.observer.metrics().node().sessions_cut.inc();
        let key = (flow.source, flow.destination);
        let mut guard = self.open.remove(&key).unwrap_or_else(|| self.direct(flow));
        if let Some(denial) = denial {
            guard.record_mut().policy_name = denial.policy;
            guard.record_mut().policy = Some(Verdict::Deny);
        }
        let text = Reason::PolicyChanged.shown().text;
        guard.fail(Reason::PolicyChanged, format!("{text}: {why}"));
        // The line is written when the kernel tells the flow's end, with its bytes.
        self.open.insert(key, guard);
    }

    fn party(&self, addr: SocketAddr) -> Party {
        let snapshot = self.state.load();
        let workload: Option<Arc<Workload>> =
            snapshot.mesh.workload_at(&self.network, addr.ip()).cloned();
        Party {
            addr: Some(addr),
            identity: workload.as_ref().map(|w| w.identity.clone()),
            workload,
        }
    }

    fn direct(&self, flow: DirectFlow) -> FlowGuard {
        let mut guard = self.observer.flow(Direction::Direct, Some(flow.source));
        let (source, destination) = (self.party(flow.source), self.party(flow.destination));
        let service = (flow.dialed.ip() != flow.destination.ip())
            .then(|| {
                self.state
                    .load()
                    .mesh
                    .service_at(&self.network, flow.dialed.ip())
                    .map(|s| s.name.clone())
            })
            .flatten();
        let record = guard.record_mut();
        record.source = source;
        record.destination = destination;
        record.service = service;
        record.path = Some(Path::Direct);
        record.policy = Some(Verdict::Allow);
        guard
    }

    fn opened(&mut self, flow: DirectFlow) {
        // Beyond the limit a flow is counted and logged when it closes.
        if self.open.len() < FLOWS {
            let mut guard = self.direct(flow);
            guard.opened();
            self.open.insert((flow.source, flow.destination), guard);
        }
    }

    fn closed(&mut self, flow: DirectFlow, end: DirectEnd) {
        let known = self.open.remove(&(flow.source, flow.destination));
        let mut guard = known.unwrap_or_else(|| self.direct(flow));
        if end.established {
            guard.opened();
            let node = self.observer.metrics().node();
            node.direct_flows.inc();
            node.direct_retransmits.inc_by(end.retransmits.into());
            let micros = u64::try_from(end.rtt.as_micros()).unwrap_or(u64::MAX);
            node.direct_rtt.inc_by(micros);
            guard.wire(Wire {
                rtt: end.rtt,
                retransmits: end.retransmits,
            });
        } else {
            guard.fail(
                Reason::ConnectRefused,
                "the destination did not accept the connection",
            );
        }
        guard.carried(end.sent, end.received);
        guard.lasted(end.duration);
    }

    fn refused(&mut self, reason: Option<Reason>, source: SocketAddr, dialed: SocketAddr) {
        let mut guard = self.observer.flow(Direction::Outbound, Some(source));
        let (from, to) = (self.party(source), self.party(dialed));
        let service = self
            .state
            .load()
            .mesh
            .service_at(&self.network, dialed.ip())
            .map(|s| s.name.clone());
        let record = guard.record_mut();
        record.source = from;
        record.destination = to;
        record.service = service;
        record.policy = Some(Verdict::Deny);
        let reason = reason.unwrap_or(Reason::Internal);
        guard.fail(
            reason,
            format!("connect() was refused: {}", reason.shown().text),
        );
    }

    fn dropped(
        &mut self,
        reason: Option<Reason>,
        source: SocketAddr,
        destination: SocketAddr,
        ifindex: u32,
    ) {
        if self.window.0.elapsed() >= Duration::from_secs(1) {
            self.window = (Instant::now(), 0);
            if self.unsaid > 0 {
                tracing::warn!(
                    drops = self.unsaid,
                    "further packets were dropped, which the metrics count by reason"
                );
                self.unsaid = 0;
            }
        }
        self.window.1 += 1;
        if self.window.1 > LINES {
            self.unsaid += 1;
            return;
        }
        let (key, text) =
            reason.map_or(("unknown", "unknown"), |r| (r.shown().key, r.shown().text));
        tracing::warn!(reason = key, %source, %destination, ifindex, "a packet was dropped: {text}");
    }
}

/// Waits until an interface is open.
async fn opened(guards: &mut watch::Receiver<Option<Arc<str>>>) -> Arc<str> {
    loop {
        if guards.changed().await.is_err() {
            return std::future::pending().await;
        }
        if let Some(why) = guards.borrow_and_update().clone() {
            return why;
        }
    }
}

impl Drop for KernelReporter {
    fn drop(&mut self) {
        // Direct flows outlive the process that reports them; its successor sees them end.
        self.open.drain().for_each(|(_, guard)| guard.abandon());
    }
}

#[cfg(test)]
#[path = "events_tests.rs"]
mod tests;
