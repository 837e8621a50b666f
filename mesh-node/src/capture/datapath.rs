//! The kernel side as the data path sees it: what to ask about a connection, and what to install.
//!
//! Invariants: every call is short and never blocks on the network; a failure to install a verdict leaves
//! the flow with the proxy, which decides it like any other.

use std::{
    fmt, io,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use mesh_model::reason::Reason;

/// The verdict of one destination for one source pod, as the kernel keeps it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// The source pod's network namespace.
    pub source: u64,
    /// The destination: a local pod's address and port.
    pub destination: SocketAddr,
    /// The destination's epoch that the decision was taken in.
    pub epoch: u32,
    /// What the kernel does with a connection.
    pub outcome: Outcome,
}

/// What the kernel does with a connection by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Connect natively.
    Direct,
    /// Send it to the proxy.
    Proxy,
    /// Fail `connect()`.
    Refuse(Reason),
}

/// A dial that failed, as the kernel keeps it for a while.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FailedDial {
    /// The source pod's network namespace.
    pub source: u64,
    /// What it dialed.
    pub original: SocketAddr,
    /// The epoch of what it dialed, read before the dial was decided: when the destination's configuration
    /// has changed since, the failure says nothing any more.
    pub epoch: u32,
    /// What `connect()` fails with.
    pub reason: Reason,
    /// For how long at most.
    pub lasting: Duration,
}

/// One slot of a virtual address: a local endpoint that the hook may choose, or the proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VipSlot {
    /// An endpoint on this node.
    Local(SocketAddr),
    /// The proxy chooses.
    Proxy,
}

/// No kernel programs: for a role that captures nothing.
#[derive(Clone, Copy, Debug)]
pub struct NoDatapath;

impl Datapath for NoDatapath {
    fn take_original(&self, _: SocketAddr, _: SocketAddr) -> Option<SocketAddr> {
        None
    }

    fn is_probe(&self, _: SocketAddr, _: SocketAddr) -> bool {
        false
    }

    fn note_failed_dial(&self, _: FailedDial) {}

    fn epoch(&self, _: IpAddr) -> u32 {
        0
    }

    fn bump_epoch(&self, _: IpAddr) -> io::Result<()> {
        Ok(())
    }

    fn bump_all(&self) -> io::Result<()> {
        Ok(())
    }

    fn install(&self, _: Verdict) -> io::Result<()> {
        Ok(())
    }

    fn set_slots(&self, _: SocketAddr, _: &[VipSlot]) -> io::Result<()> {
        Ok(())
    }

    fn vips(&self) -> io::Result<Vec<SocketAddr>> {
        Ok(Vec::new())
    }
}

/// The kernel programs, through the few calls that the data path makes.
pub trait Datapath: Send + Sync + fmt::Debug {
    /// The address that a captured connection was dialed to; asking takes the entry away. `local` and `peer`
    /// are those of the accepted socket. `None`: the connection was not captured.
    fn take_original(&self, local: SocketAddr, peer: SocketAddr) -> Option<SocketAddr>;

    /// Whether an accepted plaintext connection comes from the kubelet, as the kernel recognised it.
    fn is_probe(&self, local: SocketAddr, peer: SocketAddr) -> bool;

    /// Remembers for a short while that a dial failed, so that the next `connect()` fails at once.
    fn note_failed_dial(&self, failed: FailedDial);

    /// The epoch of a destination.
    fn epoch(&self, destination: IpAddr) -> u32;

    /// Makes every verdict about a destination void. Called before it is decided again.
    fn bump_epoch(&self, destination: IpAddr) -> io::Result<()>;

    /// Makes every verdict void.
    fn bump_all(&self) -> io::Result<()>;

    /// Installs a verdict.
    fn install(&self, verdict: Verdict) -> io::Result<()>;

    /// Replaces the slots of a virtual address; none removes it.
    fn set_slots(&self, vip: SocketAddr, slots: &[VipSlot]) -> io::Result<()>;

    /// The virtual addresses that have slots, whoever wrote them.
    fn vips(&self) -> io::Result<Vec<SocketAddr>>;
}
