//! Running other programs: what is run is shown, how long it took is told, failure names the command.

use std::{
    env,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
    time::Instant,
};

use anyhow::{Context, Result, bail};

use crate::workspace;

/// The cargo that runs us, in the workspace's root, without what it set for us alone.
pub fn cargo() -> Result<Command> {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(workspace()?);
    // Set for xtask's own build; a build below would take them for its own and compile things twice.
    for name in env::vars_os().map(|(n, _)| n) {
        let text = name.to_string_lossy();
        if text.starts_with("CARGO_PKG_")
            || text.starts_with("CARGO_MANIFEST")
            || text == "CARGO_CRATE_NAME"
        {
            command.env_remove(&name);
        }
    }
    Ok(command)
}

/// Runs a command to its end; an unsuccessful one is an error.
pub fn run(command: &mut Command) -> Result<()> {
    let status = command
        .status()
        .with_context(|| format!("starting {}", show(command)))?;
    if !status.success() {
        bail!("`{}` ended with {status}", show(command));
    }
    Ok(())
}

/// Becomes a command: its exit status is ours, and a Ctrl-C is for it alone to answer. Returns only when it could
/// not be started.
pub fn hand_over(command: &mut Command) -> Result<ExitCode> {
    Err(command.exec()).with_context(|| format!("starting {}", show(command)))
}

/// A command as one would type it.
pub fn show(command: &Command) -> String {
    let program = Path::new(command.get_program())
        .file_name()
        .unwrap_or(command.get_program());
    let words = std::iter::once(program).chain(command.get_args());
    words
        .map(|w| w.to_string_lossy().into_owned())
        .collect::<Vec<_>>()
        .join(" ")
}

/// Does something and prints how long it took.
pub fn timed<T>(what: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
    println!("==> {what}");
    let begun = Instant::now();
    let done = work();
    let how = if done.is_ok() { "done" } else { "FAILED" };
    println!(
        "==> {what}: {how} in {:.1} s",
        begun.elapsed().as_secs_f32()
    );
    done
}

/// Where cargo puts what it builds with the dev profile.
pub fn built() -> Result<PathBuf> {
    built_as(false)
}

/// Where cargo puts what it builds, with optimisation or with the dev profile.
pub fn built_as(release: bool) -> Result<PathBuf> {
    let target =
        env::var_os("CARGO_TARGET_DIR").map_or_else(|| PathBuf::from("target"), PathBuf::from);
    let profile = if release { "release" } else { "debug" };
    Ok(workspace()?.join(target).join(profile))
}

/// Builds every program of the workspace, the kernel's first.
pub fn build_programs(release: bool) -> Result<()> {
    crate::ebpf::run(&crate::ebpf::Args::default()).context("the lab needs the kernel programs")?;
    // The whole workspace, so that features are the same as in the tests and nothing is compiled twice.
    let mut build = cargo()?;
    build.args(["build", "--locked", "--workspace", "--bins"]);
    run(build.args(release.then_some("--release")))
}
