//! Runs the parsers under libFuzzer, which is guided by the code that inputs reach.
//!
//! Invariants: stable Rust is enough, because counters are all the instrumentation there is (no sanitizer); a C++ compiler
//! is needed for libFuzzer itself; what was found and what leads to it is kept in `target/fuzz` from run to run.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};

use crate::{root, step, workspace};

/// What to fuzz, and for how long.
#[derive(clap::Args)]
pub struct Args {
    /// One target; all of them, one after the other, when it is left out.
    target: Option<String>,
    /// How long each is fuzzed.
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// Only name the targets.
    #[arg(long)]
    list: bool,
}

/// Counters at every edge, the code they belong to, and what is compared with what.
const FLAGS: &str = "-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares";

/// Fuzzes; fails when anything was found.
pub fn run(args: &Args) -> Result<()> {
    let folder = workspace()?.join("target/fuzz");
    let program = build(&folder)?;
    let listed = Command::new(&program).env("WARREN_FUZZ", "list").output()?;
    let names = String::from_utf8(listed.stdout).context("targets have plain names")?;
    if args.list {
        print!("{names}");
        return Ok(());
    }
    let wanted: Vec<&str> = match &args.target {
        Some(one) => vec![one],
        None => names.lines().collect(),
    };
    let mut bad = Vec::new();
    for target in wanted {
        ensure!(
            names.lines().any(|name| name == target),
            "there is no fuzz target {target:?}; there are: {}",
            names.lines().collect::<Vec<_>>().join(", ")
        );
        if !fuzz(&program, &folder, target, args.seconds)? {
            bad.push(target);
        }
    }
    if bad.is_empty() {
        return Ok(());
    }
    let shown = folder.join("findings");
    bail!(
        "found something in {}; the inputs are in {}",
        bad.join(", "),
        shown.display()
    )
}

/// Compiles everything below the parsers with counters; the first time takes minutes.
fn build(folder: &Path) -> Result<PathBuf> {
    if !["c++", "g++", "clang++"]
        .iter()
        .any(|compiler| root::on_path(compiler))
    {
        bail!("libFuzzer needs a C++ compiler: apt-get install g++");
    }
    let triple = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    let mut cargo = step::cargo()?;
    cargo
        .current_dir(workspace()?.join("fuzz"))
        .args(["build", "--release", "--locked"])
        // With a target of its own, what runs while compiling has no counters.
        .args(["--target", &triple])
        .env("CARGO_TARGET_DIR", folder)
        .env("RUSTFLAGS", FLAGS);
    step::timed("compiling the fuzz targets", || step::run(&mut cargo))?;
    Ok(folder.join(triple).join("release/warren-fuzz"))
}

/// Fuzzes one target; says whether nothing was found.
fn fuzz(program: &Path, folder: &Path, target: &str, seconds: u64) -> Result<bool> {
    let (corpus, findings) = (folder.join("corpus").join(target), folder.join("findings"));
    fs::create_dir_all(&corpus)?;
    fs::create_dir_all(&findings)?;
    let seeded = Command::new(program)
        .env("WARREN_FUZZ", target)
        .env("WARREN_FUZZ_SEEDS", &corpus)
        .status()?;
    ensure!(
        seeded.success(),
        "the seeds of {target} could not be written"
    );
    let log = folder.join(format!("{target}.log"));
    let mut command = Command::new(program);
    command
        .env("WARREN_FUZZ", target)
        .arg(format!("-max_total_time={seconds}"))
        .arg(format!("-artifact_prefix={}/{target}-", findings.display()))
        // What takes so long or so much is a finding, too.
        .args([
            "-timeout=10",
            "-rss_limit_mb=2048",
            "-max_len=8192",
            "-print_final_stats=1",
        ])
        .arg(&corpus)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(fs::File::create(&log)?);
    let ended = command.status().context("running the fuzzer")?;
    let text = String::from_utf8_lossy(&fs::read(&log)?).into_owned();
    let runs = text
        .lines()
        .find_map(|line| line.strip_prefix("stat::number_of_executed_units:"))
        .map_or("?", str::trim);
    let kept = fs::read_dir(&corpus)?.count();
    let what = if ended.success() {
        "nothing found"
    } else {
        "FOUND"
    };
    println!(
        "fuzz {target}: {runs} executions in {:?}, {kept} inputs kept, {what}",
        Duration::from_secs(seconds)
    );
    if !ended.success() {
        let last: Vec<&str> = text.lines().rev().take(30).collect();
        last.iter().rev().for_each(|line| eprintln!("  {line}"));
        eprintln!("  the whole of it: {}", log.display());
    }
    Ok(ended.success())
}
