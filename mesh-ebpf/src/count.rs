//! Counting and telling.

use aya_ebpf::helpers::generated::bpf_ktime_get_ns;
use mesh_abi::{Addr, Counter, EVENT_DROP, EVENT_REFUSED, Event, Tuple, counters};

use crate::log::say;
use crate::maps::{COUNTERS, EVENTS, LIMITS};

/// Drops and refusals told per window and CPU; what is beyond is only counted.
const TOLD: u64 = 64;
/// The window.
const WINDOW_NS: u64 = 200_000_000;

/// Counts in a slot of this CPU.
#[inline(always)]
pub fn slot(slot: u32) {
    if let Some(n) = COUNTERS.get_ptr_mut(slot) {
        // SAFETY: the slot of this CPU, and a program is not interrupted by itself.
        unsafe { *n += 1 };
    }
}

/// Counts a decision.
#[inline(always)]
pub fn decision(counter: Counter) {
    slot(counter as u32);
}

/// The programs' clock.
#[inline(always)]
pub fn now() -> u64 {
    // SAFETY: no arguments.
    unsafe { bpf_ktime_get_ns() }
}

/// Sends an event; a full ring is counted.
#[inline(always)]
pub fn tell(event: &Event) {
    if EVENTS.output(event, 0).is_err() {
        decision(Counter::EventsLost);
    }
}

/// Whether one more refusal may be told now.
#[inline(always)]
fn may_tell(now: u64) -> bool {
    let Some(limit) = LIMITS.get_ptr_mut(0) else {
        return false;
    };
    // SAFETY: the entry of this CPU.
    let l = unsafe { *limit };
    let next = if now.wrapping_sub(l.since_ns()) > WINDOW_NS {
        mesh_abi::Limit::new(now, 1)
    } else if l.told() < TOLD {
        mesh_abi::Limit::new(l.since_ns(), l.told() + 1)
    } else {
        return false;
    };
    // SAFETY: as above.
    unsafe { *limit = next };
    true
}

/// A drop of a packet or of an inbound connection.
#[inline(never)]
pub fn dropped(reason: u32, index: u32, tuple: &Tuple, ifindex: u32, protocol: u32) {
    slot(counters::dropped(reason as u16));
    say!("dropped for pod {}, reason {}, interface {}", index, reason, ifindex);
    let now = now();
    if may_tell(now) {
        let e = Event::new(
            EVENT_DROP,
            reason as u16,
            index,
            now,
            *tuple,
            ifindex,
            tuple.server(),
            tuple.server_port(),
            protocol as u16,
            0,
            0,
            0,
            0,
            0,
            0,
            0,
            0,
            0,
        );
        tell(&e);
    }
}

/// A refused `connect`.
#[inline(never)]
pub fn refused(reason: u32, index: u32, cookie: u64, addr: &Addr, port: u32) {
    slot(counters::refused(reason as u16));
    say!("refused pod {} port {}, reason {}", index, port, reason);
    let now = now();
    if may_tell(now) {
        let t = Tuple::new(Addr::NONE, *addr, 0, port as u16);
        let e = Event::new(
            EVENT_REFUSED,
            reason as u16,
            index,
            now,
            t,
            0,
            *addr,
            port as u16,
            6,
            0,
            cookie,
            0,
            0,
            0,
            0,
            0,
            0,
            0,
        );
        tell(&e);
    }
}
