//! Which of several equal endpoints takes the next request: at random, in turn, or the less busy of two.
//!
//! Invariants: what is drawn from is a list of weights, and what comes out is an index of it; one without weight is
//! never chosen; dice are arguments.

/// One at random by weight. `draw` is uniform over all of `u64`.
pub fn random(weights: &[u32], draw: u64) -> Option<usize> {
    let sum: u64 = weights.iter().map(|w| u64::from(*w)).sum();
    // The high part of draw * sum is uniform over 0..sum.
    let mut at = ((u128::from(draw) * u128::from(sum)) >> 64) as u64;
    weights.iter().position(|w| {
        let here = at < u64::from(*w);
        at = at.saturating_sub((*w).into());
        here
    })
}

/// The less busy of two that are drawn by weight; of equally busy ones the first. `active` says how many requests an
/// endpoint has under way.
pub fn least_request(
    weights: &[u32],
    active: impl Fn(usize) -> usize,
    draws: [u64; 2],
) -> Option<usize> {
    let first = random(weights, draws[0])?;
    let second = random(weights, draws[1])?;
    Some(if active(second) < active(first) {
        second
    } else {
        first
    })
}

/// One after the other by weight, spread evenly (smooth weighted round robin).
#[derive(Clone, Debug, Default)]
pub struct RoundRobin {
    credit: Vec<i64>,
}

impl RoundRobin {
    /// The next one. When the number of endpoints changes, the round begins anew.
    pub fn next(&mut self, weights: &[u32]) -> Option<usize> {
        if self.credit.len() != weights.len() {
            self.credit = vec![0; weights.len()];
        }
        let sum: i64 = weights.iter().map(|w| i64::from(*w)).sum();
        let mut best: Option<usize> = None;
        for (at, weight) in weights.iter().enumerate().filter(|(_, w)| **w > 0) {
            self.credit[at] += i64::from(*weight);
            if best.is_none_or(|b| self.credit[at] > self.credit[b]) {
                best = Some(at);
            }
        }
        self.credit[best?] -= sum;
        best
    }

    /// Begins somewhere in the round, so that many proxies do not all begin with the same endpoint.
    pub fn skip(&mut self, weights: &[u32], rounds: usize) {
        for _ in 0..rounds {
            self.next(weights);
        }
    }
}
