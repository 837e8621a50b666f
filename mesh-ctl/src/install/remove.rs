//! Uninstalling, step by step.
//!
//! Invariants: the webhook goes first, so that nothing waits for a controller that is on its way out; pods reach each
//! other all the time, because every node lets everybody in before the first lets its pods out, and no node proxy ends
//! before they are out; every node is restored by a pod of its own before the rest goes; what holds users' objects or keys stays unless it is to be purged.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api,
    api::{ApiResource, DynamicObject, GroupVersionKind, ListParams},
};
use serde_json::{Value, json};
use tokio::time::sleep;

use super::{
    Values,
    cluster::{Cluster, MANAGED_BY, MANAGER, title},
    controller, crds, node,
    object::PART_OF,
    objects, remembered,
};
use crate::webhook;

/// The names of the pods that open nodes, and of those that restore them, before the node's.
const OPEN: &str = "warren-open";
const RESTORE: &str = "warren-restore";
/// How often is looked.
const LOOK: Duration = Duration::from_millis(500);

/// Restores every node that a node proxy may run on, and removes the node proxies. `say` hears of every step.
pub async fn nodes(
    cluster: &Cluster,
    limit: Duration,
    mut say: impl FnMut(&str),
) -> anyhow::Result<()> {
    let set = json!({
        "apiVersion": "apps/v1", "kind": "DaemonSet",
        "metadata": {"name": node::NAME, "namespace": cluster.namespace},
    });
    let Some(found) = cluster.get(&set).await? else {
        say(&format!("{}: was not there", title(&set)));
        return Ok(());
    };
    let (ready, away) = places(cluster, &found).await?;
    let openers: Vec<Value> = ready.iter().map(|name| opener(&found, name)).collect();
    create(cluster, &openers, limit, &mut say).await?;
    phases(cluster, &openers, limit, &["Succeeded"]).await?;
    say("every node: its pods are open to all");
    let restorers: Vec<Value> = ready
        .iter()
        .map(|name| restorer(&found, name, limit))
        .collect();
    create(cluster, &restorers, limit, &mut say).await?;
    phases(cluster, &restorers, limit, &["Running", "Succeeded"]).await?;
    say("every node: nothing is captured any more");
    for pod in &openers {
        cluster.delete(pod).await?;
    }
    cluster.delete(&set).await?;
    say(&format!("{}: deleted", title(&set)));
    phases(cluster, &restorers, limit, &["Succeeded"]).await?;
    gone(cluster, &set, limit).await?;
    for (pod, node) in restorers.iter().zip(&ready) {
        cluster.delete(pod).await?;
        say(&format!("node {node}: restored"));
    }
    if !away.is_empty() {
        bail!(
            "not restored, because not ready: {}. Their pods stay captured; when such a node is back, repeat this, or \
             remove it from the cluster",
            away.join(", ")
        );
    }
    Ok(())
}

/// Creates pods, in place of those that an earlier attempt left, which have their own idea of what to do.
async fn create(
    cluster: &Cluster,
    pods: &[Value],
    limit: Duration,
    say: &mut impl FnMut(&str),
) -> anyhow::Result<()> {
    for pod in pods {
        if cluster.delete(pod).await? {
            gone(cluster, pod, limit).await?;
        }
        cluster.apply(pod, false).await?;
        say(&format!("{}: created", title(pod)));
    }
    Ok(())
}

