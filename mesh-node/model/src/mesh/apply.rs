//! How a batch of changes makes the next snapshot, and what it touched.
//!
//! Invariants: only the indexes a change falls into are copied; the diff names exactly what compares
//! different before and after the batch, in order, each once.

use std::{collections::BTreeSet, net::IpAddr, sync::Arc};

use ipnet::IpNet;

use super::{
    Change, Diff, Mesh, Policy, PolicyScope, Service, Workload,
    claims::Network,
    known::Known,
    snapshot::{Inner, Members},
};
use crate::name::{NetworkId, NodeName, PolicyName, ServiceName, WorkloadUid};

/// A snapshot in the making.
pub(super) struct Builder {
    next: Inner,
    workloads: BTreeSet<WorkloadUid>,
    services: BTreeSet<ServiceName>,
    policies: BTreeSet<PolicyName>,
    /// Workloads and services that share an address with what changed.
    rivals: BTreeSet<WorkloadUid>,
    vip_rivals: BTreeSet<ServiceName>,
}

impl Builder {
    pub fn new(before: &Inner) -> Self {
        Self {
            next: before.clone(),
            workloads: BTreeSet::new(),
            services: BTreeSet::new(),
            policies: BTreeSet::new(),
            rivals: BTreeSet::new(),
            vip_rivals: BTreeSet::new(),
        }
    }

    pub fn change(&mut self, change: Change) {
        match change {
            Change::Workload(w) => self.set_workload(w),
            Change::RemoveWorkload(uid) => self.remove_workload(&uid),
            Change::WorkloadExtra(uid, extra) => {
                if self.next.workloads.extra(&uid).is_none_or(|e| **e != extra) {
                    self.next
                        .workloads
                        .set_extra(&uid, self.next.shared.extra(extra));
                    self.workloads.insert(uid);
                }
            }
            Change::RemoveWorkloadExtra(uid) => {
                if self.next.workloads.remove_extra(&uid) {
                    self.workloads.insert(uid);
                }
            }
            Change::Service(s) => self.set_service(s),
            Change::RemoveService(name) => self.remove_service(&name),
            Change::ServiceExtra(name, extra) => {
                self.next
                    .service_extras
                    .insert(name.clone(), Arc::new(extra));
                self.services.insert(name);
            }
            Change::RemoveServiceExtra(name) => {
                if self.next.service_extras.remove(&name).is_some() {
                    self.services.insert(name);
                }
            }
            Change::Routes(routes) => {
                let name = routes.service.clone();
                self.next.routes.insert(name.clone(), Arc::new(routes));
                self.services.insert(name);
            }
            Change::RemoveRoutes(name) => {
                if self.next.routes.remove(&name).is_some() {
                    self.services.insert(name);
                }
            }
            Change::Destination(to) => {
                let name = to.service.clone();
                self.next.destinations.insert(name.clone(), Arc::new(to));
                self.services.insert(name);
            }
            Change::RemoveDestination(name) => {
                if self.next.destinations.remove(&name).is_some() {
                    self.services.insert(name);
                }
            }
            Change::Policy(p) => self.set_policy(p),
            Change::RemovePolicy(name) => self.remove_policy(&name),
            Change::Config(config) => self.next.config = Some(Arc::new(config)),
            Change::Complete => self.next.complete = true,
        }
    }

    /// The snapshot and what differs from `before`.
    pub fn finish(self, before: &Mesh) -> (Mesh, Diff) {
        let Self {
            next,
            workloads,
            services,
            policies,
            rivals,
            vip_rivals,
        } = self;
        let after = Mesh {
            inner: Arc::new(next),
        };
        let (old, new) = (&*before.inner, &*after.inner);
        let disputed: BTreeSet<WorkloadUid> = rivals
            .into_iter()
            .filter(|u| old.disputed(u) != new.disputed(u))
            .collect();
        let mut touched: BTreeSet<ServiceName> = disputed
            .iter()
            .filter_map(|u| new.workloads.get(u))
            .flat_map(|k| services_of(k))
            .cloned()
            .collect();
        touched.extend(
            vip_rivals
                .into_iter()
                .filter(|n| old.disputed_vips(n) != new.disputed_vips(n)),
        );
        touched.extend(services.into_iter().filter(|n| old.service_differs(new, n)));
        let mut workloads: BTreeSet<WorkloadUid> = workloads
            .into_iter()
            .filter(|u| old.workload_differs(new, u))
            .collect();
        workloads.extend(disputed);
        let policies: Vec<PolicyName> = policies
            .into_iter()
            .filter(|n| old.policies.get(n) != new.policies.get(n))
            .collect();
        let alike = match (&old.config, &new.config) {
            (Some(old), Some(new)) => old.decides_like(new),
            (old, new) => old.is_none() && new.is_none(),
        };
        let diff = Diff {
            workloads: workloads.into_iter().collect(),
            services: touched.into_iter().collect(),
            everyone: policies
                .iter()
                .any(|n| old.reaches_everyone(n) || new.reaches_everyone(n)),
            policies,
            config: !alike || old.complete != new.complete,
        };
        (after, diff)
    }

