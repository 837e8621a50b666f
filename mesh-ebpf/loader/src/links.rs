//! Links: where a program is attached, pinned so that it stays when the process ends.
//!
//! Invariant: a link that exists gets the new program atomically; only one that is dead or attached to
//! something else is made anew.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use crate::sys;

/// The folder of pinned links.
#[derive(Debug)]
pub struct Links {
    folder: PathBuf,
}

impl Links {
    /// In this folder.
    pub fn new(folder: PathBuf) -> Self {
        Self { folder }
    }

    /// Makes sure that `prog` is behind the link `name`, which must be attached to `target` (cgroup id,
    /// namespace inode or interface).
    pub fn ensure(
        &self,
        name: &str,
        prog: BorrowedFd<'_>,
        target: u64,
        attach: impl FnOnce() -> io::Result<OwnedFd>,
    ) -> io::Result<()> {
        let path = self.folder.join(name);
        if let Ok(link) = sys::get(&path) {
            let same = sys::link_info(link.as_fd())
                .is_ok_and(|i| i.target == target || i.target & 0xffff_ffff == target);
            if same && sys::link_update(link.as_fd(), prog).is_ok() {
                return Ok(());
            }
            std::fs::remove_file(&path)?;
        }
        let link = attach()?;
        sys::pin(link.as_fd(), &path)
    }

    /// Pins another link under this name; the earlier one is detached when the new one is in its place.
    pub fn replace(&self, name: &str, link: BorrowedFd<'_>) -> io::Result<()> {
        let new = self.folder.join(format!("{name}-next"));
        gone(std::fs::remove_file(&new))?;
        sys::pin(link, &new)?;
        std::fs::rename(&new, self.folder.join(name))
    }

    /// The kernel's number of the link with this name; `None`: there is none.
    pub fn id(&self, name: &str) -> io::Result<Option<u32>> {
        match sys::get(&self.folder.join(name)) {
            Ok(link) => sys::link_info(link.as_fd()).map(|i| Some(i.id)),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// Detaches, if attached.
    pub fn remove(&self, name: &str) -> io::Result<()> {
        gone(std::fs::remove_file(self.folder.join(name)))
    }

    /// The names of all links.
    pub fn names(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in std::fs::read_dir(&self.folder)? {
            names.push(entry?.file_name().to_string_lossy().into_owned());
        }
        names.sort();
        Ok(names)
    }
}

/// Absence is what was wanted.
pub fn gone(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// Removes a folder of pins with all that is in it.
pub fn remove_tree(folder: &Path) -> io::Result<()> {
    gone(std::fs::remove_dir_all(folder))
}
