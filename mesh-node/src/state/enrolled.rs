//! The names of enrolled namespaces on disk: a pod of one of them is captured before anything else is known.
//!
//! Invariant: the file is replaced whole; without a readable file no namespace is taken for enrolled, and the
//! pods in question wait for configuration.

use std::{
    collections::BTreeSet,
    fs, io,
    path::{Path, PathBuf},
};

use mesh_model::{mesh::Mesh, name::Namespace};

/// The file and what it last held.
#[derive(Debug)]
pub struct EnrolledNamespaces {
    path: PathBuf,
    names: BTreeSet<String>,
}

impl EnrolledNamespaces {
    /// Reads the file `enrolled` of the state directory.
    pub fn open(state_dir: &Path) -> Self {
        let path = state_dir.join("enrolled");
        let names = match fs::read_to_string(&path) {
            Ok(text) => text
                .lines()
                .map(str::trim)
                .filter(|l| !l.is_empty())
                .map(str::to_owned)
                .collect(),
            Err(e) if e.kind() == io::ErrorKind::NotFound => BTreeSet::new(),
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "the list of enrolled namespaces cannot be read; pods wait for configuration instead");
                BTreeSet::new()
            }
        };
        Self { path, names }
    }

    /// Whether the namespace was enrolled when configuration was last complete.
    pub fn contains(&self, namespace: &Namespace) -> bool {
        self.names.contains(namespace.as_str())
    }

    /// Brings the file up to date with a complete snapshot.
    pub fn update(&mut self, mesh: &Mesh) -> io::Result<()> {
        if !mesh.is_complete() {
            return Ok(());
        }
        let names: BTreeSet<String> = mesh
            .enrolled_namespaces()
            .into_iter()
            .map(ToString::to_string)
            .collect();
        if names == self.names {
            return Ok(());
        }
        let text: String = names.iter().flat_map(|n| [n.as_str(), "\n"]).collect();
        super::disk::replace(&self.path, text.as_bytes())?;
        self.names = names;
        Ok(())
    }
}
