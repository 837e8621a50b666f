//! The pods of this node: one task owns them all, everyone else asks it.
//!
//! Invariants: requests are carried out one after another; an `add` is answered when its outcome is certain,
//! at the latest when its time is up; what belongs to a deleted pod stays in the kernel until its network
//! namespace is gone.

use std::{collections::BTreeMap, io, net::IpAddr, os::fd::OwnedFd, sync::Arc, time::Duration};

use mesh_model::name::{ClusterId, Namespace};
use tokio::{
    sync::{mpsc, oneshot, watch},
    task::JoinSet,
    time::{Instant, sleep_until},
};

use super::{
    Enroller, Finder, Netns,
    barred::Look,
    handle::Command,
    judge::Live,
    registration::{PodReport, PodState, Registration, Reply},
    saved::{SavedPod, SavedPods},
    sockets::Doors,
    veth,
};
use crate::{
    accept::{ListenError, Listeners},
    dns::{DnsEvent, DnsGone, DnsHandle},
    observe::Metrics,
    state::{EnrolledNamespaces, MeshState},
};

/// How often the registry looks for what time alone changes.
const TICK: Duration = Duration::from_secs(1);
/// How often stocks of sockets that nobody uses shrink, in ticks.
const REST: u32 = 30;

/// What the registry is made of.
#[derive(Debug)]
pub struct CaptureParts {
    /// The cluster that this node belongs to.
    pub cluster: ClusterId,
    /// The configuration.
    pub state: MeshState,
    /// Namespaces that were enrolled when configuration was last complete.
    pub namespaces: EnrolledNamespaces,
    /// The controller's own namespace, where that is known. Before there is any configuration its pods are left alone:
    /// captured they would wait for configuration that only they can send.
    pub home: Option<Namespace>,
    /// Does the work per pod.
    pub enroller: Enroller,
    /// The data threads.
    pub listeners: Listeners,
    /// The DNS server.
    pub dns: DnsHandle,
    /// Pods on disk.
    pub saved: SavedPods,
    /// Finds namespaces again.
    pub finder: Finder,
    /// Metrics.
    pub metrics: Metrics,
}

/// A pod in the registry.
#[derive(Debug)]
pub(super) struct Entry {
    pub report: PodReport,
    /// The namespace's inode, for the record of a pod whose namespace is gone.
    pub inode: u64,
    pub netns: Option<Arc<Netns>>,
    pub live: Option<Live>,
    /// Listeners of an earlier process, until the pod is enrolled here.
    pub handed: Option<Doors>,
    /// Whether an earlier process had captured it: it stays captured until configuration says otherwise.
    pub was_captured: bool,
    pub waiters: Vec<Waiter>,
    pub retry: Option<Instant>,
    pub failures: u32,
}

#[derive(Debug)]
pub(super) struct Waiter {
    pub deadline: Instant,
    pub reply: oneshot::Sender<Reply>,
}

impl Entry {
    pub fn new(pod: Registration, netns: Option<Arc<Netns>>) -> Self {
        Self {
            report: PodReport {
                pod,
                state: PodState::Waiting,
                reason: None,
            },
            inode: netns.as_ref().map_or(0, |n| n.inode()),
            netns,
            live: None,
            handed: None,
            was_captured: false,
            waiters: Vec::new(),
            retry: None,
            failures: 0,
        }
    }

    pub fn saved(&self) -> SavedPod {
        SavedPod {
            report: self.report.clone(),
            netns: self.inode,
        }
    }
}

/// The registry's task.
#[derive(Debug)]
pub struct CaptureTask {
    pub(super) parts: CaptureParts,
    commands: mpsc::Receiver<Command>,
    pub(super) pods: BTreeMap<String, Entry>,
    pub(super) paused: bool,
    pub(super) settled: watch::Sender<bool>,
    pub(super) ticks: u32,
    /// Looks at captured pods that are under way: one at most.
    pub(super) looks: JoinSet<Vec<Look>>,
}

