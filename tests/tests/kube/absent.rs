//! Pods that start while their node proxy is away, and the node's configuration that somebody else writes.
//!
//! Invariant: whatever becomes of a test, the node proxies are there again and nodes have no taint.

use std::fs;

use anyhow::{Context, Result, ensure};
use mesh_tests::kube::{SYSTEM, Space};
use serde_json::Value;

use super::workloads::{ENROLLED, STRICT};

const URL: &str = "http://web/status/200";
/// Keeps pods off a node until its proxy serves.
const TAINT: &str = "warren.dev/not-ready";
/// The mesh's plugin in the configuration of the container runtime.
const PLUGIN: &str = "warren-cni";
/// How long the plugin may be missing there, in seconds: a change is gathered for a tenth of one.
const MENDED: u64 = 5;

/// While a node has no proxy, a pod of an enrolled namespace waits, others start, and none is placed there that asks for
/// a node without the taint; when it is back, all are there, and the first connection of each is in the mesh.
pub async fn without_a_node_proxy_enrolled_pods_wait_and_others_start() -> Result<()> {
    Space::with("waiting", ENROLLED, async |space| {
        Space::with("waiting-not", "", async |plain| {
            let (cluster, nodes) = (&space.cluster, space.cluster.nodes()?);
            let node = nodes.last().context("a node")?;
            space.apply(STRICT).await?;
            space.apply(&Space::server("web", &nodes[0])).await?;
            space.rolled_out("deployment/web").await?;
            let outcome = gone_and_back(space, plain, node).await;
            // Whatever came of it, later tests need the proxies, and nodes that take pods.
            let off = ["taint", "node", node, &format!("{TAINT}-")];
            let untainted = cluster.try_kubectl(&off).await?;
            cluster.install().await?;
            outcome?;
            ensure!(!untainted.ok, "the taint was still there");
            space.apply(&asks_once("fresh", node)).await?;
            answered_at_once(space, "fresh").await?;
            somebody_writes_the_configuration(space, node).await
        })
        .await
    })
    .await
}

async fn gone_and_back(space: &Space, plain: &Space, node: &str) -> Result<()> {
    let cluster = &space.cluster;
    let taints = ["--set", "taint=true"];
    cluster.upgrade(&taints).await?;
    while_away(space, plain, node).await?;
    cluster.upgrade(&taints).await?;
    space.ready("enrolled").await?;
    answered_at_once(space, "once").await?;
    // The taint is off.
    plain.ready("placed").await
}

/// A pod that makes one connection as soon as it runs, and no other.
fn asks_once(name: &str, node: &str) -> String {
    let ask = format!("curl -sS -m 10 -o /dev/null -w 'answer %{{http_code}}\\n' {URL} 2>&1");
    Space::client(name, node)
        .replace("spec:\n", "spec:\n  restartPolicy: Never\n")
        .replace(
            "args: [-c, 'sleep 100000']",
            &format!("args: [-c, \"{ask}\"]"),
        )
}

/// The only connection of such a pod went well, under STRICT.
async fn answered_at_once(space: &Space, pod: &str) -> Result<()> {
    let what = format!("{pod} to have asked");
    let asked = async || {
        let seen = space.tally(pod)?;
        ensure!(seen.ok + seen.failed.len() > 0, "it has said nothing");
        Ok(seen)
    };
    let seen = space.cluster.until(&what, 60, asked).await?;
    ensure!(seen.ok == 1, "{pod}: {seen}");
    seen.flawless(1)
}

async fn while_away(space: &Space, plain: &Space, node: &str) -> Result<()> {
    let cluster = &space.cluster;
    // The list of enrolled namespaces, which decides while nobody is there, is on the disk, with a namespace that has no
    // pods yet.
    let listed = format!("grep -qx {} /var/lib/warren/*/enrolled", space.name);
    cluster
        .until("the namespace to be on the node's list", 5, async || {
            let said = cluster.on_node(node, &["sh", "-c", &listed]).await?;
            ensure!(said.ok, "it is not");
            Ok(())
        })
        .await?;
    let system = async |args: &[&str]| cluster.kubectl(&[&["-n", SYSTEM], args].concat()).await;
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
    let taint = format!("{TAINT}:NoSchedule");
    cluster.kubectl(&["taint", "node", node, &taint]).await?;
    let placed = Space::client("placed", node).replace(
        &format!("nodeName: {node}"),
        &format!("nodeSelector: {{kubernetes.io/hostname: {node}}}"),
    );
    plain.apply(&placed).await?;
    space.apply(&Space::client("enrolled", node)).await?;
    space.apply(&asks_once("once", node)).await?;
    plain.apply(&Space::client("plain", node)).await?;
    plain.ready("plain").await?;
    let refused = "involvedObject.name=enrolled,reason=FailedCreatePodSandBox";
    is_said(space, refused, "warren").await?;
    let unplaced = "involvedObject.name=placed,reason=FailedScheduling";
    is_said(plain, unplaced, "untolerated taint").await?;
    for (space, pod) in [(space, "enrolled"), (space, "once"), (plain, "placed")] {
        let found = space.json(&["get", "pod", pod]).await?;
        let status = &found["status"];
        ensure!(status["phase"] == "Pending", "{pod}: {status}");
    }
    Ok(())
}

/// Waits for an event that names something.
async fn is_said(space: &Space, of: &str, name: &str) -> Result<()> {
    let told = async || {
        let events = space
            .kubectl(&["get", "events", "--field-selector", of])
            .await?;
        ensure!(events.contains(name), "{events}");
        Ok(())
    };
    let what = format!("an event {of} that names {name}");
    space.cluster.until(&what, 30, told).await
}

/// A network plugin that writes its configuration anew knows nothing of the mesh's: that is chained again, and the others
/// stay as they were written.
async fn somebody_writes_the_configuration(space: &Space, node: &str) -> Result<()> {
    let folder = space.cluster.runtime_configuration(node);
    let all = fs::read_dir(&folder)?.flatten().map(|entry| entry.path());
    let mut lists = all.filter(|path| path.extension().is_some_and(|e| e == "conflist"));
    let file = lists.next().context("no configuration")?;
    let read = || -> Result<(Value, Vec<Value>)> {
        let list: Value = serde_json::from_str(&fs::read_to_string(&file)?)?;
        let plugins = list["plugins"].as_array().cloned();
        Ok((list, plugins.context("no plugins")?))
    };
    let is_ours = |plugin: &Value| plugin["type"] == PLUGIN;
    let (mut list, before) = read()?;
    let (ours, others): (Vec<Value>, _) = before.iter().cloned().partition(is_ours);
    ensure!(ours.len() == 1, "{list}");
    list["plugins"] = others.into();
    let new = folder.join("somebody.new");
    fs::write(&new, list.to_string())?;
    fs::rename(&new, &file)?;
    let chained = async || {
        let (list, now) = read()?;
        ensure!(now == before, "{list}");
        Ok(())
    };
    let what = "the plugin to be chained again";
    space.cluster.until(what, MENDED, chained).await
}
