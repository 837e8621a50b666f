//! Spinning instead of sleeping: a thread that expects the next event within microseconds polls for it.
//!
//! Invariants: a thread spins only for `Limits::spin` after an event, yields its core at every turn, and
//! does not spin when it is busy anyway, when more than a few flows are active, when they move much, or when
//! spinning did not pay lately. It pays where one event follows another without a pause, as in a closed loop; that the
//! pieces of one message follow each other does not make up for the wait for the next message.

use std::{
    cell::Cell,
    time::{Duration, Instant},
};

/// More events than this in a millisecond keep a thread awake without spinning.
const BUSY: u32 = 100;
/// With more bytes than this in a millisecond it is the rate that counts, and the core is of better use elsewhere.
const BULK: usize = 64 << 10;
/// With more active streams than this in a millisecond there is always something to do.
const FEW: u32 = 2;
/// How long a millisecond that was not calm counts against the next.
const HINDSIGHT: Duration = Duration::from_millis(3);
/// After this many turns in vain in a row, spinning is tried ever more rarely.
const MAX_MISSES: u32 = 8;
/// A turn that saw this many events paid, even if it was in vain at its end.
const PAYS: u32 = 64;

/// One thread's state.
#[derive(Clone, Copy)]
struct State {
    until: Option<Instant>,
    running: bool,
    misses: u32,
    /// What the running turn has seen.
    hits: u32,
    /// Events to let pass without spinning.
    skip: u32,
    /// When the running millisecond began, and what it has seen.
    bucket: Option<Instant>,
    events: u32,
    bytes: usize,
    /// A bit for each stream that was active; two streams may share one.
    streams: u64,
    /// The millisecond before was not calm.
    hectic: bool,
}

impl State {
    const fn new() -> Self {
        Self {
            until: None,
            running: false,
            misses: 0,
            hits: 0,
            skip: 0,
            bucket: None,
            events: 0,
            bytes: 0,
            streams: 0,
            hectic: false,
        }
    }

    /// Begins another millisecond if the running one is over.
    fn go_on(&mut self, now: Instant) {
        let age = self
            .bucket
            .map(|since| now.saturating_duration_since(since));
        if age.is_none_or(|age| age > Duration::from_millis(1)) {
            let quiet = self.is_quiet();
            self.hectic = !quiet && age.is_some_and(|age| age < HINDSIGHT);
            (self.bucket, self.events, self.bytes, self.streams) = (Some(now), 0, 0, 0);
        }
    }

    /// Whether the next event may be worth waiting for.
    fn is_calm(&self) -> bool {
        !self.hectic && self.is_quiet()
    }

    fn is_quiet(&self) -> bool {
        self.events <= BUSY && self.bytes <= BULK && self.streams.count_ones() <= FEW
    }
}

thread_local! {
    static STATE: Cell<State> = const { Cell::new(State::new()) };
}

/// A stream of a tunnel is active.
pub fn touch(tunnel: usize, stream: u32) {
    let mut state = STATE.get();
    let mixed = (tunnel as u64 ^ u64::from(stream)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    state.streams |= 1 << (mixed >> 58);
    STATE.set(state);
}

/// An event that moved `bytes` was seen at `now`: the next one may come within `spin`.
pub fn event(now: Instant, spin: Duration, bytes: usize) {
    if spin.is_zero() {
        return;
    }
    let mut state = STATE.get();
    state.go_on(now);
    state.events += 1;
    state.bytes += bytes;
    if state.running {
        state.until = state.is_calm().then(|| now + spin);
        state.hits += 1;
        if state.hits >= PAYS {
            state.misses = 0;
        }
    } else if !state.is_calm() {
    } else if state.skip > 0 {
        state.skip -= 1;
    } else {
        state.until = Some(now + spin);
        state.running = true;
        state.hits = 0;
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

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// Whether a thread spins after `count` events within a millisecond, of so many `bytes` each, on so many
    /// `streams`.
    fn spins(count: u32, bytes: usize, streams: u32) -> bool {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap();
        STATE.set(State::new());
        let now = Instant::now();
        tokio::task::LocalSet::new().block_on(&runtime, async {
            for i in 0..count {
                touch(0x1000, 1 + 2 * (i % streams));
                event(now, Duration::from_micros(50), bytes);
            }
        });
        STATE.get().until.is_some()
    }

    #[test]
    fn a_thread_spins_for_few_flows_that_move_little() {
        assert!(spins(1, 128, 1));
        assert!(spins(BUSY, 128, 1));
        assert!(spins(BUSY, 128, 2));
        assert!(!spins(BUSY, 128, 16), "many flows");
        assert!(!spins(BUSY + 1, 128, 1), "busy anyway");
        assert!(!spins(3, BULK / 2, 1), "much to move");
    }

    #[test]
    fn a_millisecond_that_was_not_calm_counts_against_the_next() {
        let begin = Instant::now();
        let mut state = State::new();
        state.go_on(begin);
        (state.events, state.streams) = (10, 0xff);
        assert!(!state.is_calm());
        state.go_on(begin + Duration::from_millis(2));
        assert!(!state.is_calm());
        state.events = 10;
        state.go_on(begin + Duration::from_millis(4));
        assert!(state.is_calm());
        state.streams = 0xff;
        state.go_on(begin + Duration::from_millis(9));
        assert!(state.is_calm(), "that was long ago");
    }

    /// How often a thread begins to spin for `messages` of `pieces` events each, which come when the turn after the
    /// last is over.
    fn begun(messages: u32, pieces: u32) -> u32 {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap();
        let spin = Duration::from_micros(50);
        STATE.set(State::new());
        let mut now = Instant::now();
        let mut begun = 0;
        for _ in 0..messages {
            for _ in 0..pieces {
                now += Duration::from_micros(20);
                runtime.block_on(tokio::task::LocalSet::new().run_until(async {
                    event(now, spin, 128);
                }));
            }
            now += Duration::from_millis(2);
            let mut state = STATE.get();
            if state.running {
                begun += 1;
                state.until = Some(Instant::now());
                STATE.set(state);
                runtime.block_on(run());
            }
        }
        begun
    }

    #[test]
    fn spinning_in_vain_is_tried_ever_more_rarely() {
        let alone = begun(1000, 1);
        assert!((8..20).contains(&alone), "{alone} times for 1000 events");
        let in_pieces = begun(1000, 4);
        assert!(
            (8..40).contains(&in_pieces),
            "{in_pieces} times for 1000 messages"
        );
        let in_a_row = begun(100, PAYS + 1);
        assert!(in_a_row > 90, "{in_a_row} times of 100");
    }
}
