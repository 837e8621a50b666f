//! The snapshot itself: sharded, shared maps, and the questions that are asked of it.
//!
//! Invariants: a `Mesh` never changes; an address that several claim resolves to none of them.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::{Arc, OnceLock},
};

use super::{
    Enrolment, MeshConfig, Policy, Service, ServiceExtra, Workload, WorkloadExtra,
    apply::Builder,
    claims::Network,
    known::{Directory, Known, Shared},
    service::Visibility,
    shard::Sharded,
    workload::TunnelProtocol,
};
use crate::authz::rules::Rules;
use crate::name::{Hostname, Namespace, NetworkId, NodeName, PolicyName, ServiceName, WorkloadUid};
use crate::resilience::Destination;
use crate::route::http::Routes;

/// One change to the snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
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
    /// Adds or replaces the rules for requests to a service.
    Routes(Routes),
    /// Removes the rules for requests to a service.
    RemoveRoutes(ServiceName),
    /// Adds or replaces how a service's endpoints are used.
    Destination(Destination),
    /// Removes how a service's endpoints are used.
    RemoveDestination(ServiceName),
    /// Replaces the mesh configuration.
    Config(MeshConfig),
    /// All kinds of resources have been received completely at least once.
    Complete,
}

/// What a change touched, so that only affected flows and verdicts are decided again.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Diff {
    /// Workloads that were added, changed or removed (extras included), and those whose address others began or
    /// ceased to claim.
    pub workloads: Vec<WorkloadUid>,
    /// Services that were added, changed or removed, whose endpoints, routes or destination changed, or whose address others began or
    /// ceased to claim.
    pub services: Vec<ServiceName>,
    /// Policies that were added, changed or removed.
    pub policies: Vec<PolicyName>,
    /// Whether the mesh configuration decides otherwise now (not: lists other namespaces), or completeness was reached.
    pub config: bool,
    /// Whether one of the policies governs, or governed, workloads of any namespace.
    pub everyone: bool,
}

/// One immutable view of the mesh. Cloning is cheap.
#[derive(Clone, Debug, Default)]
pub struct Mesh {
    pub(super) inner: Arc<Inner>,
}

#[derive(Clone, Debug, Default)]
pub(super) struct Inner {
    pub config: Option<Arc<MeshConfig>>,
    pub complete: bool,
    pub workloads: Directory,
    pub services: Sharded<ServiceName, Arc<Service>>,
    pub service_extras: Sharded<ServiceName, Arc<ServiceExtra>>,
    pub policies: Sharded<PolicyName, Arc<Policy>>,
    pub routes: Sharded<ServiceName, Arc<Routes>>,
    pub destinations: Sharded<ServiceName, Arc<Destination>>,
    pub networks: Arc<BTreeMap<NetworkId, Network>>,
    pub hostnames: Sharded<Hostname, Vec<ServiceName>>,
    pub endpoints: Sharded<ServiceName, Arc<Members>>,
    pub nodes: Sharded<NodeName, Arc<Members>>,
    pub rules: Rules,
    pub shared: Arc<Shared>,
}

impl Inner {
    pub fn members(&self, service: &ServiceName) -> &[Arc<Known>] {
        self.endpoints.get(service).map_or(&[], |m| &m.list)
    }
}

/// Workloads in the order of their names; the whole forms are made when they are first asked for.
#[derive(Default)]
pub(super) struct Members {
    pub list: Vec<Arc<Known>>,
    pub whole: OnceLock<Box<[Arc<Workload>]>>,
}

impl Clone for Members {
    fn clone(&self) -> Self {
        // A copy is made in order to be changed: room for one more, not for twice as many.
        let mut list = Vec::with_capacity(self.list.len() + 1);
        list.extend_from_slice(&self.list);
        Self {
            list,
            whole: OnceLock::new(),
        }
    }
}

impl std::fmt::Debug for Members {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list()
            .entries(self.list.iter().map(|k| k.uid()))
            .finish()
    }
}

impl Members {
    fn workloads(&self) -> &[Arc<Workload>] {
        self.whole
            .get_or_init(|| self.list.iter().map(|k| Arc::clone(k.workload())).collect())
    }
}

impl Mesh {
    /// The empty snapshot, in which every decision is "not ready".
    pub fn empty() -> Self {
        Self::default()
    }

    /// The next snapshot and what changed. Duplicate addresses are kept apart: an address claimed by two
    /// workloads resolves to neither.
    pub fn apply(&self, changes: impl IntoIterator<Item = Change>) -> (Mesh, Diff) {
        let mut builder = Builder::new(&self.inner);
        changes.into_iter().for_each(|c| builder.change(c));
        builder.finish(self)
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
        self.inner.workloads.get(uid).map(|k| k.workload())
    }

    /// What belongs to a workload beyond Istio's type; `None` until it has been received.
    pub fn extra(&self, uid: &WorkloadUid) -> Option<&Arc<WorkloadExtra>> {
        self.inner.workloads.extra(uid)
    }

    /// The workload that owns an address. IPv4-mapped addresses are unwrapped first.
    /// A workload on the node's network owns its node's address only while it is alone there.
    pub fn workload_at(&self, network: &NetworkId, ip: IpAddr) -> Option<&Arc<Workload>> {
        self.inner
            .networks
            .get(network)?
            .workload(ip.to_canonical())
            .map(|k| k.workload())
    }

    /// Whether several claim an address, so that nobody can be trusted to own it. Workloads that share
    /// their node's network share its address rightfully.
    pub fn is_contested(&self, network: &NetworkId, ip: IpAddr) -> bool {
        let ip = ip.to_canonical();
        self.inner.networks.get(network).is_some_and(|n| {
            n.services(ip).len() > 1 || n.rivals(ip).iter().any(|k| !k.shape().host_network)
        })
    }

