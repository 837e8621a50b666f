//! The snapshot: one immutable view of every workload, service and policy.
//!
//! Invariants: a `Mesh` never changes; `apply` makes a new one that shares what did not change.
//! A reference to something that has not been received stays a name and is answered with "not ready".

mod apply;
mod claims;
mod known;
pub mod policy;
pub mod service;
pub(crate) mod shard;
pub mod snapshot;
mod vacated;
pub mod workload;

pub use policy::{Action, Policy, PolicyScope, Validity};
pub use service::{AppProtocol, Service, ServiceExtra, ServicePort};
pub use snapshot::{Change, Diff, Mesh};
pub use workload::{Enrolment, MtlsMode, Workload, WorkloadExtra};

use crate::name::{Hostname, Namespace, NetworkAddress, TrustDomain};

/// Settings of the whole mesh, as published by the controller.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MeshConfig {
    /// The trust domain that this mesh's certificates name.
    pub trust_domain: TrustDomain,
    /// The namespace whose policies apply to the whole mesh.
    pub root_namespace: Namespace,
    /// The DNS domain of the cluster, e.g. `cluster.local`.
    pub cluster_domain: Hostname,
    /// True when destinations outside the mesh are refused (REGISTRY_ONLY).
    pub registry_only: bool,
    /// How two pods of one node talk.
    pub same_node: SameNode,
}

/// How two pods of one node talk when no waypoint is wanted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SameNode {
    /// Direct under PERMISSIVE, tunnel under STRICT.
    #[default]
    Auto,
    /// Always the tunnel.
    Tunnel,
    /// Direct whenever policy allows.
    Direct,
}

/// The address of a waypoint or a network gateway.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GatewayAddress {
    /// Where it is.
    pub destination: GatewayDestination,
    /// The port of its HBONE listener.
    pub hbone_port: u16,
}

/// How a gateway is named.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GatewayDestination {
    /// By a service of the mesh.
    Hostname(crate::name::ServiceName),
    /// By address.
    Address(NetworkAddress),
}

/// Features beyond the first version that this build understands. A configuration that names another one
/// is refused (`Reason::PolicyInvalid`): it was written for a newer build.
pub const FEATURES: &[&str] = &["l4", "visibility"];

/// Whether this build understands all of them.
pub fn knows_features(needed: &[std::sync::Arc<str>]) -> bool {
    needed.iter().all(|f| FEATURES.contains(&&**f))
}
