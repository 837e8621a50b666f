//! `connect`: leave alone, refuse, go direct, or send to the proxy and remember where it wanted to go.

use aya_ebpf::helpers::generated::{bpf_get_prandom_u32, bpf_set_retval};
use aya_ebpf::programs::SockAddrContext;
use mesh_abi::decide::{self, Connect, Gate, Judged, Pick, Scope, proto};
use mesh_abi::{
    Addr, Counter, EVERYBODY, Endpoint, Pod, SOCK_CAPTURED, SOCK_DIRECT, SOCK_DNS, SOCK_NONE, SOCK_OWN, Sock,
    State, VerdictKey, ports, reason,
};

use crate::log::say;
use crate::maps::{ADDRS, EPOCHS, PODS, USES, VERDICTS, VIPS, state};
use crate::{GO, count, dns, peer};

/// The call fails.
const STOP: i32 = 0;

#[inline(always)]
pub fn connect(ctx: &SockAddrContext, v4: bool) -> i32 {
    let cookie = peer::cookie(ctx);
    // SAFETY: the reference is not kept beyond this program.
    let Some(pod) = (unsafe { PODS.get(cookie) }) else {
        return GO;
    };
    let Some(state) = state() else { return GO };
    if state.retired() != 0 || own(ctx) {
        return GO;
    }
    let dst = peer::read(ctx, v4);
    // SAFETY: readable fields of the context.
    let (kind, protocol) = unsafe { ((*ctx.sock_addr).type_, (*ctx.sock_addr).protocol) };
    match decide::scope(pod, kind, protocol, &dst.addr(), dst.port()) {
        Scope::Leave => {
            forget(ctx);
            if kind == proto::STREAM {
                count::decision(Counter::Left);
            }
            GO
        }
        Scope::Dns if kind == proto::DGRAM => {
            dns::connect(ctx, v4, pod, &dst);
            GO
        }
        Scope::Dns => tcp(ctx, v4, state, pod, cookie, &dst, Some(ports::DNS)),
        Scope::Tcp => tcp(ctx, v4, state, pod, cookie, &dst, None),
    }
}

/// Where the proxy runs in a pod of its own, it is below the pods' cgroup too, and dials from inside pods' namespaces.
#[inline(always)]
fn own(ctx: &SockAddrContext) -> bool {
    peer::storage(ctx).is_some_and(|s| s.kind() == SOCK_OWN)
}

/// A socket may be connected again: what the last call left must not be shown or published for this one.
#[inline(always)]
fn forget(ctx: &SockAddrContext) {
    if let Some(s) = peer::storage(ctx)
        && s.kind() != SOCK_NONE
    {
        if s.kind() == SOCK_DNS {
            dns::unpublish(s);
        }
        *s = Sock::new(SOCK_NONE, 0, 0, Addr::NONE, Addr::NONE, 0);
    }
}

#[inline(always)]
fn tcp(
    ctx: &SockAddrContext,
    v4: bool,
    state: &State,
    pod: &Pod,
    cookie: u64,
    dst: &Endpoint,
    dns: Option<u16>,
) -> i32 {
    let now = count::now();
    if decide::gate(state, now) != Gate::Serve {
        return refuse(pod, cookie, dst, reason::AGENT_STALE);
    }
    let (Some(used), Some(all)) = (USES.get(pod.index()), USES.get(EVERYBODY)) else {
        return refuse(pod, cookie, dst, reason::INTERNAL);
    };
    let mut target = *dst;
    let mut judged = if dns.is_some() {
        Judged::Proxy
    } else {
        known(cookie, dst, state, now)
    };
    if dns.is_none() && !matches!(judged, Judged::Refuse(_)) {
        // SAFETY: the reference is not kept beyond this program.
        if let Some(vip) = unsafe { VIPS.get(dst) } {
            // SAFETY: no arguments.
            match decide::pick(vip, unsafe { bpf_get_prandom_u32() }) {
                Pick::Refuse(why) => judged = Judged::Refuse(why),
                Pick::Proxy => judged = Judged::Proxy,
                Pick::Slot(i) => {
                    let slot = vip.slot(i as usize);
                    target = Endpoint::new(slot.addr(), slot.port());
                    judged = known(cookie, &target, state, now);
                }
            }
        }
    }
    let able = judged == Judged::Direct && able(ctx, state, pod, v4, &target);
    match decide::connect(judged, able, used, all) {
        Connect::Refuse(why) => refuse(pod, cookie, dst, why),
        Connect::Direct => direct(ctx, v4, pod, dst, &target),
        Connect::Proxy => proxy(ctx, v4, pod, cookie, dst, dns),
        Connect::Diverted => {
            count::decision(Counter::DirectDiverted);
            proxy(ctx, v4, pod, cookie, dst, dns)
        }
    }
}

