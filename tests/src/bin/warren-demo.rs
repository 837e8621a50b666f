//! The demo as a program; `cargo xtask demo` builds what it needs and runs it.

use std::process::ExitCode;

use anyhow::Result;
use clap::Parser;
use mesh_tests::{
    demo::{self, Options},
    interrupt::unless_interrupted,
    out,
};

/// Shows the mesh at work, step by step; the exit status says whether every step held.
#[derive(Parser)]
#[command(version)]
struct Cli {
    /// Leave the lab running afterwards.
    #[arg(long)]
    keep: bool,
    /// Show requests through waypoints instead of connections.
    #[arg(long)]
    l7: bool,
    /// The lab's name.
    #[arg(long, default_value = "demo")]
    name: String,
}

fn main() -> ExitCode {
    out::end("warren-demo", run())
}

#[tokio::main(worker_threads = 2)]
async fn run() -> Result<ExitCode> {
    let cli = Cli::parse();
    unless_interrupted(demo::run(Options {
        name: cli.name.parse()?,
        keep: cli.keep,
        l7: cli.l7,
    }))
    .await
}
