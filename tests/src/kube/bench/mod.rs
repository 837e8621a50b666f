//! `cargo xtask bench kube`: what the mesh costs on a cluster, and how long what an administrator does takes to hold.
//!
//! Start reading at `run`. Invariants: nothing is shown that was not measured in this run; a time is from the moment
//! before the API server is asked to the moment at which the effect was seen from outside; what did not come about is
//! a failure, not a figure.

mod asking;
mod crowd;
mod label;
mod loaded;
mod part;

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use hdrhistogram::Histogram;
use serde_json::json;

use super::{Api, Cluster};
use crate::{
    bench::{Fact, Findings},
    interrupt::unless_interrupted,
};

/// What can be measured.
pub const ROWS: [&str; 3] = ["label", "usage", "crowd"];

/// What to measure, and how much of it.
#[derive(Clone, Debug)]
pub struct Options {
    /// Rows by name; all of them when empty.
    pub rows: Vec<String>,
    /// Running pods that a label takes into the mesh.
    pub pods: usize,
    /// How often that is done.
    pub rounds: usize,
    /// Pods that no kubelet runs.
    pub crowd: usize,
    /// Services of those.
    pub services: usize,
    /// Changes of which the latency is taken.
    pub changes: usize,
    /// How long usage is looked at.
    pub time: Duration,
}

/// Measures; ends early when a signal says so.
pub async fn run(options: Options) -> Result<Findings> {
    for row in &options.rows {
        ensure!(
            ROWS.contains(&row.as_str()),
            "no row is called `{row}`; there are: {}",
            ROWS.join(", ")
        );
    }
    unless_interrupted(measure(options)).await
}

/// A run that goes on.
struct Bench {
    options: Options,
    cluster: Cluster,
    api: Api,
    findings: Findings,
    begun: Instant,
}

async fn measure(options: Options) -> Result<Findings> {
    let cluster = Cluster::running()?;
    let mut bench = Bench {
        api: Api::connect(&cluster).await?,
        cluster,
        options,
        findings: Findings::default(),
        begun: Instant::now(),
    };
    bench.describe();
    bench.say("installing");
    bench.cluster.install().await?;
    if bench.wants("usage") {
        bench.idle("idle, nobody enrolled").await?;
    }
    if bench.wants("label") || bench.wants("usage") {
        label::measure(&mut bench).await?;
    }
    if bench.wants("usage") {
        loaded::measure(&mut bench).await?;
    }
    if bench.wants("crowd") {
        crowd::measure(&mut bench).await?;
    }
    let seconds = json!(bench.begun.elapsed().as_secs());
    bench.findings.rig.insert("seconds".into(), seconds);
    Ok(bench.findings)
}

impl Bench {
    fn wants(&self, row: &str) -> bool {
        self.options.rows.is_empty() || self.options.rows.iter().any(|r| r == row)
    }

    fn say(&self, what: &str) {
        eprintln!("[{:>4} s] {what}", self.begun.elapsed().as_secs());
    }

    fn describe(&mut self) {
        let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        let cpus = std::thread::available_parallelism().map_or(0, usize::from);
        let Options {
            pods,
            rounds,
            crowd,
            services,
            changes,
            time,
            rows: _,
        } = &self.options;
        let rig = json!({"kernel": kernel.trim(), "cpus": cpus, "nodes": 2, "pods": pods, "rounds": rounds,
            "crowd": crowd, "services": services, "changes": changes, "secondsPerUsage": time.as_secs()});
        self.findings.rig = rig.as_object().cloned().unwrap_or_default();
    }

    /// What everything uses while nothing happens.
    async fn idle(&mut self, what: &str) -> Result<()> {
        self.say(&format!("usage: {what}"));
        let parts = part::parts(&self.cluster).await?;
        let facts = part::usage(&parts, what, self.options.time).await?;
        self.findings.facts.extend(facts);
        Ok(())
    }
}

/// Times as a fact, in milliseconds.
fn times(row: &'static str, what: &str, times: &[Duration]) -> Result<Fact> {
    ensure!(!times.is_empty(), "{what}: nothing was measured");
    let mut histogram = Histogram::<u64>::new(3)?;
    for time in times {
        histogram.record(u64::try_from(time.as_micros()).unwrap_or(u64::MAX))?;
    }
    let at = |quantile| histogram.value_at_quantile(quantile) as f64 / 1e3;
    Ok(Fact {
        row,
        what: what.to_owned(),
        figures: vec![
            ("p50 ms", at(0.50)),
            ("p99 ms", at(0.99)),
            ("max ms", histogram.max() as f64 / 1e3),
            ("of", times.len() as f64),
        ],
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_told_in_milliseconds() {
        let all: Vec<Duration> = (1..=100).map(Duration::from_millis).collect();
        let fact = times("label", "all", &all).expect("a fact");
        let [p50, p99, max, of] = [0, 1, 2, 3].map(|i| fact.figures[i].1);
        assert!((49.9..50.1).contains(&p50), "{p50}");
        assert!((98.9..99.1).contains(&p99), "{p99}");
        assert!((99.9..100.1).contains(&max) && of == 100.0, "{max} {of}");
        assert!(times("label", "none", &[]).is_err());
    }
}
