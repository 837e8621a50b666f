//! What the lab tells the world it contains: manifests for the controller, rules for nodes, names for the resolver.
//!
//! Invariants: a file is written only when its text changed; what is no longer true is removed.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
};

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::{
    manifest::{Key, Object, render, write_atomically},
    net,
    pod::service_account,
    record::{PodRecord, rfc3339},
    service::{self, ClusterIps},
    supervisor::World,
};

/// What was written last.
#[derive(Default)]
pub struct Published {
    files: BTreeMap<String, String>,
    rules: BTreeMap<String, String>,
    names: String,
    can_translate: Option<bool>,
}

/// Writes what changed.
pub fn publish(world: &mut World, ips: &BTreeMap<Key, ClusterIps>) -> Result<()> {
    let backends = world.backends();
    let services: Vec<(&Object, ClusterIps)> = ips
        .iter()
        .filter_map(|(k, ips)| Some((world.objects.get(k)?, *ips)))
        .collect();
    let files = manifests(world, &services, &backends);
    let names = serde_json::to_string(&service::names(&services, &backends))?;
    let rules: BTreeMap<String, String> = world
        .nodes()
        .keys()
        .map(|n| {
            (
                n.name(),
                service::nft_rules(&services, &backends, &n.name()),
            )
        })
        .collect();
    let place = world.place.clone();
    let last = &mut world.published;
    if names != last.names {
        write_atomically(&place.run().join("names.json"), &names)?;
        last.names = names;
    }
    if *last.can_translate.get_or_insert_with(net::nft_present) {
        for (node, rules) in rules {
            if last.rules.get(&node) != Some(&rules) {
                net::load_nft(&place.netns(&node), &rules)?;
                last.rules.insert(node, rules);
            }
        }
    }
    let dir = place.manifests();
    for (name, text) in &files {
        if last.files.get(name) != Some(text) {
            write_atomically(&dir.join(name), text)?;
        }
    }
    for name in last.files.keys().filter(|n| !files.contains_key(*n)) {
        fs::remove_file(dir.join(name)).with_context(|| format!("removing {name}"))?;
    }
    last.files = files;
    Ok(())
}

/// A map of strings; everything else in it is left out.
pub fn string_map(value: &Value) -> BTreeMap<String, String> {
    let entries = value.as_object().into_iter().flatten();
    entries
        .filter_map(|(k, v)| Some((k.clone(), v.as_str()?.to_owned())))
        .collect()
}

fn manifests(
    world: &World,
    services: &[(&Object, ClusterIps)],
    backends: &[service::Backend],
) -> BTreeMap<String, String> {
    let mut files = world.opaque.clone();
    let mut put = |key: &Key, text: String| drop(files.insert(key.file(), text));
    let mut namespaces = BTreeSet::from(["default".to_owned()]);
    for object in world.objects.values() {
        namespaces.insert(object.key.namespace.clone());
        // A pod is written with its status, below.
        if object.key.kind != "Pod" {
            put(&object.key, object.text.clone());
        }
    }
    namespaces.remove("");
    for namespace in &namespaces {
        let key = Key::core("Namespace", "", namespace);
        if !world.objects.contains_key(&key) {
            put(
                &key,
                render(
                    &json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace, "labels": {"kubernetes.io/metadata.name": namespace}}}),
                ),
            );
        }
    }
    let mut accounts: BTreeSet<(String, String)> = namespaces
        .iter()
        .map(|ns| (ns.clone(), "default".to_owned()))
        .collect();
    for record in world.pods.values() {
        let pod = &record.settled;
        accounts.insert((pod.key.namespace.clone(), service_account(&pod.value)));
        put(&pod.key, render(&pod_manifest(record)));
    }
    for (namespace, name) in accounts {
        let key = Key::core("ServiceAccount", &namespace, &name);
        if !world.objects.contains_key(&key) {
            put(
                &key,
                render(
                    &json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": name, "namespace": namespace}}),
                ),
            );
        }
    }
    for (node, labels) in world.nodes() {
        let value = json!({
            "apiVersion": "v1", "kind": "Node", "metadata": {"name": node.name(), "labels": labels},
            "spec": {"podCIDR": node.pod_cidrs()[0], "podCIDRs": node.pod_cidrs()},
            "status": {
                "addresses": [{"type": "InternalIP", "address": node.ip()}, {"type": "InternalIP", "address": node.ip6()}, {"type": "Hostname", "address": node.name()}],
                "conditions": [{"type": "Ready", "status": "True"}],
            },
        });
        put(&Key::core("Node", "", &node.name()), render(&value));
    }
    for (object, ips) in services {
        if ips.is_some() {
            put(&object.key, render(&service::with_addresses(object, ips)));
        }
        let selects = object.value["spec"]["selector"]
            .as_object()
            .is_some_and(|s| !s.is_empty());
        if selects {
            for (key, value) in service::slices(object, backends) {
                put(&key, render(&value));
            }
        }
    }
    files
}

fn pod_manifest(record: &PodRecord) -> Value {
    let pod = &record.settled;
    let (v4, v6) = pod.ips();
    let since = rfc3339(record.since);
    let mut value = pod.value.clone();
    value["apiVersion"] = "v1".into();
    value["kind"] = "Pod".into();
    value["metadata"]["uid"] = pod.uid.clone().into();
    value["metadata"]["creationTimestamp"] = since.clone().into();
    if record.terminating {
        // A fixed time: the file must not change again because time passes.
        value["metadata"]["deletionTimestamp"] = since.clone().into();
    }
    value["spec"]["serviceAccountName"] = service_account(&pod.value).into();
    let ready = if record.ready && !record.terminating {
        "True"
    } else {
        "False"
    };
    let condition = |kind: &str, status: &str| json!({"type": kind, "status": status});
    let containers = value["spec"]["containers"]
        .as_array()
        .cloned()
        .unwrap_or_default();
    let statuses: Vec<Value> = containers.iter().map(|c| json!({
        "name": c["name"], "image": c["image"], "ready": record.ready, "restartCount": 0,
        "started": record.phase == "Running",
        "state": if record.phase == "Running" { json!({"running": {"startedAt": since}}) } else { json!({"waiting": {"reason": record.phase}}) },
    })).collect();
    value["status"] = json!({
        "phase": record.phase, "startTime": since, "qosClass": "BestEffort",
        "hostIP": pod.node.ip(), "hostIPs": [{"ip": pod.node.ip()}, {"ip": pod.node.ip6()}],
        "podIP": v4, "podIPs": [{"ip": v4}, {"ip": v6}],
        "conditions": [condition("PodScheduled", "True"), condition("Initialized", "True"), condition("ContainersReady", ready), condition("Ready", ready)],
        "containerStatuses": statuses,
    });
    value
}
