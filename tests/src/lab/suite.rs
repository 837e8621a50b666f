//! Runs tests that need a world, one after the other in one process.
//!
//! Invariants: a test that is not run is printed with its reason; a test that hangs is ended and fails; the
//! logs of a failed test's labs are kept and named.

use std::{
    any::Any,
    fs, panic,
    path::{Path, PathBuf},
    process::ExitCode,
    sync::OnceLock,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow};

use super::{place::LabName, supervisor::Spec};

/// By this variable `cargo xtask test unit` says why tests that need root are not to run.
const SKIP: &str = "WARREN_SKIP_ROOT_TESTS";
/// What one test may take at most, unless more is asked for.
pub(crate) const LIMIT: Duration = Duration::from_secs(240);

static LOGS: OnceLock<PathBuf> = OnceLock::new();

/// A test: a name, and what to do.
pub struct Test {
    name: &'static str,
    run: fn() -> Result<()>,
}

impl Test {
    /// A test called `name`.
    pub const fn new(name: &'static str, run: fn() -> Result<()>) -> Self {
        Self { name, run }
    }
}

/// Tests from async functions: `lab_tests![a::first, b::second]`, or `lab_tests![by drive; a::first]` where something
/// else than [`on_runtime`] drives them.
#[macro_export]
macro_rules! lab_tests {
    (by $drive:path; $($module:ident :: $test:ident),* $(,)?) => {
        &[$($crate::lab::suite::Test::new(
            concat!(stringify!($module), "::", stringify!($test)),
            || $drive($module::$test()),
        )),*]
    };
    ($($tests:tt)*) => { $crate::lab_tests![by $crate::lab::suite::on_runtime; $($tests)*] };
}

/// Drives an async test to its end.
pub fn on_runtime(test: impl Future<Output = Result<()>>) -> Result<()> {
    within(LIMIT, test)
}

/// Drives an async test to its end, which has to come in time.
pub(crate) fn within(limit: Duration, test: impl Future<Output = Result<()>>) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    runtime.block_on(async {
        tokio::time::timeout(limit, test)
            .await
            .map_err(|_| anyhow!("did not end within {limit:?}"))?
    })
}

/// A lab of its own for this process, with two nodes and the mesh.
pub fn spec() -> Spec {
    Spec {
        name: name(),
        nodes: 2,
        mesh: true,
        agent_env: Vec::new(),
        controller_args: Vec::new(),
        images: super::images::Images::default(),
    }
}

fn name() -> LabName {
    format!("t{}", std::process::id())
        .parse()
        .expect("a letter and a number make a name")
}

/// Where a lab leaves its logs when it is removed, if anywhere.
pub(super) fn logs_dir() -> Option<&'static Path> {
    LOGS.get().map(PathBuf::as_path)
}

/// Runs the tests that the command line asks for in labs of their own.
pub fn main(tests: &[Test]) -> ExitCode {
    run(tests, reason_to_skip())
}

/// Runs the tests that the command line asks for, and prints as `cargo test` does; none of them when there is a
/// reason to skip them.
pub fn run(tests: &[Test], skip: Option<String>) -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let filters: Vec<&String> = args.iter().filter(|a| !a.starts_with('-')).collect();
    let chosen: Vec<&Test> = tests
        .iter()
        .filter(|t| filters.is_empty() || filters.iter().any(|f| t.name.contains(f.as_str())))
        .collect();
    if args.iter().any(|a| a == "--list") {
        chosen.iter().for_each(|t| println!("{}: test", t.name));
        return ExitCode::SUCCESS;
    }
    println!("\nrunning {} tests", chosen.len());
    let left_out = tests.len() - chosen.len();
    if let Some(why) = skip {
        chosen
            .iter()
            .for_each(|t| println!("test {} ... ignored, {why}", t.name));
        println!(
            "\ntest result: ok. 0 passed; 0 failed; {} ignored; 0 measured; {left_out} filtered out\n",
            chosen.len()
        );
        return ExitCode::SUCCESS;
    }
    let begun = Instant::now();
    let mut failures = Vec::new();
    for test in &chosen {
        let at = Instant::now();
        let outcome = run_one(test);
        let seconds = at.elapsed().as_secs_f32();
        match outcome {
            Ok(()) => println!("test {} ... ok ({seconds:.1} s)", test.name),
            Err(e) => {
                println!("test {} ... FAILED ({seconds:.1} s)", test.name);
                failures.push((test.name, e));
            }
        }
    }
    for (name, e) in &failures {
        println!("\n---- {name} ----\n{e:#}");
    }
    let word = if failures.is_empty() { "ok" } else { "FAILED" };
    println!(
        "\ntest result: {word}. {} passed; {} failed; 0 ignored; 0 measured; {left_out} filtered out; finished in {:.2}s\n",
        chosen.len() - failures.len(),
        failures.len(),
        begun.elapsed().as_secs_f32()
    );
    if failures.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

/// Why `cargo xtask test unit` passes over tests that need root, if it does.
pub fn passed_over() -> Option<String> {
    std::env::var(SKIP).ok()
}

fn reason_to_skip() -> Option<String> {
    if let Some(why) = passed_over() {
        return Some(why);
    }
    if !nix::unistd::geteuid().is_root() {
        return Some("the lab needs root: run `cargo xtask test lab`".to_owned());
    }
    // A plain `cargo test` builds no programs of other crates.
    let programs = super::programs().ok()?;
    let missing = ["mesh-node", "mesh-ctl"]
        .into_iter()
        .find(|name| !programs.lab.with_file_name(name).exists())?;
    Some(format!(
        "{missing} is not built: run `cargo xtask test lab`"
    ))
}

fn run_one(test: &Test) -> Result<()> {
    let logs = LOGS.get_or_init(|| {
        std::env::temp_dir().join(format!("warren-lab-logs-{}", std::process::id()))
    });
    let _ = fs::remove_dir_all(logs);
    let run = test.run;
    let outcome =
        panic::catch_unwind(run).unwrap_or_else(|p| Err(anyhow!("panicked: {}", said(p.as_ref()))));
    if outcome.is_ok() {
        let _ = fs::remove_dir_all(logs);
        return outcome;
    }
    let kept = logs.with_file_name(format!(
        "warren-lab-logs-{}-{}",
        std::process::id(),
        test.name.replace("::", "-")
    ));
    // A test that had no lab left none.
    match fs::rename(logs, &kept) {
        Ok(()) => outcome.with_context(|| format!("the logs of its lab are in {}", kept.display())),
        Err(_) => outcome,
    }
}

fn said(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|s| (*s).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "no message".to_owned())
}
