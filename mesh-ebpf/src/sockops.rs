//! The life of TCP sockets: publish what `connect` decided before the far side accepts, take it back at the
//! end, and show applications their real clients.

use aya_ebpf::bindings::bpf_sock;
use aya_ebpf::helpers::generated::bpf_get_netns_cookie;
use aya_ebpf::programs::SockOpsContext;
use mesh_abi::decide::{self, tcp_state};
use mesh_abi::maps::size;
use mesh_abi::{
    Addr, Authorised, Counter, EVENT_DIRECT_CLOSE, EVENT_DIRECT_OPEN, EVERYBODY, Endpoint, Event,
    Original, SOCK_CAPTURED, SOCK_DIRECT, SOCK_OWN, SOCK_SHOWN, Sock, Tuple,
};

use crate::maps::{ADDRS, CLIENTS, DIRECT, ORIGINALS, PODS, PROBES, Share, charge, used};
use crate::{count, peer};

const TCP_CONNECT: u32 = 3;
const ACTIVE_ESTABLISHED: u32 = 4;
const PASSIVE_ESTABLISHED: u32 = 5;
const STATE: u32 = 10;
const WANT_STATE: u32 = 4;
const NOEXIST: u64 = 1;

/// On the pods' cgroup.
#[inline(always)]
pub fn pods(ctx: &SockOpsContext) {
    match ctx.op() {
        TCP_CONNECT => opened(ctx),
        ACTIVE_ESTABLISHED => established(ctx),
        PASSIVE_ESTABLISHED => accepted(ctx),
        STATE if ctx.arg(1) == tcp_state::CLOSE => closed(ctx),
        STATE if ctx.arg(1) == tcp_state::FIN_WAIT2 => half_closed(ctx),
        _ => {}
    }
}

/// On the proxy's cgroup: a socket that carries a client's address is about to reach an application.
#[inline(always)]
pub fn node(ctx: &SockOpsContext) {
    let op = ctx.op();
    if op != TCP_CONNECT && !(op == STATE && ctx.arg(1) == tcp_state::CLOSE) {
        return;
    }
    let Some(s) = storage(ctx) else { return };
    if s.kind() != SOCK_OWN || s.port() == 0 {
        return;
    }
    let t = tuple(ctx);
    if op == STATE {
        let _ = CLIENTS.remove(t);
    } else if CLIENTS
        .insert(t, Endpoint::new(s.addr(), s.port()), 0)
        .is_ok()
    {
        want_state(ctx);
    } else {
        count::decision(Counter::ClientLost);
    }
}

/// On kubelet's cgroup: its connections are probes, unless they come from a pod.
#[inline(always)]
pub fn probe(ctx: &SockOpsContext) {
    let op = ctx.op();
    if op == TCP_CONNECT {
        if PODS.get_ptr(cookie(ctx)).is_some() {
            return;
        }
        let t = tuple(ctx);
        if ADDRS.get_ptr(t.server()).is_none() {
            return;
        }
        if PROBES.insert(t, count::now(), 0).is_ok() {
            want_state(ctx);
        } else {
            count::decision(Counter::ProbeLost);
        }
    } else if op == STATE && ctx.arg(1) == tcp_state::CLOSE {
        let _ = PROBES.remove(tuple(ctx));
    }
}

#[inline(always)]
fn opened(ctx: &SockOpsContext) {
    let Some(s) = storage(ctx) else { return };
    match s.kind() {
        SOCK_CAPTURED => {
            let o = Original::new(s.addr(), cookie(ctx), count::now(), s.index(), s.port());
            let t = tuple(ctx);
            // A leftover of the same tuple is overwritten, and was counted already.
            if ORIGINALS.insert(t, o, NOEXIST).is_ok() {
                charge(s.index(), Share::Originals, 1);
            } else if ORIGINALS.insert(t, o, 0).is_err() {
                count::decision(Counter::OriginalLost);
                return;
            }
            want_state(ctx);
        }
        SOCK_DIRECT => authorise(ctx, s),
        _ => {}
    }
}

