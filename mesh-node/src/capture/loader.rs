//! The real kernel behind both seams: `mesh-loader` as the data path and as enrolment see it.
//!
//! Invariant: a lookup that fails is logged once per minute at most and answers "nothing", which every
//! caller takes for a refusal.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::Path,
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use mesh_abi::ports;
use mesh_loader::{Config, Event, EventKind, Events, LoadError, PodSpec};
use mesh_model::reason::Reason;

use super::{
    datapath::{Datapath, FailedDial, Outcome, Verdict, VipSlot},
    kernel::{DirectEnd, DirectFlow, Heard, Kernel, KernelEvent, KnownPod, Looked, PodEntry},
};
use crate::accept::Family;

/// How long the proxy may be silent before new connections are refused; it beats every second.
const STALE: Duration = Duration::from_secs(3);

/// The kernel programs of this node.
#[derive(Debug)]
pub struct LoadedDatapath {
    inner: mesh_loader::Datapath,
    events: Mutex<Events>,
    started: Instant,
    complained: AtomicU64,
}

impl LoadedDatapath {
    /// Loads the programs, or adopts what an earlier process pinned.
    pub fn open(config: &Config) -> Result<Self, LoadError> {
        let inner = mesh_loader::Datapath::open(config)?;
        inner.set_stale_after(STALE);
        let events = Mutex::new(inner.events()?);
        Ok(Self {
            inner,
            events,
            started: Instant::now(),
            complained: AtomicU64::new(0),
        })
    }

    /// The loader's own calls, for what the seams do not cover.
    pub fn loader(&self) -> &mesh_loader::Datapath {
        &self.inner
    }

    fn or_nothing<T>(&self, what: &'static str, result: Result<Option<T>, LoadError>) -> Option<T> {
        result.unwrap_or_else(|error| {
            let now = self.started.elapsed().as_secs() / 60 + 1;
            if self.complained.swap(now, Relaxed) != now {
                tracing::error!(what, %error, "the kernel maps could not be asked; the flow is refused");
            }
            None
        })
    }
}

impl Datapath for LoadedDatapath {
    fn take_original(&self, local: SocketAddr, peer: SocketAddr) -> Option<SocketAddr> {
        let original = self.inner.take_original(peer, local);
        self.or_nothing("original destination", original)
            .map(|o| o.destination)
    }

    fn is_probe(&self, local: SocketAddr, peer: SocketAddr) -> bool {
        self.or_nothing("probe", self.inner.is_probe(peer, local).map(Some))
            .unwrap_or(false)
    }

    fn note_failed_dial(&self, failed: FailedDial) {
        let noted = self.inner.set_verdict(
            failed.source,
            failed.original,
            mesh_loader::Outcome::Refuse(failed.reason as u16),
            failed.epoch,
            Some(failed.lasting),
        );
        let _ = self.or_nothing("failed dial", noted.map(Some));
    }

    fn epoch(&self, destination: IpAddr) -> u32 {
        self.inner.epoch(destination)
    }

    fn bump_epoch(&self, destination: IpAddr) -> io::Result<()> {
        self.inner.bump_epoch(destination);
        Ok(())
    }

    fn bump_all(&self) -> io::Result<()> {
        self.inner.bump_all();
        Ok(())
    }

    fn install(&self, verdict: Verdict) -> io::Result<()> {
        if verdict.outcome == Outcome::Direct && !self.inner.is_direct_allowed() {
            return Err(io::Error::other(
                "the direct path is withdrawn while an interface is not guarded",
            ));
        }
        if verdict.outcome == Outcome::Direct && !self.inner.takes_direct(verdict.destination.ip())
        {
            return Err(io::Error::other(
                "the destination takes no direct connections",
            ));
        }
        let outcome = match verdict.outcome {
            Outcome::Direct => mesh_loader::Outcome::Direct,
            Outcome::Proxy => mesh_loader::Outcome::Proxy,
            Outcome::Refuse(reason) => mesh_loader::Outcome::Refuse(reason as u16),
        };
        self.inner
            .set_verdict(
                verdict.source,
                verdict.destination,
                outcome,
                verdict.epoch,
                None,
            )
            .map_err(io::Error::other)
    }

    fn set_slots(&self, vip: SocketAddr, slots: &[VipSlot]) -> io::Result<()> {
        if slots.is_empty() {
            return self.inner.remove_vip(vip).map_err(io::Error::other);
        }
        let slot = |s: &VipSlot| match *s {
            VipSlot::Local(endpoint) => mesh_loader::VipSlot::Local(endpoint),
            VipSlot::Proxy => mesh_loader::VipSlot::Proxy,
        };
        let slots: Vec<_> = slots.iter().map(slot).collect();
        self.inner.set_vip(vip, &slots).map_err(io::Error::other)
    }

    fn vips(&self) -> io::Result<Vec<SocketAddr>> {
        self.inner.vips().map_err(io::Error::other)
    }
}

