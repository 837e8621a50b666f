//! `cargo xtask bench`: builds the benchmark with optimisation and runs it.

use anyhow::{Result, bail};
use clap::Subcommand;

use crate::{ebpf, provision, root, step, workspace};

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
        /// Handed to the benchmark.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        words: Vec<String>,
    },
}

/// Runs a benchmark.
pub fn run(args: &Args) -> Result<()> {
    let What::L4 { words } = &args.what;
    if !workspace()?.join("tests/src/bin/warren-bench.rs").exists() {
        bail!(
            "the L4 benchmark is not built yet: there is no tests/src/bin/warren-bench.rs; no figure is made up instead"
        );
    }
    provision::require_lab()?;
    ebpf::run(&ebpf::Args::default())?;
    step::run(step::cargo()?.args(["build", "--release", "--locked", "--workspace", "--bins"]))?;
    let program = step::built()?
        .with_file_name("release")
        .join("warren-bench");
    step::run(
        root::command(&program, "the benchmark runs in the lab")?
            .arg("l4")
            .args(words),
    )
}
