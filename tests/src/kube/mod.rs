//! A real Kubernetes cluster as the tests see it: kubectl, the nodes' shells, the logs of Warren's own pods.
//!
//! Invariants: the cluster is made and removed by `cargo xtask test kube`, never from here; every wait has a bound, and
//! an error says what was waited for and what was seen last.

mod api;
mod away;
pub mod bench;
mod cluster;
mod install;
mod process;
mod proof;
mod recovery;
mod space;
mod traffic;

pub use api::Api;
pub use away::{away, on_runtime};
pub use cluster::{Cluster, Said, reason_to_skip};
pub use install::Helm;
pub use space::Space;
pub use traffic::Tally;

/// The namespace that Warren is installed in.
pub const SYSTEM: &str = "warren-system";
/// The image with a shell and curl.
pub const CLIENT: &str = "warren.test/client:1";
/// The image of the sample applications.
pub const SAMPLES: &str = "warren/samples:dev";
