//! The taint `warren.dev/not-ready`, with which a node can be registered so that no pod is placed there before its node
//! proxy serves: taken off by the leader.
//!
//! Invariants: it is taken off only where a node proxy says that it is ready, and never put on from here; of a node
//! nothing but that taint is changed, and only in the version that was looked at.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use futures_util::StreamExt;
use k8s_openapi::api::core::v1::{Node, Pod, Taint};
use kube::{
    Api, Client, ResourceExt,
    api::{Patch, PatchParams},
    runtime::{
        WatchStreamExt,
        watcher::{Config, Event, watcher},
    },
};
use serde_json::json;
use tokio::{
    sync::watch,
    time::{interval, timeout},
};
use tracing::{debug, info, warn};

/// The taint's key; its effect and value are whoever registers the node's to choose.
pub(crate) const KEY: &str = "warren.dev/not-ready";
/// What selects the pods of node proxies.
const PROXIES: &str = "app.kubernetes.io/name=warren-node";
/// How often what failed is tried again.
const AGAIN: Duration = Duration::from_secs(5);

/// Follows nodes and node proxies and, on the leader, takes the taint off. Never ends.
pub async fn keep(client: Client, namespace: String, mut leads: watch::Receiver<bool>) {
    let nodes: Api<Node> = Api::all(client.clone());
    let pods: Api<Pod> = Api::namespaced(client, &namespace);
    let of = Config::default().labels(PROXIES);
    let mut seen_nodes = watcher(nodes.clone(), Config::default())
        .default_backoff()
        .boxed();
    let mut seen_pods = watcher(pods, of).default_backoff().boxed();
    let mut known = Known::default();
    let mut failed = BTreeSet::new();
    let mut ticks = interval(AGAIN);
    loop {
        tokio::select! {
            event = seen_nodes.next() => match event {
                Some(Ok(event)) => known.node(event),
                Some(Err(error)) => debug!(%error, "nodes cannot be followed"),
                None => return,
            },
            event = seen_pods.next() => match event {
                Some(Ok(event)) => known.pod(event),
                Some(Err(error)) => debug!(%error, "node proxies cannot be followed"),
                None => return,
            },
            _ = ticks.tick() => failed.clear(),
            changed = leads.changed() => if changed.is_err() { return },
        }
        if !*leads.borrow() {
            continue;
        }
        for (name, version, taints) in known.served() {
            if failed.contains(&name) {
                continue;
            }
            match free(&nodes, &name, &version, &taints).await {
                Ok(()) => {
                    info!(
                        node = name,
                        "its node proxy is ready: pods may be placed there"
                    );
                    known.tainted.remove(&name);
                }
                Err(error) => {
                    warn!(
                        node = name,
                        error,
                        taint = KEY,
                        "the taint could not be taken off"
                    );
                    failed.insert(name);
                }
            }
        }
    }
}

/// Gives a node these taints, if it is still the one that was looked at.
async fn free(
    nodes: &Api<Node>,
    name: &str,
    version: &str,
    taints: &[Taint],
) -> Result<(), String> {
    let change = json!({"metadata": {"resourceVersion": version}, "spec": {"taints": taints}});
    let (params, change) = (PatchParams::default(), Patch::Merge(change));
    match timeout(AGAIN, nodes.patch(name, &params, &change)).await {
        Ok(done) => done.map(drop).map_err(|e| {
            format!("{e}; the ClusterRole of warren-controller has to allow patch on nodes (value `taint`)")
        }),
        Err(_) => Err("the API server did not answer in time".to_owned()),
    }
}

/// What is known of nodes and node proxies.
#[derive(Default)]
struct Known {
    /// Nodes with the taint: their version, and their other taints.
    tainted: BTreeMap<String, (String, Vec<Taint>)>,
    /// The nodes of node proxies that are ready, by pod.
    ready: BTreeMap<String, String>,
}

impl Known {
    fn node(&mut self, event: Event<Node>) {
        match event {
            Event::Init => self.tainted.clear(),
            Event::Apply(node) | Event::InitApply(node) => {
                let (name, version) = (node.name_any(), node.resource_version());
                let all = node.spec.and_then(|s| s.taints).unwrap_or_default();
                match all.iter().any(|t| t.key == KEY) {
                    true => {
                        let rest = all.into_iter().filter(|t| t.key != KEY).collect();
                        self.tainted
                            .insert(name, (version.unwrap_or_default(), rest));
                    }
                    false => drop(self.tainted.remove(&name)),
                }
            }
            Event::Delete(node) => drop(self.tainted.remove(&node.name_any())),
            Event::InitDone => {}
        }
    }

