//! `sk_lookup` in a pod's namespace: inbound connections go to the proxy unless they are known.

use aya_ebpf::programs::SkLookupContext;
use mesh_abi::decide::{self, Early, Inbound, proto};
use mesh_abi::{Addr, Counter, ListenerKey, STATE_OPEN, Tuple, ports, reason};

use crate::count;
use crate::log::say;
use crate::maps::{ADDRS, DIRECT, LISTENERS, PROBE_PORTS, PROBES, state};

const PASS: u32 = 1;
const DROP: u32 = 0;

#[inline(always)]
pub fn lookup(ctx: &SkLookupContext) -> u32 {
    let open = match state() {
        Some(s) if s.retired() == 0 => s.flags() & STATE_OPEN != 0,
        _ => return PASS,
    };
    let c = ctx.lookup;
    // SAFETY: readable fields of the context.
    let (protocol, family, lport) = unsafe { ((*c).protocol, (*c).family, (*c).local_port as u16) };
    // SAFETY: as above; big-endian in 16 bits, whatever the header calls it.
    let rport = u16::from_be(unsafe { (*c).remote_port } as u16);
    let (remote, local) = addresses(ctx, family);
    let t = Tuple::new(remote, local, rport, lport);
    match decide::lookup_early(protocol == proto::TCP, &remote, &local, lport) {
        Early::Local => {
            count::decision(Counter::InboundLocal);
            PASS
        }
        Early::Tunnel => {
            count::decision(Counter::InboundTunnel);
            PASS
        }
        Early::Other => PASS,
        Early::Drop(why) => drop(why, u32::MAX, &t, protocol),
        Early::Ask if open => PASS,
        Early::Ask => ask(ctx, &t, family),
    }
}

#[inline(always)]
fn ask(ctx: &SkLookupContext, t: &Tuple, family: u32) -> u32 {
    // SAFETY: the reference is not kept beyond this program.
    let Some(owner) = (unsafe { ADDRS.get(t.server()) }) else {
        return drop(reason::UNKNOWN_WORKLOAD, u32::MAX, t, proto::TCP);
    };
    let index = owner.index();
    // SAFETY: as above.
    let authorised = unsafe { DIRECT.get(t) };
    let probe = authorised.is_none() && PROBES.get_ptr(t).is_some();
    let declared = probe
        && PROBE_PORTS
            .get_ptr(ListenerKey::new(index, t.server_port(), 0))
            .is_some();
    // SAFETY: as above.
    let client = match unsafe { ADDRS.get(t.client()) } {
        Some(owner) => owner.index(),
        None => decide::NOBODY,
    };
    match decide::lookup(index, authorised, probe, declared, client) {
        Inbound::Own => {
            count::decision(Counter::InboundLocal);
            PASS
        }
        Inbound::Direct => {
            count::decision(Counter::InboundDirect);
            PASS
        }
        Inbound::Probe => {
            count::decision(Counter::InboundProbe);
            PASS
        }
        Inbound::Steer => {
            let key = ListenerKey::new(index, ports::INBOUND, if family == 2 { 4 } else { 6 });
            if LISTENERS.redirect_sk_lookup(ctx, key, 0).is_err() {
                return drop(reason::NO_LISTENER, index, t, proto::TCP);
            }
            count::decision(Counter::InboundSteered);
            say!("steered to pod {} port {}", index, t.server_port());
            PASS
        }
    }
}

#[inline(always)]
fn drop(why: u16, index: u32, t: &Tuple, protocol: u32) -> u32 {
    count::dropped(why.into(), index, t, 0, protocol);
    DROP
}

#[inline(always)]
fn addresses(ctx: &SkLookupContext, family: u32) -> (Addr, Addr) {
    let c = ctx.lookup;
    // SAFETY: readable fields of the context, each word by itself.
    unsafe {
        if family == 2 {
            return (
                Addr::from_v4_word((*c).remote_ip4),
                Addr::from_v4_word((*c).local_ip4),
            );
        }
        let r = core::ptr::addr_of!((*c).remote_ip6).cast::<u32>();
        let l = core::ptr::addr_of!((*c).local_ip6).cast::<u32>();
        (
            Addr::new([rd(r, 0), rd(r, 1), rd(r, 2), rd(r, 3)]),
            Addr::new([rd(l, 0), rd(l, 1), rd(l, 2), rd(l, 3)]),
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
