//! Outages: what the mesh needs is away for a while, and its pods go on.
//!
//! Invariant: whatever is away, no pod of an enrolled namespace is heard in plaintext. The servers here would let it in,
//! so that the log of their node shows it.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use mesh_tests::kube::{SYSTEM, Space, away};

use super::workloads::ENROLLED;

const URL: &str = "http://web/status/200";

/// A server on the first node, and askers of it on both, named after where they are.
pub(super) async fn world(space: &Space) -> Result<[String; 2]> {
    world_of(space, Space::server).await
}

/// The same with a server of one's own.
async fn world_of(space: &Space, server: fn(&str, &str) -> String) -> Result<[String; 2]> {
    let nodes = space.cluster.nodes()?;
    space.apply(&server("web", &nodes[0])).await?;
    space.rolled_out("deployment/web").await?;
    for node in &nodes {
        space.apply(&Space::asker(node, node, URL)).await?;
        space.is_answered(node).await?;
    }
    space.apply(&Space::asker(AGAIN, &nodes[1], URL)).await?;
    space.is_answered(AGAIN).await?;
    space.apply(NOBODY).await?;
    space
        .apply(&Space::asker(
            "barred",
            &nodes[1],
            "http://closed/status/200",
        ))
        .await?;
    space.apply(&Space::server("closed", &nodes[0])).await?;
    space.rolled_out("deployment/closed").await?;
    // Its container has been written down: some tests end it.
    space.ready("barred").await?;
    <[String; 2]>::try_from(nodes).ok().context("two nodes")
}

/// An asker that may, and is started again while something is away.
const AGAIN: &str = "again";

/// Has the containers of two pods started again while something is away, by `kill`: of one that may and one that may not
/// reach its server. The first is answered again, after a start of its own that was seen, and the second still is not.
async fn started_again(space: &Space, containers: &[(&str, (String, String)); 2]) -> Result<()> {
    for (pod, (node, id)) in containers {
        let before = space.cluster.starts_of(&space.name, pod)?;
        space.cluster.kill_container(node, id).await?;
        let again = async || {
            let now = space.cluster.starts_of(&space.name, pod)?;
            ensure!(now > before, "started {now} times");
            Ok(())
        };
        let what = format!("{pod} to be started again");
        space.cluster.until(&what, 30, again).await?;
    }
    let at = [space.tally(AGAIN)?, space.tally("barred")?];
    let asked = async || {
        let (again, barred) = (
            space.tally(AGAIN)?.since(&at[0]),
            space.tally("barred")?.since(&at[1]),
        );
        ensure!(
            again.ok >= 20 && barred.failed.len() >= 5,
            "{AGAIN}: {again}, barred: {barred}"
        );
        Ok(again)
    };
    let what = "answers to who was started again, and refusals";
    let seen = space.cluster.until(what, 20, asked).await?;
    println!("started again meanwhile: {seen}");
    seen.flawless(20)?;
    policy_held(space).await
}

