//! The benchmark measures what it says: very short runs of a few rows.

use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use mesh_tests::lab::suite;
use serde_json::Value;

/// Two rows, three ways, a fraction of a second each; figures are not judged, only that they are there.
pub async fn a_short_benchmark_finds_every_figure() -> Result<()> {
    let found = quick("rtt-1k,http-64-log", "path,far").await?;
    for (row, measure, subjects) in [
        (
            "rtt-1k",
            "p50",
            &["near-direct", "path", "far-direct", "far"][..],
        ),
        (
            "http-64-log",
            "rate",
            &["near-direct", "path", "far-direct", "far"],
        ),
        ("http-64-log", "cpu-client", &["path", "far"]),
        ("http-64-log", "cpu-server", &["far"]),
    ] {
        for subject in subjects {
            let value = value(&found, row, measure, subject)?;
            ensure!(value > 0.0, "{subject} has no {measure} of {row}");
        }
    }
    let proofs = found["proofs"].as_array().context("proofs are a list")?;
    ensure!(
        proofs
            .iter()
            .map(|p| p["plaintext"] == true)
            .collect::<Vec<_>>()
            == [true, false],
        "in the clear without a mesh only: {proofs:?}"
    );
    Ok(())
}

/// What idle connections cost shows whatever the same node proxy carried before: n1 serves both subjects.
pub async fn idle_connections_cost_memory_whatever_ran_before() -> Result<()> {
    let found = quick("memory", "tunnel,far").await?;
    for (measure, subject) in [
        ("idle-connections-client", "tunnel"),
        ("idle-connections-client", "far"),
        ("idle-connections-server", "far"),
    ] {
        let megabytes = value(&found, "memory", measure, subject)?;
        // A thousand of them cannot hold less than the records of their sockets.
        ensure!(
            (0.5..20.0).contains(&megabytes),
            "{subject}: {measure} is {megabytes} MB: {found:#}"
        );
    }
    Ok(())
}

/// A short run; what it found.
async fn quick(rows: &str, subjects: &str) -> Result<Value> {
    let name = suite::spec().name.to_string();
    let mut command = Command::new(env!("CARGO_BIN_EXE_warren-bench"));
    command
        .args(["l4", "--quick", "--seconds", "0.1", "-o", "json"])
        .args(["--name", &name, "--rows", rows, "--subjects", subjects])
        .stderr(Stdio::inherit());
    let done = tokio::task::spawn_blocking(move || command.output()).await??;
    ensure!(
        done.status.success(),
        "the benchmark ended with {}",
        done.status
    );
    serde_json::from_slice(&done.stdout).context("it prints JSON")
}

fn value(found: &Value, row: &str, measure: &str, subject: &str) -> Result<f64> {
    let lines = found["rows"].as_array().context("rows are a list")?;
    let line = lines
        .iter()
        .find(|l| l["row"] == row && l["measure"] == measure)
        .with_context(|| format!("no {measure} of {row}: {found:#}"))?;
    line["subjects"][subject]["value"]
        .as_f64()
        .with_context(|| format!("{subject} has no {measure} of {row}: {line}"))
}