/// Publishes exactly this connection, for the guard and for the far side's `lookup`.
#[inline(always)]
fn authorise(ctx: &SockOpsContext, s: &Sock) {
    let t = tuple(ctx);
    // SAFETY: the reference is not kept beyond this program.
    let Some(owner) = (unsafe { ADDRS.get(t.server()) }) else {
        return;
    };
    let a = Authorised::new(
        s.index(),
        owner.index(),
        cookie(ctx),
        count::now(),
        s.addr(),
        s.port(),
        0,
        0,
        0,
    );
    let Some(u) = used(s.index()) else { return };
    // SAFETY: an entry of the array; a stale count is no harm.
    let full = unsafe { (*u).direct() } >= size::DIRECT_QUOTA as u64;
    if full || DIRECT.insert(t, a, NOEXIST).is_err() {
        // `connect` saw room a moment ago. Without an entry the guard drops the connection: closed, and counted.
        count::decision(Counter::DirectLost);
        return;
    }
    charge(s.index(), Share::Direct, 1);
    charge(EVERYBODY, Share::Direct, 1);
    want_state(ctx);
}

#[inline(always)]
fn established(ctx: &SockOpsContext) {
    let Some(s) = storage(ctx) else { return };
    if s.kind() != SOCK_DIRECT {
        return;
    }
    let t = tuple(ctx);
    if let Some(at) = DIRECT.get_ptr_mut(t) {
        // SAFETY: a value of the map; only this socket's events write it.
        let a = unsafe { *at }.into_established();
        // SAFETY: as above.
        unsafe { *at = a };
        let e = Event::new(
            EVENT_DIRECT_OPEN,
            0,
            a.client(),
            count::now(),
            t,
            0,
            a.dialed(),
            a.dialed_port(),
            6,
            a.server(),
            a.cookie(),
            0,
            0,
            0,
            0,
            0,
            0,
            1,
        );
        count::tell(&e);
    }
}

/// An application accepted a connection: if the proxy dialed it for somebody, show that somebody.
#[inline(always)]
fn accepted(ctx: &SockOpsContext) {
    let t = tuple(ctx).reversed();
    let Some(client) = CLIENTS.get_ptr(t) else {
        return;
    };
    // SAFETY: a value of the map, copied before it is removed.
    let client = unsafe { *client };
    let _ = CLIENTS.remove(t);
    let sk = socket(ctx);
    if sk.is_null() {
        return;
    }
    let mut s = Sock::new(SOCK_SHOWN, client.port(), 0, client.addr(), Addr::NONE, 0);
    let done = peer::remember_of(sk.cast(), &mut s);
    count::decision(if done {
        Counter::ClientShown
    } else {
        Counter::StorageFailed
    });
}

#[inline(always)]
fn closed(ctx: &SockOpsContext) {
    let Some(s) = storage(ctx) else { return };
    let t = tuple(ctx);
    match s.kind() {
        SOCK_CAPTURED => {
            if !decide::may_wait(ctx.arg(0)) && ORIGINALS.remove(t).is_ok() {
                charge(s.index(), Share::Originals, -1);
            }
        }
        SOCK_DIRECT => ended(ctx, &t),
        _ => {}
    }
}

/// Remembers what had come when the client's own FIN was acknowledged, to tell the peer's FIN from data.
#[inline(always)]
fn half_closed(ctx: &SockOpsContext) {
    let Some(s) = storage(ctx) else { return };
    if s.kind() != SOCK_DIRECT {
        return;
    }
    if let Some(at) = DIRECT.get_ptr_mut(tuple(ctx)) {
        // SAFETY: a readable field of the context; a value of the map that only this socket's events write.
        unsafe { *at = (*at).into_half_closed((*ctx.ops).bytes_received) };
    }
}

