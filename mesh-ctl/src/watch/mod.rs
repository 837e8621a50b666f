//! Where objects come from: one seam, behind which are files, or a cluster's API.
//!
//! Invariants: a bad object is named and stops nobody else; a source never says that an object is gone because
//! it could not be read.

mod document;
mod folder;
pub(crate) mod kube;
mod manifests;
mod node;
mod typed;

use std::{future::Future, sync::Arc};

use mesh_k8s::{Object, ObjectRef};
use mesh_translate::{Broken, Origin};

pub(crate) use self::kube::find;
pub use self::kube::{Cluster, connect};
pub use document::field_line;
pub use folder::Folder;
pub use manifests::{Manifests, read_folder};
pub(crate) use typed::{Typed, typed};

/// The objects of a file's text, for whoever feeds it with noise.
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) fn objects_of(text: &str) -> Vec<(Object, Arc<[String]>)> {
    let documents = document::split(text).into_iter();
    let found = documents.flat_map(|document| document::read(document.text));
    let objects = found.filter_map(|found| match found {
        document::Found::Object {
            object, unknown, ..
        } => Some((object, unknown)),
        document::Found::Bad { .. } => None,
    });
    objects.collect()
}

/// What happened to one object.
#[derive(Clone, Debug)]
pub enum Delta {
    /// It is there in this version.
    Applied {
        /// The object.
        object: Object,
        /// Where it was read.
        origin: Origin,
        /// Paths of fields that no type knows.
        unknown: Arc<[String]>,
    },
    /// It is gone.
    Removed(ObjectRef),
    /// It is there and cannot be read; a version that could be read before stays in force. What has no name is
    /// named by its place: kind `Document`, name `file:line`.
    Bad(ObjectRef, Broken),
}

/// Why a source can tell nothing more.
#[derive(Debug, thiserror::Error)]
pub enum WatchError {
    /// The folder of manifests cannot be watched.
    #[error("cannot watch manifests in {path}: {reason}")]
    Folder {
        /// The folder.
        path: String,
        /// What the system said.
        reason: String,
    },
    /// The tasks that watch a cluster are gone, which only a bug does.
    #[error("the watches of the cluster ended")]
    Ended,
}

/// A source of objects.
pub trait Source: Send {
    /// Waits for the next batch. The first batch is everything there is, and may be empty.
    fn next(&mut self) -> impl Future<Output = Result<Vec<Delta>, WatchError>> + Send;
}

/// Either source.
pub enum Objects {
    /// A folder of manifests.
    Manifests(Box<Manifests>),
    /// A cluster.
    Cluster(Cluster),
}

impl Source for Objects {
    async fn next(&mut self) -> Result<Vec<Delta>, WatchError> {
        match self {
            Self::Manifests(folder) => folder.next().await,
            Self::Cluster(cluster) => cluster.next().await,
        }
    }
}
