//! A node whose power is cut.
//!
//! Invariant: a pod of the mesh is in it before its first process runs, on a node that has just started as well.

use std::time::Duration;

use anyhow::{Result, ensure};
use mesh_tests::kube::Space;

use super::{
    outage::{nothing_in_the_clear, policy_held, world},
    workloads::ENROLLED,
};

/// The server that wants no plaintext, reached also by a port of its node: the way there is open as soon as its pod has a
/// network, whoever knows of it by then.
const GUARDED: &str = "apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: guarded}
spec: {selector: {matchLabels: {app: guarded}}, mtls: {mode: STRICT}}
";
const GUARDED_PORT: u16 = 18081;

/// T07: a node whose power is cut comes back with its pods in the mesh, and never had one of them out of it: nobody is
/// heard in plaintext by its server that wants none, however early.
pub async fn t07_a_node_comes_back_in_the_mesh() -> Result<()> {
    Space::with("power", ENROLLED, async |space| {
        Space::with("power-not", "", async |outside| {
            came_back(space, outside).await
        })
        .await
    })
    .await
}

async fn came_back(space: &Space, outside: &Space) -> Result<()> {
    let nodes = world(space).await?;
    space.apply(GUARDED).await?;
    let server = Space::server("guarded", &nodes[1]);
    let port = format!("containerPort: 8080, hostPort: {GUARDED_PORT}}}");
    space
        .apply(&server.replace("containerPort: 8080}", &port))
        .await?;
    space.rolled_out("deployment/guarded").await?;
    let path = "jsonpath={.status.addresses[?(@.type==\"InternalIP\")].address}";
    let ip = ["get", "node", &nodes[1], "-o", path];
    let ip = space.cluster.kubectl(&ip).await?;
    let before = space.tally(&nodes[0])?;
    space.cluster.power_off(&nodes[1]).await?;
    let url = format!("http://{ip}:{GUARDED_PORT}/status/200");
    // Nobody waits long for a node that is off: the first moment at which it answers is asked for.
    let plain = Space::asker("plain", &nodes[0], &url).replace("-m 10", "-m 1");
    outside.apply(&plain).await?;
    tokio::time::sleep(Duration::from_secs(5)).await;
    space.cluster.power_on(&nodes[1]).await?;
    let at = space.tally(&nodes[1])?;
    space
        .cluster
        .until(
            "the asker of the node that was off to be answered",
            120,
            async || {
                let seen = space.tally(&nodes[1])?.since(&at);
                ensure!(seen.ok >= 50, "{seen}");
                Ok(())
            },
        )
        .await?;
    let seen = space.tally(&nodes[0])?.since(&before);
    println!(
        "while {} was off, {}: {seen}; then {}: {}",
        nodes[1],
        nodes[0],
        nodes[1],
        space.tally(&nodes[1])?.since(&at)
    );
    seen.flawless(100)?;
    barred_in_plaintext(space, outside, &nodes).await?;
    policy_held(space).await?;
    nothing_in_the_clear(space, &nodes[0]).await
}

/// The server is there again, and who asked it in plaintext all the time came as far as its node and was never answered.
async fn barred_in_plaintext(space: &Space, outside: &Space, nodes: &[String; 2]) -> Result<()> {
    let guarded = Space::asker("mesh", &nodes[0], "http://guarded/status/200");
    space.apply(&guarded).await?;
    space.is_answered("mesh").await?;
    let words = [
        "dst.workload=guarded-",
        "dst.namespace=power",
        "reason=mtls_required",
    ];
    space.cluster.until_logged(&nodes[1], &words).await?;
    let plain = outside.tally("plain")?;
    println!("in plaintext, from power-on on: {plain}");
    ensure!(
        plain.ok == 0 && plain.failed.len() >= 10,
        "in plaintext: {plain}"
    );
    Ok(())
}