/// What a verdict says about a destination.
#[inline(always)]
fn known(cookie: u64, dst: &Endpoint, state: &State, now: u64) -> Judged {
    // SAFETY: the reference is not kept beyond this program.
    let Some(verdict) = (unsafe { VERDICTS.get(VerdictKey::new(cookie, dst.addr(), dst.port())) })
    else {
        return Judged::Unknown;
    };
    let Some(bucket) = EPOCHS.get(Endpoint::epoch_bucket(&dst.addr())) else {
        return Judged::Unknown;
    };
    decide::judge(
        Some(verdict),
        Endpoint::epoch(*bucket, state.generation()),
        now,
    )
}

/// Whether the socket can go direct to a pod of this node.
#[inline(always)]
fn able(ctx: &SockAddrContext, state: &State, pod: &Pod, v4: bool, target: &Endpoint) -> bool {
    // SAFETY: a readable field of the context.
    let plain = unsafe { (*ctx.sock_addr).protocol } == proto::TCP;
    let family = target.addr().is_v4() || !v4;
    let here = ADDRS.get_ptr(target.addr()).is_some();
    decide::able(state, pod, plain, family, here)
}

#[inline(always)]
fn direct(ctx: &SockAddrContext, v4: bool, pod: &Pod, dst: &Endpoint, target: &Endpoint) -> i32 {
    let mut s = Sock::new(
        SOCK_DIRECT,
        dst.port(),
        pod.index(),
        dst.addr(),
        target.addr(),
        target.port(),
    );
    if !peer::remember(ctx, &mut s) {
        count::decision(Counter::StorageFailed);
        return fail(reason::OVERLOADED);
    }
    peer::write(ctx, v4, &target.addr(), target.port());
    count::decision(Counter::Direct);
    say!("pod {} goes direct to port {}", pod.index(), target.port());
    GO
}

#[inline(always)]
fn proxy(
    ctx: &SockAddrContext,
    v4: bool,
    pod: &Pod,
    cookie: u64,
    dst: &Endpoint,
    dns: Option<u16>,
) -> i32 {
    let mut s = Sock::new(
        SOCK_CAPTURED,
        dst.port(),
        pod.index(),
        dst.addr(),
        Addr::NONE,
        0,
    );
    if !peer::remember(ctx, &mut s) {
        count::decision(Counter::StorageFailed);
        return refuse(pod, cookie, dst, reason::OVERLOADED);
    }
    let port = match dns {
        Some(port) => port,
        None => decide::outbound_port(pod, &dst.addr(), dst.port()),
    };
    peer::write(ctx, v4, &pod.addr_like(&dst.addr()), port);
    count::decision(Counter::Captured);
    say!("captured pod {} port {}", pod.index(), dst.port());
    GO
}

#[inline(always)]
fn refuse(pod: &Pod, cookie: u64, dst: &Endpoint, why: u16) -> i32 {
    count::refused(
        why.into(),
        pod.index(),
        cookie,
        &dst.addr(),
        dst.port().into(),
    );
    fail(why)
}

/// Makes `connect` return the reason's errno.
#[inline(always)]
fn fail(why: u16) -> i32 {
    // SAFETY: a plain number.
    unsafe { bpf_set_retval(-reason::errno(why)) };
    STOP
}
