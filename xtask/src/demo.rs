//! `cargo xtask demo`: builds what is missing, then hands over to the demo of the lab.

use std::process::ExitCode;

use anyhow::Result;

use crate::{provision, root, step};

/// Show the mesh at work, step by step.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Leave the lab running afterwards, and say how to reach it.
    #[arg(long)]
    keep: bool,
    /// What to show: connections, or requests through waypoints.
    #[arg(value_enum, default_value = "l4")]
    what: What,
}

/// What to show.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum What {
    /// Connections: capture, encryption, policy, upgrades.
    L4,
    /// Requests: shares, retries, circuit breakers, faults.
    L7,
}

/// Builds, then runs the demo; its exit status says whether every step held.
pub fn run(args: &Args) -> Result<ExitCode> {
    step::timed("preparing", || {
        provision::require_lab()?;
        step::build_programs(false)
    })?;
    let program = step::built()?.join("warren-demo");
    let mut command = root::command(
        &program,
        "the demo runs in the lab: network namespaces and kernel programs",
    )?;
    if let What::L7 = args.what {
        command.arg("--l7");
    }
    if args.keep {
        command.arg("--keep");
    }
    step::hand_over(&mut command)
}