    fn set_workload(&mut self, workload: Workload) {
        let mut workload = workload;
        let before = self.next.workloads.get(&workload.uid).cloned();
        if let Some(known) = &before {
            workload.uid = known.uid().clone();
        }
        let known = Arc::new(Known::new(workload, &self.next.shared));
        if before.as_ref().is_some_and(|b| **b == *known) {
            return;
        }
        if let Some(before) = &before {
            self.unlink(before);
        }
        self.link(&known);
        self.workloads.insert(known.uid().clone());
        self.next.workloads.insert(known);
    }

    fn remove_workload(&mut self, uid: &WorkloadUid) {
        if let Some(known) = self.next.workloads.remove(uid) {
            self.unlink(&known);
            self.workloads.insert(uid.clone());
        }
        if self.next.workloads.remove_extra(uid) {
            self.workloads.insert(uid.clone());
        }
    }

    fn link(&mut self, known: &Arc<Known>) {
        let network = known.shape().network.clone();
        for ip in known.addresses() {
            self.network(&network).add_workload(ip, known);
            self.note_rivals(&network, ip);
        }
        for service in services_of(known) {
            self.services.insert(service.clone());
            self.next
                .endpoints
                .update(service, Arc::default, |members| {
                    Arc::make_mut(members).set(known)
                });
        }
        if !is_nowhere(known.node()) {
            self.next
                .nodes
                .update(known.node(), Arc::default, |members| {
                    Arc::make_mut(members).set(known)
                });
        }
    }

    fn unlink(&mut self, known: &Arc<Known>) {
        let network = known.shape().network.clone();
        for ip in known.addresses() {
            self.note_rivals(&network, ip);
            self.network(&network).remove_workload(ip, known.uid());
        }
        for service in services_of(known) {
            self.services.insert(service.clone());
            self.next
                .endpoints
                .update(service, Arc::default, |members| {
                    Arc::make_mut(members).remove(known.uid())
                });
        }
        if !is_nowhere(known.node()) {
            self.next
                .nodes
                .update(known.node(), Arc::default, |members| {
                    Arc::make_mut(members).remove(known.uid())
                });
        }
    }

    fn set_service(&mut self, service: Service) {
        let name = service.name.clone();
        if self
            .next
            .services
            .get(&name)
            .is_some_and(|s| **s == service)
        {
            return;
        }
        self.remove_service(&name);
        let service = Arc::new(service);
        for (network, ip) in vips(&service) {
            self.network(&network).add_vip(ip, &service);
            self.note_vip_rivals(&network, Claim::Address(ip));
        }
        for (network, range) in &service.ranges {
            self.network(network).add_range(*range, &service);
            self.note_vip_rivals(network, Claim::Range(*range));
        }
        self.next
            .hostnames
            .update(&name.hostname, Vec::new, |names| {
                if let Err(at) = names.binary_search(&name) {
                    names.insert(at, name.clone());
                }
                true
            });
        self.services.insert(name.clone());
        self.next.services.insert(name, service);
    }

    fn remove_service(&mut self, name: &ServiceName) {
        let Some(service) = self.next.services.remove(name) else {
            return;
        };
        for (network, ip) in vips(&service) {
            self.note_vip_rivals(&network, Claim::Address(ip));
            self.network(&network).remove_vip(ip, name);
        }
        for (network, range) in &service.ranges {
            self.note_vip_rivals(network, Claim::Range(*range));
            self.network(network).remove_range(*range, name);
        }
        self.next
            .hostnames
            .update(&name.hostname, Vec::new, |names| {
                names.retain(|n| n != name);
                !names.is_empty()
            });
        self.services.insert(name.clone());
    }

    fn set_policy(&mut self, policy: Policy) {
        if self
            .next
            .policies
            .get(&policy.name)
            .is_some_and(|p| **p == policy)
        {
            return;
        }
        self.remove_policy(&policy.name.clone());
        let policy = Arc::new(policy);
        self.next.rules.add(&policy);
        self.policies.insert(policy.name.clone());
        self.next.policies.insert(policy.name.clone(), policy);
    }

