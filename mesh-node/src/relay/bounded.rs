//! How long a relayed connection may live, and how long it may be silent.
//!
//! Invariants: a connection that carries something within its bound is never closed for silence, and one that does not is
//! closed at most a sixteenth of it late, for it is looked at that often; the clock is the runtime's; what has no bound
//! costs nothing.

use std::{
    future::{Future, poll_fn},
    pin::Pin,
    task::Poll,
    time::Duration,
};

use mesh_model::{reason::Reason, resilience::Pool};
use tokio::time::{Instant, Sleep, sleep_until};

use super::{End, Hand, Meter};

/// How often silence is looked for within its bound.
const LOOKS: u32 = 16;
/// The shortest time between two looks.
const SHORTEST: Duration = Duration::from_millis(10);
/// What stands for a time that nobody lives to see.
const FOREVER: Duration = Duration::from_secs(30 * 365 * 24 * 3600);

/// The bounds of one connection; `None` is no bound.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bounds {
    /// How long it may carry nothing in either direction.
    pub idle: Option<Duration>,
    /// How long it may live.
    pub life: Option<Duration>,
}

impl Bounds {
    /// No bound at all.
    pub const NONE: Self = Self {
        idle: None,
        life: None,
    };

    /// Those of a destination's connections.
    pub fn of(pool: &Pool) -> Self {
        Self {
            idle: Some(pool.tcp_idle).filter(|idle| !idle.is_zero()),
            life: pool.max_duration.filter(|life| !life.is_zero()),
        }
    }
}

/// A relay that is cut by `hand` when one of its bounds is reached. `meter` is the relay's own.
pub fn bounded<F>(
    mut relay: F,
    bounds: Bounds,
    meter: &Meter,
    hand: Hand,
) -> impl Future<Output = End> + Unpin + use<F>
where
    F: Future<Output = End> + Unpin,
{
    let meter = meter.clone();
    let carried = move || meter.forward() + meter.backward();
    let now = Instant::now();
    let mut watch = Watch::new(bounds, carried(), now);
    let mut next: Option<Pin<Box<Sleep>>> = Some(Box::pin(sleep_until(watch.next(now))));
    poll_fn(move |cx| {
        while let Some(timer) = &mut next
            && timer.as_mut().poll(cx).is_ready()
        {
            let now = Instant::now();
            match watch.look(carried(), now) {
                Some(reason) => {
                    hand.cut(reason);
                    next = None;
                }
                None => timer.as_mut().reset(watch.next(now)),
            }
        }
        match Pin::new(&mut relay).poll(cx) {
            Poll::Ready(end) => Poll::Ready(end),
            Poll::Pending => Poll::Pending,
        }
    })
}

/// What is known of a connection from the last look at it.
struct Watch {
    bounds: Bounds,
    began: Instant,
    carried: u64,
    since: Instant,
}

impl Watch {
    fn new(bounds: Bounds, carried: u64, now: Instant) -> Self {
        Self {
            bounds,
            began: now,
            carried,
            since: now,
        }
    }

    /// Looks at what has been carried by now; the bound that has been reached, if one has.
    fn look(&mut self, carried: u64, now: Instant) -> Option<Reason> {
        if self.carried != carried {
            (self.carried, self.since) = (carried, now);
        }
        let reached = |bound: Option<Duration>, from| bound.is_some_and(|b| now - from >= b);
        if reached(self.bounds.life, self.began) {
            Some(Reason::MaxDuration)
        } else if reached(self.bounds.idle, self.since) {
            Some(Reason::IdleTimeout)
        } else {
            None
        }
    }

    /// When to look next.
    fn next(&self, now: Instant) -> Instant {
        let at = |from: Instant, bound: Duration| from + bound.min(FOREVER);
        let life = self.bounds.life.map(|life| at(self.began, life));
        let idle = self.bounds.idle.map(|idle| {
            let soon = now + (idle / LOOKS).clamp(SHORTEST, FOREVER);
            soon.min(at(self.since, idle))
        });
        let first = life.into_iter().chain(idle).min();
        first.unwrap_or(now + FOREVER)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::relay::Cutter;

    /// Looks at a connection that carries a byte at each of `moments` (ms) until it is closed; when and why it is.
    fn run(bounds: Bounds, moments: &[u64]) -> (u64, Reason) {
        let began = Instant::now();
        let (mut watch, mut now) = (Watch::new(bounds, 0, began), began);
        loop {
            now = watch.next(now);
            let at = u64::try_from((now - began).as_millis()).expect("short");
            assert!(at < 1_000_000, "never closed");
            let carried = moments.iter().filter(|m| **m <= at).count() as u64;
            if let Some(reason) = watch.look(carried, now) {
                return (at, reason);
            }
        }
    }

    fn bounds(idle: u64, life: u64) -> Bounds {
        let bound = |ms: u64| (ms > 0).then(|| Duration::from_millis(ms));
        Bounds {
            idle: bound(idle),
            life: bound(life),
        }
    }

    #[test]
    fn silence_is_noticed_in_time_and_never_early() {
        let mut rng = fastrand::Rng::with_seed(5);
        for _ in 0..500 {
            let idle = rng.u64(200..20_000);
            let (mut at, mut moments) = (0, Vec::new());
            for _ in 0..rng.usize(0..30) {
                at += rng.u64(1..idle);
                moments.push(at);
            }
            let (closed, reason) = run(bounds(idle, 0), &moments);
            let due = at + idle;
            assert_eq!(reason, Reason::IdleTimeout);
            let late = idle / 16 + 11;
            assert!((due..=due + late).contains(&closed), "{closed}, not {due}");
        }
    }

    #[test]
    fn the_first_bound_that_is_reached_decides() {
        let busy: Vec<u64> = (1..200).map(|n| n * 50).collect();
        for (idle, life, moments, expect) in [
            (0, 3_000, &busy[..], (3_000, Reason::MaxDuration)),
            (1_000, 3_000, &busy[..], (3_000, Reason::MaxDuration)),
            (1_000, 3_000, &[][..], (1_000, Reason::IdleTimeout)),
            (5_000, 3_000, &[][..], (3_000, Reason::MaxDuration)),
        ] {
            assert_eq!(run(bounds(idle, life), moments), expect, "{idle} {life}");
        }
    }

    #[test]
    fn zero_is_no_bound() {
        let pool = Pool {
            tcp_idle: Duration::ZERO,
            ..Pool::default()
        };
        assert_eq!(Bounds::of(&pool), Bounds::NONE);
        let hour = Bounds::of(&Pool::default());
        assert_eq!(hour.idle, Some(Duration::from_secs(3600)));
    }

    #[tokio::test]
    async fn a_relay_is_cut_when_its_time_is_up() {
        let (cutter, cut) = Cutter::new();
        let mut relay = Box::pin(async move {
            let reason = poll_fn(|_| match cut.reason() {
                Some(reason) => Poll::Ready(reason),
                None => Poll::Pending,
            });
            End {
                reason: Some(reason.await),
                error: None,
                side: None,
            }
        });
        let meter = Meter::new();
        let began = Instant::now();
        let end = bounded(&mut relay, bounds(50, 0), &meter, cutter.hand()).await;
        assert_eq!(end.reason, Some(Reason::IdleTimeout));
        let took = began.elapsed();
        assert!(took >= Duration::from_millis(50), "{took:?}");
    }
}