    /// Whether the address belongs to anything the mesh knows.
    pub fn is_known(&self, network: &NetworkId, ip: IpAddr) -> bool {
        let ip = ip.to_canonical();
        self.inner.networks.get(network).is_some_and(|n| {
            n.workload(ip).is_some() || !n.rivals(ip).is_empty() || !n.services(ip).is_empty()
        })
    }

    /// Whether captured pods live right beside an address: in the same 256 addresses, which a node hands out to its pods
    /// one by one. Nobody known there may be a pod that has not been heard of yet. Costs up to 255 lookups.
    pub fn has_captured_neighbours(&self, network: &NetworkId, ip: IpAddr) -> bool {
        let Some(network) = self.inner.networks.get(network) else {
            return false;
        };
        let captured = |ip: IpAddr| {
            let shape = network.workload(ip).map(|k| k.shape());
            shape.is_some_and(|s| s.protocol == TunnelProtocol::Hbone && !s.host_network)
        };
        match ip.to_canonical() {
            IpAddr::V4(ip) => {
                let [a, b, c, _] = ip.octets();
                (0..=u8::MAX).any(|d| captured([a, b, c, d].into()))
            }
            IpAddr::V6(ip) => {
                let mut octets = ip.octets();
                (0..=u8::MAX).any(|last| {
                    octets[15] = last;
                    captured(octets.into())
                })
            }
        }
    }

    /// A service by its name.
    pub fn service(&self, name: &ServiceName) -> Option<&Arc<Service>> {
        self.inner.services.get(name)
    }

    /// What belongs to a service beyond Istio's type.
    pub fn service_extra(&self, name: &ServiceName) -> Option<&Arc<ServiceExtra>> {
        self.inner.service_extras.get(name)
    }

    /// The service that owns a virtual address (exact, then longest range); none while several claim it.
    pub fn service_at(&self, network: &NetworkId, ip: IpAddr) -> Option<&Arc<Service>> {
        match self
            .inner
            .networks
            .get(network)?
            .services(ip.to_canonical())
        {
            [only] => Some(only),
            _ => None,
        }
    }

    /// Whether clients of a namespace see a service. Until its extra part came, only its own namespace does.
    pub fn sees(&self, namespace: &Namespace, service: &Service) -> bool {
        match service.visibility {
            Visibility::Public => true,
            Visibility::Namespace => {
                *namespace == service.name.namespace
                    || self
                        .service_extra(&service.name)
                        .is_some_and(|e| e.visible_to.contains(namespace))
            }
        }
    }

    /// The services with a host name, in any namespace (DNS).
    pub fn services_named(&self, hostname: &str) -> &[ServiceName] {
        self.inner
            .hostnames
            .get(hostname)
            .map_or(&[], Vec::as_slice)
    }

    /// The workloads of a service, in a stable order.
    pub fn endpoints(&self, service: &ServiceName) -> &[Arc<Workload>] {
        self.inner
            .endpoints
            .get(service)
            .map_or(&[], |m| m.workloads())
    }

    /// The workloads of a node, in a stable order.
    pub fn workloads_on(&self, node: &NodeName) -> &[Arc<Workload>] {
        self.inner.nodes.get(node).map_or(&[], |m| m.workloads())
    }

    /// Whether a service has an endpoint on a node, without touching the others.
    pub fn serves_on(&self, service: &ServiceName, node: &NodeName) -> bool {
        self.inner.members(service).iter().any(|k| k.node() == node)
    }

    /// A policy by its name.
    pub fn policy(&self, name: &PolicyName) -> Option<&Arc<Policy>> {
        self.inner.policies.get(name)
    }

    /// The rules for requests to a service, when there are any.
    pub fn routes(&self, service: &ServiceName) -> Option<&Arc<Routes>> {
        self.inner.routes.get(service)
    }

    /// How a service's endpoints are used, when anything is said about it.
    pub fn destination(&self, service: &ServiceName) -> Option<&Arc<Destination>> {
        self.inner.destinations.get(service)
    }

    /// All workloads, for dumps and reconciliation. Makes the whole form of each, which stays: to look at the
    /// pods of one node, `workloads_on` is the cheap way.
    pub fn workloads(&self) -> impl Iterator<Item = &Arc<Workload>> {
        self.inner.workloads.values().map(|k| k.workload())
    }

    /// The namespaces that are said to be enrolled, and those that have an enrolled workload. Leaves workloads in their
    /// compact form.
    pub fn enrolled_namespaces(&self) -> BTreeSet<&Namespace> {
        let said = self
            .inner
            .config
            .iter()
            .flat_map(|c| &c.enrolled_namespaces);
        let enrolled = |uid: &WorkloadUid| {
            let extra = self.inner.workloads.extra(uid);
            extra.is_some_and(|e| e.enrolment == Enrolment::Enrolled)
        };
        let all = self.inner.workloads.values();
        all.filter(|k| enrolled(k.uid()))
            .map(|k| &k.shape().namespace)
            .chain(said)
            .collect()
    }

    /// How many workloads are known.
    pub fn workload_count(&self) -> usize {
        self.inner.workloads.len()
    }

    /// All services.
    pub fn services(&self) -> impl Iterator<Item = &Arc<Service>> {
        self.inner.services.values()
    }

    /// All policies.
    pub fn policies(&self) -> impl Iterator<Item = &Arc<Policy>> {
        self.inner.policies.values()
    }

    /// The policies by whom they govern.
    pub(crate) fn rules(&self) -> &Rules {
        &self.inner.rules
    }
}
