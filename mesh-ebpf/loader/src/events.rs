//! What the kernel tells: drops, refusals, and direct flows that begin and end.
//!
//! Invariant: nothing here blocks; a full ring loses events, which the kernel counts.

use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::time::Duration;

use aya::maps::{MapData, RingBuf};
use mesh_abi::{self as abi};

use crate::pods::PodId;

/// The events of one instance. Poll the descriptor for input, then drain.
pub struct Events {
    pub(crate) ring: RingBuf<MapData>,
}

/// What an event is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventKind {
    /// A packet or an inbound connection was dropped.
    Drop,
    /// A `connect` was refused.
    Refused,
    /// A direct flow was established.
    DirectOpen,
    /// A direct flow ended, or could not be established.
    DirectClose,
}

/// One event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event {
    /// What it is about.
    pub kind: EventKind,
    /// The number of the reason, 0 for none.
    pub reason: u16,
    /// The pod that it is about, for a direct flow the client's.
    pub pod: PodId,
    /// The server's pod, for a direct flow.
    pub server: PodId,
    /// The client's namespace cookie, where known.
    pub cookie: u64,
    /// CLOCK_MONOTONIC.
    pub at: Duration,
    /// Who connected, or the packet's source.
    pub client: SocketAddr,
    /// To whom, or the packet's destination.
    pub peer: SocketAddr,
    /// What the application dialed; for a packet the same as `peer`.
    pub dialed: SocketAddr,
    /// The interface, for packets.
    pub ifindex: u32,
    /// The IP protocol, for packets; 0 for ARP.
    pub protocol: u16,
    /// Bytes from the client that were acknowledged.
    pub sent: u64,
    /// Bytes that the client received.
    pub received: u64,
    /// How long the flow lived.
    pub duration: Duration,
    /// Smoothed round trip.
    pub srtt: Duration,
    /// Segments sent again.
    pub retransmits: u32,
    /// Whether the connection was established.
    pub established: bool,
}

impl std::fmt::Debug for Events {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Events")
    }
}

impl AsRawFd for Events {
    fn as_raw_fd(&self) -> RawFd {
        self.ring.as_raw_fd()
    }
}

impl std::os::fd::AsFd for Events {
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the ring owns the descriptor and lives as long as self.
        unsafe { BorrowedFd::borrow_raw(self.ring.as_raw_fd()) }
    }
}

impl Events {
    /// Hands over what is there, at most `limit`; says how many.
    pub fn drain(&mut self, limit: usize, mut each: impl FnMut(Event)) -> usize {
        let mut n = 0;
        while n < limit {
            let Some(item) = self.ring.next() else { break };
            n += 1;
            if item.len() < size_of::<abi::Event>() {
                continue;
            }
            // SAFETY: long enough, and abi::Event is Plain: valid for every bit pattern.
            let raw: abi::Event = unsafe { std::ptr::read_unaligned(item.as_ptr().cast()) };
            if let Some(event) = read(&raw) {
                each(event);
            }
        }
        n
    }
}

fn read(raw: &abi::Event) -> Option<Event> {
    let kind = match raw.kind() {
        abi::EVENT_DROP => EventKind::Drop,
        abi::EVENT_REFUSED => EventKind::Refused,
        abi::EVENT_DIRECT_OPEN => EventKind::DirectOpen,
        abi::EVENT_DIRECT_CLOSE => EventKind::DirectClose,
        _ => return None,
    };
    let t = raw.tuple();
    Some(Event {
        kind,
        reason: raw.reason(),
        pod: PodId(raw.index()),
        server: PodId(raw.server()),
        cookie: raw.cookie(),
        at: Duration::from_nanos(raw.time_ns()),
        client: socket_addr(t.client(), t.client_port()),
        peer: socket_addr(t.server(), t.server_port()),
        dialed: socket_addr(raw.dialed(), raw.dialed_port()),
        ifindex: raw.ifindex(),
        protocol: raw.protocol(),
        sent: raw.sent(),
        received: raw.received(),
        duration: Duration::from_nanos(raw.duration_ns()),
        srtt: Duration::from_micros(raw.srtt_us().into()),
        retransmits: raw.retransmits(),
        established: raw.established() != 0,
    })
}

/// From the contract's form; a v4-mapped address becomes IPv4.
pub(crate) fn socket_addr(addr: abi::Addr, port: u16) -> SocketAddr {
    SocketAddr::new(IpAddr::from(addr), port)
}
