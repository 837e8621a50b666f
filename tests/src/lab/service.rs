//! Services as the lab keeps them: addresses, endpoint slices, names, and translation rules for pods outside the mesh.
//!
//! Invariant: pure; the same services and pods give the same slices, rules and names, byte for byte.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{Ipv4Addr, Ipv6Addr},
};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::manifest::{Key, Object};

/// A pod as services see it.
#[derive(Clone, Debug)]
pub struct Backend {
    /// Its name.
    pub key: Key,
    /// Its uid.
    pub uid: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Its addresses.
    pub ips: (Ipv4Addr, Ipv6Addr),
    /// Its node.
    pub node: String,
    /// Its node's zone.
    pub zone: String,
    /// Whether it is ready.
    pub ready: bool,
    /// Whether it was told to go.
    pub terminating: bool,
    /// Named container ports.
    pub ports: BTreeMap<String, u16>,
    /// `spec.hostname` when `spec.subdomain` names a service.
    pub hostname: Option<(String, String)>,
}

/// A service's addresses; `None` for a headless one.
pub type ClusterIps = Option<(Ipv4Addr, Option<Ipv6Addr>)>;

/// What names answer: addresses of each family.
pub type Names = BTreeMap<String, Addresses>;

/// Addresses behind a name.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Addresses {
    /// A records.
    pub v4: Vec<Ipv4Addr>,
    /// AAAA records.
    pub v6: Vec<Ipv6Addr>,
}

/// Chooses addresses for services; keeps those given before.
#[derive(Debug, Default)]
pub struct Allocator {
    given: BTreeMap<Key, Ipv4Addr>,
}

impl Allocator {
    /// The service's addresses: the ones it asks for, the ones it had, or new ones; or why not.
    pub fn addresses(&mut self, service: &Object) -> Result<ClusterIps, String> {
        let spec = &service.value["spec"];
        let asked = spec["clusterIP"]
            .as_str()
            .or_else(|| spec["clusterIPs"][0].as_str())
            .filter(|s| !s.is_empty());
        if asked == Some("None") || spec["type"] == "ExternalName" {
            return Ok(None);
        }
        let v4 = match asked {
            Some(text) => {
                let ip: Ipv4Addr = text.parse().map_err(|_| {
                    format!("{}: clusterIP `{text}` is not an IPv4 address", service.key)
                })?;
                if ip.octets()[..2] != [10, 96] {
                    return Err(format!(
                        "{}: clusterIP {ip} is outside the lab's range 10.96.0.0/16",
                        service.key
                    ));
                }
                if let Some((other, _)) = self
                    .given
                    .iter()
                    .find(|(k, v)| **v == ip && **k != service.key)
                {
                    return Err(format!(
                        "{}: clusterIP {ip} already belongs to {other}",
                        service.key
                    ));
                }
                ip
            }
            None => match self.given.get(&service.key) {
                Some(ip) => *ip,
                None => self.free(&service.key)?,
            },
        };
        self.given.insert(service.key.clone(), v4);
        let single = spec["ipFamilyPolicy"] == "SingleStack";
        Ok(Some((v4, (!single).then(|| v6_of(v4)))))
    }

    /// Takes back the addresses of services that are gone.
    pub fn retain(&mut self, keep: impl Fn(&Key) -> bool) {
        self.given.retain(|k, _| keep(k));
    }

    fn free(&self, key: &Key) -> Result<Ipv4Addr, String> {
        let taken: BTreeSet<Ipv4Addr> = self.given.values().copied().collect();
        // Below 10.96.1.0 is left for addresses that manifests ask for, and for the resolver.
        (256..=u16::MAX - 1)
            .map(|n| Ipv4Addr::new(10, 96, n.to_be_bytes()[0], n.to_be_bytes()[1]))
            .find(|ip| !taken.contains(ip) && ip.octets()[3] != 0)
            .ok_or_else(|| format!("{key}: no service address is free"))
    }
}