#[inline(always)]
fn ended(ctx: &SockOpsContext, t: &Tuple) {
    let Some(at) = DIRECT.get_ptr(t) else { return };
    // SAFETY: a value of the map, copied before it is removed.
    let a = unsafe { *at };
    if DIRECT.remove(t).is_err() {
        return;
    }
    charge(a.client(), Share::Direct, -1);
    charge(EVERYBODY, Share::Direct, -1);
    let now = count::now();
    let c = ctx.ops;
    // SAFETY: readable fields of the context; the verifier checks each access.
    let (acked, received, srtt, again, segments, all_acked) = unsafe {
        (
            (*c).bytes_acked,
            (*c).bytes_received,
            (*c).srtt_us,
            (*c).total_retrans,
            (*c).segs_out,
            (*c).snd_una == (*c).snd_nxt,
        )
    };
    let (sent, received) = decide::payload(acked, received, &a, ctx.arg(0), all_acked);
    // The kernel keeps eight times the smoothed round trip.
    let e = Event::new(
        EVENT_DIRECT_CLOSE,
        0,
        a.client(),
        now,
        *t,
        0,
        a.dialed(),
        a.dialed_port(),
        6,
        a.server(),
        a.cookie(),
        sent,
        received,
        now.saturating_sub(a.opened_ns()),
        srtt >> 3,
        again,
        segments,
        a.established().into(),
    );
    count::tell(&e);
}

/// Asks for the change to CLOSE, beside whatever others asked for.
#[inline(always)]
fn want_state(ctx: &SockOpsContext) {
    let _ = ctx.set_cb_flags((ctx.cb_flags() | WANT_STATE) as i32);
}

#[inline(always)]
fn cookie(ctx: &SockOpsContext) -> u64 {
    // SAFETY: the context of this program.
    unsafe { bpf_get_netns_cookie(ctx.ops.cast()) }
}

#[inline(always)]
fn socket(ctx: &SockOpsContext) -> *mut bpf_sock {
    // SAFETY: a readable field of the context.
    unsafe { (*ctx.ops).__bindgen_anon_2.sk }
}

#[inline(always)]
fn storage(ctx: &SockOpsContext) -> Option<&'static mut Sock> {
    let sk = socket(ctx);
    if sk.is_null() {
        None
    } else {
        peer::storage_of(sk.cast())
    }
}

/// The connection as seen from this socket: itself as the client.
#[inline(always)]
fn tuple(ctx: &SockOpsContext) -> Tuple {
    let c = ctx.ops;
    let (remote, local) = addresses(ctx);
    // SAFETY: readable fields of the context. The remote port is big-endian in the upper half of a word.
    let (lport, rport) = unsafe {
        (
            (*c).local_port as u16,
            (u32::from_be((*c).remote_port)) as u16,
        )
    };
    Tuple::new(local, remote, lport, rport)
}

#[inline(always)]
fn addresses(ctx: &SockOpsContext) -> (Addr, Addr) {
    let c = ctx.ops;
    const INET6: u32 = 10;
    // SAFETY: readable fields of the context, each word by itself.
    unsafe {
        if (*c).family == INET6 {
            let r = core::ptr::addr_of!((*c).remote_ip6).cast::<u32>();
            let remote = Addr::new([rd(r, 0), rd(r, 1), rd(r, 2), rd(r, 3)]);
            // A mapped socket has its own address only in the IPv4 field while it connects.
            if !remote.is_v4() && !remote.is_none() {
                let l = core::ptr::addr_of!((*c).local_ip6).cast::<u32>();
                return (remote, Addr::new([rd(l, 0), rd(l, 1), rd(l, 2), rd(l, 3)]));
            }
        }
        (
            Addr::from_v4_word((*c).remote_ip4),
            Addr::from_v4_word((*c).local_ip4),
        )
    }
}

/// # Safety
/// `at + i` must be a readable word of the context.
#[inline(always)]
unsafe fn rd(at: *const u32, i: usize) -> u32 {
    // SAFETY: by the caller.
    unsafe { core::ptr::read_volatile(at.add(i)) }
}
