//! `cargo xtask bench`: builds the benchmark with optimisation and runs it.

use std::{path::PathBuf, process::ExitCode};

use anyhow::{Context, Result};
use clap::Subcommand;

use crate::{kube, provision, root, step};

/// Measure.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Round trips, requests, throughput, connections, CPU and memory: direct, same node, across nodes, Envoy.
    L4 {
        /// Handed to the benchmark: `--quick`, `--rows`, `--subjects`, `-o table|json`, `--out FILE`; `--help` tells more.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        words: Vec<String>,
    },
    /// Requests through a waypoint, one by one: ours, Envoy, nginx.
    L7 {
        /// Handed to the benchmark: `--quick`, `-o table|json`, `--out FILE`; `--help` tells more.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        words: Vec<String>,
    },
    /// On a cluster: from a label to enforced mutual TLS, memory and CPU of every part, 10,000 pods and 1,000 services.
    Kube {
        /// Handed to the benchmark: `--rows`, `--pods`, `--crowd`, `-o table|json`, `--out FILE`; `--help` tells more.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        words: Vec<String>,
    },
}

/// Builds, then runs the benchmark; its exit status says whether everything worked, not who won.
pub fn run(args: &Args) -> Result<ExitCode> {
    match &args.what {
        What::L4 { words } => in_the_lab("l4", words),
        What::L7 { words } => in_the_lab("l7", words),
        What::Kube { words } => cluster(words),
    }
}

fn in_the_lab(which: &str, words: &[String]) -> Result<ExitCode> {
    step::timed("preparing", || {
        provision::require_lab()?;
        step::build_programs(true)?;
        // What deciding costs is measured by the model's own example.
        step::run(step::cargo()?.args([
            "build",
            "--release",
            "--locked",
            "-p",
            "mesh-model",
            "--example",
            "policy_cost",
        ]))
    })?;
    let mut command = root::command(&program()?, "the benchmark runs in the lab")?;
    step::hand_over(command.arg(which).args(words))
}

/// In a cluster that is started for it and removed after it, whatever becomes of it.
fn cluster(words: &[String]) -> Result<ExitCode> {
    step::timed("preparing", provision::require_lab)?;
    let cluster = kube::Cluster::start(true)?;
    let mut command = root::command(&program()?, "the benchmark enters the cluster's networks")?;
    let measured = command
        .arg("kube")
        .args(words)
        .envs(cluster.environment()?)
        .status()
        .with_context(|| format!("starting {}", step::show(&command)));
    let removed = cluster.remove();
    let measured = measured?;
    removed?;
    Ok(if measured.success() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn program() -> Result<PathBuf> {
    Ok(step::built_as(true)?.join("warren-bench"))
}