fn v6_of(v4: Ipv4Addr) -> Ipv6Addr {
    let [_, _, a, b] = v4.octets();
    Ipv6Addr::new(0xfd00, 0x96, 0, 0, 0, 0, 0, u16::from_be_bytes([a, b]))
}

/// The service as the controller shall see it: with its addresses.
pub fn with_addresses(service: &Object, ips: &ClusterIps) -> Value {
    let mut value = service.value.clone();
    if let Some((v4, v6)) = ips {
        let v6 = v6.map(|ip| ip.to_string());
        value["spec"]["clusterIP"] = v4.to_string().into();
        value["spec"]["clusterIPs"] = std::iter::once(v4.to_string())
            .chain(v6.clone())
            .collect::<Vec<_>>()
            .into();
        value["spec"]["ipFamilies"] = if v6.is_some() {
            json!(["IPv4", "IPv6"])
        } else {
            json!(["IPv4"])
        };
    }
    value
}

/// The pods that a service selects; none without a selector.
pub fn backends<'a>(service: &Object, pods: &'a [Backend]) -> Vec<&'a Backend> {
    let selector = service.value["spec"]["selector"]
        .as_object()
        .filter(|s| !s.is_empty());
    let Some(selector) = selector else {
        return Vec::new();
    };
    let chosen = |p: &&Backend| {
        p.key.namespace == service.key.namespace
            && selector
                .iter()
                .all(|(k, v)| p.labels.get(k).map(String::as_str) == v.as_str())
    };
    pods.iter().filter(chosen).collect()
}

struct Port {
    name: String,
    protocol: String,
    port: u16,
    target: Value,
    node_port: Option<u16>,
}

fn ports(service: &Object) -> Vec<Port> {
    let small = |v: &Value| v.as_u64().and_then(|n| u16::try_from(n).ok());
    let list = service.value["spec"]["ports"]
        .as_array()
        .cloned()
        .unwrap_or_default();
    list.iter()
        .filter_map(|p| {
            Some(Port {
                name: p["name"].as_str().unwrap_or_default().to_owned(),
                protocol: p["protocol"].as_str().unwrap_or("TCP").to_owned(),
                port: small(&p["port"])?,
                target: if p["targetPort"].is_null() {
                    p["port"].clone()
                } else {
                    p["targetPort"].clone()
                },
                node_port: small(&p["nodePort"]),
            })
        })
        .collect()
}

fn target_port(port: &Port, pod: &Backend) -> Option<u16> {
    match &port.target {
        Value::String(name) => pod.ports.get(name).copied().or_else(|| name.parse().ok()),
        number => number.as_u64().and_then(|n| u16::try_from(n).ok()),
    }
}

/// The endpoint slices of a service: one per family and per set of resolved ports.
pub fn slices(service: &Object, pods: &[Backend]) -> Vec<(Key, Value)> {
    let list = ports(service);
    let mut groups: BTreeMap<Vec<(String, String, u16)>, Vec<&Backend>> = BTreeMap::new();
    for pod in backends(service, pods) {
        let resolved = list
            .iter()
            .filter_map(|p| Some((p.name.clone(), p.protocol.clone(), target_port(p, pod)?)))
            .collect();
        groups.entry(resolved).or_default().push(pod);
    }
    if groups.is_empty() {
        // A service without pods still has its slice: that is how anyone knows.
        groups.insert(Vec::new(), Vec::new());
    }
    let mut made = Vec::new();
    for (index, (resolved, pods)) in groups.iter().enumerate() {
        for (family, v6) in [("IPv4", false), ("IPv6", true)] {
            if v6 && service.value["spec"]["ipFamilyPolicy"] == "SingleStack" {
                continue;
            }
            let name = format!(
                "{}-{}{}",
                service.key.name,
                family.to_lowercase(),
                if index == 0 {
                    String::new()
                } else {
                    format!("-{index}")
                }
            );
            let endpoints: Vec<Value> = pods.iter().map(|p| endpoint(service, p, v6)).collect();
            let ports: Vec<Value> = resolved.iter().map(|(name, protocol, port)| json!({"name": name, "protocol": protocol, "port": port})).collect();
            let value = json!({
                "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": family,
                "metadata": {"name": name, "namespace": service.key.namespace, "labels": {"kubernetes.io/service-name": service.key.name}},
                "endpoints": endpoints, "ports": ports,
            });
            let key = Key {
                group: "discovery.k8s.io".into(),
                kind: "EndpointSlice".into(),
                namespace: service.key.namespace.clone(),
                name,
            };
            made.push((key, value));
        }
    }
    made
}

