//! Pods that start while their node proxy is away.

use anyhow::{Context, Result, ensure};
use mesh_tests::kube::{CLIENT, SYSTEM, Space};

use super::workloads::ENROLLED;

/// While a node has no proxy, a pod of an enrolled namespace waits and others start; when it is back, all are there.
pub async fn without_a_node_proxy_enrolled_pods_wait_and_others_start() -> Result<()> {
    Space::with("waiting", ENROLLED, async |space| {
        let node = space.cluster.nodes()?.pop().context("a node")?;
        let plain = "apiVersion: v1\nkind: Namespace\nmetadata: {name: waiting-not}\n";
        space.cluster.apply(plain).await?;
        let outcome = while_away(space, &node).await;
        // Whatever came of it, later tests need the proxies.
        space.cluster.install().await?;
        outcome?;
        space.ready("enrolled").await?;
        space
            .cluster
            .kubectl(&["delete", "namespace", "waiting-not", "--wait=false"])
            .await
            .map(drop)
    })
    .await
}

async fn while_away(space: &Space, node: &str) -> Result<()> {
    // The list of enrolled namespaces, which decides while nobody is there, is on the disk, with a namespace that has no
    // pods yet.
    let listed = format!("grep -qx {} /var/lib/warren/*/enrolled", space.name);
    space
        .cluster
        .until("the namespace to be on the node's list", 5, async || {
            let said = space.cluster.on_node(node, &["sh", "-c", &listed]).await?;
            ensure!(said.ok, "it is not");
            Ok(())
        })
        .await?;
    let system = async |args: &[&str]| {
        space
            .cluster
            .kubectl(&[&["-n", SYSTEM], args].concat())
            .await
    };
    system(&["delete", "daemonset", "warren-node", "--cascade=orphan"]).await?;
    let on = format!("spec.nodeName={node}");
    system(&[
        "delete",
        "pod",
        "-l",
        "app.kubernetes.io/name=warren-node",
        "--field-selector",
        &on,
        "--timeout=60s",
    ])
    .await?;
    let pod = |namespace: &str, name: &str| {
        format!(
            "apiVersion: v1
kind: Pod
metadata: {{name: {name}, namespace: {namespace}}}
spec:
  nodeName: {node}
  terminationGracePeriodSeconds: 0
  containers:
  - {{name: shell, image: '{CLIENT}', args: [-c, 'sleep 100000']}}
"
        )
    };
    space.cluster.apply(&pod(&space.name, "enrolled")).await?;
    space.cluster.apply(&pod("waiting-not", "plain")).await?;
    let ready = [
        "-n",
        "waiting-not",
        "wait",
        "--for=condition=Ready",
        "pod/plain",
        "--timeout=40s",
    ];
    space.cluster.kubectl(&ready).await?;
    space
        .cluster
        .until(
            "the enrolled pod to be refused for want of a node proxy",
            30,
            async || {
                let events = space
                    .kubectl(&[
                        "get",
                        "events",
                        "--field-selector",
                        "involvedObject.name=enrolled,reason=FailedCreatePodSandBox",
                    ])
                    .await?;
                ensure!(events.contains("warren"), "{events}");
                Ok(())
            },
        )
        .await?;
    let found = space.json(&["get", "pod", "enrolled"]).await?;
    ensure!(found["status"]["phase"] == "Pending", "{}", found["status"]);
    Ok(())
}
