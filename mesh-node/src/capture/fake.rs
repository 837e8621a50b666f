//! A data path without a kernel, for tests: it remembers what it was told and answers what it was taught.
//!
//! Invariant: it never pretends to capture anything; a test teaches it original destinations itself.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    io,
    net::{IpAddr, SocketAddr},
    os::fd::{BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard},
    time::Duration,
};

use super::{
    datapath::{Datapath, FailedDial, Verdict, VipSlot},
    kernel::{DirectFlow, Heard, Kernel, KernelEvent, KnownPod, Looked, PodEntry},
};

/// The fake. Share it by `Arc`.
#[derive(Debug, Default)]
pub struct FakeDatapath {
    told: Mutex<Told>,
}

/// What the fake was told and taught.
#[derive(Debug, Default)]
pub struct Told {
    /// Original destinations by (local, peer) of the accepted socket.
    pub originals: HashMap<(SocketAddr, SocketAddr), SocketAddr>,
    /// Connections that count as probes, by (local, peer).
    pub probes: Vec<(SocketAddr, SocketAddr)>,
    /// Resolvers by the source of a query.
    pub resolvers: HashMap<SocketAddr, SocketAddr>,
    /// Failed dials that were noted.
    pub failed: Vec<FailedDial>,
    /// Epochs by destination.
    pub epochs: HashMap<IpAddr, u32>,
    /// How often all verdicts were made void; part of every epoch.
    pub generation: u32,
    /// Verdicts that were installed.
    pub verdicts: Vec<Verdict>,
    /// Slots by virtual address.
    pub slots: HashMap<SocketAddr, Vec<VipSlot>>,
    /// Pods that are enrolled, with their veth and listeners' ports.
    pub pods: BTreeMap<String, (KnownPod, u32, Vec<u16>)>,
    /// Those of them whose connections may not go direct.
    pub indirect: BTreeSet<String>,
    /// Pods whose namespace was let go.
    pub released: Vec<String>,
    /// Direct flows that are open.
    pub flows: Vec<DirectFlow>,
    /// Interfaces that are anchored.
    pub anchored: Vec<u32>,
    /// What the next look at the interfaces finds.
    pub looked: Looked,
    /// Readable when there is news of interfaces.
    pub news: Option<OwnedFd>,
    /// What is heard next.
    pub heard: VecDeque<Heard>,
    /// Kubelet's cgroup.
    pub kubelet: Option<PathBuf>,
    /// Clients shown, in the order of marking.
    pub marked: Vec<Option<SocketAddr>>,
    /// Whether its pods are being taken out of the mesh.
    pub leaving: bool,
    /// How often earlier layouts were retired.
    pub retired: usize,
    /// Sockets that an earlier layout serves; `None`: there is no earlier layout.
    pub elders: Option<usize>,
    /// Heartbeats.
    pub beats: u64,
    /// Events that wait.
    pub events: VecDeque<KernelEvent>,
    /// The next enrolment fails with this.
    pub fail_enrolment: Option<String>,
}

impl FakeDatapath {
    /// What it was told so far, and what tests may change.
    pub fn told(&self) -> MutexGuard<'_, Told> {
        self.told
            .lock()
            .expect("no code panics while it holds the fake's lock")
    }
}

impl Datapath for FakeDatapath {
    fn take_original(&self, local: SocketAddr, peer: SocketAddr) -> Option<SocketAddr> {
        self.told().originals.remove(&(local, peer))
    }

    fn is_probe(&self, local: SocketAddr, peer: SocketAddr) -> bool {
        self.told().probes.contains(&(local, peer))
    }

    fn note_failed_dial(&self, failed: FailedDial) {
        self.told().failed.push(failed);
    }

    fn epoch(&self, destination: IpAddr) -> u32 {
        let told = self.told();
        told.generation + told.epochs.get(&destination).copied().unwrap_or(0)
    }

    fn bump_epoch(&self, destination: IpAddr) -> io::Result<()> {
        *self.told().epochs.entry(destination).or_default() += 1;
        Ok(())
    }

    fn bump_all(&self) -> io::Result<()> {
        self.told().generation += 1;
        Ok(())
    }

    fn install(&self, verdict: Verdict) -> io::Result<()> {
        self.told().verdicts.push(verdict);
        Ok(())
    }

