//! `cargo xtask provision`: Debian packages and tools, with retries.
//!
//! Invariants: only what is missing is installed; no service is started by installing it.

use std::{
    path::Path,
    process::{Command, Stdio},
    thread,
    time::Duration,
};

use anyhow::{Context, Result, bail};
use clap::ValueEnum;

use crate::{deny, ebpf, root, step};

const TRIES: u32 = 3;

/// What can be installed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Group {
    /// A C compiler, for the cryptographic library.
    Build,
    /// What the lab calls: ip and nft.
    Lab,
    /// Real programs that the tests and the benchmark drive through the mesh.
    Programs,
    /// The toolchain of the kernel programs.
    Ebpf,
    /// cargo-deny, for the gate.
    Deny,
}

impl Group {
    fn packages(self) -> &'static [&'static str] {
        match self {
            Self::Build => &["build-essential"],
            Self::Lab => &["iproute2", "nftables"],
            Self::Programs => &[
                "curl",
                "nginx-light",
                "wrk",
                "iperf3",
                "redis-server",
                "redis-tools",
                "postgresql",
                "postgresql-client",
            ],
            Self::Ebpf | Self::Deny => &[],
        }
    }
}

/// Install the Debian packages and tools that building and testing need.
#[derive(Debug, Default, clap::Args)]
pub struct Args {
    /// What to install; all of it unless given.
    #[arg(value_enum)]
    groups: Vec<Group>,
}

/// Installs what is missing.
pub fn run(args: &Args) -> Result<()> {
    let groups = if args.groups.is_empty() {
        Group::value_variants()
    } else {
        &args.groups
    };
    let wanted: Vec<&str> = groups.iter().flat_map(|g| g.packages()).copied().collect();
    packages(&wanted)?;
    if groups.contains(&Group::Ebpf) {
        ebpf::run(&ebpf::Args::default())?;
    }
    if groups.contains(&Group::Deny) {
        deny::find_or_install()?;
    }
    Ok(())
}

/// Installs the Debian packages among `wanted` that are missing.
pub fn packages(wanted: &[&str]) -> Result<()> {
    let missing: Vec<&str> = wanted.iter().copied().filter(|p| !installed(p)).collect();
    if missing.is_empty() {
        println!("provision: all packages are there: {}", wanted.join(" "));
        return Ok(());
    }
    let apt = Path::new("/usr/bin/apt-get");
    if !apt.exists() {
        bail!(
            "this is not Debian or Ubuntu: install what these packages hold by your own means: {}",
            missing.join(" ")
        );
    }
    println!("provision: installing {}", missing.join(" "));
    let why = "packages are installed";
    retry(
        || {
            Ok(quiet(&mut root::command(apt, why)?)
                .args(["update", "-q"])
                .status()?
                .success())
        },
        "apt-get update",
    )?;
    let install = || {
        let mut command = root::command(apt, why)?;
        quiet(&mut command)
            .args(["install", "-y", "-q", "--no-install-recommends"])
            .args(&missing);
        Ok(command.status()?.success())
    };
    retry(install, "apt-get install")?;
    let still: Vec<&str> = missing.iter().copied().filter(|p| !installed(p)).collect();
    if !still.is_empty() {
        bail!(
            "apt-get said it succeeded, but these are not installed: {}",
            still.join(" ")
        );
    }
    Ok(())
}

fn quiet(command: &mut Command) -> &mut Command {
    // In run level 1 packages do not start their services.
    command
        .env("DEBIAN_FRONTEND", "noninteractive")
        .env("RUNLEVEL", "1")
}

fn installed(package: &str) -> bool {
    let query = Command::new("dpkg-query")
        .args(["-W", "-f=${db:Status-Status}", package])
        .stderr(Stdio::null())
        .output();
    query.is_ok_and(|out| out.stdout == b"installed")
}

/// Tries up to three times, with a pause that grows.
pub fn retry(attempt: impl Fn() -> Result<bool>, what: &str) -> Result<()> {
    for n in 1..=TRIES {
        if attempt().with_context(|| what.to_owned())? {
            return Ok(());
        }
        eprintln!("provision: {what} failed (attempt {n} of {TRIES})");
        if n < TRIES {
            thread::sleep(Duration::from_secs(u64::from(n) * 5));
        }
    }
    bail!("{what} failed {TRIES} times: look at its output above")
}

/// Says which programs are missing for the lab, if any, and how to get them.
pub fn require_lab() -> Result<()> {
    let missing: Vec<&str> = ["ip", "nft"]
        .into_iter()
        .filter(|p| !on_any_path(p))
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    step::timed(
        &format!(
            "installing what the lab needs ({} missing)",
            missing.join(" ")
        ),
        || packages(Group::Lab.packages()),
    )
}

fn on_any_path(program: &str) -> bool {
    // A normal user's path may lack the system directories that root's has.
    root::on_path(program)
        || ["/usr/sbin", "/sbin"]
            .iter()
            .any(|d| Path::new(d).join(program).is_file())
}