    fn remove_policy(&mut self, name: &PolicyName) {
        if let Some(policy) = self.next.policies.remove(name) {
            self.next.rules.remove(&policy);
            self.policies.insert(name.clone());
        }
    }

    fn note_rivals(&mut self, network: &NetworkId, ip: IpAddr) {
        let rivals = self
            .next
            .networks
            .get(network)
            .map(|n| n.rivals(ip))
            .unwrap_or_default();
        self.rivals.extend(rivals.iter().map(|k| k.uid().clone()));
    }

    fn note_vip_rivals(&mut self, network: &NetworkId, claim: Claim) {
        let rivals = self
            .next
            .networks
            .get(network)
            .map(|n| claim.rivals(n))
            .unwrap_or_default();
        self.vip_rivals
            .extend(rivals.iter().map(|s| s.name.clone()));
    }

    fn network(&mut self, id: &NetworkId) -> &mut Network {
        Arc::make_mut(&mut self.next.networks)
            .entry(id.clone())
            .or_default()
    }
}

/// What a service claims.
#[derive(Clone, Copy, PartialEq)]
enum Claim {
    Address(IpAddr),
    Range(IpNet),
}

impl Claim {
    fn rivals(self, network: &Network) -> &[Arc<Service>] {
        match self {
            Claim::Address(ip) => network.vip_rivals(ip),
            Claim::Range(range) => network.range_rivals(range),
        }
    }
}

/// The services a workload serves, none twice.
fn services_of(known: &Known) -> BTreeSet<&ServiceName> {
    known.shape().services.iter().map(|m| &m.service).collect()
}

/// Headless services may carry an unspecified address; it is nobody's.
fn vips(service: &Service) -> BTreeSet<(NetworkId, IpAddr)> {
    service
        .vips
        .iter()
        .filter(|v| !v.ip.is_unspecified())
        .map(|v| (v.network.clone(), v.ip.to_canonical()))
        .collect()
}

fn is_nowhere(node: &NodeName) -> bool {
    node.as_str().is_empty()
}

impl Inner {
    fn workload_differs(&self, other: &Self, uid: &WorkloadUid) -> bool {
        let (old, new) = (&self.workloads, &other.workloads);
        old.get(uid) != new.get(uid) || old.extra(uid) != new.extra(uid)
    }

    fn service_differs(&self, other: &Self, name: &ServiceName) -> bool {
        self.services.get(name) != other.services.get(name)
            || self.service_extras.get(name) != other.service_extras.get(name)
            || self.members(name) != other.members(name)
            || self.routes.get(name) != other.routes.get(name)
            || self.destinations.get(name) != other.destinations.get(name)
    }

    /// The addresses that a workload shares with others.
    fn disputed(&self, uid: &WorkloadUid) -> Vec<IpAddr> {
        let Some(known) = self.workloads.get(uid) else {
            return Vec::new();
        };
        let network = self.networks.get(&known.shape().network);
        known
            .addresses()
            .into_iter()
            .filter(|ip| network.is_some_and(|n| !n.rivals(*ip).is_empty()))
            .collect()
    }

    /// The addresses and ranges that a service shares with others.
    fn disputed_vips(&self, name: &ServiceName) -> Vec<(NetworkId, Claim)> {
        let Some(service) = self.services.get(name) else {
            return Vec::new();
        };
        let addresses = vips(service)
            .into_iter()
            .map(|(n, ip)| (n, Claim::Address(ip)));
        let ranges = service
            .ranges
            .iter()
            .map(|(n, r)| (n.clone(), Claim::Range(*r)));
        addresses
            .chain(ranges)
            .filter(|(n, claim)| {
                self.networks
                    .get(n)
                    .is_some_and(|n| !claim.rivals(n).is_empty())
            })
            .collect()
    }

    /// Whether a policy can govern workloads of any namespace.
    fn reaches_everyone(&self, name: &PolicyName) -> bool {
        let root = self
            .config
            .as_ref()
            .is_some_and(|c| c.root_namespace == name.namespace);
        self.policies
            .get(name)
            .is_some_and(|p| root || p.scope == PolicyScope::Global)
    }
}

impl Members {
    fn set(&mut self, known: &Arc<Known>) -> bool {
        self.whole.take();
        match self.list.binary_search_by(|k| k.uid().cmp(known.uid())) {
            Ok(at) => self.list[at] = Arc::clone(known),
            Err(at) => self.list.insert(at, Arc::clone(known)),
        }
        true
    }

    fn remove(&mut self, uid: &WorkloadUid) -> bool {
        self.whole.take();
        if let Ok(at) = self.list.binary_search_by(|k| k.uid().cmp(uid)) {
            self.list.remove(at);
        }
        !self.list.is_empty()
    }
}
