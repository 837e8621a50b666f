//! The node's view of the mesh: the snapshot, what changed, where it comes from, and its copy on disk.
//!
//! Invariants: one writer; a snapshot is published before its diff is announced; a partial list never
//! removes anything; what is on disk is checksummed and used whole or not at all.

mod announce;
mod departed;
mod disk;
mod enrolled;
mod kept;
mod snapshot;
mod strangers;
mod xds;

#[cfg(test)]
mod tests;

pub use announce::{Announcements, Diffs};
pub use disk::{DiskError, load, save};
pub use enrolled::EnrolledNamespaces;
pub use kept::{Kept, Written};
pub use snapshot::{MeshState, Snapshot};
pub use xds::{XdsClient, XdsParts, XdsStatus};
