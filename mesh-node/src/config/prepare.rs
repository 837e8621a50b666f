//! What the configuration promises: directories that only root can enter, and enough descriptors.

use std::{fs::DirBuilder, io, os::unix::fs::DirBuilderExt, path::Path};

use nix::sys::resource::{Resource, getrlimit, setrlimit};

use super::Config;

impl Config {
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

fn private(path: &Path) -> io::Result<()> {
    let made = DirBuilder::new().recursive(true).mode(0o700).create(path);
    made.map_err(|e| io::Error::new(e.kind(), format!("making {}: {e}", path.display())))
}
