//! The decisions of the socket hooks, as functions over plain values.
//!
//! Invariants: total and pure; what is missing or stale never widens what a pod may do; used as they are
//! by the kernel programs, so a host test of them tests the kernel's behaviour.

use crate::addr::Addr;
use crate::layout::*;
use crate::maps::size;
use crate::ports;
use crate::reason;

/// What the hooks have to do with a destination at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// Not ours: loopback, the pod itself, other protocols, no address of that family.
    Leave,
    /// TCP that is to be decided.
    Tcp,
    /// DNS that goes to the proxy's port.
    Dns,
}

/// Linux's numbers of the protocols that matter.
pub mod proto {
    /// ICMPv6.
    pub const ICMPV6: u8 = 58;
    /// TCP.
    pub const TCP: u32 = 6;
    /// UDP.
    pub const UDP: u32 = 17;
    /// Multipath TCP, as a socket's protocol.
    pub const MPTCP: u32 = 262;
    /// A stream socket.
    pub const STREAM: u32 = 1;
    /// A datagram socket.
    pub const DGRAM: u32 = 2;
}

/// Whether `connect` or `sendmsg` of an enrolled pod concerns us.
#[inline(always)]
pub fn scope(pod: &Pod, kind: u32, protocol: u32, dst: &Addr, port: u16) -> Scope {
    let own = pod.addr_like(dst);
    if own.is_none() || same(&own, dst) || dst.is_this_host() || dst.is_many() {
        return Scope::Leave;
    }
    let dns = port == ports::DNS_ASKED && pod.flags() & POD_DNS != 0;
    if kind == proto::STREAM
        && (protocol == proto::TCP || protocol == proto::MPTCP)
        && pod.flags() & POD_CAPTURE != 0
    {
        return if dns { Scope::Dns } else { Scope::Tcp };
    }
    if kind == proto::DGRAM && protocol == proto::UDP && dns {
        return Scope::Dns;
    }
    Scope::Leave
}

/// Whether the programs may take new flows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gate {
    /// Yes.
    Serve,
    /// No: programs of a newer layout do.
    Retired,
    /// No: the proxy shows no sign of life.
    Stale,
}

/// Reads the state.
#[inline(always)]
pub fn gate(state: &State, now_ns: u64) -> Gate {
    if state.retired() != 0 {
        return Gate::Retired;
    }
    let stale = state.stale_ns();
    if stale != 0 && now_ns > state.heartbeat_ns().saturating_add(stale) {
        return Gate::Stale;
    }
    Gate::Serve
}

/// What a verdict says now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Judged {
    /// Nothing, or nothing any more.
    Unknown,
    /// Native TCP.
    Direct,
    /// Through the proxy.
    Proxy,
    /// Refuse, with this reason.
    Refuse(u16),
}

/// Compares a verdict with the present.
#[inline(always)]
pub fn judge(verdict: Option<&Verdict>, epoch: u32, now_ns: u64) -> Judged {
    let Some(v) = verdict else {
        return Judged::Unknown;
    };
    if v.epoch() != epoch || (v.until_ns() != 0 && now_ns >= v.until_ns()) {
        return Judged::Unknown;
    }
    match v.action() {
        VERDICT_DIRECT => Judged::Direct,
        VERDICT_REFUSE => Judged::Refuse(v.reason()),
        _ => Judged::Proxy,
    }
}

/// Which endpoint of a VIP to take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pick {
    /// The proxy chooses.
    Proxy,
    /// This slot, a pod of this node.
    Slot(u32),
    /// None: refuse with this reason.
    Refuse(u16),
}

/// Picks by a random number.
#[inline(always)]
pub fn pick(vip: &Vip, random: u32) -> Pick {
    if vip.refuse() != 0 {
        return Pick::Refuse(vip.refuse() as u16);
    }
    let count = vip.count();
    if count == 0 || count > MAX_SLOTS as u32 {
        return Pick::Proxy;
    }
    let i = random % count;
    if vip.slot(i as usize).local() != 0 {
        Pick::Slot(i)
    } else {
        Pick::Proxy
    }
}

/// Whether a connection can go direct at all. `plain`: it is TCP and not multipath, whose segments come from
/// sockets that the guard does not know; `family`: the socket can reach the target; `here`: the target is an
/// enrolled pod of this node.
#[inline(always)]
pub fn able(state: &State, pod: &Pod, plain: bool, family: bool, here: bool) -> bool {
    let anchored = state.flags() & STATE_ANCHORED != 0;
    anchored && pod.flags() & POD_DIRECT != 0 && plain && family && here
}

/// The end of `connect`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Connect {
    /// Native TCP to the destination pod.
    Direct,
    /// To the proxy.
    Proxy,
    /// To the proxy, because there is no room for one more direct flow.
    Diverted,
    /// The call fails, with this reason.
    Refuse(u16),
}

/// Decides a TCP `connect` of an enrolled pod. `able`: what the function of that name says; `used`: by the pod;
/// `all`: by everybody.
#[inline(always)]
pub fn connect(judged: Judged, able: bool, used: &Use, all: &Use) -> Connect {
    let direct = able && judged == Judged::Direct;
    match judged {
        Judged::Refuse(reason) => return Connect::Refuse(reason),
        Judged::Direct if direct && has_room(used, all) => return Connect::Direct,
        Judged::Direct | Judged::Proxy | Judged::Unknown => {}
    }
    if used.originals() >= size::ORIGINALS_QUOTA as u64 {
        return Connect::Refuse(reason::OVERLOADED);
    }
    if direct {
        Connect::Diverted
    } else {
        Connect::Proxy
    }
}

