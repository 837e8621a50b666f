//! The kernel side as enrolment sees it: pods, sockets, the heartbeat, what it counts and reports.
//!
//! Invariants: `enrol` and `remove` are idempotent and complete or undone; a pod that is removed keeps
//! nothing under its address, so that the next owner of the address starts with nothing.

use std::{
    fmt, io,
    net::{IpAddr, SocketAddr},
    os::fd::{BorrowedFd, OwnedFd},
    path::Path,
    time::Duration,
};

pub use mesh_loader::{Finding, Heard, Looked};
use mesh_model::reason::Reason;

use crate::accept::Family;

/// A listener of the proxy inside a pod.
#[derive(Clone, Copy, Debug)]
pub struct ListenerEntry<'a> {
    /// Its port.
    pub port: u16,
    /// The family of the connections it takes.
    pub family: Family,
    /// The socket.
    pub socket: BorrowedFd<'a>,
}

/// A pod as the kernel is to know it.
#[derive(Clone, Copy, Debug)]
pub struct PodEntry<'a> {
    /// Its uid.
    pub uid: &'a str,
    /// Its network namespace.
    pub netns: BorrowedFd<'a>,
    /// The namespace's cookie.
    pub cookie: u64,
    /// The namespace's inode.
    pub inode: u64,
    /// The host side of its veth.
    pub veth: u32,
    /// Its addresses.
    pub addresses: &'a [IpAddr],
    /// Ports that the kubelet probes.
    pub probe_ports: &'a [u16],
    /// Whether connections of it and to it may go direct.
    pub direct: bool,
    /// How many listeners for captured connections it has, from 15001 upwards.
    pub outbound: u16,
    /// All TCP listeners of the proxy in it.
    pub listeners: &'a [ListenerEntry<'a>],
}

/// A pod that the kernel knows from an earlier run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KnownPod {
    /// Its uid.
    pub uid: String,
    /// Its namespace's cookie.
    pub cookie: u64,
    /// Its namespace's inode.
    pub inode: u64,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
}

/// What the kernel reports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KernelEvent {
    /// A packet or a connection was dropped.
    Dropped {
        /// Why.
        reason: Option<Reason>,
        /// Who sent it.
        source: SocketAddr,
        /// Where it wanted to go.
        destination: SocketAddr,
        /// The interface it came from; 0 when it was not a packet.
        ifindex: u32,
    },
    /// A `connect()` was refused.
    Refused {
        /// Why.
        reason: Option<Reason>,
        /// The namespace of the pod that dialed.
        cookie: u64,
        /// The client; its port may be 0.
        source: SocketAddr,
        /// What it dialed.
        dialed: SocketAddr,
    },
    /// A direct flow began.
    DirectOpened(DirectFlow),
    /// A direct flow ended.
    DirectClosed(DirectFlow, DirectEnd),
}

/// A flow between two pods of the node that the kernel connected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct DirectFlow {
    /// The client.
    pub source: SocketAddr,
    /// The server.
    pub destination: SocketAddr,
    /// What the client dialed: a virtual address or the server.
    pub dialed: SocketAddr,
    /// The client's namespace.
    pub cookie: u64,
}

/// How a direct flow ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DirectEnd {
    /// Whether it was established at all.
    pub established: bool,
    /// Bytes from the client that arrived.
    pub sent: u64,
    /// Bytes that the client received.
    pub received: u64,
    /// How long it lasted.
    pub duration: Duration,
    /// Smoothed round trip time.
    pub rtt: Duration,
    /// Segments sent again.
    pub retransmits: u32,
}

/// The kernel programs, through the calls that enrolment, DNS and observation make.
pub trait Kernel: fmt::Debug + Send + Sync {
    /// Attaches what a pod needs and writes its entries. Enrolling a pod again brings it up to date.
    fn enrol(&self, pod: &PodEntry<'_>) -> io::Result<()>;

    /// Takes away all that belongs to a pod. One that is not known is no error.
    fn remove(&self, uid: &str) -> io::Result<()>;

    /// Lets go of the namespace of a pod that is being deleted, so that it can end; the entries stay, so that
    /// what is left of the pod can do nothing, until `remove`.
    fn release(&self, uid: &str);

    /// Guards the node against packets that claim an enrolled pod's address from this interface, which
    /// belongs to a pod that is not enrolled.
    fn anchor(&self, veth: u32) -> io::Result<()>;

    /// Looks whether every interface that must be guarded is, puts right what is not, and allows connections to
    /// go direct only when everything was in order.
    fn look(&self) -> io::Result<Looked>;

    /// A descriptor that is readable when interfaces of the node have changed; `None`: nobody says so.
    fn news_fd(&self) -> io::Result<Option<OwnedFd>>;

    /// Takes in what changed about the node's interfaces, and guards at once what is new and must be guarded.
    fn hear(&self) -> io::Result<Heard>;

    /// Recognises kubelet's probes by this cgroup; `None`: recognises none.
    fn set_kubelet(&self, cgroup: Option<&Path>) -> io::Result<()>;

    /// The pods that are enrolled in the kernel, whoever enrolled them.
    fn known(&self) -> io::Result<Vec<KnownPod>>;

    /// Exempts a socket of the proxy inside a pod from capture. An application that accepts its connection
    /// sees `client`, when given, as its peer.
    fn mark(&self, socket: BorrowedFd<'_>, client: Option<SocketAddr>) -> io::Result<()>;

    /// Says that the proxy is alive.
    fn beat(&self) -> io::Result<()>;

    /// Removes captured connections that nobody asked about for `age`: they waited when a proxy died.
    fn sweep(&self, age: Duration) -> io::Result<usize>;

    /// Whether somebody has begun to take the pods out of the mesh.
    fn is_leaving(&self) -> bool;

    /// Every pod is enrolled here: programs of earlier layouts take no new flows from now on.
    fn retire_older(&self) -> io::Result<usize>;

    /// Removes programs of earlier layouts that were retired, once no socket in the pods is older than that; says how
    /// many still are.
    fn purge_older(&self) -> io::Result<usize>;

    /// The resolver that a UDP query with this source was sent to by the application.
    fn resolver(&self, client: SocketAddr) -> Option<SocketAddr>;

    /// What the kernel counted: `decision`, `refused`, `dropped` or `full`; which decision, the reason's key, or
    /// which map; how often.
    fn counters(&self) -> io::Result<Vec<(&'static str, &'static str, u64)>>;

    /// The direct flows that are open.
    fn direct_flows(&self) -> io::Result<Vec<DirectFlow>>;

    /// Ends a direct flow; both ends see a reset. False: it has ended already.
    fn cut(&self, source: SocketAddr, destination: SocketAddr) -> io::Result<bool>;

    /// A descriptor that is readable when there are events; `None`: there never are.
    fn events_fd(&self) -> io::Result<Option<OwnedFd>>;

    /// Hands over the events that wait, at most `limit`, and says how many were taken.
    fn take_events(&self, limit: usize, each: &mut dyn FnMut(KernelEvent)) -> usize;
}
