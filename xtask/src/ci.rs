//! `cargo xtask ci`: the gate, the same here and in CI.
//!
//! Invariant: the first failing step ends it; every step prints how long it took.

use anyhow::Result;

use crate::{codegen, deny, ebpf, provision, root, step, test, tidy};

/// The gate: everything that must hold before a change is taken.
#[derive(Debug, Default, clap::Args)]
pub struct Args {
    /// Leave out what takes root: the tests in the lab and in the kernel.
    #[arg(long)]
    no_lab: bool,
}

/// Runs the gate.
pub fn run(args: &Args) -> Result<()> {
    // First, so that a registry that does not answer is known before anything is compiled.
    step::timed("provision", || {
        if !args.no_lab && (root::is_root() || root::on_path("sudo")) {
            provision::for_tests()?;
            ebpf::run(&ebpf::Args::default())?;
        }
        deny::find_or_install().map(drop)
    })?;
    step::timed("fmt", || {
        step::run(step::cargo()?.args(["fmt", "--all", "--check"]))
    })?;
    step::timed("tidy", tidy::run)?;
    step::timed("codegen", || codegen::run(true))?;
    step::timed("clippy", || {
        step::run(step::cargo()?.args([
            "clippy",
            "--workspace",
            "--all-targets",
            "--locked",
            "--",
            "-D",
            "warnings",
        ]))
    })?;
    step::timed("doc", || {
        step::run(step::cargo()?.env("RUSTDOCFLAGS", "-D warnings").args([
            "doc",
            "--workspace",
            "--no-deps",
            "--locked",
            "--quiet",
        ]))
    })?;
    step::timed("deny", deny::run)?;
    step::timed("test", || test::run(&test::Args::gate(args.no_lab)))
}
