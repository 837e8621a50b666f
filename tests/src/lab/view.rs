//! The world as others see it: nodes with their labels, services with their backends, and the status that `ps` shows.
//!
//! Invariant: what is told is read from one state of the world, between two of its changes.

use std::collections::BTreeMap;

use super::{
    control::{ComponentStatus, ServiceStatus, Status},
    manifest::{Key, Object},
    net::NodeIndex,
    podspec, publish,
    schedule::Nodes,
    service::{Backend, ClusterIps},
    supervisor::World,
};

impl World {
    pub(super) fn cluster_ips(&mut self) -> BTreeMap<Key, ClusterIps> {
        let services: Vec<Object> = self
            .objects
            .values()
            .filter(|o| o.key.kind == "Service" && o.key.group.is_empty())
            .cloned()
            .collect();
        self.services
            .retain(|k| services.iter().any(|s| s.key == *k));
        let mut given = BTreeMap::new();
        for service in &services {
            match self.services.addresses(service) {
                Ok(ips) => drop(given.insert(service.key.clone(), ips)),
                Err(why) => self.warnings.push(why),
            }
        }
        given
    }

    /// The nodes with their labels: the lab's, and those of Node objects that users applied.
    pub fn nodes(&self) -> Nodes {
        (1..=self.spec.nodes)
            .map(NodeIndex)
            .map(|node| {
                let name = node.name();
                let own = [
                    ("kubernetes.io/hostname", name.clone()),
                    ("kubernetes.io/os", "linux".to_owned()),
                    ("topology.kubernetes.io/region", "lab".to_owned()),
                    ("topology.kubernetes.io/zone", format!("zone-{}", node.0)),
                ];
                let mut labels: BTreeMap<String, String> =
                    own.into_iter().map(|(k, v)| (k.to_owned(), v)).collect();
                if let Some(object) = self.objects.get(&Key::core("Node", "", &name)) {
                    labels.extend(publish::string_map(&object.value["metadata"]["labels"]));
                }
                (node, labels)
            })
            .collect()
    }

    /// The pods as services see them.
    pub fn backends(&self) -> Vec<Backend> {
        let nodes = self.nodes();
        let running = self
            .pods
            .values()
            .filter(|p| p.phase == "Running" || p.phase == "Pending");
        running
            .map(|p| {
                let spec = &p.settled.value["spec"];
                let named = |f: &str| spec[f].as_str().map(str::to_owned);
                Backend {
                    key: p.settled.key.clone(),
                    uid: p.settled.uid.clone(),
                    labels: publish::string_map(&p.settled.value["metadata"]["labels"]),
                    ips: p.settled.ips(),
                    node: p.settled.node.name(),
                    zone: nodes
                        .get(&p.settled.node)
                        .and_then(|l| l.get("topology.kubernetes.io/zone"))
                        .cloned()
                        .unwrap_or_default(),
                    ready: p.ready,
                    terminating: p.terminating,
                    ports: podspec::named_ports(&p.settled.value),
                    hostname: named("hostname").zip(named("subdomain")),
                }
            })
            .collect()
    }

    pub(super) fn status(&mut self) -> Status {
        let services = self
            .cluster_ips()
            .into_iter()
            .map(|(key, ips)| {
                let cluster_ips = ips
                    .into_iter()
                    .flat_map(|(v4, v6)| {
                        std::iter::once(v4.to_string()).chain(v6.map(|ip| ip.to_string()))
                    })
                    .collect();
                ServiceStatus {
                    namespace: key.namespace,
                    name: key.name,
                    cluster_ips,
                }
            })
            .collect();
        Status {
            name: self.spec.name.to_string(),
            nodes: self.nodes().keys().map(|n| n.name()).collect(),
            mesh: self.spec.mesh,
            components: self
                .components
                .iter()
                .map(|(name, c)| ComponentStatus {
                    name: name.clone(),
                    condition: c.condition.borrow().clone(),
                })
                .collect(),
            pods: self.pods.values().map(|p| p.status(&self.place)).collect(),
            services,
            warnings: self.warnings.clone(),
        }
    }
}