fn endpoint(service: &Object, pod: &Backend, v6: bool) -> Value {
    let unready_too = service.value["spec"]["publishNotReadyAddresses"] == true;
    let mut value = json!({
        "addresses": [if v6 { pod.ips.1.to_string() } else { pod.ips.0.to_string() }],
        "conditions": {"ready": unready_too || (pod.ready && !pod.terminating), "serving": pod.ready, "terminating": pod.terminating},
        "nodeName": pod.node, "zone": pod.zone,
        "targetRef": {"kind": "Pod", "namespace": pod.key.namespace, "name": pod.key.name, "uid": pod.uid},
    });
    if let Some((hostname, _)) = pod
        .hostname
        .as_ref()
        .filter(|(_, sub)| *sub == service.key.name)
    {
        value["hostname"] = hostname.clone().into();
    }
    value
}

/// The names that the lab's own resolver answers.
pub fn names(services: &[(&Object, ClusterIps)], pods: &[Backend]) -> Names {
    let mut all = Names::new();
    for (service, ips) in services {
        let name = format!(
            "{}.{}.svc.cluster.local",
            service.key.name, service.key.namespace
        );
        let entry = all.entry(name.clone()).or_default();
        if let Some((v4, v6)) = ips {
            entry.v4.push(*v4);
            entry.v6.extend(*v6);
            continue;
        }
        let unready_too = service.value["spec"]["publishNotReadyAddresses"] == true;
        for pod in backends(service, pods)
            .into_iter()
            .filter(|p| unready_too || (p.ready && !p.terminating))
        {
            let own = pod
                .hostname
                .as_ref()
                .filter(|(_, sub)| *sub == service.key.name)
                .map(|(h, _)| format!("{h}.{name}"));
            for n in std::iter::once(name.clone()).chain(own) {
                let entry = all.entry(n).or_default();
                entry.v4.push(pod.ips.0);
                entry.v6.push(pod.ips.1);
            }
        }
    }
    all
}

