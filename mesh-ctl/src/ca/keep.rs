//! The authority at rest: one file with every key and chain, replaced as a whole, mode 0600.

use std::{
    fs,
    io::{self, Write},
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::Path,
};

use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};

/// A key with the certificates that lead from it to a root, the issuer first and the root last (PEM).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Signer {
    /// Issuer first, root last.
    pub chain: Vec<String>,
    /// The issuer's private key.
    pub key: String,
}

impl Signer {
    /// The root that peers must trust.
    pub fn root(&self) -> &str {
        self.chain
            .last()
            .expect("a signer is made with at least one certificate")
    }
}

/// Everything the authority keeps.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kept {
    /// What signs now.
    pub active: Signer,
    /// What will sign after the next step of a rotation; already trusted.
    pub next: Option<Signer>,
    /// Roots that no longer sign and are still trusted.
    pub old_roots: Vec<String>,
    /// When the last certificate of an old root expires, in seconds since 1970.
    #[serde(default)]
    pub old_until: u64,
}

impl Kept {
    /// All roots that peers must trust, the signing one first; two signers may share one.
    pub fn roots(&self) -> Vec<&str> {
        let mut roots = vec![self.active.root()];
        for root in self
            .next
            .iter()
            .map(Signer::root)
            .chain(self.old_roots.iter().map(String::as_str))
        {
            if !roots.contains(&root) {
                roots.push(root);
            }
        }
        roots
    }
}

/// Reads the file; `None` when there is none yet.
pub fn read(path: &Path) -> io::Result<Option<Kept>> {
    match fs::read(path) {
        Ok(bytes) => serde_json::from_slice(&bytes)
            .map(Some)
            .map_err(io::Error::other),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e),
    }
}

/// Replaces the file whole: a crash leaves the old or the new one.
pub fn write(path: &Path, kept: &Kept) -> io::Result<()> {
    write_private(
        path,
        serde_json::to_string_pretty(kept)
            .map_err(io::Error::other)?
            .as_bytes(),
    )
}

/// Writes a file that only its owner can read, atomically, and syncs it.
pub fn write_private(path: &Path, bytes: &[u8]) -> io::Result<()> {
    write_as(path, bytes, 0o600)
}

/// Writes a file that everybody may read, atomically, and syncs it.
pub fn write_public(path: &Path, bytes: &[u8]) -> io::Result<()> {
    write_as(path, bytes, 0o644)
}

/// Takes the state directory for this process until the value is dropped: a controller, or a command that changes it.
pub fn lock(dir: &Path) -> io::Result<Flock<fs::File>> {
    fs::create_dir_all(dir)?;
    let file = fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(dir.join("lock"))?;
    let busy = |(_, errno): (fs::File, nix::errno::Errno)| {
        io::Error::other(format!(
            "{}: another controller or command is using this state directory ({errno})",
            dir.display()
        ))
    };
    Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(busy)
}

fn write_as(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let dir = path
        .parent()
        .filter(|p| !p.as_os_str().is_empty())
        .unwrap_or(Path::new("."));
    fs::create_dir_all(dir)?;
    let fresh = path.with_extension("new");
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(mode)
        .open(&fresh)?;
    file.set_permissions(fs::Permissions::from_mode(mode))?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&fresh, path)?;
    fs::File::open(dir)?.sync_all()
}