/// Removes everything but what holds users' objects or keys; with `purge` that too.
pub async fn everything(
    cluster: &Cluster,
    limit: Duration,
    purge: bool,
    mut say: impl FnMut(&str),
) -> anyhow::Result<()> {
    let registration = webhook::registration();
    let delete = async |object: &Value| {
        let said = match cluster.delete(object).await? {
            true => "deleted",
            false => "was not there",
        };
        anyhow::Ok(format!("{}: {said}", title(object)))
    };
    say(&delete(&registration).await?);
    nodes(cluster, limit, &mut say).await?;
    let values = super::values(super::Profile::Default, &[], Vec::new())?;
    for object in removed(&values, &cluster.namespace) {
        say(&delete(&object).await?);
        if object["kind"] == "Deployment" {
            gone(cluster, &object, limit).await?;
            // A controller that led until now may have registered it again.
            delete(&registration).await?;
        }
    }
    waypoints(cluster, &mut say).await?;
    for definition in crds::own().into_iter().chain(crds::istio()) {
        say(&definition_gone(cluster, &definition, purge).await?);
    }
    let (secret, namespace) = (
        json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "warren-ca", "namespace": cluster.namespace}}),
        json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": cluster.namespace}}),
    );
    if !purge {
        say(&format!(
            "{}: stays, with the key of the root; --purge deletes both it and the namespace",
            title(&secret)
        ));
        return Ok(());
    }
    say(&delete(&secret).await?);
    let there = cluster.get(&namespace).await?.unwrap_or_default();
    if there["metadata"]["labels"][MANAGED_BY] == MANAGER {
        say(&delete(&namespace).await?);
    } else {
        say(&format!("{}: another's, left alone", title(&namespace)));
    }
    Ok(())
}

/// Deletes the waypoints that the controller made, wherever they are: nobody goes through one any more.
async fn waypoints(cluster: &Cluster, say: &mut impl FnMut(&str)) -> anyhow::Result<()> {
    let label = mesh_translate::MANAGED_BY;
    let ours = format!("{}={},{}", label.0, label.1, mesh_translate::GATEWAY_NAME);
    for (version, kind) in [
        ("autoscaling/v2", "HorizontalPodAutoscaler"),
        ("policy/v1", "PodDisruptionBudget"),
        ("apps/v1", "Deployment"),
        ("v1", "Service"),
        ("v1", "ServiceAccount"),
    ] {
        let (group, number) = version.split_once('/').unwrap_or(("", version));
        let resource = ApiResource::from_gvk(&GroupVersionKind::gvk(group, number, kind));
        let api: Api<DynamicObject> = Api::all_with(cluster.client.clone(), &resource);
        let listed = api.list(&ListParams::default().labels(&ours)).await;
        let listed =
            listed.with_context(|| format!("listing waypoints' objects of kind {kind}"))?;
        for found in listed {
            let meta = json!({"name": found.metadata.name, "namespace": found.metadata.namespace});
            let object = json!({"apiVersion": version, "kind": kind, "metadata": meta});
            if cluster.delete(&object).await? {
                say(&format!("{} of a waypoint: deleted", title(&object)));
            }
        }
    }
    Ok(())
}

/// What goes in any case, in its order: the reverse of that in which it came, and what the controller wrote.
fn removed(values: &Values, namespace: &str) -> Vec<Value> {
    let mut all: Vec<Value> = objects(values, namespace)
        .into_iter()
        .filter(|o| o["kind"] != "Namespace" && o["kind"] != "CustomResourceDefinition")
        .rev()
        .collect();
    let written = [
        ("v1", "ConfigMap", "warren-root"),
        ("v1", "ConfigMap", remembered::NAME),
        ("coordination.k8s.io/v1", "Lease", controller::NAME),
    ];
    all.extend(written.map(|(version, kind, name)| {
        json!({"apiVersion": version, "kind": kind, "metadata": {"name": name, "namespace": namespace}})
    }));
    all
}

/// Deletes a definition of ours that nobody uses, or any of ours when it is to be purged.
async fn definition_gone(
    cluster: &Cluster,
    definition: &Value,
    purge: bool,
) -> anyhow::Result<String> {
    let name = title(definition);
    let Some(found) = cluster.get(definition).await? else {
        return Ok(format!("{name}: was not there"));
    };
    if found["metadata"]["labels"]["app.kubernetes.io/part-of"] != PART_OF {
        return Ok(format!("{name}: another's, left alone"));
    }
    if !purge && in_use(cluster, definition).await? {
        return Ok(format!(
            "{name}: stays, because objects of this kind exist; --purge deletes them too"
        ));
    }
    cluster.delete(definition).await?;
    Ok(format!("{name}: deleted"))
}

