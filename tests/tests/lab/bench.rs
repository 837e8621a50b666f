//! The benchmark measures what it says: a very short run of a few rows.

use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use mesh_tests::lab::suite;
use serde_json::Value;

/// Two rows, three ways, a fraction of a second each; figures are not judged, only that they are there.
pub async fn a_short_benchmark_finds_every_figure() -> Result<()> {
    let name = suite::spec().name.to_string();
    let mut command = Command::new(env!("CARGO_BIN_EXE_warren-bench"));
    command
        .args([
            "l4",
            "--quick",
            "--seconds",
            "0.1",
            "-o",
            "json",
            "--name",
            &name,
        ])
        .args(["--rows", "rtt-1k,http-64-log", "--subjects", "path,far"])
        .stderr(Stdio::inherit());
    let done = tokio::task::spawn_blocking(move || command.output()).await??;
    ensure!(
        done.status.success(),
        "the benchmark ended with {}",
        done.status
    );
    let found: Value = serde_json::from_slice(&done.stdout).context("it prints JSON")?;
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
        let line = found["rows"].as_array().context("rows are a list")?;
        let line = line
            .iter()
            .find(|l| l["row"] == row && l["measure"] == measure)
            .with_context(|| format!("no {measure} of {row}: {found:#}"))?;
        for subject in subjects {
            let value = line["subjects"][subject]["value"].as_f64();
            ensure!(
                value > Some(0.0),
                "{subject} has no {measure} of {row}: {line}"
            );
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
