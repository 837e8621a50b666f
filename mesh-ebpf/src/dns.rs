//! DNS over UDP: to the proxy's port, with the resolver that was asked remembered and published.
//!
//! Invariant: an entry is published under the pod's address and the socket's own port, belongs to a socket,
//! and goes with it.

use aya_ebpf::helpers::generated::{bpf_bind, bpf_get_prandom_u32};
use aya_ebpf::programs::{SockAddrContext, SockContext};
use mesh_abi::decide::{self, Gate, Scope, proto};
use mesh_abi::maps::size;
use mesh_abi::{Addr, Asked, Counter, Endpoint, POD_DNS, Pod, SOCK_DNS, SOCK_NONE, Sock, ports};

use crate::maps::{ASKED, PODS, Share, charge, state, used};
use crate::{count, peer};

/// How often a free source port is looked for.
const TRIES: u32 = 8;
/// Where it is looked for: the usual ephemeral range.
const FIRST: u32 = 32_768;
const RANGE: u32 = 28_232;

/// A UDP socket connects to a resolver. Its source port is not chosen yet, so choose it here.
#[inline(always)]
pub fn connect(ctx: &SockAddrContext, v4: bool, pod: &Pod, dst: &Endpoint) {
    let mut port = source_port(ctx);
    if port == 0 {
        port = choose_port(ctx);
    }
    if ask(ctx, pod, dst, port) {
        peer::write(ctx, v4, &pod.addr_like(&dst.addr()), ports::DNS);
    }
}

/// A datagram goes out from a socket that is not connected.
#[inline(always)]
pub fn sendmsg(ctx: &SockAddrContext, v4: bool) {
    // SAFETY: the reference is not kept beyond this program.
    let Some(pod) = (unsafe { PODS.get(peer::cookie(ctx)) }) else {
        return;
    };
    let dst = peer::read(ctx, v4);
    if pod.flags() & POD_DNS == 0
        || decide::scope(pod, proto::DGRAM, proto::UDP, &dst.addr(), dst.port()) != Scope::Dns
    {
        return;
    }
    if ask(ctx, pod, &dst, source_port(ctx)) {
        peer::write(ctx, v4, &pod.addr_like(&dst.addr()), ports::DNS);
    }
}

/// A datagram came in: an answer of the proxy's looks like the resolver's.
#[inline(always)]
pub fn recvmsg(ctx: &SockAddrContext, v4: bool) {
    let Some(s) = peer::storage(ctx) else { return };
    if s.kind() != SOCK_DNS {
        return;
    }
    let from = peer::read(ctx, v4);
    let addr = s.addr();
    if from.port() == ports::DNS && decide::same(&from.addr(), &s.local()) && (addr.is_v4() || !v4)
    {
        peer::write(ctx, v4, &addr, s.port());
    }
}

/// A socket is closed.
#[inline(always)]
pub fn release(ctx: &SockContext) {
    if let Some(s) = peer::storage_of(ctx.sock.cast())
        && s.kind() == SOCK_DNS
    {
        unpublish(s);
    }
}

/// Takes back what a socket published.
#[inline(always)]
pub fn unpublish(s: &mut Sock) {
    if s.local_port() != 0
        && ASKED
            .remove(Endpoint::new(s.local(), s.local_port()))
            .is_ok()
    {
        charge(s.index(), Share::Dns, -1);
    }
    *s = Sock::new(SOCK_NONE, 0, 0, Addr::NONE, Addr::NONE, 0);
}

/// Remembers and publishes the resolver. False: leave the datagram alone.
#[inline(always)]
fn ask(ctx: &SockAddrContext, pod: &Pod, resolver: &Endpoint, port: u16) -> bool {
    match state() {
        Some(s) if decide::gate(s, count::now()) == Gate::Serve => {}
        // Names are not what the mesh protects: without the proxy they are asked as if it were not there.
        _ => return false,
    }
    let local = pod.addr_like(&resolver.addr());
    let key = Endpoint::new(local, port);
    let mut port = port;
    if let Some(s) = peer::storage(ctx)
        && s.kind() == SOCK_DNS
        && s.local_port() != 0
        && (s.local_port() != port || !decide::same(&s.local(), &local))
    {
        unpublish(s);
    }
    if port == 0 {
        count::decision(Counter::DnsUnbound);
    } else if !publish(&key, &Asked::new(*resolver, pod.index())) {
        port = 0;
        count::decision(Counter::DnsLost);
    }
    let mut s = Sock::new(
        SOCK_DNS,
        resolver.port(),
        pod.index(),
        resolver.addr(),
        local,
        port,
    );
    if !peer::remember(ctx, &mut s) {
        count::decision(Counter::StorageFailed);
        unpublish(&mut s);
        return false;
    }
    count::decision(Counter::DnsCaptured);
    true
}

#[inline(always)]
fn publish(key: &Endpoint, asked: &Asked) -> bool {
    const EXIST: u64 = 2;
    if ASKED.insert(key, asked, EXIST).is_ok() {
        return true;
    }
    let Some(u) = used(asked.index()) else {
        return false;
    };
    // SAFETY: an entry of the array; a stale count is no harm.
    if unsafe { (*u).dns() } >= size::ASKED_QUOTA as u64 || ASKED.insert(key, asked, 0).is_err() {
        return false;
    }
    charge(asked.index(), Share::Dns, 1);
    true
}

/// The port that the socket is bound to, or 0.
#[inline(always)]
fn source_port(ctx: &SockAddrContext) -> u16 {
    // SAFETY: the socket of the context; the verifier checks the access.
    unsafe {
        let sk = (*ctx.sock_addr).__bindgen_anon_1.sk;
        if sk.is_null() {
            0
        } else {
            core::ptr::read_volatile(core::ptr::addr_of!((*sk).src_port)) as u16
        }
    }
}

/// Binds the socket to a free port of its own, as the kernel would do a moment later.
#[inline(always)]
fn choose_port(ctx: &SockAddrContext) -> u16 {
    // SAFETY: a readable field of the context.
    let family = unsafe { (*ctx.sock_addr).family } as u16;
    let mut i = 0;
    while i < TRIES {
        // SAFETY: no arguments.
        let port = (FIRST + unsafe { bpf_get_prandom_u32() } % RANGE) as u16;
        let mut addr = [0u32; 7];
        addr[0] = u32::from(family) | u32::from(port.to_be()) << 16;
        let len = if family == 2 { 16 } else { 28 };
        // SAFETY: a socket address of that family and length, on our stack.
        if unsafe { bpf_bind(ctx.sock_addr, addr.as_mut_ptr().cast(), len) } == 0 {
            return port;
        }
        i += 1;
    }
    0
}
