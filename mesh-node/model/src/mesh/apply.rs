//! How a batch of changes makes the next snapshot, and what it touched.
//!
//! Invariants: only the indexes a change falls into are copied; the diff names exactly what compares
//! different before and after the batch, in order, each once.

use std::{collections::BTreeSet, net::IpAddr, sync::Arc};

use super::{
    Change, Diff, Mesh, Policy, PolicyScope, Service, Workload,
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
}

impl Builder {
    pub fn new(before: &Inner) -> Self {
        Self {
            next: before.clone(),
            workloads: BTreeSet::new(),
            services: BTreeSet::new(),
            policies: BTreeSet::new(),
        }
    }

    pub fn change(&mut self, change: Change) {
        match change {
            Change::Workload(w) => self.set_workload(w),
            Change::RemoveWorkload(uid) => self.remove_workload(&uid),
            Change::WorkloadExtra(uid, extra) => {
                if self.next.extras.get(&uid).is_some_and(|e| *e.0 == extra) {
                    return;
                }
                let uid = self
                    .next
                    .workloads
                    .get(&uid)
                    .map_or(uid, |k| k.uid().clone());
                self.workloads.insert(uid.clone());
                self.next.extras.insert(uid, self.next.shared.extra(extra));
            }
            Change::RemoveWorkloadExtra(uid) => {
                if self.next.extras.remove(&uid).is_some() {
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
        } = self;
        let after = Mesh {
            inner: Arc::new(next),
        };
        let (old, new) = (&before.inner, &after.inner);
        let changed_policies: Vec<PolicyName> = policies
            .into_iter()
            .filter(|n| old.policies.get(n) != new.policies.get(n))
            .collect();
        let whole_mesh = |inner: &Inner, n: &PolicyName| {
            inner
                .policies
                .get(n)
                .is_some_and(|p| p.scope == PolicyScope::Global)
        };
        let diff = Diff {
            workloads: workloads
                .into_iter()
                .filter(|u| {
                    old.workloads.get(u) != new.workloads.get(u)
                        || before.extra(u) != after.extra(u)
                })
                .collect(),
            services: services
                .into_iter()
                .filter(|n| {
                    old.services.get(n) != new.services.get(n)
                        || old.service_extras.get(n) != new.service_extras.get(n)
                        || old.members(n) != new.members(n)
                })
                .collect(),
            everyone: changed_policies
                .iter()
                .any(|n| whole_mesh(old, n) || whole_mesh(new, n)),
            policies: changed_policies,
            config: old.config != new.config || old.complete != new.complete,
        };
        (after, diff)
    }

    fn set_workload(&mut self, workload: Workload) {
        let mut workload = workload;
        let before = self.next.workloads.get(&workload.uid).cloned();
        if let Some(known) = &before {
            workload.uid = known.uid().clone();
        } else if let Some((uid, _)) = self.next.extras.entry(&workload.uid) {
            workload.uid = uid.clone();
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
        self.next.workloads.insert(known.uid().clone(), known);
    }

    fn remove_workload(&mut self, uid: &WorkloadUid) {
        if let Some(known) = self.next.workloads.remove(uid) {
            self.unlink(&known);
            self.workloads.insert(uid.clone());
        }
        if self.next.extras.remove(uid).is_some() {
            self.workloads.insert(uid.clone());
        }
    }

    fn link(&mut self, known: &Arc<Known>) {
        let network = self.network(&known.shape().network);
        for ip in known.addresses() {
            network.add_workload(ip, known);
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
        let network = self.network(&known.shape().network);
        for ip in known.addresses() {
            network.remove_workload(ip, known.uid());
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
        }
        for (network, range) in &service.ranges {
            self.network(network).add_range(*range, &service);
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
            self.network(&network).remove_vip(ip, name);
        }
        for (network, range) in &service.ranges {
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

    fn network(&mut self, id: &NetworkId) -> &mut super::claims::Network {
        Arc::make_mut(&mut self.next.networks)
            .entry(id.clone())
            .or_default()
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
