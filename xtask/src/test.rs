//! `cargo xtask test`: the tiers of tests.
//!
//! Invariant: a tier that cannot run here says why; only a tier that was not asked for by name may be skipped. In CI
//! (`CI=true`) programs of other make are there, or the lab's tier fails.

use std::{
    path::PathBuf,
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail};
use clap::ValueEnum;
use serde_json::Value;

use crate::{
    ebpf,
    kube::{self, conformance::Run, helm, policies, protocols},
    provision, root, step,
};

/// The environment variable by which tests are told why they are to skip what needs root.
pub const SKIP: &str = "WARREN_SKIP_ROOT_TESTS";

/// Which tests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Tier {
    /// Without root: unit, property, golden and in-process tests.
    Unit,
    /// In the lab and in the kernel; needs root.
    Lab,
    /// In a real Kubernetes cluster.
    Kube,
    /// The Gateway API's conformance suite, in a real Kubernetes cluster.
    Conformance,
    /// All of them that are built.
    #[default]
    All,
}

/// Run tests.
#[derive(Debug, Default, clap::Args)]
pub struct Args {
    /// Which tests.
    #[arg(value_enum, default_value = "all")]
    tier: Tier,
    /// Only tests whose name holds this.
    filter: Option<String>,
    /// In the gate a tier that cannot run here is skipped aloud.
    #[arg(skip)]
    lenient: bool,
}

impl Args {
    /// What the gate runs.
    pub fn gate(no_lab: bool) -> Self {
        Self {
            tier: if no_lab { Tier::Unit } else { Tier::All },
            filter: None,
            lenient: true,
        }
    }
}

/// Runs tests.
pub fn run(args: &Args) -> Result<()> {
    match args.tier {
        Tier::Unit => unit(args, "only the tests without root were asked for"),
        Tier::Lab => {
            prepare_lab()?;
            lab(args)
        }
        Tier::Kube => {
            prepare_lab()?;
            kube(args)
        }
        Tier::Conformance => {
            prepare_lab()?;
            let what = args.filter.as_deref().map_or(Run::Reported, Run::One);
            kube::conformance::run(&kube::conformance::build()?, what)
        }
        Tier::All if !root::is_root() && !root::on_path("sudo") => {
            unit(args, "this is not root")?;
            println!(
                "test: the lab, kernel, kube and conformance tiers are SKIPPED: they need root, or sudo, which is not here"
            );
            Ok(())
        }
        Tier::All => {
            prepare_lab()?;
            unit(args, "they run in a step of their own")?;
            lab(args)?;
            if let Some(why) = kube::missing(args.lenient) {
                println!("test: the kube and conformance tiers are SKIPPED: {why}");
                return Ok(());
            }
            kube(args)?;
            conformance(args)
        }
    }
}

/// The suite's tests have names of their own: with a filter it is left out.
fn conformance(args: &Args) -> Result<()> {
    let skipped = |why: &str| println!("test: the conformance tier is SKIPPED: {why}");
    if args.filter.is_some() {
        skipped("a filter is given; `cargo xtask test conformance NAME` runs one of its tests");
        return Ok(());
    }
    match kube::conformance::build() {
        Ok(parts) => kube::conformance::run(&parts, Run::Tested),
        Err(e) if args.lenient => {
            skipped(&format!("{e:#}"));
            Ok(())
        }
        Err(e) => Err(e),
    }
}

fn prepare_lab() -> Result<()> {
    provision::for_tests()?;
    step::build_programs(false)
}

fn unit(args: &Args, why_skip: &str) -> Result<()> {
    let mut command = step::cargo()?;
    command
        .args(["test", "--workspace", "--locked"])
        .env(SKIP, why_skip);
    // Without helm the chart's tests say why they skip.
    match helm::program() {
        Ok(helm) => drop(command.env(helm::TOLD, helm)),
        Err(e) => println!("test: the chart's tests with the real helm will be SKIPPED: {e:#}"),
    }
    if let Some(filter) = &args.filter {
        command.args(["--", filter]);
    }
    step::run(&mut command)
}

