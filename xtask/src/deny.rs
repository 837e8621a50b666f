//! cargo-deny: licences, bans and sources of all dependencies; advisories where their database can be had.
//!
//! Invariant: a check that could not be made is printed as skipped, never as passed.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Instant,
};

use anyhow::{Context, Result, bail};

use crate::{provision, step, workspace};

const VERSION: &str = "0.20";

/// Runs all checks.
pub fn run() -> Result<()> {
    let deny = find_or_install()?;
    let check = |what: &[&str]| -> Result<Command> {
        let mut command = Command::new(&deny);
        command
            .current_dir(workspace()?)
            .args(["--locked", "check", "--hide-inclusion-graph"])
            .args(what);
        Ok(command)
    };
    step::run(&mut check(&["bans", "licenses", "sources"])?)?;
    let advisories = check(&["advisories"])?
        .output()
        .context("starting cargo-deny")?;
    let said = String::from_utf8_lossy(&advisories.stderr);
    if advisories.status.success() {
        println!("deny: advisories ok");
    } else if [
        "failed to fetch",
        "unable to fetch",
        "failed to acquire",
        "failed to open",
    ]
    .iter()
    .any(|s| said.contains(s))
    {
        println!("deny: advisories SKIPPED: the advisory database cannot be fetched from here");
    } else {
        bail!("advisories:\n{said}");
    }
    Ok(())
}

/// The program, installed into the tool cache when it is missing.
pub fn find_or_install() -> Result<PathBuf> {
    let tools = provision::tools()?;
    let cached = tools.join("bin/cargo-deny");
    for candidate in [cached.clone(), PathBuf::from("cargo-deny")] {
        if version(&candidate).is_some_and(|v| v.starts_with(VERSION)) {
            return Ok(candidate);
        }
    }
    println!(
        "deny: installing cargo-deny {VERSION} into {} (some minutes, once)",
        tools.display()
    );
    let begun = Instant::now();
    // Unoptimised: it compiles in a third of the time and runs long enough only once a gate.
    let install = || {
        let mut command = step::cargo()?;
        command
            .args([
                "install",
                "--locked",
                "--debug",
                "cargo-deny",
                "--version",
                &format!("~{VERSION}"),
                "--root",
            ])
            .arg(&tools);
        command
            .env("CARGO_TARGET_DIR", tools.join("build"))
            .env_remove("RUSTFLAGS");
        Ok(command.status()?.success())
    };
    provision::retry(install, "cargo install cargo-deny")?;
    // A left-over build directory only takes space.
    let _ = fs::remove_dir_all(tools.join("build"));
    println!("deny: installed in {:.0} s", begun.elapsed().as_secs_f32());
    version(&cached)
        .map(|_| cached)
        .context("cargo-deny was installed but does not run")
}

fn version(program: &Path) -> Option<String> {
    let out = Command::new(program)
        .arg("--version")
        .stderr(Stdio::null())
        .output()
        .ok()?;
    let text = String::from_utf8(out.stdout).ok()?;
    text.split_whitespace().nth(1).map(str::to_owned)
}