    fn pod(&mut self, event: Event<Pod>) {
        match event {
            Event::Init => self.ready.clear(),
            Event::Apply(pod) | Event::InitApply(pod) => {
                let name = pod.name_any();
                match place(pod) {
                    Some(node) => drop(self.ready.insert(name, node)),
                    None => drop(self.ready.remove(&name)),
                }
            }
            Event::Delete(pod) => drop(self.ready.remove(&pod.name_any())),
            Event::InitDone => {}
        }
    }

    /// The nodes that are tainted and have a node proxy that is ready.
    fn served(&self) -> Vec<(String, String, Vec<Taint>)> {
        let places: BTreeSet<&String> = self.ready.values().collect();
        let served = self
            .tainted
            .iter()
            .filter(|(name, _)| places.contains(name));
        served
            .map(|(name, (version, rest))| (name.clone(), version.clone(), rest.clone()))
            .collect()
    }
}

/// The node of a node proxy that is ready and not on its way out.
fn place(pod: Pod) -> Option<String> {
    let conditions = pod.status.and_then(|s| s.conditions).unwrap_or_default();
    let ready = conditions
        .iter()
        .any(|c| c.type_ == "Ready" && c.status == "True");
    let stays = pod.metadata.deletion_timestamp.is_none();
    (ready && stays).then(|| pod.spec?.node_name).flatten()
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;
    use crate::apiserver::ApiServer;

    const NODES: &str = "/api/v1/nodes";
    const PODS: &str = "/api/v1/pods";

    fn node(name: &str, taints: &[&str]) -> Value {
        let taints: Vec<Value> = taints
            .iter()
            .map(|key| json!({"key": key, "effect": "NoSchedule"}))
            .collect();
        json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}, "spec": {"taints": taints}})
    }

    fn proxy(node: &str, ready: &str) -> Value {
        json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": format!("warren-node-{node}"), "namespace": "warren-system"},
            "spec": {"nodeName": node, "containers": []}, "status": {"conditions": [{"type": "Ready", "status": ready}]}})
    }

    #[tokio::test]
    async fn only_the_leader_frees_nodes_and_only_those_that_are_served() {
        let (server, client) = ApiServer::start().await;
        server.serve("/api/v1", "nodes", "Node");
        server.serve("/api/v1", "pods", "Pod");
        for (name, taints) in [
            ("n1", &["other", KEY][..]),
            ("n2", &[KEY]),
            ("n3", &["other"]),
        ] {
            server.put(NODES, node(name, taints));
        }
        server.put(PODS, proxy("n1", "True"));
        server.put(PODS, proxy("n2", "False"));
        let (lead, leads) = watch::channel(false);
        let keeping = tokio::spawn(keep(client, "warren-system".to_owned(), leads));
        let taints = |name: &str| {
            let found = server.object(NODES, &format!("/{name}")).expect("a node");
            let all = found["spec"]["taints"]
                .as_array()
                .cloned()
                .unwrap_or_default();
            all.iter()
                .map(|t| t["key"].as_str().unwrap_or_default().to_owned())
                .collect::<Vec<_>>()
        };
        let until = async |what: &str, wanted: &dyn Fn() -> bool| {
            let wait = async {
                while !wanted() {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            };
            timeout(Duration::from_secs(30), wait).await.expect(what);
        };
        let watches = || {
            server
                .requests()
                .iter()
                .filter(|r| r.contains("watch=true"))
                .count()
        };
        until("it follows both", &|| watches() >= 2).await;
        assert_eq!(taints("n1"), ["other", KEY], "it does not lead yet");
        lead.send_replace(true);
        until("n1 is free", &|| taints("n1") == ["other"]).await;
        assert_eq!(taints("n2"), [KEY], "its proxy is not ready");
        server.put(PODS, proxy("n2", "True"));
        until("n2 is free", &|| taints("n2").is_empty()).await;
        assert_eq!(taints("n3"), ["other"]);
        // Whoever puts it on again, for a node that is served, has it taken off again.
        server.put(NODES, node("n2", &[KEY, "other"]));
        until("n2 is free again", &|| taints("n2") == ["other"]).await;
        keeping.abort();
    }
}
