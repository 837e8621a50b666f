//! Envoy as the peer.

use std::{fs, net::SocketAddr};

use anyhow::{Context, Result, ensure};
use mesh_tests::{
    lab::{Ran, component::Order},
    peers::{envoy, python},
};
use serde_json::Value;

use super::{
    super::{flows::logged, load::flawless, tunnel::until},
    DENY, FOREIGN, Running, SAMPLE, World, streams_open, words,
};

/// Envoy with this configuration in the foreign pod.
async fn envoy_with(world: &World, binary: &str, config: &Value) -> Result<Running> {
    let path = world.dir.path().join("envoy.json");
    fs::write(&path, config.to_string())?;
    let path = path.display().to_string();
    let words = [
        binary,
        "-c",
        &path,
        "--disable-hot-restart",
        "--concurrency",
        "1",
        "-l",
        "warning",
    ];
    world.start("partner/foreign", &words).await
}

/// Load from `who` to `to` that has to succeed: connections, long streams, and bytes.
async fn well_served(world: &World, who: &str, to: &str) -> Result<()> {
    let peer = python::program();
    until("the first echo", async || {
        let ran: Ran = world
            .lab
            .exec(
                who,
                &[
                    "bash",
                    "-c",
                    &format!(
                        "exec 3<>/dev/tcp/{}; echo a >&3; timeout 2 head -1 <&3",
                        to.replace(':', "/")
                    ),
                ],
            )
            .await?;
        ensure!(ran.out == "a\n", "{ran:?}");
        Ok(())
    })
    .await?;
    flawless(
        &world.lab,
        who,
        &["--seconds", "2", "conns", to, "--rate", "50"],
    )
    .await?;
    let many = [
        "--seconds",
        "2",
        "streams",
        to,
        "--count",
        "50",
        "--every-ms",
        "50",
    ];
    flawless(&world.lab, who, &many).await?;
    if let Some(peer) = peer {
        let program = words(&peer, &["plain", "--to", to, "--bytes", "32000000"]);
        let ran = world.lab.exec(who, &program).await?;
        ensure!(ran.code == 0, "{ran:?}");
    }
    Ok(())
}

/// Envoy opens tunnels to a captured pod, is refused by policy, and lives through an upgrade.
pub async fn envoy_reaches_a_captured_pod() -> Result<()> {
    let Some(binary) = envoy::binary() else {
        return Ok(());
    };
    let world = World::up().await?;
    let lab = &world.lab;
    let files = world.ca.issue("peer", FOREIGN)?;
    let here = "127.0.0.1:18080";
    let config = envoy::client(
        here.parse()?,
        "10.244.1.2:15008".parse()?,
        "10.244.1.2:9000",
        &files,
    );
    let _envoy = envoy_with(&world, &binary.display().to_string(), &config).await?;
    well_served(&world, "partner/foreign", here).await?;
    let wanted = [
        ("src.identity", FOREIGN),
        ("path", "hbone"),
        ("mtls", "true"),
        ("direction", "inbound"),
    ];
    logged(lab, "n1", &wanted, |f| f.len() > 100).await?;
    let streams = [
        "--seconds",
        "5",
        "streams",
        here,
        "--count",
        "20",
        "--every-ms",
        "100",
    ];
    let upgraded = async {
        streams_open(lab, 20.0).await?;
        lab.node("n1").agent(Order::Upgrade).await
    };
    let (report, upgraded) = tokio::join!(flawless(lab, "partner/foreign", &streams), upgraded);
    upgraded?;
    report.context("while the node proxy was upgraded")?;
    lab.apply(DENY).await?;
    until("the refusal", async || {
        let script = "exec 3<>/dev/tcp/127.0.0.1/18080; echo a >&3; timeout 2 head -1 <&3";
        let ran = lab.exec("partner/foreign", &["bash", "-c", script]).await?;
        ensure!(ran.out.is_empty(), "it got through: {ran:?}");
        Ok(())
    })
    .await?;
    let denied = [
        ("src.identity", FOREIGN),
        ("reason", "policy_denied"),
        ("policy", "deny"),
    ];
    logged(lab, "n1", &denied, |f| !f.is_empty()).await?;
    Ok(())
}

/// Captured pods reach an application behind Envoy.
pub async fn a_captured_pod_reaches_envoy() -> Result<()> {
    let Some(binary) = envoy::binary() else {
        return Ok(());
    };
    let world = World::up().await?;
    let files = world.ca.issue("peer", FOREIGN)?;
    let app = world
        .start("partner/foreign", &[SAMPLE, "tcp-echo", "--port", "9900"])
        .await?;
    app.says(&["listening"]).await?;
    let config = envoy::server("0.0.0.0:15008".parse()?, "127.0.0.1:9900".parse()?, &files);
    let _envoy = envoy_with(&world, &binary.display().to_string(), &config).await?;
    // There is nothing on port 9000 but what Envoy leads to.
    let to = SocketAddr::new(world.ip("partner/foreign").await?, 9000).to_string();
    well_served(&world, "shop/client", &to).await?;
    let wanted = [
        ("src.workload", "client"),
        ("dst.identity", FOREIGN),
        ("path", "hbone"),
        ("mtls", "true"),
    ];
    logged(&world.lab, "n2", &wanted, |f| f.len() > 100).await?;
    Ok(())
}
