//! `guard` and `anchor` on the host side of a pod's veth: nothing leaves past the mesh, and nobody speaks in
//! an enrolled pod's name.
//!
//! Invariant: to pass is always "next", so that whatever the node's network has attached still runs.

use aya_ebpf::programs::TcContext;
use mesh_abi::decide;
use mesh_abi::packet::{self, Packet, Upper, ether};
use mesh_abi::{Addr, Counter, SOCK_OWN, STATE_AUDIT, Tuple, reason};

use crate::maps::{ADDRS, DIRECT, IFACES, state};
use crate::{count, peer};

/// TCX_NEXT: to the next program.
const NEXT: i32 = -1;
/// TCX_DROP.
const DROP: i32 = 2;
/// Extension headers that are walked.
const WALK: u32 = 6;
const ETH: usize = 14;

/// A packet on its way through the checks.
struct Seen {
    ifindex: u32,
    index: u32,
    guarded: bool,
    addr4: Addr,
    addr6: Addr,
}

#[inline(always)]
pub fn run(ctx: &TcContext, guard: bool) -> i32 {
    let Some(state) = state() else { return NEXT };
    if state.retired() != 0 {
        return NEXT;
    }
    // SAFETY: a readable field of the context.
    let ifindex = unsafe { (*ctx.skb.skb).ifindex };
    // SAFETY: the reference is not kept beyond this program.
    let Some(iface) = (unsafe { IFACES.get(ifindex) }) else {
        return NEXT;
    };
    let guarded = guard && packet::is_guarded(iface);
    let seen = Seen {
        ifindex,
        index: iface.index(),
        guarded,
        addr4: iface.addr4(),
        addr6: iface.addr6(),
    };
    // The kernel read the Ethernet type when it took the frame, and took off one VLAN tag.
    // SAFETY: a readable field of the context, big-endian.
    let kind = u16::from_be(unsafe { (*ctx.skb.skb).protocol } as u16);
    let (why, t, protocol) = match kind {
        ether::IPV4 => ipv4(ctx, &seen),
        ether::IPV6 => ipv6(ctx, &seen),
        ether::ARP => arp(ctx, &seen),
        ether::VLAN | ether::QINQ if seen.guarded => (reason::UNPARSABLE, nowhere(), 0),
        _ => (0, nowhere(), 0),
    };
    if why == 0 {
        return NEXT;
    }
    if seen.guarded && state.flags() & STATE_AUDIT != 0 {
        count::decision(Counter::GuardAudited);
        return NEXT;
    }
    count::dropped(
        why.into(),
        if seen.guarded { seen.index } else { u32::MAX },
        &t,
        ifindex,
        protocol,
    );
    DROP
}

type Verdict = (u16, Tuple, u32);

#[inline(always)]
fn nowhere() -> Tuple {
    Tuple::new(Addr::NONE, Addr::NONE, 0, 0)
}

#[inline(always)]
fn ipv4(ctx: &TcContext, seen: &Seen) -> Verdict {
    // The fixed header in one piece: version and length, length, id and fragment, ttl and protocol, addresses.
    let Ok([first, fragment, rest, src, dst]) = ctx.load::<[u32; 5]>(ETH) else {
        return unreadable(seen);
    };
    let ihl = u32::from_be(first) >> 24 & 0x0f;
    let frag = u32::from_be(fragment) as u16;
    let protocol = (u32::from_be(rest) >> 16) as u8;
    let (src, dst) = (Addr::from_v4_word(src), Addr::from_v4_word(dst));
    let t = Tuple::new(src, dst, 0, 0);
    if let Some(why) = claimed(seen, &src) {
        return (why, t, protocol.into());
    }
    let l4 = ETH + ihl as usize * 4;
    if seen.guarded && ihl < 5 {
        return (reason::UNPARSABLE, t, protocol.into());
    }
    upper(
        ctx,
        seen,
        packet::upper_v4(protocol, frag),
        l4,
        src,
        dst,
        protocol.into(),
    )
}

#[inline(always)]
fn ipv6(ctx: &TcContext, seen: &Seen) -> Verdict {
    let h = ETH;
    let Some(first) = u8_at(ctx, h + 6) else {
        return unreadable(seen);
    };
    let (Some(src), Some(dst)) = (addr_at(ctx, h + 8), addr_at(ctx, h + 24)) else {
        return unreadable(seen);
    };
    let t = Tuple::new(src, dst, 0, 0);
    if let Some(why) = claimed(seen, &src) {
        return (why, t, first.into());
    }
    let mut next = first;
    let mut at = h + 40;
    let mut behind = false;
    let mut i = 0;
    while i < WALK {
        match packet::upper_v6(next, behind) {
            Upper::Walk => {
                let (Some(n), Some(len)) = (u8_at(ctx, at), u8_at(ctx, at + 1)) else {
                    return unreadable(seen);
                };
                at += if next == 51 {
                    (usize::from(len) + 2) * 4
                } else {
                    (usize::from(len) + 1) * 8
                };
                next = n;
                behind = true;
            }
            Upper::Fragment => {
                let Some(n) = u8_at(ctx, at) else {
                    return unreadable(seen);
                };
                at += 8;
                next = n;
                behind = true;
            }
            found => {
                if found == Upper::Icmp6
                    && let Some(why) = neighbour(ctx, seen, at)
                {
                    return (why, t, next.into());
                }
                return upper(ctx, seen, found, at, src, dst, next.into());
            }
        }
        i += 1;
    }
    if seen.guarded {
        (reason::UNPARSABLE, t, next.into())
    } else {
        (0, t, 0)
    }
}

