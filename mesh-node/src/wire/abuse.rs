//! Counting what costs us work and carries nothing, per window of time.
//!
//! Invariant: a peer whose traffic explains its control frames never meets a limit; every count is bounded
//! by the work that it stands for, not by the number of open streams.

use std::time::{Duration, Instant};

use super::{
    error::{Code, ConnError},
    limits::Abuse,
};

/// What is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// RST_STREAM from the peer before the stream was answered.
    EarlyReset,
    /// RST_STREAM from the peer after that.
    Reset,
    /// RST_STREAM from us because of the peer's mistake.
    LocalReset,
    /// PING.
    Ping,
    /// SETTINGS.
    Settings,
    /// DATA or a TLS record without content.
    Empty,
    /// WINDOW_UPDATE.
    WindowUpdate,
    /// PRIORITY, unknown frames, frames of ended streams.
    Stray,
    /// TLS KeyUpdate.
    KeyUpdate,
}

const KINDS: usize = 9;

/// The counts of the running window.
#[derive(Debug, Default)]
pub struct Counter {
    since: Option<Instant>,
    counts: [u32; KINDS],
    frames_sent: u32,
}

impl Counter {
    /// Nothing counted yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// We sent data, which explains window updates.
    pub fn sent(&mut self) {
        self.frames_sent = self.frames_sent.saturating_add(1);
    }

    /// Counts one; an error when that is too many in this window.
    pub fn count(
        &mut self,
        kind: Kind,
        now: Instant,
        window: Duration,
        limits: &Abuse,
    ) -> Result<(), ConnError> {
        if self
            .since
            .is_none_or(|since| now.saturating_duration_since(since) >= window)
        {
            *self = Self {
                since: Some(now),
                ..Self::new()
            };
        }
        let count = &mut self.counts[kind as usize];
        *count += 1;
        let (limit, what) = match kind {
            Kind::EarlyReset => (
                limits.early_resets,
                "too many streams reset before they were answered",
            ),
            Kind::Reset => (limits.resets, "too many streams reset"),
            Kind::LocalReset => (limits.local_resets, "too many streams that we had to reset"),
            Kind::Ping => (limits.pings, "too many pings"),
            Kind::Settings => (limits.settings, "too many settings"),
            Kind::Empty => (limits.empty, "too much data without content"),
            Kind::WindowUpdate => {
                // A peer may credit every frame on the stream and on the connection.
                let explained = self.frames_sent.saturating_mul(4);
                (
                    limits.window_updates.saturating_add(explained),
                    "too many window updates",
                )
            }
            Kind::Stray => (limits.stray, "too many frames without use"),
            Kind::KeyUpdate => (limits.key_updates, "too many key updates"),
        };
        if *count > limit {
            Err(ConnError::new(Code::ENHANCE_YOUR_CALM, what))
        } else {
            Ok(())
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::wire::Limits;

    #[test]
    fn a_count_ends_the_tunnel_only_within_one_window() {
        let (limits, window, start) = (Limits::server(), Duration::from_secs(10), Instant::now());
        let mut counter = Counter::new();
        let mut count = |at: u64| {
            counter.count(
                Kind::Settings,
                start + Duration::from_secs(at),
                window,
                &limits.abuse,
            )
        };
        for _ in 0..limits.abuse.settings {
            count(1).unwrap();
        }
        assert_eq!(count(2).unwrap_err().code, Code::ENHANCE_YOUR_CALM);
        count(11).unwrap();
    }

    #[test]
    fn window_updates_are_explained_by_data() {
        let (limits, window, now) = (Limits::server(), Duration::from_secs(10), Instant::now());
        let mut counter = Counter::new();
        counter
            .count(Kind::WindowUpdate, now, window, &limits.abuse)
            .unwrap();
        for _ in 0..100_000 {
            counter.sent();
            counter
                .count(Kind::WindowUpdate, now, window, &limits.abuse)
                .unwrap();
        }
    }
}
