//! The certificate authority of a cluster: its root is replaced by command while everything runs.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use mesh_tests::kube::{SYSTEM, Space};

use super::workloads::{ENROLLED, STRICT};

/// New connections a second, and for how long: longer than the rotation takes.
const RATE: &str = "300";
const LOADED: Duration = Duration::from_secs(60);
/// Streams that are opened under the old root and end under the new one.
const STREAMS: &str = "100";

/// Prepare, switch, finish, each when the step before has reached every node: no connection fails, no stream is cut, and
/// afterwards only the new root is trusted, by pods that start then as well. Two replicas of the controller sign, and
/// neither knows all that is in use; a pod that is gone holds nothing up.
pub async fn the_root_is_replaced_under_load() -> Result<()> {
    Space::with("rotated", ENROLLED, async |space| {
        space.cluster.controllers(2).await?;
        let outcome = rotated(space).await;
        space.cluster.controllers(1).await?;
        outcome
    })
    .await
}

async fn rotated(space: &Space) -> Result<()> {
    let nodes = space.cluster.nodes()?;
    space.apply(STRICT).await?;
    space.apply(&Space::echo("echo", &nodes[0])).await?;
    space.ready("echo").await?;
    let gone = "apiVersion: v1\nkind: ServiceAccount\nmetadata: {name: gone}";
    space.apply(gone).await?;
    let spec = format!(
        "spec:\n  serviceAccountName: gone\n  nodeName: {}",
        nodes[1]
    );
    let gone = Space::asker("gone", &nodes[1], "http://echo:9000/")
        .replace(&format!("spec:\n  nodeName: {}", nodes[1]), &spec);
    space.apply(&gone).await?;
    space.ready("gone").await?;
    space.cluster.until_logged(&nodes[1], &["sa/gone"]).await?;
    space.kubectl(&["delete", "pod", "gone"]).await?;
    let old = roots(space).await?;
    ensure!(old.len() == 1, "{} roots before", old.len());
    let seconds = LOADED.as_secs().to_string();
    for (name, words) in [
        ("conns", ["conns", "echo:9000", "--rate", RATE]),
        ("streams", ["streams", "echo:9000", "--count", STREAMS]),
    ] {
        let args = [&["--seconds", &seconds][..], &words].concat();
        space.apply(&Space::load(name, &nodes[1], &args)).await?;
        space.ready(name).await?;
    }
    let begun = Instant::now();
    rotate(space, "prepare").await?;
    trusted(space, 2).await?;
    ensure!(
        roots(space).await?.contains(&old[0]),
        "the old root was given up at once"
    );
    // Refused as long as the other replica has not read the next root.
    let switched = space
        .cluster
        .until("both replicas to know the next root", 20, async || {
            rotate(space, "switch").await
        });
    switched.await?;
    // Refused as long as somebody has a certificate of the old root.
    let finished = space
        .cluster
        .until("the old root to be out of use", 40, async || {
            rotate(space, "finish").await
        });
    finished.await?;
    trusted(space, 1).await?;
    let new = roots(space).await?;
    ensure!(
        new.len() == 1 && new != old,
        "{} roots, among them the old: {}",
        new.len(),
        new.contains(&old[0])
    );
    let took = begun.elapsed();
    ensure!(took < LOADED, "it took {took:?}, longer than the load");
    space.apply(&Space::server("web", &nodes[0])).await?;
    space.rolled_out("deployment/web").await?;
    space
        .apply(&Space::asker("late", &nodes[1], "http://web/status/200"))
        .await?;
    space.is_answered("late").await?;
    for name in ["conns", "streams"] {
        let report = space.flawless(name, 120).await?;
        println!(
            "a rotation of {took:?}, {name}: {} done, {} failed",
            report["ok"], report["failed"]
        );
    }
    Ok(())
}

/// Takes a step, as one does it: in a pod of the controller.
async fn rotate(space: &Space, step: &str) -> Result<()> {
    let command = [
        "/mesh-ctl",
        "ca",
        "rotate",
        "--step",
        step,
        "--state",
        "/var/lib/warren-controller",
    ];
    let said = space
        .cluster
        .exec(SYSTEM, "deploy/warren-controller", &command)
        .await?;
    ensure!(said.ok, "{step}: {}{}", said.out, said.err);
    Ok(())
}

/// The roots that are published.
async fn roots(space: &Space) -> Result<Vec<String>> {
    let found = space
        .cluster
        .json(&["-n", SYSTEM, "get", "configmap", "warren-root"])
        .await?;
    let text = found["data"]["root.pem"]
        .as_str()
        .context("the ConfigMap holds roots")?;
    Ok(text
        .split_inclusive("-----END CERTIFICATE-----\n")
        .map(str::to_owned)
        .collect())
}

/// Waits until every node has received so many roots: its copy on disk has them.
async fn trusted(space: &Space, count: usize) -> Result<()> {
    for node in space.cluster.nodes()? {
        let look =
            format!("grep -ao 'BEGIN CERTIFICATE' /var/lib/warren/{node}/config.bin | wc -l");
        let what = format!("{count} roots on {node}");
        let there = space.cluster.until(&what, 20, async || {
            let said = space.cluster.on_node(&node, &["sh", "-c", &look]).await?;
            ensure!(
                said.out.trim() == count.to_string(),
                "{}{}",
                said.out,
                said.err
            );
            Ok(())
        });
        there.await?;
    }
    Ok(())
}
