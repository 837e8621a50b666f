//! A load generator that checks what it receives: each run ends in one JSON object of counts and latencies.
//!
//! Invariants: every byte that comes back is compared; open-loop latency is counted from the intended send
//! time, so a stall is not hidden; a failure is counted by what the application saw, never retried.

pub mod conns;
pub mod flood;
pub mod handshakes;
pub mod http;
pub mod http2;
pub mod idle;
pub mod paced;
pub mod rtt;
pub mod streams;

use std::{collections::BTreeMap, io, net::SocketAddr, sync::LazyLock, time::Duration};

use hdrhistogram::Histogram;
use serde_json::{Value, json};

/// What a run saw.
#[derive(Debug)]
pub struct Report {
    /// Operations that went well.
    pub ok: u64,
    /// Operations of the warm-up that went well: not measured, but paid for by whoever carries them.
    pub warm: u64,
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
            warm: 0,
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
        self.warm += other.warm;
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
            "ok": self.ok, "warmUp": self.warm, "failed": self.failed.values().sum::<u64>(), "failures": self.failed, "bytes": self.bytes,
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

/// How far the pattern is laid out to compare with: one comparison of memory per so many bytes.
const SPAN: usize = 256 * 1024;

/// The pattern from position 0 on, and as much again as it takes to begin at any phase.
static LAID_OUT: LazyLock<Vec<u8>> =
    LazyLock::new(|| (0..SPAN as u64 + 251).map(pattern).collect());

/// The pattern at `at` for `len` bytes, at most `SPAN`.
fn expected(at: u64, len: usize) -> &'static [u8] {
    let phase = (at % 251) as usize;
    &LAID_OUT[phase..phase + len]
}

/// Fills a block with the pattern from position `at` on.
pub fn fill(block: &mut [u8], at: u64) {
    let mut at = at;
    for part in block.chunks_mut(SPAN) {
        part.copy_from_slice(expected(at, part.len()));
        at += part.len() as u64;
    }
}

/// Checks a block against the pattern from position `at` on.
pub fn check(block: &[u8], at: u64) -> io::Result<()> {
    let mut at = at;
    for part in block.chunks(SPAN) {
        if part != expected(at, part.len()) {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!("wrong byte near {}", at >> 20 << 20),
            ));
        }
        at += part.len() as u64;
    }
    Ok(())
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

    #[test]
    fn the_pattern_goes_on_over_long_blocks() {
        let mut block = vec![0; 2 * SPAN + 77];
        fill(&mut block, 1005);
        let slow: Vec<u8> = (1005..1005 + block.len() as u64).map(pattern).collect();
        assert!(block == slow && check(&block, 1005).is_ok());
        block[SPAN + 3] ^= 1;
        assert!(check(&block, 1005).is_err());
    }
}
