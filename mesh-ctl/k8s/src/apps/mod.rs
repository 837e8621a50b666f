//! Kinds of Kubernetes' apps group: known so that they are checked; pods are never derived from them.

mod daemon_set;
mod deployment;

pub use daemon_set::DaemonSet;
pub use deployment::{Deployment, PodTemplateSpec, WorkloadSpec};
