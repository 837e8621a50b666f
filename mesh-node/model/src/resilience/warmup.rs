//! How a new endpoint comes to its full share (Envoy's slow start).
//!
//! Invariant: the share never falls as time goes on, and is whole at the end.

use std::time::Duration;

use super::{Share, Warmup};

impl Warmup {
    /// The part of its weight that an endpoint of this age gets: (age / duration)^(1 / aggression), at least the minimum.
    pub fn share(&self, age: Duration) -> Share {
        if age >= self.duration {
            return Share::ALL;
        }
        let passed = age.as_secs_f64() / self.duration.as_secs_f64();
        let exponent = 1_000.0 / f64::from(self.aggression.max(1));
        let parts = (passed.powf(exponent) * 1_000_000.0) as u32;
        Share::per_million(parts.max(self.minimum.parts()))
    }
}
