//! Taking a lab away, whatever state it is in.
//!
//! Invariants: a process is ended only when it lives in the lab's own cgroup, or when its number and start time
//! are the recorded ones; every step is tried even when one before it failed.

use std::{
    fs,
    io::ErrorKind,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use nix::{
    mount::{MntFlags, umount2},
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use super::{
    cgroup, net,
    place::{Place, shared},
};

/// What was found and removed.
#[derive(Debug, Default, serde::Serialize)]
pub struct Removed {
    /// Network namespaces.
    pub namespaces: usize,
    /// Directories of pinned programs and maps.
    pub pins: usize,
    /// Whether a supervisor ran.
    pub supervisor: bool,
}

/// Removes everything that the lab left.
pub fn down(place: &Place) -> Result<Removed> {
    let mut removed = Removed::default();
    let mut troubles = Vec::new();
    let mut attempt = |what: Result<()>| {
        if let Err(e) = what {
            troubles.push(format!("{e:#}"));
        }
    };
    // The supervisor first, or it would start again what we end.
    match end_supervisor(place) {
        Ok(ran) => removed.supervisor = ran,
        Err(e) => attempt(Err(e)),
    }
    attempt(cgroup::kill(place.cgroup(), Duration::from_secs(10)));
    for pins in place.existing_pins() {
        attempt(fs::remove_dir_all(&pins).with_context(|| format!("removing {}", pins.display())));
        removed.pins += 1;
    }
    for name in place.existing_netns() {
        attempt(net::remove_netns(&name));
        removed.namespaces += 1;
    }
    attempt(cgroup::remove(place.cgroup()));
    attempt(unmount(place.run()));
    attempt(remove(place.run()));
    attempt(remove(place.state()));
    for dir in shared()? {
        attempt(remove_empty(&dir));
    }
    if !troubles.is_empty() {
        bail!(
            "lab {} is not wholly removed; run `lab down` again after looking at:\n  {}",
            place.name,
            troubles.join("\n  ")
        );
    }
    Ok(removed)
}

/// Number and start time of this process.
pub fn own_mark() -> Result<String> {
    let pid = std::process::id();
    Ok(format!(
        "{pid} {}",
        start_time(pid).context("this process is in /proc")?
    ))
}

/// Whether the lab's supervisor is alive.
pub fn supervisor(place: &Place) -> Option<u32> {
    let mark = fs::read_to_string(place.run().join("supervisor.pid")).ok()?;
    let (pid, started) = mark.split_once(' ')?;
    let pid = pid.parse().ok()?;
    (start_time(pid)? == started).then_some(pid)
}

fn end_supervisor(place: &Place) -> Result<bool> {
    let Some(pid) = supervisor(place) else {
        return Ok(false);
    };
    let raw = Pid::from_raw(i32::try_from(pid)?);
    kill(raw, Signal::SIGKILL).with_context(|| format!("ending the supervisor {pid}"))?;
    let deadline = Instant::now() + Duration::from_secs(5);
    while supervisor(place).is_some() {
        if Instant::now() > deadline {
            bail!("the supervisor {pid} did not end");
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    Ok(true)
}

/// The start time of a process that is not a zombie, in clock ticks since boot.
fn start_time(pid: u32) -> Option<String> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in parentheses may hold anything; what follows its last `)` is regular.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    if fields.next()? == "Z" {
        return None;
    }
    fields.nth(18).map(str::to_owned)
}

fn unmount(dir: &Path) -> Result<()> {
    let mounts = fs::read_to_string("/proc/mounts")?;
    let name = dir.to_string_lossy();
    let times = mounts
        .lines()
        .filter(|l| l.split(' ').nth(1) == Some(&*name))
        .count();
    for _ in 0..times {
        umount2(dir, MntFlags::MNT_DETACH).with_context(|| format!("unmounting {name}"))?;
    }
    Ok(())
}

fn remove(dir: &Path) -> Result<()> {
    match fs::remove_dir_all(dir) {
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(()),
        done => done.with_context(|| format!("removing {}", dir.display())),
    }
}

/// Removes a directory unless another lab has something in it.
fn remove_empty(dir: &Path) -> Result<()> {
    match fs::remove_dir(dir) {
        Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::DirectoryNotEmpty) => Ok(()),
        // What a cgroup with others in it says.
        Err(e) if e.kind() == ErrorKind::ResourceBusy => Ok(()),
        done => done.with_context(|| format!("removing {}", dir.display())),
    }
}