/// Whether a direct flow will find its place: an entry is made only once `connect` has been decided, and a flow
/// without one would wait for an answer until it gives up.
#[inline(always)]
fn has_room(used: &Use, all: &Use) -> bool {
    used.direct() < (size::DIRECT_QUOTA - size::DIRECT_SLACK) as u64
        && all.direct() < (size::DIRECT - size::DIRECT_SLACK) as u64
}

/// The outbound listener for a destination.
#[inline(always)]
pub fn outbound_port(pod: &Pod, dst: &Addr, port: u16) -> u16 {
    let n = pod.outbound();
    if n <= 1 || n > ports::OUTBOUND_PORTS as u32 {
        return ports::OUTBOUND;
    }
    ports::OUTBOUND + (dst.hash(port as u32) % n) as u16
}

/// What `lookup` can say before it looks anything up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Early {
    /// The pod's own traffic.
    Local,
    /// To the HBONE listener.
    Tunnel,
    /// Not TCP, and not one of our ports.
    Other,
    /// Drop, with this reason.
    Drop(u16),
    /// Look further.
    Ask,
}

/// The first half of an inbound decision.
#[inline(always)]
pub fn lookup_early(tcp: bool, remote: &Addr, local: &Addr, local_port: u16) -> Early {
    if same(remote, local) || local.is_this_host() {
        return Early::Local;
    }
    if ports::is_private(local_port) {
        return Early::Drop(reason::BYPASS);
    }
    if !tcp {
        return Early::Other;
    }
    if local_port == ports::HBONE {
        Early::Tunnel
    } else {
        Early::Ask
    }
}

/// The second half of an inbound decision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Inbound {
    /// An authorised direct connection.
    Direct,
    /// Kubelet, to a port declared as a probe.
    Probe,
    /// From another address of the same pod.
    Own,
    /// To the proxy.
    Steer,
}

/// No pod. A number, because the verifier cannot follow an `Option` of one that the compiler took apart.
pub const NOBODY: u32 = u32::MAX;

/// Decides what is left. `server`: the pod that owns the local address; `authorised`: the entry of exactly
/// this tuple; `probe`: the tuple is kubelet's; `client`: the pod that owns the remote address, or
/// `NOBODY`.
#[inline(always)]
pub fn lookup(
    server: u32,
    authorised: Option<&Authorised>,
    probe: bool,
    declared: bool,
    client: u32,
) -> Inbound {
    if let Some(a) = authorised
        && a.server() == server
    {
        return Inbound::Direct;
    }
    if probe && declared {
        return Inbound::Probe;
    }
    if client == server {
        Inbound::Own
    } else {
        Inbound::Steer
    }
}

/// Linux's numbers of the TCP states that matter at the end of a connection.
pub mod tcp_state {
    /// Open in both directions.
    pub const ESTABLISHED: u32 = 1;
    /// The client's FIN was sent or waits for room.
    pub const FIN_WAIT1: u32 = 4;
    /// The client's FIN is acknowledged.
    pub const FIN_WAIT2: u32 = 5;
    /// Closed.
    pub const CLOSE: u32 = 7;
    /// The peer's FIN came.
    pub const CLOSE_WAIT: u32 = 8;
    /// Both FINs were sent, the peer's first.
    pub const LAST_ACK: u32 = 9;
    /// Both FINs were sent at once.
    pub const CLOSING: u32 = 11;
}

/// Whether a captured connection that ends in state `last` may still wait to be accepted. A client that sends and closes,
/// or resets, at once is gone before the proxy looks: what it sent must still find its way.
#[inline(always)]
pub fn may_wait(last: u32) -> bool {
    use tcp_state::{CLOSING, ESTABLISHED, FIN_WAIT1, FIN_WAIT2};
    last == ESTABLISHED || last == FIN_WAIT1 || last == FIN_WAIT2 || last == CLOSING
}

/// The payload bytes of a flow that ends in state `last`. TCP's own counters take SYN and FIN for a byte each;
/// `fin_acked`: everything sent was acknowledged.
#[inline(always)]
pub fn payload(
    acked: u64,
    received: u64,
    flow: &Authorised,
    last: u32,
    fin_acked: bool,
) -> (u64, u64) {
    use tcp_state::{CLOSE_WAIT, CLOSING, FIN_WAIT2, LAST_ACK};
    let own_fin = fin_acked && (last == FIN_WAIT2 || last == LAST_ACK || last == CLOSING);
    // A client that has closed receives nothing more but the FIN.
    let peer_fin = last == CLOSE_WAIT
        || last == LAST_ACK
        || last == CLOSING
        || (last == FIN_WAIT2 && received > flow.half_received());
    let overhead = flow.established() as u64 + own_fin as u64;
    (
        acked.saturating_sub(overhead),
        received.saturating_sub(peer_fin as u64),
    )
}

/// Equality in four compares, which the verifier follows more easily than a loop over bytes.
#[inline(always)]
pub fn same(a: &Addr, b: &Addr) -> bool {
    let (a, b) = (a.words(), b.words());
    (a[0] ^ b[0]) | (a[1] ^ b[1]) | (a[2] ^ b[2]) | (a[3] ^ b[3]) == 0
}

#[cfg(test)]
#[path = "decide_tests.rs"]
mod tests;
