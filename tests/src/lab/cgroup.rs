//! Cgroups of nodes, pods and components: what a lab started is found and ended through them.
//!
//! Invariant: only cgroups below the lab's own root are ever killed or removed.

use std::{
    fs,
    io::ErrorKind,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};

/// Makes a cgroup with all its parents.
pub fn create(dir: &Path) -> Result<()> {
    fs::create_dir_all(dir).with_context(|| format!("making the cgroup {}", dir.display()))
}

/// Ends every process of a cgroup and those below it, and waits until none is left.
pub fn kill(dir: &Path, patience: Duration) -> Result<()> {
    match fs::write(dir.join("cgroup.kill"), "1") {
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(()),
        done => done.with_context(|| format!("ending the processes of {}", dir.display()))?,
    }
    let deadline = Instant::now() + patience;
    while populated(dir) {
        if Instant::now() > deadline {
            bail!(
                "processes of {} are still there {patience:?} after SIGKILL: see its cgroup.procs",
                dir.display()
            );
        }
        thread::sleep(Duration::from_millis(2));
    }
    Ok(())
}

/// Removes a cgroup and those below it, after `kill`.
pub fn remove(dir: &Path) -> Result<()> {
    let entries = match fs::read_dir(dir) {
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(()),
        entries => entries.with_context(|| format!("reading {}", dir.display()))?,
    };
    for entry in entries
        .flatten()
        .filter(|e| e.file_type().is_ok_and(|t| t.is_dir()))
    {
        remove(&entry.path())?;
    }
    let deadline = Instant::now() + Duration::from_secs(2);
    loop {
        match fs::remove_dir(dir) {
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(()),
            // The kernel empties a cgroup a moment after its last process ended.
            Err(e) if e.kind() == ErrorKind::ResourceBusy && Instant::now() < deadline => {
                // And who was about to join it when its processes were ended may be in it now.
                let _ = fs::write(dir.join("cgroup.kill"), "1");
                thread::sleep(Duration::from_millis(2))
            }
            done => return done.with_context(|| format!("removing the cgroup {}", dir.display())),
        }
    }
}

/// Whether any process lives in the cgroup or below it.
pub fn populated(dir: &Path) -> bool {
    fs::read_to_string(dir.join("cgroup.events"))
        .is_ok_and(|t| t.lines().any(|l| l == "populated 1"))
}
