//! Spinning instead of sleeping: a thread that expects the next event within microseconds polls for it.
//!
//! Invariants: a thread spins only for `Limits::spin` after an event, yields its core at every turn, and
//! does not spin when it is busy anyway or when spinning did not pay lately.

use std::{
    cell::Cell,
    time::{Duration, Instant},
};

/// More events than this in a millisecond keep a thread awake without spinning.
const BUSY: u32 = 40;
/// After this many turns in vain in a row, spinning is tried ever more rarely.
const MAX_MISSES: u32 = 8;

/// One thread's state.
#[derive(Clone, Copy)]
struct State {
    until: Option<Instant>,
    running: bool,
    misses: u32,
    /// Events to let pass without spinning.
    skip: u32,
    bucket: Option<Instant>,
    events: u32,
}

thread_local! {
    static STATE: Cell<State> = const {
        Cell::new(State { until: None, running: false, misses: 0, skip: 0, bucket: None, events: 0 })
    };
}

/// An event has been handled at `now`: the next one may come within `spin`.
pub fn event(now: Instant, spin: Duration) {
    if spin.is_zero() {
        return;
    }
    let mut state = STATE.get();
    if state
        .bucket
        .is_none_or(|since| now.saturating_duration_since(since) > Duration::from_millis(1))
    {
        (state.bucket, state.events) = (Some(now), 0);
    }
    state.events += 1;
    if state.running {
        state.until = (state.events <= BUSY).then(|| now + spin);
        state.misses = 0;
    } else if state.events > BUSY {
    } else if state.skip > 0 {
        state.skip -= 1;
    } else {
        state.until = Some(now + spin);
        state.running = true;
        tokio::task::spawn_local(run());
    }
    STATE.set(state);
}

async fn run() {
    while STATE
        .get()
        .until
        .is_some_and(|until| Instant::now() < until)
    {
        std::thread::yield_now();
        tokio::task::yield_now().await;
    }
    let mut state = STATE.get();
    state.running = false;
    if state.until.is_some() {
        state.misses = (state.misses + 1).min(MAX_MISSES);
        state.skip = (1 << state.misses) - 2;
    }
    STATE.set(state);
}