async fn in_use(cluster: &Cluster, definition: &Value) -> anyhow::Result<bool> {
    let spec = &definition["spec"];
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let kind = GroupVersionKind::gvk(
        &text(&spec["group"]),
        &text(&spec["versions"][0]["name"]),
        &text(&spec["names"]["kind"]),
    );
    let resource = ApiResource::from_gvk_with_plural(&kind, &text(&spec["names"]["plural"]));
    let api: Api<DynamicObject> = Api::all_with(cluster.client.clone(), &resource);
    let listed = api.list(&ListParams::default().limit(1)).await;
    let listed = listed.with_context(|| format!("listing objects of kind {}", kind.kind))?;
    Ok(!listed.items.is_empty())
}

/// The nodes that node proxies run on: those that are ready, and the others.
async fn places(cluster: &Cluster, set: &Value) -> anyhow::Result<(Vec<String>, Vec<String>)> {
    let selector: BTreeMap<String, String> =
        serde_json::from_value(match &set["spec"]["template"]["spec"]["nodeSelector"] {
            Value::Null => json!({}),
            selector => selector.clone(),
        })?;
    let (mut ready, mut away) = (Vec::new(), Vec::new());
    for node in cluster.nodes().await? {
        let labels = node.metadata.labels.unwrap_or_default();
        if !selector.iter().all(|(k, v)| labels.get(k) == Some(v)) {
            continue;
        }
        let conditions = node.status.and_then(|s| s.conditions).unwrap_or_default();
        let is_ready = |c: &k8s_openapi::api::core::v1::NodeCondition| {
            c.type_ == "Ready" && c.status == "True"
        };
        let name = node.metadata.name.unwrap_or_default();
        match conditions.iter().any(is_ready) {
            true => ready.push(name),
            false => away.push(name),
        }
    }
    Ok((ready, away))
}

/// A pod that lets everybody reach the pods of a node.
fn opener(set: &Value, node: &str) -> Value {
    alike(set, node, OPEN, |container| {
        container["args"] = json!(["leave", "open"]);
        Vec::new()
    })
}

/// A pod that restores a node. Before it counts as running it has taken the CNI plugin out and ended the capture; then it
/// waits until the node proxy has ended, and removes what that left.
fn restorer(set: &Value, node: &str, limit: Duration) -> Value {
    alike(set, node, RESTORE, |container| {
        let mut first = container.clone();
        first["name"] = "release".into();
        first["args"] = json!(["leave", "release"]);
        container["args"] = json!(["uninstall", format!("--wait={}s", limit.as_secs())]);
        vec![first]
    })
}

/// A pod like those of the DaemonSet that does something else on a node and ends. `task` says what, and what comes first.
fn alike(
    set: &Value,
    node: &str,
    name: &str,
    task: impl FnOnce(&mut Value) -> Vec<Value>,
) -> Value {
    let mut spec = set["spec"]["template"]["spec"].clone();
    let kept = |name: &Value| !["root", "token"].iter().any(|not| name == not);
    let container = &mut spec["containers"][0];
    container["name"] = "restore".into();
    if let Some(fields) = container.as_object_mut() {
        fields.remove("readinessProbe");
    }
    if let Some(mounts) = container["volumeMounts"].as_array_mut() {
        mounts.retain(|m| kept(&m["name"]));
    }
    let first = task(container);
    if let Some(volumes) = spec["volumes"].as_array_mut() {
        volumes.retain(|v| kept(&v["name"]));
    }
    spec["initContainers"] = first.into();
    spec["nodeName"] = node.into();
    spec["restartPolicy"] = "OnFailure".into();
    spec["terminationGracePeriodSeconds"] = 5.into();
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {
            "name": format!("{name}-{node}"),
            "namespace": set["metadata"]["namespace"],
            "labels": {
                "app.kubernetes.io/name": name, "app.kubernetes.io/part-of": PART_OF,
                "warren.dev/mesh": "disabled",
            },
        },
        "spec": spec,
    })
}