impl Kernel for LoadedDatapath {
    fn enrol(&self, pod: &PodEntry<'_>) -> io::Result<()> {
        let family = |f| match f {
            Family::V4 => mesh_loader::Family::V4,
            Family::V6 => mesh_loader::Family::V6,
        };
        let inbound = pod
            .listeners
            .iter()
            .filter(|l| l.port == ports::INBOUND)
            .map(|l| (family(l.family), l.socket));
        let spec = PodSpec {
            uid: pod.uid.to_owned(),
            netns: pod.netns,
            addresses: pod.addresses.to_vec(),
            veth_ifindex: pod.veth,
            probe_ports: pod.probe_ports.to_vec(),
            outbound_listeners: pod.outbound,
            inbound: inbound.collect(),
            dns: true,
            direct: pod.direct,
        };
        self.inner.enrol(&spec).map(drop).map_err(io::Error::other)
    }

    fn remove(&self, uid: &str) -> io::Result<()> {
        self.inner.withdraw(uid).map(drop).map_err(io::Error::other)
    }

    fn release(&self, uid: &str) {
        self.inner.release(uid);
    }

    fn anchor(&self, veth: u32) -> io::Result<()> {
        self.inner.anchor(veth).map_err(io::Error::other)
    }

    fn look(&self) -> io::Result<Looked> {
        self.inner.look().map_err(io::Error::other)
    }

    fn news_fd(&self) -> io::Result<Option<OwnedFd>> {
        self.inner.news().try_clone_to_owned().map(Some)
    }

    fn hear(&self) -> io::Result<Heard> {
        self.inner.hear().map_err(io::Error::other)
    }

    fn set_kubelet(&self, cgroup: Option<&Path>) -> io::Result<()> {
        self.inner
            .set_kubelet_cgroup(cgroup)
            .map_err(io::Error::other)
    }

    fn known(&self) -> io::Result<Vec<KnownPod>> {
        let known = |p: mesh_loader::PodInfo| KnownPod {
            uid: p.uid,
            cookie: p.cookie,
            inode: p.netns_inode,
            addresses: p.addresses,
        };
        Ok(self.inner.pods().into_iter().map(known).collect())
    }

    fn mark(&self, socket: BorrowedFd<'_>, client: Option<SocketAddr>) -> io::Result<()> {
        self.inner
            .mark_own(socket, client)
            .map_err(io::Error::other)
    }

    fn beat(&self) -> io::Result<()> {
        self.inner.heartbeat();
        Ok(())
    }

    fn sweep(&self, age: Duration) -> io::Result<usize> {
        self.inner.sweep(age).map_err(io::Error::other)
    }

    fn is_leaving(&self) -> bool {
        self.inner.is_leaving()
    }

    fn retire_older(&self) -> io::Result<usize> {
        self.inner.retire_previous().map_err(io::Error::other)
    }

    fn purge_older(&self) -> io::Result<usize> {
        self.inner.purge_previous().map_err(io::Error::other)
    }

    fn resolver(&self, client: SocketAddr) -> Option<SocketAddr> {
        self.or_nothing("resolver", self.inner.dns_resolver(client))
    }

    fn counters(&self) -> io::Result<Vec<(&'static str, &'static str, u64)>> {
        self.inner.counters().map_err(io::Error::other)
    }

    fn direct_flows(&self) -> io::Result<Vec<DirectFlow>> {
        let pods = self.inner.pods();
        let cookie = |id| pods.iter().find(|p| p.id == id).map_or(0, |p| p.cookie);
        let flow = |f: mesh_loader::Flow| DirectFlow {
            source: f.client,
            destination: f.server,
            dialed: f.dialed,
            cookie: cookie(f.client_pod),
        };
        Ok(self
            .inner
            .flows(None)
            .map_err(io::Error::other)?
            .into_iter()
            .map(flow)
            .collect())
    }

    fn cut(&self, source: SocketAddr, destination: SocketAddr) -> io::Result<bool> {
        self.inner
            .cut(source, destination)
            .map_err(io::Error::other)
    }

    fn events_fd(&self) -> io::Result<Option<OwnedFd>> {
        let events = self
            .events
            .lock()
            .expect("no code panics while it holds the events");
        events.as_fd().try_clone_to_owned().map(Some)
    }

    fn take_events(&self, limit: usize, each: &mut dyn FnMut(KernelEvent)) -> usize {
        self.events
            .lock()
            .expect("no code panics while it holds the events")
            .drain(limit, |e| each(event(&e)))
    }
}

fn event(e: &Event) -> KernelEvent {
    let reason = Reason::from_number(e.reason);
    let flow = DirectFlow {
        source: e.client,
        destination: e.peer,
        dialed: e.dialed,
        cookie: e.cookie,
    };
    match e.kind {
        EventKind::Drop => KernelEvent::Dropped {
            reason,
            source: e.client,
            destination: e.peer,
            ifindex: e.ifindex,
        },
        EventKind::Refused => KernelEvent::Refused {
            reason,
            cookie: e.cookie,
            source: e.client,
            dialed: e.dialed,
        },
        EventKind::DirectOpen => KernelEvent::DirectOpened(flow),
        EventKind::DirectClose => KernelEvent::DirectClosed(
            flow,
            DirectEnd {
                established: e.established,
                sent: e.sent,
                received: e.received,
                duration: e.duration,
                rtt: e.srtt,
                retransmits: e.retransmits,
            },
        ),
    }
}
