//! Waiting until something changes in a few directories.
//!
//! Invariants: tells that something changed, never what, so that whoever waits looks for itself; a directory that is
//! not there, or was made anew, is watched from the next wait on: whoever waits must not wait for ever.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
    path::PathBuf,
};

use nix::{
    sys::inotify::{AddWatchFlags, InitFlags, Inotify},
    unistd::read,
};
use tokio::io::unix::AsyncFd;

use crate::capture::watch_input;

/// Directories that are watched.
#[derive(Debug)]
pub struct Watch {
    dirs: Vec<PathBuf>,
    inotify: Inotify,
    events: AsyncFd<OwnedFd>,
}

impl Watch {
    /// Watches from now on, whether they are there or not. Fails when the user has no inotify instance left.
    pub fn on(dirs: &[PathBuf]) -> io::Result<Self> {
        let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)?;
        let events = watch_input(inotify.as_fd().try_clone_to_owned()?)?;
        let watch = Self {
            dirs: dirs.to_vec(),
            inotify,
            events,
        };
        watch.renew();
        Ok(watch)
    }

    /// Returns when something was made, removed, renamed or written in one of them since the last call.
    pub async fn changed(&mut self) {
        self.renew();
        let mut events = [0u8; 16 << 10];
        loop {
            let Ok(mut ready) = self.events.readable().await else {
                // The runtime ends.
                return std::future::pending().await;
            };
            if let Ok(Ok(_)) = ready.try_io(|fd| Ok(read(fd, &mut events)?)) {
                return;
            }
        }
    }

    /// Adding a watch that is there changes nothing.
    fn renew(&self) {
        let kinds = AddWatchFlags::IN_CREATE
            | AddWatchFlags::IN_DELETE
            | AddWatchFlags::IN_MOVE
            | AddWatchFlags::IN_CLOSE_WRITE
            | AddWatchFlags::IN_ONLYDIR;
        for dir in &self.dirs {
            if let Err(error) = self.inotify.add_watch(dir, kinds) {
                tracing::debug!(dir = %dir.display(), %error, "a directory cannot be watched; it is looked at from time to time");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, time::Duration};

    use super::*;

    const SOON: Duration = Duration::from_secs(10);

    async fn quiet(watch: &mut Watch) -> bool {
        tokio::time::timeout(Duration::from_millis(30), watch.changed())
            .await
            .is_err()
    }

    #[tokio::test]
    async fn changes_wake_and_a_directory_may_come_later() {
        let root = tempfile::tempdir().unwrap();
        let (here, later) = (root.path().join("here"), root.path().join("later"));
        fs::create_dir(&here).unwrap();
        let mut watch = Watch::on(&[here.clone(), later.clone()]).unwrap();
        assert!(quiet(&mut watch).await);
        fs::write(here.join("a"), "1").unwrap();
        tokio::time::timeout(SOON, watch.changed()).await.unwrap();
        while !quiet(&mut watch).await {}
        fs::rename(here.join("a"), here.join("b")).unwrap();
        tokio::time::timeout(SOON, watch.changed()).await.unwrap();
        fs::create_dir(&later).unwrap();
        while !quiet(&mut watch).await {}
        fs::write(later.join("x"), "").unwrap();
        tokio::time::timeout(SOON, watch.changed()).await.unwrap();
    }
}
