//! Entering a pod or a node: network namespace, cgroup, name and resolver, then the program.
//!
//! Invariants: a namespace is only ever entered on a thread or process that exists for nothing else;
//! a program joins its cgroup before it can open a socket.

use std::{
    fs::{self, File},
    io::Write,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::Command,
    thread,
};

use anyhow::{Context, Result, anyhow};
use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, setns, unshare},
};

/// What a program sees of the world.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct Surroundings {
    /// Network namespace to enter.
    #[arg(long)]
    pub netns: Option<PathBuf>,
    /// Cgroup directory to join.
    #[arg(long)]
    pub cgroup: Option<PathBuf>,
    /// File to show as /etc/resolv.conf.
    #[arg(long)]
    pub resolv: Option<PathBuf>,
    /// Host name to have.
    #[arg(long)]
    pub hostname: Option<String>,
    /// Working directory.
    #[arg(long)]
    pub dir: Option<PathBuf>,
    /// Numeric user to become.
    #[arg(long)]
    pub uid: Option<u32>,
    /// Numeric group to become.
    #[arg(long)]
    pub gid: Option<u32>,
}

impl Surroundings {
    /// The command that enters these surroundings by way of this program's `enter` subcommand.
    pub fn command(&self, lab: &Path, program: &[String]) -> Command {
        let mut cmd = Command::new(lab);
        cmd.arg("enter");
        let mut flag = |name: &str, value: Option<&std::ffi::OsStr>| {
            if let Some(value) = value {
                cmd.arg(format!("--{name}")).arg(value);
            }
        };
        flag("netns", self.netns.as_deref().map(Path::as_os_str));
        flag("cgroup", self.cgroup.as_deref().map(Path::as_os_str));
        flag("resolv", self.resolv.as_deref().map(Path::as_os_str));
        flag(
            "hostname",
            self.hostname.as_deref().map(std::ffi::OsStr::new),
        );
        flag("dir", self.dir.as_deref().map(Path::as_os_str));
        let (uid, gid) = (
            self.uid.map(|n| n.to_string()),
            self.gid.map(|n| n.to_string()),
        );
        flag("uid", uid.as_deref().map(std::ffi::OsStr::new));
        flag("gid", gid.as_deref().map(std::ffi::OsStr::new));
        cmd.arg("--").args(program);
        cmd
    }

    /// Enters and becomes `program`. Returns only when that failed.
    pub fn exec(&self, program: &[String]) -> Result<std::convert::Infallible> {
        let (name, args) = program.split_first().context("no program was given")?;
        if let Some(cgroup) = &self.cgroup {
            join_cgroup(cgroup)?;
        }
        if let Some(netns) = &self.netns {
            enter_netns(netns)?;
        }
        if self.resolv.is_some() || self.hostname.is_some() {
            self.private_view()?;
        }
        let mut cmd = Command::new(name);
        cmd.args(args);
        if let Some(dir) = &self.dir {
            cmd.current_dir(dir);
        }
        if let Some(gid) = self.gid.or(self.uid) {
            cmd.gid(gid);
        }
        if let Some(uid) = self.uid {
            cmd.uid(uid);
        }
        Err(anyhow!(cmd.exec()).context(format!("starting `{name}`")))
    }

    fn private_view(&self) -> Result<()> {
        unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWUTS)
            .context("unsharing mounts and host name")?;
        let none: Option<&str> = None;
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)
            .context("making mounts private")?;
        if let Some(resolv) = &self.resolv {
            mount(
                Some(resolv),
                "/etc/resolv.conf",
                none,
                MsFlags::MS_BIND,
                none,
            )
            .with_context(|| format!("showing {} as /etc/resolv.conf", resolv.display()))?;
        }
        if let Some(name) = &self.hostname {
            nix::unistd::sethostname(name)
                .with_context(|| format!("taking the host name {name}"))?;
        }
        Ok(())
    }
}

/// Runs `work` on a thread of its own inside a network namespace.
pub fn in_netns<T: Send + 'static>(
    netns: &Path,
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    let netns = netns.to_owned();
    let thread = thread::spawn(move || {
        enter_netns(&netns)?;
        work()
    });
    thread
        .join()
        .map_err(|_| anyhow!("a thread inside the network namespace panicked"))?
}

/// Moves the calling process into a cgroup.
pub fn join_cgroup(cgroup: &Path) -> Result<()> {
    let procs = cgroup.join("cgroup.procs");
    let mut file = fs::OpenOptions::new()
        .write(true)
        .open(&procs)
        .with_context(|| format!("opening {}", procs.display()))?;
    file.write_all(b"0")
        .with_context(|| format!("joining {}", cgroup.display()))
}

fn enter_netns(netns: &Path) -> Result<()> {
    let file = File::open(netns)
        .with_context(|| format!("opening the network namespace {}", netns.display()))?;
    setns(file, CloneFlags::CLONE_NEWNET).with_context(|| format!("entering {}", netns.display()))
}
