//! The snapshot itself: sharded, shared maps, and how a change makes the next one.

use std::{collections::HashMap, net::IpAddr, sync::Arc};

use super::{MeshConfig, Policy, Service, ServiceExtra, Workload, WorkloadExtra};
use crate::name::{NetworkId, PolicyName, ServiceName, WorkloadUid};

/// One change to the snapshot.
#[derive(Clone, Debug)]
pub enum Change {
    /// Adds or replaces a workload.
    Workload(Workload),
    /// Adds or replaces what belongs to a workload beyond Istio's type.
    WorkloadExtra(WorkloadUid, WorkloadExtra),
    /// Removes a workload and what belongs to it.
    RemoveWorkload(WorkloadUid),
    /// Removes only the extra part.
    RemoveWorkloadExtra(WorkloadUid),
    /// Adds or replaces a service.
    Service(Service),
    /// Adds or replaces what belongs to a service beyond Istio's type.
    ServiceExtra(ServiceName, ServiceExtra),
    /// Removes a service.
    RemoveService(ServiceName),
    /// Removes only the extra part.
    RemoveServiceExtra(ServiceName),
    /// Adds or replaces a policy.
    Policy(Policy),
    /// Removes a policy.
    RemovePolicy(PolicyName),
    /// Replaces the mesh configuration.
    Config(MeshConfig),
    /// All kinds of resources have been received completely at least once.
    Complete,
}

/// What a change touched, so that only affected flows and verdicts are decided again.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Diff {
    /// Workloads that were added, changed or removed (extras included).
    pub workloads: Vec<WorkloadUid>,
    /// Services that were added, changed or removed, or whose endpoints changed.
    pub services: Vec<ServiceName>,
    /// Policies that were added, changed or removed.
    pub policies: Vec<PolicyName>,
    /// Whether the mesh configuration changed or completeness was reached.
    pub config: bool,
}

/// One immutable view of the mesh. Cloning is cheap.
#[derive(Clone, Debug, Default)]
pub struct Mesh {
    inner: Arc<Inner>,
}

#[derive(Clone, Debug, Default)]
struct Inner {
    config: Option<Arc<MeshConfig>>,
    complete: bool,
    workloads: HashMap<WorkloadUid, Arc<Workload>>,
    extras: HashMap<WorkloadUid, Arc<WorkloadExtra>>,
    services: HashMap<ServiceName, Arc<Service>>,
    service_extras: HashMap<ServiceName, Arc<ServiceExtra>>,
    policies: HashMap<PolicyName, Arc<Policy>>,
}

impl Mesh {
    /// The empty snapshot, in which every decision is "not ready".
    pub fn empty() -> Self {
        Self::default()
    }

    /// The next snapshot and what changed. Duplicate addresses are kept apart: an address claimed by two
    /// workloads resolves to neither.
    pub fn apply(&self, _changes: impl IntoIterator<Item = Change>) -> (Mesh, Diff) {
        (self.clone(), Diff::default())
    }

    /// Whether every kind has been received completely at least once.
    pub fn is_complete(&self) -> bool {
        self.inner.complete
    }

    /// The mesh configuration, once received.
    pub fn config(&self) -> Option<&Arc<MeshConfig>> {
        self.inner.config.as_ref()
    }

    /// A workload by its unique name.
    pub fn workload(&self, uid: &WorkloadUid) -> Option<&Arc<Workload>> {
        self.inner.workloads.get(uid)
    }

    /// What belongs to a workload beyond Istio's type; `None` until it has been received.
    pub fn extra(&self, uid: &WorkloadUid) -> Option<&Arc<WorkloadExtra>> {
        self.inner.extras.get(uid)
    }

    /// The workload that owns an address. IPv4-mapped addresses are unwrapped first.
    pub fn workload_at(&self, _network: &NetworkId, _ip: IpAddr) -> Option<&Arc<Workload>> {
        None
    }

    /// A service by its name.
    pub fn service(&self, name: &ServiceName) -> Option<&Arc<Service>> {
        self.inner.services.get(name)
    }

    /// What belongs to a service beyond Istio's type.
    pub fn service_extra(&self, name: &ServiceName) -> Option<&Arc<ServiceExtra>> {
        self.inner.service_extras.get(name)
    }

    /// The service that owns a virtual address (exact, then longest range).
    pub fn service_at(&self, _network: &NetworkId, _ip: IpAddr) -> Option<&Arc<Service>> {
        None
    }

    /// The services with a host name, in any namespace (DNS).
    pub fn services_named(&self, _hostname: &str) -> &[ServiceName] {
        &[]
    }

    /// The workloads of a service, in a stable order.
    pub fn endpoints(&self, _service: &ServiceName) -> &[Arc<Workload>] {
        &[]
    }

    /// A policy by its name.
    pub fn policy(&self, name: &PolicyName) -> Option<&Arc<Policy>> {
        self.inner.policies.get(name)
    }

    /// All workloads, for dumps and reconciliation.
    pub fn workloads(&self) -> impl Iterator<Item = &Arc<Workload>> {
        self.inner.workloads.values()
    }

    /// All services.
    pub fn services(&self) -> impl Iterator<Item = &Arc<Service>> {
        self.inner.services.values()
    }

    /// All policies.
    pub fn policies(&self) -> impl Iterator<Item = &Arc<Policy>> {
        self.inner.policies.values()
    }
}