/// In a cluster that is started for the tests and removed after them, whatever becomes of them.
fn kube(args: &Args) -> Result<()> {
    let mut told = Vec::new();
    for (name, program) in [
        (policies::TOLD, policies::program()),
        (helm::TOLD, helm::program()),
    ] {
        match program {
            Ok(program) => told.push((name, program)),
            Err(e) => println!("test: the tests that need {name} will be SKIPPED: {e:#}"),
        }
    }
    let cluster = kube::Cluster::start(false)?;
    told.extend(cluster.environment()?);
    let tested = match args.filter {
        Some(_) => Ok(()),
        None => cluster.demo(),
    };
    let tested =
        tested.and_then(|()| run_programs(args.filter.as_deref(), |name| name == "kube", &told));
    let removed = cluster.remove();
    tested.and(removed)
}

fn lab(args: &Args) -> Result<()> {
    let mut told = Vec::new();
    match protocols::programs() {
        Ok(folder) => told.push((protocols::TOLD, folder)),
        Err(e) if in_ci() => return Err(e),
        Err(e) => {
            println!("test: the tests with h2spec, grpcurl and gRPC's peers will be SKIPPED: {e:#}")
        }
    }
    run_programs(
        args.filter.as_deref(),
        |name| name.starts_with("lab") || name == "kernel",
        &told,
    )?;
    if args.filter.is_some() {
        return Ok(());
    }
    // Programs that write lines are other programs to the verifier.
    let speaking = ebpf::Args {
        log: true,
        ..ebpf::Args::default()
    };
    ebpf::run(&speaking)?;
    run_programs(
        Some("writes lines"),
        |name| name == "kernel",
        &[("WARREN_EBPF_OBJECT", ebpf::object_with_lines()?)],
    )
}

/// Whether everything has to be tested: in CI nothing is skipped for want of a program that can be built.
fn in_ci() -> bool {
    std::env::var("CI").as_deref() == Ok("true")
}

/// Builds as who we are, then runs test programs as root.
fn run_programs(
    filter: Option<&str>,
    ours: impl Fn(&str) -> bool,
    environment: &[(&str, PathBuf)],
) -> Result<()> {
    for program in test_programs(ours)? {
        let mut command = root::command(
            &program,
            "the tests make network namespaces and load kernel programs",
        )?;
        command
            .current_dir(crate::workspace()?)
            .env_remove(SKIP)
            .envs(environment.iter().map(|(k, v)| (k, v)));
        command.args(filter);
        step::run(&mut command)?;
    }
    Ok(())
}

/// The test programs with these names.
fn test_programs(ours: impl Fn(&str) -> bool) -> Result<Vec<PathBuf>> {
    let mut command: Command = step::cargo()?;
    command.args([
        "test",
        "--workspace",
        "--locked",
        "--no-run",
        "--message-format=json-render-diagnostics",
    ]);
    let out = command
        .stderr(Stdio::inherit())
        .output()
        .with_context(|| format!("starting {}", step::show(&command)))?;
    if !out.status.success() {
        bail!("`{}` ended with {}", step::show(&command), out.status);
    }
    let text = String::from_utf8(out.stdout).context("cargo writes UTF-8")?;
    let artifacts = text
        .lines()
        .filter_map(|l| serde_json::from_str::<Value>(l).ok());
    let wanted = artifacts.filter(|a| {
        let name = a["target"]["name"].as_str().unwrap_or_default();
        a["target"]["kind"][0] == "test" && ours(name)
    });
    let programs: Vec<PathBuf> = wanted
        .filter_map(|a| a["executable"].as_str().map(PathBuf::from))
        .collect();
    if programs.is_empty() {
        bail!("cargo built none of the test programs");
    }
    Ok(programs)
}