/// The node's side of a pod's veth, when whoever registers the pod does not name it; 0 when there is none.
async fn find_veth(pod: &Registration, netns: &Arc<Netns>) -> u32 {
    let (inside, addresses) = (netns.clone(), pod.addresses.clone());
    let found = tokio::task::spawn_blocking(move || veth::find(&inside, &addresses)).await;
    match found.unwrap_or_else(|panic| Err(io::Error::other(panic))) {
        Ok(found) => found.unwrap_or(0),
        Err(error) => {
            tracing::warn!(pod = pod.title(), %error, "looking for the node's side of its veth failed");
            0
        }
    }
}

/// In whatever order.
fn same(one: &[IpAddr], other: &[IpAddr]) -> bool {
    one.len() == other.len() && one.iter().all(|ip| other.contains(ip))
}

/// Why a pod's sockets could not be given to those who serve them: the process is ending.
#[derive(Debug, thiserror::Error)]
pub(super) enum AnnounceError {
    #[error(transparent)]
    Threads(#[from] ListenError),
    #[error(transparent)]
    Dns(#[from] DnsGone),
}

impl CaptureTask {
    pub(super) fn new(
        parts: CaptureParts,
        commands: mpsc::Receiver<Command>,
        settled: watch::Sender<bool>,
    ) -> Self {
        Self {
            parts,
            commands,
            pods: BTreeMap::new(),
            paused: false,
            settled,
            ticks: 0,
            looks: JoinSet::new(),
        }
    }

    /// Runs until every handle is gone.
    pub async fn run(mut self) {
        let mut diffs = self.parts.state.diffs();
        let mut tick = Instant::now() + TICK;
        loop {
            let next = self.deadlines().min().map_or(tick, |d| d.min(tick));
            tokio::select! {
                command = self.commands.recv() => match command {
                    Some(command) => self.carry_out(command).await,
                    None => return,
                },
                _ = diffs.next() => self.reconcile().await,
                Some(looked) = self.looks.join_next() => self.looked(looked).await,
                () = sleep_until(next) => {
                    if Instant::now() >= tick {
                        tick = Instant::now() + TICK;
                        self.tick().await;
                    }
                    self.expire().await;
                }
            }
        }
    }

    fn deadlines(&self) -> impl Iterator<Item = Instant> {
        let frozen = self.paused;
        let of = |e: &Entry| e.waiters.iter().map(|w| w.deadline).chain(e.retry).min();
        self.pods.values().filter(move |_| !frozen).filter_map(of)
    }

    async fn carry_out(&mut self, command: Command) {
        // Whoever does not wait for an answer any more does not need it.
        match command {
            Command::Add {
                pod,
                netns,
                deadline,
                reply,
            } => self.add(pod, netns, Waiter { deadline, reply }).await,
            Command::Del { uid, reply } => drop(reply.send(self.del(&uid).await)),
            Command::List { reply } => {
                drop(reply.send(self.pods.values().map(|e| e.report.clone()).collect()))
            }
            Command::Known { reply } => drop(reply.send(self.known())),
            Command::Restore { done } => drop(done.send(self.restore().await)),
            Command::Adopt { pods, done } => drop(done.send(self.adopt(pods).await)),
            Command::Export { reply } => {
                self.paused = true;
                let _ = reply.send(self.export());
            }
            Command::Close { done } => {
                self.close().await;
                let _ = done.send(());
            }
            Command::Pause { done } => {
                self.paused = true;
                self.told(self.parts.listeners.pause().await.err());
                self.told(self.parts.dns.tell(DnsEvent::Pause).await.err());
                let _ = done.send(());
            }
            Command::Resume { done } => {
                self.told(self.parts.listeners.resume().await.err());
                self.told(self.parts.dns.tell(DnsEvent::Resume).await.err());
                self.paused = false;
                self.reconcile().await;
                let _ = done.send(());
            }
        }
    }

    /// Lets go of the registry's own descriptors of listeners; the data threads close theirs when they drain.
    async fn close(&mut self) {
        self.paused = true;
        for live in self.pods.values_mut().filter_map(|e| e.live.as_mut()) {
            live.doors = Arc::new(Doors::default());
            if self
                .parts
                .dns
                .tell(DnsEvent::Remove(live.pod.uid.clone()))
                .await
                .is_err()
            {
                // The DNS server has ended, and its sockets with it.
                break;
            }
        }
    }

    fn known(&self) -> Vec<SavedPod> {
        self.pods.values().map(Entry::saved).collect()
    }

    fn told<E: std::error::Error>(&self, failure: Option<E>) {
        if let Some(error) = failure {
            tracing::warn!(%error, "not everybody could be told");
        }
    }

    async fn add(&mut self, mut pod: Registration, netns: OwnedFd, waiter: Waiter) {
        if self.paused {
            let text = format!(
                "pod {}: this node proxy has handed over to its successor; register there",
                pod.title()
            );
            let _ = waiter.reply.send(Reply::error(text));
            return;
        }
        let netns = match Netns::from_fd(netns) {
            Ok(netns) => Arc::new(netns),
            Err(error) => {
                let text = format!(
                    "pod {}: the descriptor that came with it cannot be used: {error}",
                    pod.title()
                );
                let _ = waiter.reply.send(Reply::error(text));
                return;
            }
        };
        if pod.veth_ifindex == 0 {
            pod.veth_ifindex = find_veth(&pod, &netns).await;
        }
        let uid = pod.uid.clone();
        if let Some(old) = self.pods.get(&uid)
            && (old.inode != netns.inode()
                || !same(&old.report.pod.addresses, &pod.addresses)
                || old.report.state == PodState::Gone)
        {
            tracing::info!(pod = pod.title(), "registered anew with another network");
            self.del(&uid).await;
            self.finish(&uid);
        }
        if let Some(known) = self.pods.get(&uid)
            && pod.service_account.is_empty()
        {
            pod.service_account = known.report.pod.service_account.clone();
        }
        let entry = self
            .pods
            .entry(uid.clone())
            .or_insert_with(|| Entry::new(pod.clone(), Some(netns)));
        entry.report.pod = pod;
        entry.waiters.push(waiter);
        entry.retry = None;
        self.judge(&uid).await;
        self.publish_counts();
    }

    async fn reconcile(&mut self) {
        if self.paused {
            return;
        }
        let uids: Vec<String> = self.pods.keys().cloned().collect();
        for uid in uids {
            self.judge(&uid).await;
        }
        self.publish_counts();
    }

    async fn expire(&mut self) {
        if self.paused {
            return;
        }
        let now = Instant::now();
        let due = |e: &Entry| {
            e.retry.is_some_and(|r| r <= now) || e.waiters.iter().any(|w| w.deadline <= now)
        };
        let uids: Vec<String> = self
            .pods
            .iter()
            .filter(|(_, e)| due(e))
            .map(|(u, _)| u.clone())
            .collect();
        for uid in uids {
            self.judge(&uid).await;
        }
    }

    async fn tick(&mut self) {
        if self.paused {
            return;
        }
        let gone = |e: &Entry| {
            e.report.state == PodState::Gone && super::gone::netns_is_gone(&e.report.pod)
        };
        let ended: Vec<String> = self
            .pods
            .iter()
            .filter(|(_, e)| gone(e))
            .map(|(u, _)| u.clone())
            .collect();
        ended.iter().for_each(|uid| self.finish(uid));
        self.ticks = self.ticks.wrapping_add(1);
        self.look();
        if self.ticks.is_multiple_of(REST) {
            self.pods
                .values()
                .filter_map(|e| e.live.as_ref())
                .for_each(|l| l.stock.rest());
        }
        self.publish_counts();
    }

    pub(super) fn publish_counts(&self) {
        let family = &self.parts.metrics.node().pods;
        for state in PodState::ALL {
            let count = self
                .pods
                .values()
                .filter(|e| e.report.state == state)
                .count();
            let label = crate::observe::StateLabel {
                state: state.as_str(),
            };
            family
                .get_or_create(&label)
                .set(i64::try_from(count).unwrap_or(i64::MAX));
        }
        let unmeshed: usize = self
            .pods
            .values()
            .filter_map(|e| e.live.as_ref())
            .map(|l| l.existing)
            .sum();
        self.parts
            .metrics
            .node()
            .unmeshed_connections
            .set(i64::try_from(unmeshed).unwrap_or(i64::MAX));
        let live = self.pods.values().filter_map(|e| e.live.as_ref());
        let barred = live.filter(|l| l.barred.is_some()).count();
        self.parts
            .metrics
            .node()
            .pods_barred
            .set(i64::try_from(barred).unwrap_or(i64::MAX));
    }
}
