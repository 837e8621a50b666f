//! The key directory: certificates with their keys on tmpfs, so that a restart needs no controller.
//!
//! Invariants: files are 0600 and replaced whole by rename; a file that cannot be used is reported and
//! left out, never trusted in part.

use std::{
    fs,
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use mesh_model::name::Identity;

use super::issued::Bundle;

/// The file of the node's own certificate.
const NODE: &str = "node.pem";

/// A directory that holds one PEM bundle per identity.
#[derive(Clone, Debug)]
pub struct KeyDir {
    path: PathBuf,
}

impl KeyDir {
    /// Opens the directory, and makes it when it is not there.
    pub fn open(path: impl Into<PathBuf>) -> io::Result<Self> {
        let path = path.into();
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&path)?;
        Ok(Self { path })
    }

    /// The node's bundle, if there is one.
    pub fn node(&self) -> io::Result<Option<Bundle>> {
        read(&self.path.join(NODE))
    }

    /// Keeps the node's bundle.
    pub fn keep_node(&self, bundle: &Bundle) -> io::Result<()> {
        self.write(NODE, bundle)
    }

    /// All workload bundles.
    pub fn workloads(&self) -> io::Result<Vec<(Identity, Bundle)>> {
        let mut found = Vec::new();
        for entry in fs::read_dir(&self.path)? {
            let path = entry?.path();
            let identity = path
                .file_name()
                .and_then(|n| n.to_str())
                .and_then(identity_of);
            if let Some(identity) = identity
                && let Some(bundle) = read(&path)?
            {
                found.push((identity, bundle));
            }
        }
        Ok(found)
    }

    /// Keeps a workload's bundle.
    pub fn keep(&self, identity: &Identity, bundle: &Bundle) -> io::Result<()> {
        self.write(&file_of(identity), bundle)
    }

    /// Forgets a workload's bundle.
    pub fn forget(&self, identity: &Identity) -> io::Result<()> {
        match fs::remove_file(self.path.join(file_of(identity))) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
            _ => Ok(()),
        }
    }

    fn write(&self, name: &str, bundle: &Bundle) -> io::Result<()> {
        let temporary = self.path.join(format!(".{name}.new"));
        let mut file = fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&temporary)?;
        file.write_all(bundle.pem().as_bytes())?;
        fs::rename(temporary, self.path.join(name))
    }
}

fn read(path: &Path) -> io::Result<Option<Bundle>> {
    // The file is as old as the certificate: it is replaced with it.
    let text = fs::read_to_string(path).and_then(|pem| Ok((pem, fs::metadata(path)?.modified()?)));
    match text {
        Ok((pem, since)) => Ok(Some(Bundle::from_pem(pem, since))),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e),
    }
}

/// No part of an identity holds a comma, so the name can be taken apart again.
fn file_of(identity: &Identity) -> String {
    format!(
        "w,{},{},{}.pem",
        identity.trust_domain, identity.namespace, identity.service_account
    )
}

fn identity_of(file: &str) -> Option<Identity> {
    let mut parts = file.strip_prefix("w,")?.strip_suffix(".pem")?.split(',');
    let (td, ns, sa) = (parts.next()?, parts.next()?, parts.next()?);
    parts.next().is_none().then_some(())?;
    format!("spiffe://{td}/ns/{ns}/sa/{sa}").parse().ok()
}
