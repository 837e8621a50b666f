//! `cargo xtask`: everything one does with this repository besides writing code.
//!
//! Invariant: what needs root says so and asks for it for exactly that step; everything else runs without.

mod bench;
mod ci;
mod codegen;
mod demo;
mod deny;
mod ebpf;
mod fuzz;
mod image;
mod kube;
mod lab;
mod peers;
mod provision;
mod root;
mod step;
mod test;
mod tidy;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

/// Build, test, try and check Warren.
#[derive(Parser)]
#[command(name = "cargo xtask", version)]
struct Cli {
    #[command(subcommand)]
    command: Cmd,
}

#[derive(Subcommand)]
enum Cmd {
    /// Compile the kernel programs, with what that needs.
    Ebpf(ebpf::Args),
    /// Generate the wire types from their .proto files.
    Codegen {
        /// Change nothing; fail when a committed file is not what would be generated.
        #[arg(long)]
        check: bool,
    },
    /// Check what the compiler does not: dependency rules, file headers, orphan files, lengths, words.
    Tidy,
    /// Run tests.
    Test(test::Args),
    /// Start, use and remove a lab: a cluster of network namespaces on this machine (`lab help` for more).
    Lab(lab::Args),
    /// Start, use and remove a real Kubernetes cluster on this machine.
    Kube(kube::Args),
    /// Build the container images as tar files (OCI layouts), without a container daemon.
    Image(image::Args),
    /// Show the mesh at work, step by step.
    Demo(demo::Args),
    /// Measure.
    Bench(bench::Args),
    /// Feed the parsers with whatever breaks them, guided by coverage.
    Fuzz(fuzz::Args),
    /// The gate: everything that must hold before a change is taken.
    Ci(ci::Args),
    /// Install the Debian packages and tools that building and testing need.
    Provision(provision::Args),
}

fn main() -> ExitCode {
    let done = match Cli::parse().command {
        Cmd::Ebpf(args) => ebpf::run(&args),
        Cmd::Codegen { check } => codegen::run(check),
        Cmd::Tidy => tidy::run(),
        Cmd::Test(args) => test::run(&args),
        Cmd::Lab(args) => return lab::run(&args).unwrap_or_else(failed),
        Cmd::Kube(args) => return kube::run(&args).unwrap_or_else(failed),
        Cmd::Image(args) => image::run(&args),
        Cmd::Demo(args) => return demo::run(&args).unwrap_or_else(failed),
        Cmd::Bench(args) => return bench::run(&args).unwrap_or_else(failed),
        Cmd::Fuzz(args) => fuzz::run(&args),
        Cmd::Ci(args) => ci::run(&args),
        Cmd::Provision(args) => provision::run(&args),
    };
    done.map_or_else(failed, |()| ExitCode::SUCCESS)
}

fn failed(e: anyhow::Error) -> ExitCode {
    eprintln!("xtask: {e:#}");
    ExitCode::FAILURE
}

/// The root of the workspace.
fn workspace() -> Result<std::path::PathBuf> {
    let here = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    Ok(here
        .parent()
        .ok_or_else(|| anyhow::anyhow!("xtask lies one level below the root"))?
        .to_owned())
}