/// Both pods' containers, while there is somebody to ask for them.
async fn containers(space: &Space) -> Result<[(&'static str, (String, String)); 2]> {
    Ok([
        (AGAIN, space.container(AGAIN).await?),
        ("barred", space.container("barred").await?),
    ])
}

/// Nobody is let in to the server `closed`.
const NOBODY: &str = "apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: nobody}
spec: {selector: {matchLabels: {app: closed}}}
";

/// Without a controller what was known holds: connections, policy, and pods whose containers are started again. A pod
/// that nobody knows yet waits for the controller and is let in nowhere, and works as soon as that is back.
pub async fn without_a_controller_pods_go_on() -> Result<()> {
    Space::with("orphans", ENROLLED, async |space| {
        let nodes = world(space).await?;
        let outcome = without_a_controller(space, &nodes).await;
        // Whatever came of it, later tests need the controller.
        space.cluster.controllers(1).await?;
        outcome?;
        space.is_answered("late").await?;
        checked(space, true).await?;
        policy_held(space).await?;
        nothing_in_the_clear(space, &nodes[0]).await
    })
    .await
}

/// Whoever looks is told whether there is a controller, and what to do when there is none.
async fn checked(space: &Space, there: bool) -> Result<()> {
    let (well, all) = space.cluster.findings().await?;
    let found = all.iter().find(|f| f["check"] == "controller");
    let found = found.context("nothing is said of the controller")?;
    let outcome = if there { "ok" } else { "failed" };
    let hinted = found["hint"].as_str().is_some_and(|hint| !hint.is_empty());
    ensure!(
        well == there && found["outcome"] == outcome && hinted != there,
        "well: {well}, {all:?}"
    );
    Ok(())
}

async fn without_a_controller(space: &Space, nodes: &[String; 2]) -> Result<()> {
    let before = [space.tally(&nodes[0])?, space.tally(&nodes[1])?];
    space.cluster.controllers(0).await?;
    let late = Space::asker("late", &nodes[1], URL);
    space.apply(&late).await?;
    started_again(space, &containers(space).await?).await?;
    checked(space, false).await?;
    tokio::time::sleep(away()?).await;
    for (node, before) in nodes.iter().zip(&before) {
        let seen = space.tally(node)?.since(before);
        println!("without a controller, {node}: {seen}");
        seen.flawless(100)?;
    }
    let late = space.tally("late")?;
    ensure!(late.ok == 0, "a pod that nobody knows got through: {late}");
    Ok(())
}

/// Without an API server the same; kubelets start containers again all the same.
pub async fn without_an_api_server_pods_go_on() -> Result<()> {
    Space::with("headless", ENROLLED, async |space| {
        let nodes = world(space).await?;
        let before = [space.tally(&nodes[0])?, space.tally(&nodes[1])?];
        let containers = containers(space).await?;
        space.cluster.api_server(false).await?;
        let outage = async {
            started_again(space, &containers).await?;
            tokio::time::sleep(away()?).await;
            for (node, before) in nodes.iter().zip(&before) {
                let seen = space.tally(node)?.since(before);
                println!("without an API server, {node}: {seen}");
                seen.flawless(100)?;
            }
            policy_held(space).await
        };
        let outcome = outage.await;
        space.cluster.api_server(true).await?;
        // Whatever came of it, later tests need a cluster that does what it is told.
        let recovered = space.recovered().await;
        outcome?;
        recovered?;
        // A change that is made afterwards takes effect: the watches are there again.
        space
            .kubectl(&["delete", "authorizationpolicy", "nobody"])
            .await?;
        let at = space.tally("barred")?;
        space
            .cluster
            .until("an answer to barred", 120, async || {
                let seen = space.tally("barred")?.since(&at);
                ensure!(seen.ok > 0, "{seen}");
                Ok(())
            })
            .await?;
        nothing_in_the_clear(space, &nodes[0]).await
    })
    .await
}

/// A node proxy that is killed is started again: meanwhile connections are refused, never made in plaintext, and then
/// served.
pub async fn a_killed_node_proxy_is_missed_and_nothing_else() -> Result<()> {
    Space::with("killed", ENROLLED, async |space| {
        let nodes = world(space).await?;
        for node in &nodes {
            let (_, id, _) = node_proxy(space, node).await?;
            space.cluster.kill_container(node, &id).await?;
            served_again(space, &nodes, node).await?;
        }
        policy_held(space).await?;
        nothing_in_the_clear(space, &nodes[0]).await
    })
    .await
}

/// The same when it is the kernel that kills it, for want of memory: its container may have little more than it has, and
/// streams are opened until that is not enough.
pub async fn a_node_proxy_without_memory_is_missed_and_nothing_else() -> Result<()> {
    Space::with("starved", ENROLLED, async |space| {
        let nodes = world(space).await?;
        space.apply(&Space::echo("echo", &nodes[0])).await?;
        space.ready("echo").await?;
        let (pod, id, before) = node_proxy(space, &nodes[0]).await?;
        space.cluster.starve(&id, 2 << 20)?;
        let streams = ["--seconds", "20", "streams", "echo:9000", "--count", "2000"];
        space
            .apply(&Space::load("hunger", &nodes[1], &streams))
            .await?;
        let what = "the node proxy to be killed for want of memory";
        space
            .cluster
            .until(what, 60, async || {
                let found = space
                    .cluster
                    .json(&["-n", SYSTEM, "get", "pod", &pod])
                    .await?;
                let container = &found["status"]["containerStatuses"][0];
                let last = &container["lastState"]["terminated"];
                ensure!(
                    container["restartCount"].as_u64() > Some(before)
                        && last["reason"] == "OOMKilled",
                    "{container}"
                );
                Ok(())
            })
            .await?;
        space
            .kubectl(&["delete", "pod", "hunger", "--wait=false"])
            .await?;
        served_again(space, &nodes, &nodes[0]).await?;
        policy_held(space).await?;
        nothing_in_the_clear(space, &nodes[0]).await
    })
    .await
}

/// The name of a node's proxy, its container, and how often that was started again.
async fn node_proxy(space: &Space, node: &str) -> Result<(String, String, u64)> {
    let of = format!("spec.nodeName={node},status.phase=Running");
    let args = [
        "-n",
        SYSTEM,
        "get",
        "pods",
        "-l",
        "app.kubernetes.io/name=warren-node",
        "--field-selector",
        &of,
    ];
    let pods = space.cluster.json(&args).await?;
    let (pod, container) = (
        &pods["items"][0],
        &pods["items"][0]["status"]["containerStatuses"][0],
    );
    let text = |value: &serde_json::Value| value.as_str().map(str::to_owned);
    let name = text(&pod["metadata"]["name"]);
    let id = text(&container["containerID"]);
    let (name, id) = name.zip(id).context("the node proxy has a container")?;
    Ok((name, id, container["restartCount"].as_u64().unwrap_or(0)))
}

/// All askers are answered again within seconds, and from then on nothing fails.
async fn served_again(space: &Space, nodes: &[String; 2], killed: &str) -> Result<()> {
    let at = [space.tally(&nodes[0])?, space.tally(&nodes[1])?];
    for (asker, at) in nodes.iter().zip(&at) {
        let what = format!("{asker} to be served after the proxy of {killed} was killed");
        space
            .cluster
            .until(&what, 30, async || {
                let seen = space.tally(asker)?.since(at);
                ensure!(seen.ok >= 100, "{seen}");
                Ok(())
            })
            .await?;
        let seen = space.tally(asker)?.since(at);
        println!("proxy of {killed} killed, {asker}: {seen}");
    }
    let at = [space.tally(&nodes[0])?, space.tally(&nodes[1])?];
    tokio::time::sleep(Duration::from_secs(3)).await;
    for (asker, at) in nodes.iter().zip(&at) {
        space.tally(asker)?.since(at).flawless(20)?;
    }
    Ok(())
}

/// Objects that are those of a backup again: connections go on, and what holds is what the backup says, although the
/// controller had seen what came later.
pub async fn restored_objects_are_in_force_again() -> Result<()> {
    Space::with("restored", ENROLLED, async |space| {
        // Kubelets are started again with the objects, and take a pod with a readiness probe for unready then until they
        // have asked it (kubernetes/kubernetes#100277).
        let nodes = world_of(space, Space::server_without_probe).await?;
        let before = [space.tally(&nodes[0])?, space.tally(&nodes[1])?];
        space.cluster.save_objects().await?;
        space
            .kubectl(&["delete", "authorizationpolicy", "nobody"])
            .await?;
        space.is_answered("barred").await?;
        space.cluster.restore_objects().await?;
        let recovered = space.recovered().await;
        let at = space.tally("barred")?;
        let what = "barred to be refused again";
        let refused = space.cluster.until(what, 30, async || {
            let seen = space.tally("barred")?.since(&at);
            let last = seen.failed.len() >= 20 && seen.ok == 0;
            ensure!(last, "{seen}");
            Ok(())
        });
        refused.await?;
        recovered?;
        for (node, before) in nodes.iter().zip(&before) {
            let seen = space.tally(node)?.since(before);
            println!("while objects were restored, {node}: {seen}");
            seen.flawless(100)?;
        }
        nothing_in_the_clear(space, &nodes[0]).await
    })
    .await
}

/// Whoever may not was never let in.
pub(super) async fn policy_held(space: &Space) -> Result<()> {
    let barred = space.tally("barred")?;
    ensure!(
        barred.ok == 0 && !barred.failed.is_empty(),
        "barred: {barred}"
    );
    Ok(())
}

/// No pod of the namespace came to a server of this node past the mesh.
pub(super) async fn nothing_in_the_clear(space: &Space, node: &str) -> Result<()> {
    let pods = space.json(&["get", "pods"]).await?;
    let addresses: Vec<String> = pods["items"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|p| {
            p["status"]["podIP"]
                .as_str()
                .map(|ip| format!("src.addr={ip}:"))
        })
        .collect();
    ensure!(!addresses.is_empty(), "the namespace has no pods");
    let lines = space.cluster.log(node, "warren-node")?;
    let plain = |l: &&String| {
        l.contains("path=plain")
            && l.contains("direction=inbound")
            && addresses.iter().any(|a| l.contains(a))
    };
    let found: Vec<&String> = lines.iter().filter(plain).collect();
    ensure!(found.is_empty(), "in the clear: {found:?}");
    let hbone = lines
        .iter()
        .any(|l| l.contains("path=hbone") && addresses.iter().any(|a| l.contains(a)));
    ensure!(
        hbone,
        "the log of {node} shows no tunnelled flow of {addresses:?}"
    );
    Ok(())
}
