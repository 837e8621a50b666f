//! `cargo xtask bench`: builds the benchmark with optimisation and runs it.

use std::process::ExitCode;

use anyhow::Result;
use clap::Subcommand;

use crate::{ebpf, provision, root, step};

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
}

/// Builds, then runs the benchmark; its exit status says whether everything worked, not who won.
pub fn run(args: &Args) -> Result<ExitCode> {
    let (which, words) = match &args.what {
        What::L4 { words } => ("l4", words),
        What::L7 { words } => ("l7", words),
    };
    step::timed("preparing", || {
        provision::require_lab()?;
        ebpf::run(&ebpf::Args::default())?;
        step::run(step::cargo()?.args([
            "build",
            "--release",
            "--locked",
            "--workspace",
            "--bins",
        ]))?;
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
    let program = step::built()?
        .with_file_name("release")
        .join("warren-bench");
    let mut command = root::command(&program, "the benchmark runs in the lab")?;
    step::hand_over(command.arg(which).args(words))
}
