//! The names of enrolled namespaces on disk: a pod of one of them is captured before anything else is known, by the
//! node proxy that has just started as by the CNI plugin that finds none.
//!
//! Invariants: the file is replaced whole; there is one list in a process, whoever holds a handle to it; without a
//! readable file no namespace is taken for enrolled, and the pods in question wait for configuration.

use std::{
    collections::BTreeSet,
    fs, io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use mesh_model::{mesh::Mesh, name::Namespace};

/// The file and what it last held. Cloning gives another handle to it.
#[derive(Clone, Debug)]
pub struct EnrolledNamespaces {
    path: Arc<Path>,
    names: Arc<Mutex<BTreeSet<String>>>,
}

impl EnrolledNamespaces {
    /// Reads the file `enrolled` of the state directory.
    pub fn open(state_dir: &Path) -> Self {
        let path: PathBuf = state_dir.join("enrolled");
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
        Self {
            path: path.into(),
            names: Arc::new(Mutex::new(names)),
        }
    }

    fn names(&self) -> MutexGuard<'_, BTreeSet<String>> {
        self.names.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the namespace was enrolled when configuration was last complete.
    pub fn contains(&self, namespace: &Namespace) -> bool {
        self.names().contains(namespace.as_str())
    }

    /// Brings the file up to date with a complete snapshot. Blocks on the disk, and whoever asks meanwhile.
    pub fn update(&self, mesh: &Mesh) -> io::Result<()> {
        if !mesh.is_complete() {
            return Ok(());
        }
        let new: BTreeSet<String> = mesh
            .enrolled_namespaces()
            .into_iter()
            .map(ToString::to_string)
            .collect();
        let mut names = self.names();
        if new == *names {
            return Ok(());
        }
        let text: String = new.iter().flat_map(|n| [n.as_str(), "\n"]).collect();
        super::disk::replace(&self.path, text.as_bytes())?;
        *names = new;
        Ok(())
    }
}
