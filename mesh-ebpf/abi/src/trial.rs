//! One case of the decisions, so that the kernel's compiled copy of them can be asked from outside.
//!
//! Invariant: `answer` only calls the functions that the hooks call, and says what came of them as a number.

use crate::addr::Addr;
use crate::decide::{self, Connect, Early, Gate, Inbound};
use crate::layout::{Authorised, Owner, Pod, State, Use, Verdict};
use crate::packet::{self, Packet};
use crate::plain::plain;
use crate::reason;

/// `Trial::question`: a `connect`.
pub const CONNECT: u32 = 0;
/// `Trial::question`: a connection that comes in.
pub const INBOUND: u32 = 1;
/// `Trial::question`: a packet that leaves.
pub const PACKET: u32 = 2;

/// `Trial::facts`: there is a verdict, or an entry of the tuple.
pub const KNOWN: u32 = 1;
/// `Trial::facts`: the protocol is TCP, and not multipath.
pub const PLAIN: u32 = 2;
/// `Trial::facts`: the socket can reach the target's family.
pub const FAMILY: u32 = 4;
/// `Trial::facts`: the target is an enrolled pod of this node.
pub const HERE: u32 = 8;
/// `Trial::facts`: kubelet's connection.
pub const PROBE: u32 = 16;
/// `Trial::facts`: to a port that is declared for it.
pub const DECLARED: u32 = 32;
/// `Trial::facts`: a packet of the proxy's socket.
pub const OWN: u32 = 64;
/// `Trial::facts`: the source address belongs to an enrolled pod.
pub const OWNED: u32 = 128;

/// A refusal or a drop; its reason is in the bits above.
pub const REFUSED: u32 = 0x100;

plain! {
    /// A case.
    Trial[216] {
        /// `State`.
        state: State,
        /// The pod.
        pod: Pod,
        /// What is known about the destination.
        verdict: Verdict,
        /// What the pod uses.
        used: Use,
        /// The clock.
        now_ns: u64,
        /// The destination's epoch now.
        epoch: u32,
        /// What is asked.
        question: u32,
        /// What is so.
        facts: u32,
        /// The pod that owns the local address.
        server: u32,
        /// The server of the tuple's entry.
        authorised: u32,
        /// The pod that owns the remote address.
        client: u32,
        /// The interface of a packet.
        ifindex: u32,
        /// The interface of the address's owner.
        owner: u32,
        /// Flags of a TCP segment.
        flags: u32,
        /// The local port.
        port: u32,
        /// The remote address.
        remote: Addr,
        /// The local address.
        local: Addr,
    } zero {}
}

/// Decides a case: a small number, or `REFUSED` and above it the reason.
#[inline(always)]
pub fn answer(t: &Trial) -> u32 {
    match t.question() {
        CONNECT => connect(t),
        INBOUND => inbound(t),
        _ => packet(t),
    }
}

#[inline(always)]
fn is(t: &Trial, fact: u32) -> bool {
    t.facts() & fact != 0
}

#[inline(always)]
fn refused(why: u16) -> u32 {
    REFUSED | (why as u32) << 16
}

/// The answer to a `connect` that goes direct.
pub const DIRECT: u32 = 1;
/// The answer to a `connect` that goes to the proxy.
pub const PROXY: u32 = 2;

#[inline(always)]
fn connect(t: &Trial) -> u32 {
    if decide::gate(&t.state(), t.now_ns()) != Gate::Serve {
        return refused(reason::AGENT_STALE);
    }
    let verdict = t.verdict();
    let known = if is(t, KNOWN) { Some(&verdict) } else { None };
    let judged = decide::judge(known, t.epoch(), t.now_ns());
    let able = decide::able(
        &t.state(),
        &t.pod(),
        is(t, PLAIN),
        is(t, FAMILY),
        is(t, HERE),
    );
    // As if there were no other pod.
    let used = t.used();
    match decide::connect(judged, able, &used, &used) {
        Connect::Direct => DIRECT,
        Connect::Proxy | Connect::Diverted => PROXY,
        Connect::Refuse(why) => refused(why),
    }
}

#[inline(always)]
fn inbound(t: &Trial) -> u32 {
    let tcp = is(t, PLAIN);
    match decide::lookup_early(tcp, &t.remote(), &t.local(), t.port() as u16) {
        Early::Local => 1,
        Early::Tunnel => 2,
        Early::Other => 3,
        Early::Drop(why) => refused(why),
        Early::Ask => {
            let entry = Authorised::new(0, t.authorised(), 0, 0, Addr::NONE, 0, 0, 0, 0);
            let known = if is(t, KNOWN) { Some(&entry) } else { None };
            match decide::lookup(t.server(), known, is(t, PROBE), is(t, DECLARED), t.client()) {
                Inbound::Direct => 4,
                Inbound::Probe => 5,
                Inbound::Own => 6,
                Inbound::Steer => 7,
            }
        }
    }
}

#[inline(always)]
fn packet(t: &Trial) -> u32 {
    let owner = Owner::new(0, t.owner(), 0);
    let known = if is(t, OWNED) { Some(&owner) } else { None };
    if let Packet::Drop(why) = packet::anchor(t.ifindex(), known) {
        return refused(why);
    }
    match packet::guard_tcp(t.flags() as u8, is(t, OWN), is(t, KNOWN)) {
        Packet::Next => 1,
        Packet::Drop(why) => refused(why),
    }
}
