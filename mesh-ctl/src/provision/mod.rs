//! Waypoints that are to be made: by the leader in a cluster, elsewhere by whoever reads the list.
//!
//! Invariants: what is to be made is the translation's to say; nothing is taken away before it was said once what is
//! wanted. What nobody wants any more is served for a while longer, so that whoever still goes there is not refused.

mod cluster;
mod file;
mod objects;
mod scene;

use std::sync::Arc;

use mesh_translate::Wanted;

pub use cluster::{Troubles, keep};
pub use file::keep as keep_file;

/// All waypoints that are wanted; nothing as long as it is not known.
pub type List = Option<Arc<[Wanted]>>;
