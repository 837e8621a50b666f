//! How a new endpoint comes to its full share (Envoy's slow start).
//!
//! Invariant: the share never falls as time goes on, and is whole at the end.

use std::time::Duration;

use super::{Share, Warmup};

/// Parts per million that are told apart: a weight counts in thousandths.
const PRECISION: u64 = 1_000;

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

/// Weights with only a share of each, as whole numbers whose sum fits. One that has weight keeps some.
pub fn warmed(weights: &[u32], share: impl Fn(usize) -> Share) -> Vec<u32> {
    let part = |(at, weight): (usize, &u32)| u64::from(*weight) * u64::from(share(at).parts());
    let parts: Vec<u64> = weights.iter().enumerate().map(part).collect();
    let sum = parts
        .iter()
        .fold(0u64, |sum, part| sum.saturating_add(*part));
    let scale = (sum / (u64::from(u32::MAX) / 2) + 1).max(PRECISION);
    let whole = |(part, weight): (&u64, &u32)| match weight {
        0 => 0,
        _ => u32::try_from(part / scale).unwrap_or(u32::MAX).max(1),
    };
    parts.iter().zip(weights).map(whole).collect()
}