/// The translation rules of one node for pods outside the mesh, as an nftables ruleset that replaces the former.
pub fn nft_rules(services: &[(&Object, ClusterIps)], pods: &[Backend], node: &str) -> String {
    let (mut nat, mut reject) = (String::new(), String::new());
    for (service, ips) in services {
        let Some((v4, v6)) = ips else { continue };
        let local_only = service.value["spec"]["internalTrafficPolicy"] == "Local";
        let mut ready: Vec<&Backend> = backends(service, pods);
        ready.retain(|p| p.ready && !p.terminating && (!local_only || p.node == node));
        for port in ports(service) {
            let protocol = port.protocol.to_lowercase();
            if protocol != "tcp" && protocol != "udp" {
                continue;
            }
            let targets: Vec<(&Backend, u16)> = ready
                .iter()
                .filter_map(|p| Some((*p, target_port(&port, p)?)))
                .collect();
            let v4_targets: Vec<String> = targets
                .iter()
                .map(|(p, t)| format!("{} . {t}", p.ips.0))
                .collect();
            let v6_targets: Vec<String> = targets
                .iter()
                .map(|(p, t)| format!("{} . {t}", p.ips.1))
                .collect();
            let how = if protocol == "tcp" {
                "reject with tcp reset"
            } else {
                "reject"
            };
            let mut rule = |matching: String, family, targets: &[String]| {
                if targets.is_empty() {
                    reject += &format!("{matching} {how}\n");
                } else {
                    nat += &translation(&matching, family, targets);
                }
            };
            rule(
                format!("ip daddr {v4} {protocol} dport {}", port.port),
                "ip",
                &v4_targets,
            );
            if let Some(v6) = v6 {
                rule(
                    format!("ip6 daddr {v6} {protocol} dport {}", port.port),
                    "ip6",
                    &v6_targets,
                );
            }
            // Who comes from outside stays who it is, and to the pods of this node, or is this node and gets anywhere.
            let kept = service.value["spec"]["externalTrafficPolicy"] == "Local";
            let outside: Vec<String> = targets
                .iter()
                .filter(|(p, _)| !kept || p.node == node)
                .map(|(p, t)| format!("{} . {t}", p.ips.0))
                .collect();
            // Else it becomes this node, so that answers come back this way.
            let mark = if kept { "" } else { " meta mark set 0x4000" };
            let mut lead_in = |matching: String| match outside.is_empty() {
                true => rule(matching, "ip", &outside),
                false => rule(format!("{matching}{mark}"), "ip", &outside),
            };
            if let Some(node_port) = port.node_port {
                lead_in(format!(
                    "meta nfproto ipv4 fib daddr type local {protocol} dport {node_port}"
                ));
            }
            for ip in load_balancer_ips(service) {
                lead_in(format!("ip daddr {ip} {protocol} dport {}", port.port));
            }
        }
    }
    let own = |v6: bool| {
        let list: Vec<String> = pods
            .iter()
            .map(|p| {
                if v6 {
                    format!("{0} . {0}", p.ips.1)
                } else {
                    format!("{0} . {0}", p.ips.0)
                }
            })
            .collect();
        if list.is_empty() {
            String::new()
        } else {
            format!("elements = {{ {} }}", list.join(", "))
        }
    };
    format!(
        "table inet warren_lab\ndelete table inet warren_lab\ntable inet warren_lab {{\n\
         set self4 {{ type ipv4_addr . ipv4_addr; {} }}\nset self6 {{ type ipv6_addr . ipv6_addr; {} }}\n\
         chain services {{\n{nat}}}\nchain prerouting {{ type nat hook prerouting priority dstnat; jump services; }}\n\
         chain output {{ type nat hook output priority -100; jump services; }}\n\
         chain postrouting {{ type nat hook postrouting priority srcnat; meta mark 0x4000 masquerade; ip saddr . ip daddr @self4 masquerade; ip6 saddr . ip6 daddr @self6 masquerade; }}\n\
         chain empty {{\n{reject}}}\nchain forward {{ type filter hook forward priority filter; jump empty; }}\n\
         chain local {{ type filter hook output priority filter; jump empty; }}\n}}\n",
        own(false),
        own(true),
    )
}

/// The addresses at which a load balancer hands traffic of a service to the nodes.
fn load_balancer_ips(service: &Object) -> Vec<std::net::Ipv4Addr> {
    let ingress = service.value["status"]["loadBalancer"]["ingress"].as_array();
    let ips = ingress.into_iter().flatten();
    ips.filter_map(|one| one["ip"].as_str()?.parse().ok())
        .collect()
}

fn translation(matching: &str, family: &str, targets: &[String]) -> String {
    let map: Vec<String> = targets
        .iter()
        .enumerate()
        .map(|(i, t)| format!("{i} : {t}"))
        .collect();
    format!(
        "{matching} dnat {family} to numgen random mod {} map {{ {} }}\n",
        targets.len(),
        map.join(", ")
    )
}

#[cfg(test)]
mod tests;
