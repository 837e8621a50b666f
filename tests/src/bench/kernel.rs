//! What the kernel programs cost: nanoseconds a run, while connections are made through them.
//!
//! Invariant: the kernel's statistics are switched back to what they were, whatever happens.

use std::{collections::BTreeMap, fs};

use anyhow::{Context, Result, ensure};

use super::{subject::Subject, world::World};

const SWITCH: &str = "/proc/sys/kernel/bpf_stats_enabled";

/// What one program did.
#[derive(Clone, Debug, PartialEq)]
pub struct Cost {
    /// Its name.
    pub program: String,
    /// How often it ran for each connection.
    pub runs: f64,
    /// Nanoseconds of a run.
    pub nanoseconds: f64,
}

/// Statistics are on while this lives.
struct Counting(String);

impl Counting {
    fn begin() -> Result<Self> {
        let before = fs::read_to_string(SWITCH).with_context(|| format!("reading {SWITCH}"))?;
        fs::write(SWITCH, "1").with_context(|| format!("writing {SWITCH}"))?;
        Ok(Self(before))
    }
}

impl Drop for Counting {
    fn drop(&mut self) {
        if let Err(e) = fs::write(SWITCH, self.0.trim()) {
            eprintln!("{SWITCH} could not be set back to {}: {e}", self.0.trim());
        }
    }
}

/// Runs new connections through a subject for `seconds`, and says what each program did.
pub async fn costs(world: &World, subject: Subject, seconds: f64) -> Result<Vec<Cost>> {
    let to = world.address(subject).await?.to_string();
    let words: Vec<String> = [
        "conns",
        &to,
        "--clients",
        "4",
        "--seconds",
        &seconds.to_string(),
    ]
    .map(str::to_owned)
    .into();
    let counting = Counting::begin()?;
    let before = programs()?;
    let report = world.load(&subject.client(), &words).await?;
    let after = programs()?;
    drop(counting);
    let connections = report["ok"].as_f64().unwrap_or_default();
    ensure!(
        report["failed"] == 0 && connections > 0.0,
        "connections failed: {report}"
    );
    let cost = |(name, (runs, time)): (&String, &(u64, u64))| {
        let (r, t) = before.get(name).copied().unwrap_or_default();
        let (runs, time) = (runs.saturating_sub(r) as f64, time.saturating_sub(t) as f64);
        (runs > 0.0).then(|| Cost {
            program: name.clone(),
            runs: runs / connections,
            nanoseconds: time / runs,
        })
    };
    Ok(after.iter().filter_map(cost).collect())
}

/// Runs and nanoseconds by name: nodes share the machine's kernel, and their programs their names.
fn programs() -> Result<BTreeMap<String, (u64, u64)>> {
    let mut all = BTreeMap::<String, (u64, u64)>::new();
    for (name, runs, time) in
        mesh_loader::statistics().context("asking the kernel for its programs")?
    {
        let name = name.split('#').next().unwrap_or_default().to_owned();
        let sum = all.entry(name).or_default();
        *sum = (sum.0 + runs, sum.1 + time);
    }
    Ok(all)
}