    fn set_slots(&self, vip: SocketAddr, slots: &[VipSlot]) -> io::Result<()> {
        let mut told = self.told();
        match slots {
            [] => drop(told.slots.remove(&vip)),
            slots => drop(told.slots.insert(vip, slots.to_vec())),
        }
        Ok(())
    }

    fn vips(&self) -> io::Result<Vec<SocketAddr>> {
        Ok(self.told().slots.keys().copied().collect())
    }
}

impl Kernel for FakeDatapath {
    fn enrol(&self, pod: &PodEntry<'_>) -> io::Result<()> {
        let mut told = self.told();
        if let Some(why) = told.fail_enrolment.take() {
            return Err(io::Error::other(why));
        }
        let known = KnownPod {
            uid: pod.uid.to_owned(),
            cookie: pod.cookie,
            inode: pod.inode,
            addresses: pod.addresses.to_vec(),
        };
        match pod.direct {
            true => told.indirect.remove(&known.uid),
            false => told.indirect.insert(known.uid.clone()),
        };
        let ports = pod.listeners.iter().map(|l| l.port).collect();
        told.pods
            .insert(known.uid.clone(), (known, pod.veth, ports));
        Ok(())
    }

    fn remove(&self, uid: &str) -> io::Result<()> {
        self.told().pods.remove(uid);
        Ok(())
    }

    fn release(&self, uid: &str) {
        self.told().released.push(uid.to_owned());
    }

    fn anchor(&self, veth: u32) -> io::Result<()> {
        self.told().anchored.push(veth);
        Ok(())
    }

    fn look(&self) -> io::Result<Looked> {
        Ok(self.told().looked.clone())
    }

    fn news_fd(&self) -> io::Result<Option<OwnedFd>> {
        let told = self.told();
        told.news.as_ref().map(OwnedFd::try_clone).transpose()
    }

    fn hear(&self) -> io::Result<Heard> {
        Ok(self.told().heard.pop_front().unwrap_or_default())
    }

    fn set_kubelet(&self, cgroup: Option<&Path>) -> io::Result<()> {
        self.told().kubelet = cgroup.map(Path::to_path_buf);
        Ok(())
    }

    fn known(&self) -> io::Result<Vec<KnownPod>> {
        Ok(self
            .told()
            .pods
            .values()
            .map(|(known, ..)| known.clone())
            .collect())
    }

    fn mark(&self, _: BorrowedFd<'_>, client: Option<SocketAddr>) -> io::Result<()> {
        self.told().marked.push(client);
        Ok(())
    }

    fn beat(&self) -> io::Result<()> {
        self.told().beats += 1;
        Ok(())
    }

    fn sweep(&self, _: Duration) -> io::Result<usize> {
        Ok(0)
    }

    fn is_leaving(&self) -> bool {
        self.told().leaving
    }

    fn retire_older(&self) -> io::Result<usize> {
        self.told().retired += 1;
        Ok(0)
    }

    fn purge_older(&self) -> io::Result<usize> {
        let mut told = self.told();
        if told.elders == Some(0) {
            told.elders = None;
        }
        Ok(told.elders.unwrap_or(0))
    }

    fn resolver(&self, client: SocketAddr) -> Option<SocketAddr> {
        self.told().resolvers.get(&client).copied()
    }

    fn counters(&self) -> io::Result<Vec<(&'static str, &'static str, u64)>> {
        Ok(vec![("decision", "connect_captured", 0)])
    }

    fn direct_flows(&self) -> io::Result<Vec<DirectFlow>> {
        Ok(self.told().flows.clone())
    }

    fn cut(&self, source: SocketAddr, destination: SocketAddr) -> io::Result<bool> {
        let mut told = self.told();
        let before = told.flows.len();
        told.flows
            .retain(|f| (f.source, f.destination) != (source, destination));
        Ok(told.flows.len() < before)
    }

    fn events_fd(&self) -> io::Result<Option<OwnedFd>> {
        Ok(None)
    }

    fn take_events(&self, limit: usize, each: &mut dyn FnMut(KernelEvent)) -> usize {
        let events: Vec<_> = {
            let mut told = self.told();
            let count = told.events.len().min(limit);
            told.events.drain(..count).collect()
        };
        let count = events.len();
        events.into_iter().for_each(each);
        count
    }
}
