//! Which pods should be registered on this node, held against those that are: pure.
//!
//! Invariants: a pod on the node's own network is never expected; whether a registered pod is gone is decided only
//! together with whether its network namespace is there.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    net::IpAddr,
};

use mesh_model::{
    mesh::Mesh,
    name::{ClusterId, NodeName, WorkloadUid},
};

use crate::capture::{PodState, Registration, SavedPod};

/// The pods that the configuration places on this node.
#[derive(Debug, Default)]
pub struct Expected {
    /// Those that have a network of their own by now, as whoever runs them would register them.
    pub pods: Vec<Registration>,
    /// The uids of all pods here, whatever their network.
    pub uids: HashSet<String>,
    /// The workloads here.
    pub workloads: HashSet<WorkloadUid>,
    /// Pods that cannot be registered, and why.
    pub hopeless: BTreeMap<String, String>,
}

/// Reads the configuration.
pub fn expected(mesh: &Mesh, cluster: &ClusterId, node: &NodeName) -> Expected {
    let mut all = Expected::default();
    let pods = format!("{cluster}//Pod/");
    for workload in mesh.workloads_on(node) {
        if workload.host_network || !workload.uid.as_str().starts_with(&pods) {
            continue;
        }
        all.workloads.insert(workload.uid.clone());
        // A companion that is not here yet comes with the next change.
        let Some(extra) = mesh.extra(&workload.uid) else {
            continue;
        };
        let title = format!("{}/{}", workload.namespace, workload.name);
        let Some(uid) = &extra.pod_uid else {
            let why = "the controller does not tell its uid; update the controller";
            all.hopeless.insert(title, why.to_owned());
            continue;
        };
        all.uids.insert(uid.to_string());
        if workload.addresses.is_empty() {
            continue;
        }
        let pod = Registration {
            uid: uid.to_string(),
            namespace: workload.namespace.to_string(),
            name: workload.name.to_string(),
            service_account: workload.identity.service_account.to_string(),
            addresses: workload.addresses.to_vec(),
            veth_ifindex: 0,
            cgroup: None,
            probe_ports: Vec::new(),
        };
        match pod.check() {
            Ok(pod) => all.pods.push(pod),
            Err(why) => drop(all.hopeless.insert(title, why)),
        }
    }
    all
}

/// A registered pod that may be gone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Suspect {
    /// Its uid.
    pub uid: String,
    /// Its network namespace.
    pub inode: u64,
    /// Whether the configuration still has it, or may have it.
    pub configured: bool,
}

/// What is to be looked into.
#[derive(Debug, Default)]
pub struct Open {
    /// Pods that are not registered, or not with the addresses that they have now.
    pub missing: Vec<Registration>,
    /// Registered pods.
    pub suspects: Vec<Suspect>,
    /// The network namespaces of registered pods, and of those that are being deleted: nobody else's.
    pub taken: HashSet<u64>,
}

/// Holds one against the other. `whole`: the configuration is complete. A pod that shares an address with another is
/// left until one of them is gone: the namespace would be taken for that of either.
pub fn compare(expected: &mut Expected, known: &[SavedPod], whole: bool) -> Open {
    let mut open = Open::default();
    let mut here = HashSet::new();
    for SavedPod { report, netns } in known {
        open.taken.insert(*netns);
        if report.state == PodState::Gone {
            continue;
        }
        let uid = report.pod.uid.as_str();
        here.insert((uid, set(&report.pod.addresses)));
        open.suspects.push(Suspect {
            uid: uid.to_owned(),
            inode: *netns,
            configured: !whole || expected.uids.contains(uid),
        });
    }
    let mut owners: HashMap<IpAddr, usize> = HashMap::new();
    for ip in expected.pods.iter().flat_map(|p| &p.addresses) {
        *owners.entry(*ip).or_default() += 1;
    }
    for pod in &expected.pods {
        if here.contains(&(pod.uid.as_str(), set(&pod.addresses))) {
            continue;
        }
        match pod.addresses.iter().find(|ip| owners[ip] > 1) {
            None => open.missing.push(pod.clone()),
            Some(ip) => {
                let title = format!("{}/{}", pod.namespace, pod.name);
                let why = format!("another pod of this node has its address {ip} too");
                expected.hopeless.insert(title, why);
            }
        }
    }
    open
}

fn set(addresses: &[IpAddr]) -> BTreeSet<IpAddr> {
    addresses.iter().copied().collect()
}

/// Which of the namespaces, each given by the addresses in it, is the pod's.
pub fn choose<'a, T>(
    pod: &Registration,
    free: impl Iterator<Item = (&'a BTreeSet<IpAddr>, T)>,
) -> Result<T, &'static str> {
    let mut fit = free.filter(|(inside, _)| pod.addresses.iter().all(|ip| inside.contains(ip)));
    match (fit.next(), fit.next()) {
        (Some((_, only)), None) => Ok(only),
        // One of them may have taken an address that is not its own.
        (Some(_), Some(_)) => Err("several network namespaces have its address"),
        (None, _) => Err("no network namespace that can be seen from here has its address"),
    }
}

#[cfg(test)]
#[path = "expected_tests.rs"]
mod tests;
