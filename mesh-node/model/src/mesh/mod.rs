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
mod tracing;
mod vacated;
pub mod workload;

pub use policy::{Action, Policy, PolicyScope, Validity};
pub use service::{AppProtocol, Service, ServiceExtra, ServicePort};
pub use snapshot::{Change, Diff, Mesh};
pub use tracing::{Collector, SpanTag, TagValue, Tracing, TracingScope, tracing_of};
pub use workload::{Enrolment, MtlsMode, Workload, WorkloadExtra};

use std::sync::Arc;

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
    /// Namespaces whose pods are enrolled unless a pod says otherwise, also those without pods; in order.
    pub enrolled_namespaces: Box<[Namespace]>,
    /// NetworkPolicies that let applications' connections through and not the mesh's tunnels; in order, and only as many
    /// as the controller cares to name.
    pub tunnel_blockers: Box<[TunnelBlocker]>,
    /// Which requests leave spans, the narrowest rule first.
    pub tracing: Box<[Arc<Tracing>]>,
}

/// A NetworkPolicy that names ports, and not that of the mesh's tunnels. Which pods it is about is not said.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct TunnelBlocker {
    /// Its namespace.
    pub namespace: Namespace,
    /// Its name.
    pub name: Arc<str>,
    /// Whether it is about what comes to the pods; else about what they open.
    pub ingress: bool,
}

impl MeshConfig {
    /// The NetworkPolicies that a tunnel from a pod of one namespace to one of another may have failed by.
    pub fn blockers(
        &self,
        from: &Namespace,
        to: &Namespace,
    ) -> impl Iterator<Item = &TunnelBlocker> {
        self.tunnel_blockers.iter().filter(move |blocker| {
            let end = if blocker.ingress { to } else { from };
            blocker.namespace == *end
        })
    }

    /// Whether connections are decided and carried as by the other. The list of namespaces decides about none: it says
    /// whose pods are captured before they are known. NetworkPolicies only explain, and spans only tell.
    pub fn decides_like(&self, other: &Self) -> bool {
        let Self {
            trust_domain,
            root_namespace,
            cluster_domain,
            registry_only,
            same_node,
            enrolled_namespaces: _,
            tunnel_blockers: _,
            tracing: _,
        } = self;
        *trust_domain == other.trust_domain
            && *root_namespace == other.root_namespace
            && *cluster_domain == other.cluster_domain
            && *registry_only == other.registry_only
            && *same_node == other.same_node
    }
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
