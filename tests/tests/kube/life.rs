//! The life of an installation: node proxies are replaced, and all of it ends.

use std::{
    collections::BTreeSet,
    sync::atomic::{AtomicBool, Ordering::SeqCst},
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use mesh_tests::kube::{SYSTEM, Space};
use serde_json::Value;

use super::{
    replicas::two_controllers,
    workloads::{ENROLLED, STRICT},
};

const URL: &str = "http://web/status/200";
/// How long the rollout of two node proxies may take, in seconds.
const ROLLOUT: &str = "--timeout=100s";

/// Every node proxy is replaced twice in a row, and once by its version before: no request fails, no stream that ends
/// within the drain is cut, and whoever has handed over is never started again.
pub async fn a_rollout_of_every_node_proxy_loses_no_request() -> Result<()> {
    Space::with("rollout", ENROLLED, async |space| {
        let nodes = space.cluster.nodes()?;
        space.apply(STRICT).await?;
        space.apply(&Space::server("web", &nodes[0])).await?;
        space.apply(&Space::echo("echo", &nodes[1])).await?;
        space.rolled_out("deployment/web").await?;
        space.ready("echo").await?;
        let askers = ["here", "there"];
        for (asker, node) in askers.iter().zip(&nodes) {
            space.apply(&Space::asker(asker, node, URL)).await?;
        }
        for asker in askers {
            space.is_answered(asker).await?;
        }
        for (round, verb) in ["restart", "restart", "undo"].into_iter().enumerate() {
            let before = [space.tally(askers[0])?, space.tally(askers[1])?];
            let streams = format!("streams-{round}");
            let args = [
                "--seconds",
                "20",
                "streams",
                "echo:9000",
                "--count",
                "20",
                "--every-ms",
                "200",
            ];
            space
                .apply(&Space::load(&streams, &nodes[0], &args))
                .await?;
            space.ready(&streams).await?;
            replace(space, verb).await?;
            space.flawless(&streams, 40).await?;
            for (asker, before) in askers.iter().zip(&before) {
                let seen = space.tally(asker)?.since(before);
                println!("round {round}, {verb}, {asker}: {seen}");
                seen.flawless(50)?;
            }
        }
        nobody_was_started_again(space).await
    })
    .await
}

/// New connections a second, and streams at once, while everything is replaced. On two cores, which also run the cluster.
const RATE: &str = "500";
const STREAMS: &str = "200";
/// Whoever connects may fall behind while programs start on the same two cores, and makes up for it: every connection is
/// made, and on a machine that is busy otherwise in no more than twice the time.
const LEAST_RATE: f64 = 250.0;
/// How long connections are made, and how long a stream lasts: less than the drain of 30 seconds.
const LOADED: Duration = Duration::from_secs(150);
const STREAM: &str = "20";

/// Node proxies and both controllers are replaced at once, twice in a row and once by their version before, under new
/// connections and long streams all the time: nothing fails.
pub async fn two_upgrades_and_a_rollback_under_load_lose_nothing() -> Result<()> {
    Space::with("upgrade", ENROLLED, async |space| {
        let nodes = space.cluster.nodes()?;
        two_controllers(space).await?;
        space.apply(STRICT).await?;
        space.apply(&Space::echo("echo", &nodes[0])).await?;
        space.ready("echo").await?;
        let seconds = LOADED.as_secs().to_string();
        let args = ["--seconds", &seconds, "conns", "echo:9000", "--rate", RATE];
        space.apply(&Space::load("conns", &nodes[1], &args)).await?;
        space.ready("conns").await?;
        let begun = Instant::now();
        let done = AtomicBool::new(false);
        let upgrades = async {
            let (controller, proxies) = ("deployment/warren-controller", "daemonset/warren-node");
            for verb in ["restart", "restart", "undo"] {
                for what in [controller, proxies] {
                    rollout(space, &[verb, what]).await?;
                }
                for what in [proxies, controller] {
                    rollout(space, &["status", what, ROLLOUT]).await?;
                }
                println!(
                    "{verb} of node proxies and controllers: done {:?} after the first",
                    begun.elapsed()
                );
            }
            done.store(true, SeqCst);
            ensure!(
                begun.elapsed() < LOADED,
                "it took {:?}, longer than the load",
                begun.elapsed()
            );
            Ok(())
        };
        let waves = async {
            let mut messages = 0;
            for wave in 0.. {
                let name = format!("streams-{wave}");
                let args = [
                    "--seconds",
                    STREAM,
                    "streams",
                    "echo:9000",
                    "--count",
                    STREAMS,
                    "--every-ms",
                    "500",
                ];
                space.apply(&Space::load(&name, &nodes[1], &args)).await?;
                messages += space.flawless(&name, 60).await?["ok"].as_u64().unwrap_or(0);
                if done.load(SeqCst) {
                    break;
                }
            }
            Ok(messages)
        };
        let ((), messages) = tokio::try_join!(upgrades, waves)?;
        let conns = space.flawless("conns", 180).await?;
        let rate = conns["perSecond"].as_f64().unwrap_or_default();
        let asked = LOADED.as_secs() * RATE.parse::<u64>()?;
        ensure!(conns["ok"] == asked && rate > LEAST_RATE, "{conns}");
        println!(
            "three upgrades: {messages} messages on {STREAMS} streams at once, connections: {conns}"
        );
        nobody_was_started_again(space).await
    })
    .await
}

/// Node proxies whose maps have another layout than those before have the same pods in the mesh, and let in nobody whom
/// those did not: twice in a row, and back to the layout that retired first. What is in between is not counted here:
/// connections that are made at the moment of such a handover may be lost.
pub async fn another_layout_of_maps_keeps_pods_in_the_mesh() -> Result<()> {
    Space::with("layouts", ENROLLED, async |space| {
        Space::with("layouts-not", "", async |outside| {
            let outcome = other_layouts(space, outside).await;
            // Whatever came of it, later tests expect the usual one.
            set_edition(space, "-").await?;
            rollout(space, &["status", "daemonset/warren-node", ROLLOUT]).await?;
            outcome
        })
        .await
    })
    .await
}

async fn other_layouts(space: &Space, outside: &Space) -> Result<()> {
    let nodes = space.cluster.nodes()?;
    space.apply(STRICT).await?;
    space.apply(&Space::server("web", &nodes[0])).await?;
    space.rolled_out("deployment/web").await?;
    for (asker, node) in ["here", "there"].into_iter().zip(&nodes) {
        space.apply(&Space::asker(asker, node, URL)).await?;
        space.is_answered(asker).await?;
    }
    let url = "http://web.layouts/status/200";
    outside
        .apply(&Space::asker("plain", &nodes[1], url))
        .await?;
    outside.ready("plain").await?;
    for edition in ["=1", "=2", "-"] {
        set_edition(space, edition).await?;
        rollout(space, &["status", "daemonset/warren-node", ROLLOUT]).await?;
        for asker in ["here", "there"] {
            let before = space.tally(asker)?;
            let answered = async || {
                let seen = space.tally(asker)?.since(&before);
                ensure!(seen.ok >= 20, "{seen}");
                Ok(seen)
            };
            let what = format!("{asker} to be answered with edition {edition}");
            let seen = space.cluster.until(&what, 30, answered).await?;
            println!("edition {edition}, {asker}: {seen}");
            seen.flawless(20)?;
        }
    }
    let plain = outside.tally("plain")?;
    println!("in plaintext, all the time: {plain}");
    ensure!(
        plain.ok == 0 && plain.failed.len() >= 20,
        "in plaintext: {plain}"
    );
    nobody_was_started_again(space).await
}

/// Has the node proxies replaced by ones with maps of their own; `-` is the edition that they have unless they are told.
async fn set_edition(space: &Space, edition: &str) -> Result<()> {
    let set = ["-n", SYSTEM, "set", "env", "daemonset/warren-node"];
    let told = format!("WARREN_EDITION{edition}");
    let args = [&set[..], &["-c", "node", &told]].concat();
    space.cluster.kubectl(&args).await.map(drop)
}

async fn rollout(space: &Space, words: &[&str]) -> Result<()> {
    let args = [&["-n", SYSTEM, "rollout"], words].concat();
    space.cluster.kubectl(&args).await.map(drop)
}

/// Has the node proxies replaced, and waits until they are.
async fn replace(space: &Space, verb: &str) -> Result<()> {
    let set = "daemonset/warren-node";
    rollout(space, &[verb, set]).await?;
    rollout(space, &["status", set, ROLLOUT]).await
}

/// A node proxy that has handed over and ended would be started again, and would take over back.
async fn nobody_was_started_again(space: &Space) -> Result<()> {
    let of = [
        "-n",
        SYSTEM,
        "get",
        "pods",
        "-l",
        "app.kubernetes.io/name=warren-node",
    ];
    let pods = space.cluster.json(&of).await?;
    for pod in pods["items"].as_array().into_iter().flatten() {
        let (name, container) = (
            &pod["metadata"]["name"],
            &pod["status"]["containerStatuses"][0],
        );
        ensure!(container["restartCount"] == 0, "{name}: {container}");
    }
    let events = space
        .cluster
        .json(&[
            "-n",
            SYSTEM,
            "get",
            "events",
            "--field-selector",
            "reason=BackOff",
        ])
        .await?;
    ensure!(
        events["items"] == serde_json::json!([]),
        "{}",
        events["items"]
    );
    Ok(())
}

/// What an installation consists of: of the namespace, and of the whole cluster.
const OWN: &str = "deployments,daemonsets,services,serviceaccounts,configmaps,secrets,roles,rolebindings,poddisruptionbudgets";
const WHOLE: &str =
    "clusterroles,clusterrolebindings,customresourcedefinitions,validatingwebhookconfigurations";
const LABELLED: &str = "app.kubernetes.io/part-of=warren";

/// Installing once more with the same words changes no object and starts no pod again.
pub async fn installing_twice_changes_nothing() -> Result<()> {
    Space::with("twice", "", async |space| {
        let before = installed(space).await?;
        ensure!(before.len() > 15, "an installation is more than {before:?}");
        space.cluster.install().await?;
        let after = installed(space).await?;
        let changed: Vec<_> = before.symmetric_difference(&after).collect();
        ensure!(changed.is_empty(), "changed: {changed:#?}");
        println!(
            "installed twice, and none of {} objects changed",
            before.len()
        );
        Ok(())
    })
    .await
}

/// Every object of the installation with what changes when somebody writes to it. What runs is written to by others, who
/// say how it goes: there it is the generation, which only its definition changes.
async fn installed(space: &Space) -> Result<BTreeSet<String>> {
    let cluster = &space.cluster;
    let lists = [
        cluster
            .json(&["-n", SYSTEM, "get", OWN, "-l", LABELLED])
            .await?,
        cluster.json(&["get", WHOLE, "-l", LABELLED]).await?,
        cluster.json(&["-n", SYSTEM, "get", "pods"]).await?,
    ];
    let all = lists
        .iter()
        .flat_map(|l| l["items"].as_array().into_iter().flatten());
    let told = |object: &Value| {
        let (kind, meta) = (&object["kind"], &object["metadata"]);
        let version = match kind.as_str() {
            Some("Deployment" | "DaemonSet" | "Pod" | "CustomResourceDefinition") => {
                &meta["generation"]
            }
            _ => &meta["resourceVersion"],
        };
        format!("{kind} {} {} {version}", meta["name"], meta["uid"])
    };
    Ok(all.map(told).collect())
}

/// An upgrade that names one value keeps what was set before; and that value, the taint, is taken off a node that is
/// served. Afterwards the installation is again that of the other tests.
pub async fn an_upgrade_keeps_what_was_set() -> Result<()> {
    Space::with("kept", "", async |space| {
        let outcome = upgraded(space).await;
        space.cluster.install().await?;
        outcome
    })
    .await
}

async fn upgraded(space: &Space) -> Result<()> {
    let cluster = &space.cluster;
    let spec = async |object: &str| {
        let found = cluster.json(&["-n", SYSTEM, "get", object]).await?;
        anyhow::Ok(found["spec"]["template"]["spec"]["containers"][0].clone())
    };
    let before = spec("daemonset/warren-node").await?;
    cluster.upgrade(&["--set", "taint=true"]).await?;
    let after = spec("daemonset/warren-node").await?;
    ensure!(
        before == after,
        "the node proxies were {before}, and are {after}"
    );
    let args = spec("deployment/warren-controller").await?["args"].clone();
    let told = args
        .as_array()
        .is_some_and(|a| a.contains(&"--node-taint".into()));
    ensure!(told, "the controller has {args}");
    let node = cluster.nodes()?.remove(1);
    let taint = "warren.dev/not-ready:NoSchedule";
    cluster.kubectl(&["taint", "node", &node, taint]).await?;
    let path = "jsonpath={.spec.taints[*].key}";
    cluster
        .until("the taint to be taken off", 30, async || {
            let taints = cluster.kubectl(&["get", "node", &node, "-o", path]).await?;
            ensure!(!taints.contains("warren.dev/not-ready"), "{taints}");
            Ok(())
        })
        .await?;
    cluster
        .upgrade(&["--reset-values", "--set", "image.tag=dev"])
        .await?;
    let args = spec("deployment/warren-controller").await?["args"].clone();
    let told = args
        .as_array()
        .is_some_and(|a| a.contains(&"--node-taint".into()));
    ensure!(
        !told,
        "after --reset-values the controller still has {args}"
    );
    Ok(())
}

/// An uninstalled mesh leaves every node as it was, and pods that were in it, under STRICT and a policy that asks for
/// identities, talk on all the time. Must come after all that need this installation.
pub async fn uninstalling_restores_every_node() -> Result<()> {
    Space::with("leave", ENROLLED, async |space| {
        let nodes = space.cluster.nodes()?;
        space.apply(STRICT).await?;
        space.apply(KNOWN_ONLY).await?;
        space.apply(&Space::server("web", &nodes[0])).await?;
        space.rolled_out("deployment/web").await?;
        let askers = ["here", "there"];
        for (asker, node) in askers.iter().zip(&nodes) {
            space.apply(&Space::asker(asker, node, URL)).await?;
            space.is_answered(asker).await?;
        }
        let before = [space.tally(askers[0])?, space.tally(askers[1])?];
        space.cluster.uninstall().await?;
        for (asker, before) in askers.iter().zip(&before) {
            let ended = space.tally(asker)?;
            let seen = ended.since(before);
            println!("while it was uninstalled, {asker}: {seen}");
            seen.flawless(50)?;
            let what = format!("{asker} to be answered afterwards");
            let after = space.cluster.until(&what, 20, async || {
                let after = space.tally(asker)?.since(&ended);
                ensure!(after.ok >= 20, "{after}");
                Ok(after)
            });
            after.await?.flawless(20)?;
        }
        for node in &nodes {
            nothing_is_left(space, node).await?;
        }
        Ok(())
    })
    .await
}

/// A node has neither programs nor files of the mesh.
pub async fn nothing_is_left(space: &Space, node: &str) -> Result<()> {
    let left = "ls -A /sys/fs/bpf/warren /run/warren; ls /opt/cni/bin | grep warren; grep -l warren /etc/cni/net.d/*";
    let said = space.cluster.on_node(node, &["sh", "-c", left]).await?;
    let named = |line: &&str| !line.is_empty() && !line.ends_with(':');
    let left: Vec<&str> = said.out.lines().filter(named).collect();
    ensure!(left.is_empty(), "{node} still has {left:?}");
    Ok(())
}

/// Only who proves to be of this namespace is let in.
const KNOWN_ONLY: &str = "apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: known-only}
spec:
  rules:
  - from: [{source: {namespaces: [leave]}}]
";
