//! The mesh's own life under load: upgrades, hangs, and a controller that is away.

use std::time::Duration;

use anyhow::{Result, ensure};
use mesh_tests::lab::component::Order;
use nix::sys::signal::Signal;

use super::{
    flows::flows,
    load::flawless,
    policy::{DENY, FRIEND, refused, with},
    tunnel::{echo, pair, until},
};

/// T01, T02: both node proxies are replaced under new connections and long streams; nothing fails.
pub async fn t01_an_upgrade_under_load_loses_nothing() -> Result<()> {
    let lab = pair().await?;
    echo(&lab, "shop/client", "echo").await?;
    let (connections, streams, upgraded) = tokio::join!(
        flawless(
            &lab,
            "shop/client",
            &[
                "--seconds",
                "8",
                "conns",
                "10.244.1.2:9000",
                "--rate",
                "200"
            ]
        ),
        flawless(
            &lab,
            "shop/client",
            &[
                "--seconds",
                "8",
                "streams",
                "10.244.1.2:9000",
                "--count",
                "50",
                "--every-ms",
                "200"
            ]
        ),
        async {
            for node in ["n1", "n2"] {
                tokio::time::sleep(Duration::from_millis(1500)).await;
                lab.node(node).agent(Order::Upgrade).await?;
            }
            anyhow::Ok(())
        }
    );
    upgraded?;
    ensure!(connections?["ok"] == 1600, "every connection was made");
    streams?;
    for node in ["n1", "n2"] {
        ensure!(
            lab.node(node)
                .log()?
                .contains("took over from the earlier process"),
            "{node} was handed over"
        );
    }
    Ok(())
}

/// T04: a proxy that hangs refuses soon, and all goes on when it wakes.
pub async fn t04_a_hung_proxy_fails_closed_and_recovers() -> Result<()> {
    let lab = pair().await?;
    echo(&lab, "shop/client", "echo").await?;
    lab.node("n2").kill_agent(Signal::SIGSTOP, false).await?;
    until("EHOSTUNREACH from connect()", async || {
        let ran = lab
            .exec(
                "shop/client",
                &["bash", "-c", "exec 3<>/dev/tcp/10.244.1.2/9000"],
            )
            .await?;
        ensure!(
            ran.code != 0 && ran.err.contains("No route to host"),
            "{ran:?}"
        );
        Ok(())
    })
    .await?;
    lab.node("n2").kill_agent(Signal::SIGCONT, false).await?;
    until("service after SIGCONT", async || {
        echo(&lab, "shop/client", "10.244.1.2").await
    })
    .await?;
    let stale = [("kind", "refused"), ("name", "agent_stale")];
    until("the kernel's refusals in the metrics", async || {
        let refused = lab.node("n2").metric("warren_kernel_total", &stale).await?;
        ensure!(refused >= 1.0, "{refused} refusals are counted");
        Ok(())
    })
    .await?;
    lab.until_logged("n2", &["src.workload=client", "path=hbone", "mtls=true"])
        .await?;
    let plain = flows(&lab, "n2", &[("src.workload", "client"), ("path", "plain")]).await?;
    ensure!(plain.is_empty(), "logged as plaintext: {plain:?}");
    Ok(())
}

/// T08, T09, T39: without a controller what was known holds, also in a proxy that restarts.
pub async fn t09_without_a_controller_a_restarted_proxy_serves_and_enforces() -> Result<()> {
    let lab = with(FRIEND).await?;
    echo(&lab, "shop/friend", "echo").await?;
    lab.apply(&DENY.replace("sa/client", "sa/friend")).await?;
    refused(&lab, "shop/friend", "policy_denied").await?;
    // What changes is gathered for half a second before it is written.
    until("the policy on n1's disk", async || {
        let state = lab.place.node_state("n1").join(lab.place.instance("n1"));
        let kept = std::fs::read(state.join("config.bin"))?;
        let name = b"shop/deny-client";
        ensure!(
            kept.windows(name.len()).any(|w| w == name),
            "it is not there"
        );
        Ok(())
    })
    .await?;
    lab.component("controller", Order::Stop).await?;
    for node in ["n1", "n2"] {
        lab.node(node).kill_agent(Signal::SIGKILL, false).await?;
    }
    until("service from what is on disk", async || {
        echo(&lab, "shop/client", "10.244.1.2").await
    })
    .await?;
    let denied = [("reason", "policy_denied")];
    for _ in 0..3 {
        ensure!(
            echo(&lab, "shop/friend", "10.244.1.2").await.is_err(),
            "the policy is forgotten"
        );
    }
    // Those that the client's node remembers it refuses itself.
    until("the refusals in the metrics", async || {
        let n1 = lab.node("n1");
        let counted = n1.metric("warren_flow_failures_total", &denied).await?;
        ensure!(counted >= 1.0, "{counted} refusals are counted");
        Ok(())
    })
    .await?;
    for node in ["n1", "n2"] {
        let node = lab.node(node);
        until("an age of the configuration", async || {
            let age = node.metric("warren_config_age_seconds", &[]).await?;
            ensure!(age > 0.0, "the configuration's age is {age} s");
            Ok(())
        })
        .await?;
        let signed = [("result", "ok")];
        let signed = node
            .metric("warren_certificate_requests_total", &signed)
            .await?;
        ensure!(
            signed == 0.0,
            "{signed} certificates were signed without a CA"
        );
        ensure!(
            node.log()?.contains("serving the last good configuration"),
            "the log says what is served"
        );
    }
    lab.component("controller", Order::Start).await?;
    until("a change after the controller is back", async || {
        lab.apply("apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: nobody, namespace: shop}\nspec: {}\n").await?;
        ensure!(echo(&lab, "shop/client", "10.244.1.2").await.is_err(), "the new policy is not in force");
        Ok(())
    })
    .await
}
