//! Teaching the kernel the short way between two pods of this node: slots of virtual addresses ahead of time,
//! verdicts when a flow has shown that they are wanted, and their end when anything changes.
//!
//! Invariants: the model that decides for the proxy decides here too; a destination's epoch is read before
//! the snapshot that decides, and moved after a new snapshot is published, so that a verdict from an old
//! snapshot is void; what is not certain is left to the proxy.

use std::{
    collections::{HashMap, HashSet},
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use mesh_model::{
    authz::{Egress, Target},
    mesh::{Diff, Mesh, Service, Workload},
    name::{NodeName, ServiceName, WorkloadUid},
    route::{Shortcut, Slot, shortcut, slots},
};

use crate::{
    accept::{Family, Pod},
    capture::{Datapath, Outcome, Verdict, VipSlot},
    state::MeshState,
};

/// Verdicts that one flow may install: a service has as many destinations as it has endpoints here.
const VERDICTS_PER_FLOW: usize = 16;
/// Slots of one virtual address, before the kernel side fits them into its table.
const SLOTS: usize = 64;
/// Changed workloads whose verdicts are made void one by one; when more change at once, all are.
const ONE_BY_ONE: usize = 256;

/// Installs the verdicts of a flow that came to the proxy although the kernel may take the next one itself.
pub fn learn(
    datapath: &dyn Datapath,
    state: &MeshState,
    node: &NodeName,
    pod: &Pod,
    flow: &Egress,
) {
    let snapshot = state.load();
    for (workload, address) in here(&snapshot.mesh, node, flow) {
        let epoch = datapath.epoch(address.ip());
        // Loaded after the epoch was read: if this is an old snapshot, the epoch moves after it.
        let deciding = state.load();
        let outcome = match shortcut(&deciding.mesh, &flow.source, &workload, address) {
            Shortcut::Direct => Outcome::Direct,
            Shortcut::Refuse(reason) => Outcome::Refuse(reason),
            Shortcut::Proxy => continue,
        };
        let verdict = Verdict {
            source: pod.netns_cookie,
            destination: address,
            epoch,
            outcome,
        };
        if let Err(error) = datapath.install(verdict) {
            tracing::debug!(pod = %pod.workload, %address, %error, "a verdict was not installed; the proxy keeps the flow");
        }
    }
}

/// The destinations on this node that a flow could be meant for.
fn here(mesh: &Mesh, node: &NodeName, flow: &Egress) -> Vec<(Arc<Workload>, SocketAddr)> {
    match &flow.target {
        Target::Workload(workload, _) if workload.node == *node => {
            vec![(workload.clone(), flow.original)]
        }
        Target::Service(service, port) => {
            let family = Family::of(flow.original.ip());
            let local = slots(mesh, service, *port, node)
                .into_iter()
                .filter(|s| s.local);
            local
                .filter_map(|s| Some((s.workload.clone(), address(&s, family)?)))
                .take(VERDICTS_PER_FLOW)
                .collect()
        }
        Target::Workload(..) | Target::External => Vec::new(),
    }
}

fn address(slot: &Slot, family: Family) -> Option<SocketAddr> {
    let ip: IpAddr = match family {
        Family::V4 => slot.v4?.into(),
        Family::V6 => slot.v6?.into(),
    };
    Some(SocketAddr::new(ip, slot.port))
}

/// Keeps slots and epochs in step with the mesh.
#[derive(Debug)]
pub struct Director {
    node: NodeName,
    state: MeshState,
    datapath: Arc<dyn Datapath>,
    /// What each service has in the kernel.
    projected: HashMap<ServiceName, Vec<SocketAddr>>,
    /// The workloads of this node and where they are.
    local: HashMap<WorkloadUid, Arc<Workload>>,
}

impl Director {
    /// Knows nothing yet.
    pub fn new(node: NodeName, state: MeshState, datapath: Arc<dyn Datapath>) -> Self {
        Self {
            node,
            state,
            datapath,
            projected: HashMap::new(),
            local: HashMap::new(),
        }
    }

    /// Follows the mesh for ever.
    pub async fn run(mut self) {
        let mut diffs = self.state.diffs();
        self.begin();
        loop {
            let diff = diffs.next().await;
            self.follow(&diff);
        }
    }

    /// Everything once; what an earlier process left and nobody wants now is removed.
    pub fn begin(&mut self) {
        let left = self.datapath.vips().unwrap_or_else(|error| {
            tracing::warn!(%error, "the virtual addresses in the kernel cannot be listed; what an earlier process left may stay");
            Vec::new()
        });
        self.follow(&Diff {
            config: true,
            ..Diff::default()
        });
        let wanted: HashSet<SocketAddr> = self.projected.values().flatten().copied().collect();
        left.into_iter()
            .filter(|vip| !wanted.contains(vip))
            .for_each(|vip| self.set(vip, &[]));
    }

    /// Brings the kernel up to date with what changed.
    pub fn follow(&mut self, diff: &Diff) {
        let snapshot = self.state.load();
        let mesh = &snapshot.mesh;
        let before = std::mem::take(&mut self.local);
        self.local = mesh
            .workloads_on(&self.node)
            .iter()
            .map(|w| (w.uid.clone(), w.clone()))
            .collect();
        let all = diff.config || diff.everyone;
        let (uids, namespaces): (HashSet<_>, HashSet<_>) = (
            diff.workloads.iter().collect(),
            diff.policies.iter().map(|p| &p.namespace).collect(),
        );
        // The addresses that a service had, or those in its ranges, cannot be told one by one.
        let sweeping = |name| {
            mesh.service(name)
                .is_none_or(|s: &Arc<Service>| !s.ranges.is_empty())
        };
        if all || uids.len() > ONE_BY_ONE || diff.services.iter().any(sweeping) {
            if let Err(error) = self.datapath.bump_all() {
                tracing::error!(%error, "verdicts could not be made void");
            }
        } else {
            let touched = |w: &Workload| uids.contains(&w.uid) || namespaces.contains(&w.namespace);
            let local = before
                .values()
                .chain(self.local.values())
                .filter(|w| touched(w));
            // Dials to workloads of other nodes and to services may have failed, which is remembered too.
            let remote = uids.iter().filter_map(|uid| mesh.workload(uid));
            let workloads = local
                .chain(remote)
                .flat_map(|w| w.addresses.iter().copied());
            let services = diff.services.iter().filter_map(|name| mesh.service(name));
            let vips = services.flat_map(|s| s.vips.iter().map(|v| v.ip));
            self.void(workloads.chain(vips).map(|ip| ip.to_canonical()).collect());
        }
        if all {
            let gone: Vec<_> = self
                .projected
                .keys()
                .filter(|name| mesh.service(name).is_none())
                .cloned()
                .collect();
            gone.iter().for_each(|name| self.project(mesh, name));
            let names: Vec<_> = mesh.services().map(|s| s.name.clone()).collect();
            names.iter().for_each(|name| self.project(mesh, name));
        } else {
            diff.services
                .iter()
                .for_each(|name| self.project(mesh, name));
        }
    }

    /// Makes void what is known about these addresses.
    fn void(&self, addresses: HashSet<IpAddr>) {
        for ip in addresses {
            if let Err(error) = self.datapath.bump_epoch(ip) {
                tracing::error!(%ip, %error, "verdicts about an address could not be made void");
            }
        }
    }

    fn project(&mut self, mesh: &Mesh, name: &ServiceName) {
        let service = mesh.service(name);
        let now: HashMap<SocketAddr, Vec<VipSlot>> =
            service.map(|s| self.table(mesh, s)).unwrap_or_default();
        let before = self.projected.remove(name).unwrap_or_default();
        before
            .iter()
            .filter(|vip| !now.contains_key(vip))
            .for_each(|vip| self.set(*vip, &[]));
        for (vip, slots) in &now {
            self.set(*vip, slots);
        }
        if !now.is_empty() {
            self.projected
                .insert(name.clone(), now.into_keys().collect());
        }
    }

    /// The slots of every virtual address and port of a service that has an endpoint here.
    fn table(&self, mesh: &Mesh, service: &Service) -> HashMap<SocketAddr, Vec<VipSlot>> {
        let mut table = HashMap::new();
        for port in service.ports.iter().map(|p| p.port) {
            let slots = slots(mesh, service, port, &self.node);
            if slots.is_empty() {
                continue;
            }
            for vip in service.vips.iter().map(|v| v.ip) {
                let spread = spread(&slots, Family::of(vip));
                if spread.iter().any(|s| *s != VipSlot::Proxy) {
                    table.insert(SocketAddr::new(vip, port), spread);
                }
            }
        }
        table
    }

    fn set(&self, vip: SocketAddr, slots: &[VipSlot]) {
        if let Err(error) = self.datapath.set_slots(vip, slots) {
            tracing::warn!(%vip, %error, "the slots of a virtual address could not be written; the proxy chooses for it");
        }
    }
}

/// Weights as repetitions, in as few slots as show them and never more than fit.
fn spread(slots: &[Slot], family: Family) -> Vec<VipSlot> {
    let total: u64 = slots.iter().map(|s| u64::from(s.weight.max(1))).sum();
    let even = slots.iter().all(|s| s.weight == slots[0].weight);
    let room = if even {
        slots.len() as u64
    } else {
        SLOTS as u64
    };
    let mut spread = Vec::new();
    for slot in slots {
        let share = u64::from(slot.weight.max(1)) * room / total.max(1);
        let to = address(slot, family)
            .filter(|_| slot.local)
            .map_or(VipSlot::Proxy, VipSlot::Local);
        spread.extend(std::iter::repeat_n(
            to,
            usize::try_from(share.max(1)).unwrap_or(1),
        ));
    }
    spread
}

#[cfg(test)]
#[path = "direct_tests.rs"]
mod tests;