/// Waits until every pod is in one of these phases.
async fn phases(
    cluster: &Cluster,
    pods: &[Value],
    limit: Duration,
    wanted: &[&str],
) -> anyhow::Result<()> {
    let begun = Instant::now();
    for pod in pods {
        loop {
            let found = cluster.get(pod).await?;
            let found = found.with_context(|| format!("{} is gone", title(pod)))?;
            let phase = found["status"]["phase"].as_str().unwrap_or_default();
            if wanted.contains(&phase) {
                break;
            }
            if begun.elapsed() > limit {
                let typed: Pod = serde_json::from_value(found.clone())?;
                let why = super::rollout::why_not_ready(&typed);
                bail!(
                    "{} is not {} after {} seconds: {}",
                    title(pod),
                    wanted.join(" or "),
                    limit.as_secs(),
                    why.unwrap_or_else(|| phase.to_owned())
                );
            }
            sleep(LOOK).await;
        }
    }
    Ok(())
}

/// Waits until an object, and what it owns, is gone.
async fn gone(cluster: &Cluster, object: &Value, limit: Duration) -> anyhow::Result<()> {
    let begun = Instant::now();
    while cluster.get(object).await?.is_some() {
        if begun.elapsed() > limit {
            bail!(
                "{} is still there after {} seconds",
                title(object),
                limit.as_secs()
            );
        }
        sleep(LOOK).await;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::install::{NAMESPACE, Profile, values};

    fn set() -> Value {
        let values = values(Profile::Default, &[], Vec::new()).expect("values");
        let mut all = objects(&values, NAMESPACE).into_iter();
        all.find(|o| o["kind"] == "DaemonSet").expect("one")
    }

    #[test]
    fn a_restorer_has_the_node_proxys_place_and_rights_and_needs_no_controller() {
        let pod = restorer(&set(), "n1", Duration::from_secs(60));
        let typed: Pod = serde_json::from_value(pod).expect("a pod");
        let spec = typed.spec.expect("a spec");
        assert_eq!(spec.node_name.as_deref(), Some("n1"));
        assert_eq!(spec.restart_policy.as_deref(), Some("OnFailure"));
        assert_eq!(spec.host_pid, Some(true));
        let container = &spec.containers[0];
        assert_eq!(
            container.args.clone().unwrap_or_default(),
            ["uninstall", "--wait=60s"]
        );
        assert!(container.readiness_probe.is_none());
        assert!(container.security_context.is_some());
        let first = &spec.init_containers.unwrap_or_default()[0];
        assert_eq!(first.args.clone().unwrap_or_default(), ["leave", "release"]);
        assert_eq!(first.security_context, container.security_context);
        let volumes: Vec<String> = spec.volumes.into_iter().flatten().map(|v| v.name).collect();
        assert!(volumes.contains(&"bpf".to_owned()) && volumes.contains(&"cni-conf".to_owned()));
        // The ConfigMap goes with the controller, and a pod that waits for it never starts.
        assert!(!volumes.contains(&"root".to_owned()));
        let mut mounts = container.volume_mounts.iter().flatten();
        assert!(mounts.all(|m| volumes.contains(&m.name)));
    }

    #[test]
    fn an_opener_only_opens() {
        let pod = opener(&set(), "n1");
        let typed: Pod = serde_json::from_value(pod).expect("a pod");
        assert_eq!(typed.metadata.name.as_deref(), Some("warren-open-n1"));
        let spec = typed.spec.expect("a spec");
        assert_eq!(spec.init_containers, Some(Vec::new()));
        let args = spec.containers[0].args.clone().unwrap_or_default();
        assert_eq!(args, ["leave", "open"]);
    }

    #[test]
    fn everything_goes_in_the_reverse_of_its_order_but_definitions_and_namespace() {
        let values = values(Profile::Default, &[], Vec::new()).expect("values");
        let names: Vec<String> = removed(&values, NAMESPACE).iter().map(title).collect();
        let place = |name: &str| names.iter().position(|n| n == name).expect(name);
        assert!(place("Deployment warren-controller") < place("ClusterRole warren-controller"));
        assert!(place("Deployment warren-controller") < place("Lease warren-controller"));
        assert!(
            !names
                .iter()
                .any(|n| n.starts_with("Namespace") || n.starts_with("Custom"))
        );
        assert!(!names.contains(&"Secret warren-ca".to_owned()));
    }
}
