//! What the configuration promises: directories that only root can enter, enough descriptors, and pods' settings that
//! can be written.

use std::{fs::DirBuilder, io, os::unix::fs::DirBuilderExt, path::Path};

use nix::{
    mount::{MsFlags, mount},
    sys::{
        resource::{Resource, getrlimit, setrlimit},
        statvfs::{FsFlags, statvfs},
    },
};

use super::Config;

impl Config {
    /// Prepares the process, and what captured pods need besides.
    pub fn prepare_node(&self) -> io::Result<()> {
        self.prepare()?;
        if let Err(error) = writable_settings() {
            tracing::warn!(%error, "/proc/sys stays read-only; pods keep their own net.ipv4.tcp_tw_reuse and can open fewer connections");
        }
        Ok(())
    }

    /// Makes the directories and raises the limit of descriptors as far as it goes.
    pub fn prepare(&self) -> io::Result<()> {
        private(&self.run_dir)?;
        private(&self.state_dir)?;
        let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
        if soft < hard {
            setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
        }
        Ok(())
    }
}

/// Container runtimes mount `/proc/sys` read-only in a container that is not privileged. Here it is made writable
/// again, in the container's own mount namespace: inside pods' network namespaces one setting of theirs is changed.
fn writable_settings() -> nix::Result<()> {
    const SYS: &str = "/proc/sys";
    if !statvfs(SYS)?.flags().contains(FsFlags::ST_RDONLY) {
        return Ok(());
    }
    let flags = MsFlags::MS_REMOUNT
        | MsFlags::MS_BIND
        | MsFlags::MS_NOSUID
        | MsFlags::MS_NODEV
        | MsFlags::MS_NOEXEC;
    mount(None::<&str>, SYS, None::<&str>, flags, None::<&str>)
}

fn private(path: &Path) -> io::Result<()> {
    let made = DirBuilder::new().recursive(true).mode(0o700).create(path);
    made.map_err(|e| io::Error::new(e.kind(), format!("making {}: {e}", path.display())))
}
