//! The benchmark as a program; `cargo xtask bench` builds what it needs and runs it.

use std::{path::PathBuf, process::ExitCode, time::Duration};

use anyhow::{Context, Result};
use clap::{Parser, Subcommand, ValueEnum};
use mesh_tests::{
    bench::{self, Findings, Options, Subject, app, l7},
    kube, out,
};

/// Measures the ways from pod to pod against each other.
#[derive(Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// The L4 mesh: direct, same node, across nodes, Envoy.
    L4(L4),
    /// Requests through a waypoint: ours, Envoy, nginx.
    L7(L7),
    /// The mesh on a cluster: a label to mutual TLS, memory and CPU of its parts, 10,000 pods.
    Kube(Kube),
    /// The application that is measured; the benchmark starts it in pods.
    #[command(hide = true)]
    App {
        /// Its port.
        #[arg(long, default_value_t = app::PORT)]
        port: u16,
    },
}

#[derive(clap::Args)]
struct L4 {
    /// Three minutes instead of half an hour: one round, short runs.
    #[arg(long)]
    quick: bool,
    /// Only rows whose names begin so: rtt, http, open, flood, conns, tunnels, memory, policy, kernel.
    #[arg(long, value_delimiter = ',')]
    rows: Vec<String>,
    /// Only these subjects, and what they are compared with.
    #[arg(long, value_delimiter = ',')]
    subjects: Vec<Subject>,
    /// Seconds of each run.
    #[arg(long)]
    seconds: Option<f64>,
    /// Steady rounds of each row.
    #[arg(long)]
    rounds: Option<usize>,
    #[command(flatten)]
    shown: Shown,
    /// The lab's name.
    #[arg(long, default_value = "bench")]
    name: String,
}

#[derive(clap::Args)]
struct Kube {
    /// Only these: label, usage, crowd.
    #[arg(long, value_delimiter = ',')]
    rows: Vec<String>,
    /// Running pods that a label takes into the mesh.
    #[arg(long, default_value_t = 100)]
    pods: usize,
    /// How often that is done.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Pods that no kubelet runs.
    #[arg(long, default_value_t = 10_000)]
    crowd: usize,
    /// Services of those.
    #[arg(long, default_value_t = 1000)]
    services: usize,
    /// Changes of which the latency is taken.
    #[arg(long, default_value_t = 100)]
    changes: usize,
    /// Seconds for which memory and CPU are looked at, each time.
    #[arg(long, default_value_t = 20)]
    seconds: u64,
    #[command(flatten)]
    shown: Shown,
}

/// Where what was found goes.
#[derive(clap::Args)]
struct Shown {
    /// How to print what was found.
    #[arg(short, long, default_value = "table")]
    output: Output,
    /// Write it as JSON to this file too.
    #[arg(long)]
    out: Option<PathBuf>,
}

impl Shown {
    fn show(&self, found: &Findings) -> Result<ExitCode> {
        self.print(&found.to_json(), || found.to_table())?;
        // A lost comparison is a result; what did not work is not.
        Ok(if found.failed.is_empty() {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        })
    }

    fn print(&self, json: &serde_json::Value, table: impl FnOnce() -> String) -> Result<()> {
        if let Some(file) = &self.out {
            std::fs::write(file, format!("{json:#}\n"))
                .with_context(|| format!("writing {}", file.display()))?;
        }
        match self.output {
            Output::Table => out::print(table()),
            Output::Json => out::line(format_args!("{json:#}")),
        }
    }
}

#[derive(clap::Args)]
struct L7 {
    /// Two minutes instead of ten: one round, short runs.
    #[arg(long)]
    quick: bool,
    #[command(flatten)]
    shown: Shown,
    /// The lab's name.
    #[arg(long, default_value = "bench")]
    name: String,
}

impl L7 {
    fn options(&self) -> Result<l7::Options> {
        Ok(l7::Options {
            name: self.name.parse()?,
            seconds: if self.quick { 1.0 } else { 5.0 },
            warm_up: if self.quick { 0.3 } else { 1.0 },
            rounds: if self.quick { 1 } else { 3 },
        })
    }
}

#[derive(Clone, Copy, ValueEnum)]
enum Output {
    Table,
    Json,
}

impl L4 {
    fn options(&self) -> Result<Options> {
        let name = self.name.parse()?;
        let mut options = if self.quick {
            Options::quick(name)
        } else {
            Options::full(name)
        };
        options.rows.clone_from(&self.rows);
        if !self.subjects.is_empty() {
            options.subjects.clone_from(&self.subjects);
        }
        if let Some(seconds) = self.seconds {
            options.seconds = seconds;
        }
        if let Some(rounds) = self.rounds {
            options.attempts = options.attempts.max(2 * rounds);
            options.rounds = rounds;
        }
        Ok(options)
    }
}

fn main() -> ExitCode {
    out::end("warren-bench", run())
}

fn run() -> Result<ExitCode> {
    match Cli::parse().what {
        What::App { port } => {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()?;
            runtime.block_on(app::serve(port))?;
            Ok(ExitCode::SUCCESS)
        }
        What::L4(args) => threaded()?.block_on(l4(&args)),
        What::L7(args) => threaded()?.block_on(through_waypoints(&args)),
        What::Kube(args) => threaded()?.block_on(cluster(&args)),
    }
}

fn threaded() -> Result<tokio::runtime::Runtime> {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    Ok(builder.worker_threads(2).enable_all().build()?)
}

async fn l4(args: &L4) -> Result<ExitCode> {
    args.shown.show(&bench::run(args.options()?).await?)
}

async fn through_waypoints(args: &L7) -> Result<ExitCode> {
    let found = l7::run(args.options()?).await?;
    args.shown.print(&found.to_json(), || found.to_table())?;
    Ok(ExitCode::SUCCESS)
}

async fn cluster(args: &Kube) -> Result<ExitCode> {
    let options = kube::bench::Options {
        rows: args.rows.clone(),
        pods: args.pods,
        rounds: args.rounds,
        crowd: args.crowd,
        services: args.services,
        changes: args.changes,
        time: Duration::from_secs(args.seconds),
    };
    args.shown.show(&kube::bench::run(options).await?)
}
