//! A load generator that checks what it receives: each run ends in one JSON object of counts and latencies.
//!
//! Invariants: every byte that comes back is compared; open-loop latency is counted from the intended send
//! time, so a stall is not hidden; a failure is counted by what the application saw, never retried.

pub mod conns;
pub mod flood;
pub mod http;
pub mod rtt;
pub mod streams;

use std::{collections::BTreeMap, io, net::SocketAddr, time::Duration};

use hdrhistogram::Histogram;
use serde_json::{Value, json};

/// What a run saw.
#[derive(Debug)]
pub struct Report {
    /// Operations that went well.
    pub ok: u64,
    /// Failures by what the application saw (`connection refused`, `connection reset`, ...).
    pub failed: BTreeMap<String, u64>,
    /// Payload bytes received and checked.
    pub bytes: u64,
    /// Wall time of the measured part.
    pub elapsed: Duration,
    latency: Histogram<u64>,
}

impl Default for Report {
    fn default() -> Self {
        let latency =
            Histogram::new_with_bounds(100, 120_000_000_000, 3).expect("constant bounds are valid");
        Self {
            ok: 0,
            failed: BTreeMap::new(),
            bytes: 0,
            elapsed: Duration::ZERO,
            latency,
        }
    }
}

impl Report {
    /// Counts a success and its latency.
    pub fn succeed(&mut self, latency: Duration, bytes: u64) {
        self.ok += 1;
        self.bytes += bytes;
        self.latency.saturating_record(latency.as_nanos() as u64);
    }

    /// Counts a failure.
    pub fn fail(&mut self, error: &io::Error) {
        *self.failed.entry(name_of(error)).or_default() += 1;
    }

    /// Adds what another worker saw.
    pub fn merge(&mut self, other: Report) {
        self.ok += other.ok;
        self.bytes += other.bytes;
        self.elapsed = self.elapsed.max(other.elapsed);
        self.latency
            .add(other.latency)
            .expect("all histograms have the same bounds");
        for (what, n) in other.failed {
            *self.failed.entry(what).or_default() += n;
        }
    }

    /// The run as one JSON object; latencies in microseconds, rates per second.
    pub fn to_json(&self) -> Value {
        let seconds = self.elapsed.as_secs_f64().max(1e-9);
        let us = |q: f64| self.latency.value_at_quantile(q) as f64 / 1e3;
        json!({
            "ok": self.ok, "failed": self.failed.values().sum::<u64>(), "failures": self.failed, "bytes": self.bytes,
            "seconds": seconds, "perSecond": self.ok as f64 / seconds, "gbitPerSecond": self.bytes as f64 * 8.0 / seconds / 1e9,
            "latencyUs": {"min": self.latency.min() as f64 / 1e3, "p50": us(0.5), "p90": us(0.9), "p99": us(0.99), "p999": us(0.999),
                          "max": self.latency.max() as f64 / 1e3, "mean": self.latency.mean() / 1e3},
        })
    }
}

/// A short, stable name for what the application saw.
fn name_of(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::Other | io::ErrorKind::InvalidData => error.to_string(),
        kind => kind.to_string(),
    }
}

/// The byte at position `at` of every checked stream.
pub fn pattern(at: u64) -> u8 {
    (at % 251) as u8
}

/// Fills a block with the pattern from position `at` on.
pub fn fill(block: &mut [u8], at: u64) {
    for (i, byte) in block.iter_mut().enumerate() {
        *byte = pattern(at + i as u64);
    }
}

/// Checks a block against the pattern from position `at` on.
pub fn check(block: &[u8], at: u64) -> io::Result<()> {
    match block
        .iter()
        .enumerate()
        .find(|(i, b)| **b != pattern(at + *i as u64))
    {
        None => Ok(()),
        Some((i, _)) => Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!("wrong byte near {}", (at + i as u64) >> 20 << 20),
        )),
    }
}

/// Resolves a target once, before anything is measured.
pub async fn resolve(target: &str) -> io::Result<SocketAddr> {
    tokio::net::lookup_host(target)
        .await?
        .next()
        .ok_or_else(|| io::Error::other(format!("{target} has no address")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reports_add_up() {
        let mut a = Report::default();
        a.succeed(Duration::from_micros(100), 3);
        let mut b = Report::default();
        b.succeed(Duration::from_micros(300), 4);
        b.fail(&io::ErrorKind::ConnectionRefused.into());
        a.merge(b);
        let json = a.to_json();
        assert_eq!(
            (
                json["ok"].as_u64(),
                json["failed"].as_u64(),
                json["bytes"].as_u64()
            ),
            (Some(2), Some(1), Some(7))
        );
        assert_eq!(json["failures"]["connection refused"], 1);
    }

    #[test]
    fn a_wrong_byte_is_found() {
        let mut block = [0; 600];
        fill(&mut block, 1000);
        assert!(check(&block, 1000).is_ok());
        block[599] ^= 1;
        assert!(check(&block, 1000).is_err());
    }
}