/// A neighbour advertisement speaks for the target in it, whatever its source is.
#[inline(always)]
fn neighbour(ctx: &TcContext, seen: &Seen, at: usize) -> Option<u16> {
    const ADVERTISEMENT: u8 = 136;
    if u8_at(ctx, at)? != ADVERTISEMENT {
        return None;
    }
    claimed(seen, &addr_at(ctx, at + 8)?)
}

#[inline(always)]
fn arp(ctx: &TcContext, seen: &Seen) -> Verdict {
    // Ethernet and IPv4: the sender's address is at 14. Requests and answers both teach it to others.
    let Some(sender) = u32_at(ctx, ETH + 14) else {
        return unreadable(seen);
    };
    let sender = Addr::from_v4_word(sender);
    match claimed(seen, &sender) {
        Some(why) => (why, Tuple::new(sender, Addr::NONE, 0, 0), 0),
        None => (0, nowhere(), 0),
    }
}

#[inline(always)]
fn claimed(seen: &Seen, addr: &Addr) -> Option<u16> {
    let own = if addr.is_v4() { seen.addr4 } else { seen.addr6 };
    if decide::same(&own, addr) {
        return None;
    }
    // SAFETY: the reference is not kept beyond this program.
    match packet::anchor(seen.ifindex, unsafe { ADDRS.get(addr) }) {
        Packet::Drop(why) => Some(why),
        Packet::Next => None,
    }
}

#[inline(always)]
fn upper(
    ctx: &TcContext,
    seen: &Seen,
    upper: Upper,
    at: usize,
    src: Addr,
    dst: Addr,
    protocol: u32,
) -> Verdict {
    let none = Tuple::new(src, dst, 0, 0);
    if !seen.guarded {
        return (0, none, 0);
    }
    match upper {
        Upper::Tcp => tcp(ctx, seen, at, src, dst),
        Upper::Hidden => (reason::UNPARSABLE, none, protocol),
        Upper::Udp => {
            count::decision(Counter::UdpPassed);
            (0, none, 0)
        }
        Upper::Icmp6 | Upper::Walk | Upper::Fragment | Upper::Other => {
            count::decision(Counter::OtherPassed);
            (0, none, 0)
        }
    }
}

#[inline(always)]
fn tcp(ctx: &TcContext, seen: &Seen, at: usize, src: Addr, dst: Addr) -> Verdict {
    let none = Tuple::new(src, dst, 0, 0);
    let Ok([ports, _, _, offset_and_flags]) = ctx.load::<[u32; 4]>(at) else {
        return (reason::UNPARSABLE, none, 6);
    };
    let flags = (u32::from_be(offset_and_flags) >> 16) as u8;
    if !packet::is_opening(flags) {
        return (0, none, 6);
    }
    let ports = u32::from_be(ports);
    let t = Tuple::new(src, dst, (ports >> 16) as u16, ports as u16);
    let own = own(ctx);
    // SAFETY: the reference is not kept beyond this program.
    let authorised = !own && unsafe { DIRECT.get(t) }.is_some_and(|a| a.client() == seen.index);
    match packet::guard_tcp(flags, own, authorised) {
        Packet::Next => {
            count::decision(Counter::GuardSyn);
            (0, t, 6)
        }
        Packet::Drop(why) => (why, t, 6),
    }
}

/// Whether the packet is from a socket of the proxy's.
#[inline(always)]
fn own(ctx: &TcContext) -> bool {
    use aya_ebpf::helpers::generated::bpf_sk_fullsock;
    // SAFETY: a readable field of the context; null is checked before use.
    unsafe {
        let sk = (*ctx.skb.skb).__bindgen_anon_2.sk;
        if sk.is_null() {
            return false;
        }
        let full = bpf_sk_fullsock(sk);
        !full.is_null() && peer::storage_of(full.cast()).is_some_and(|s| s.kind() == SOCK_OWN)
    }
}

#[inline(always)]
fn unreadable(seen: &Seen) -> Verdict {
    let why = if seen.guarded { reason::UNPARSABLE } else { 0 };
    (why, nowhere(), 0)
}

#[inline(always)]
fn u8_at(ctx: &TcContext, at: usize) -> Option<u8> {
    ctx.load::<u8>(at).ok()
}

#[inline(always)]
fn u32_at(ctx: &TcContext, at: usize) -> Option<u32> {
    ctx.load::<u32>(at).ok()
}

#[inline(always)]
fn addr_at(ctx: &TcContext, at: usize) -> Option<Addr> {
    ctx.load::<[u32; 4]>(at).ok().map(Addr::new)
}
