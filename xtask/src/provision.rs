//! `cargo xtask provision`: Debian packages, tools and mounts, with retries.
//!
//! Invariants: only what is missing is installed; no service is started by installing it.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
    time::Duration,
};

use anyhow::{Context, Result, bail};
use clap::ValueEnum;

use crate::{deny, ebpf, peers, root, step};

const TRIES: u32 = 3;

/// What can be installed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Group {
    /// A C compiler, for the cryptographic library.
    Build,
    /// What the lab calls, ip and nft, and what sets its nodes' clocks.
    Lab,
    /// Real programs that the tests and the benchmark drive through the mesh.
    Programs,
    /// Envoy and an HBONE peer's library, for the tests of interoperation.
    Interop,
    /// The toolchain of the kernel programs.
    Ebpf,
    /// cargo-deny, for the gate.
    Deny,
}

impl Group {
    fn packages(self) -> &'static [&'static str] {
        match self {
            Self::Build => &["build-essential"],
            Self::Lab => &["iproute2", "nftables", "libfaketime"],
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
            Self::Interop => &["python3", "python3-venv"],
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
    if groups.contains(&Group::Interop) {
        peers::install()?;
    }
    if groups.contains(&Group::Ebpf) {
        ebpf::run(&ebpf::Args::default())?;
    }
    if groups.contains(&Group::Deny) {
        deny::find_or_install()?;
    }
    Ok(())
}

/// What the tests in the lab and in the kernel need: with it, none of them has a reason to be skipped.
pub fn for_tests() -> Result<()> {
    let groups = [Group::Build, Group::Lab, Group::Programs, Group::Interop];
    let wanted: Vec<&str> = groups.iter().flat_map(|g| g.packages()).copied().collect();
    packages(&wanted)?;
    // PyPI is not a Debian mirror: a machine may well have the one and not the other.
    if let Err(e) = peers::install() {
        println!("provision: the tests with peers of other make will be SKIPPED: {e:#}");
    }
    mount_bpffs()
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
pub fn retry(mut attempt: impl FnMut() -> Result<bool>, what: &str) -> Result<()> {
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

/// Brings what the lab needs and is missing.
pub fn require_lab() -> Result<()> {
    let missing: Vec<&str> = ["ip", "nft"]
        .into_iter()
        .filter(|p| !on_any_path(p))
        .collect();
    if !missing.is_empty() {
        step::timed(
            &format!(
                "installing what the lab needs ({} missing)",
                missing.join(" ")
            ),
            || packages(Group::Lab.packages()),
        )?;
    }
    mount_bpffs()
}

/// The kernel programs are pinned in a bpffs. systemd mounts it at every start; a container or a bare machine
/// may lack it. It stays mounted: what is pinned outlives whoever pinned it.
fn mount_bpffs() -> Result<()> {
    const AT: &str = "/sys/fs/bpf";
    let mounts = fs::read_to_string("/proc/mounts").context("reading /proc/mounts")?;
    let mounted = mounts.lines().any(|line| {
        let mut words = line.split(' ').skip(1);
        words.next() == Some(AT) && words.next() == Some("bpf")
    });
    if mounted {
        return Ok(());
    }
    println!("provision: mounting the BPF file system at {AT}");
    let mut mount = root::command(
        Path::new("mount"),
        "the BPF file system is mounted, where kernel programs are pinned",
    )?;
    step::run(mount.args(["-t", "bpf", "bpf", AT]))
}

/// Where tools are installed: `tools` in the cache.
pub fn tools() -> Result<PathBuf> {
    Ok(cache()?.join("tools"))
}

/// Where what is fetched or built once is kept: `$XDG_CACHE_HOME/warren`, or the same below `~/.cache`.
pub fn cache() -> Result<PathBuf> {
    let given = env::var_os("XDG_CACHE_HOME")
        .filter(|v| !v.is_empty())
        .map(PathBuf::from);
    let cache = given.or_else(|| env::var_os("HOME").map(|home| Path::new(&home).join(".cache")));
    Ok(cache
        .context("neither XDG_CACHE_HOME nor HOME is set")?
        .join("warren"))
}

fn on_any_path(program: &str) -> bool {
    // A normal user's path may lack the system directories that root's has.
    root::on_path(program)
        || ["/usr/sbin", "/sbin"]
            .iter()
            .any(|d| Path::new(d).join(program).is_file())
}
