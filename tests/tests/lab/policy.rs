//! Who may talk to whom, as applications see it: STRICT, DENY, ALLOW, and changes under live connections.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use mesh_tests::lab::Lab;

use super::{
    flows::logged,
    load::{flawless, load},
    tunnel::{echo, pair, until},
};

const OUTSIDER: &str = r#"
apiVersion: v1
kind: Namespace
metadata: {name: outside}
---
apiVersion: v1
kind: Pod
metadata: {name: stranger, namespace: outside}
spec: {nodeName: n2, serviceAccountName: stranger, containers: [{name: c, image: idle}]}
"#;

const STRICT: &str = r#"
apiVersion: security.istio.io/v1beta1
kind: PeerAuthentication
metadata: {name: default, namespace: shop}
spec: {mtls: {mode: STRICT}}
"#;

/// Denies `client`, and nobody else.
pub const DENY: &str = r#"
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: deny-client, namespace: shop}
spec:
  selector: {matchLabels: {app: echo}}
  action: DENY
  rules: [{from: [{source: {principals: [cluster.local/ns/shop/sa/client]}}]}]
"#;

/// Allows `friend` only.
const ALLOW: &str = r#"
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: allow-friend, namespace: shop}
spec:
  selector: {matchLabels: {app: echo}}
  rules: [{from: [{source: {serviceAccounts: [friend]}}]}]
"#;

/// Another client beside the one of the pair.
pub const FRIEND: &str = r#"
apiVersion: v1
kind: Pod
metadata: {name: friend, namespace: shop}
spec: {nodeName: n2, serviceAccountName: friend, containers: [{name: c, image: idle}]}
"#;

/// The pair, and more.
pub async fn with(more: &str) -> Result<Lab> {
    let lab = pair().await?;
    lab.apply(more).await?;
    lab.wait_ready(super::tunnel::SOON).await?;
    Ok(lab)
}

/// Waits until `who` does not reach the echo any more, and a node says that this is the reason.
pub async fn refused(lab: &Lab, who: &str, reason: &str) -> Result<()> {
    until(reason, async || {
        ensure!(
            echo(lab, who, "10.244.1.2").await.is_err(),
            "{who} got through"
        );
        Ok(())
    })
    .await?;
    // The first failure may have been a connection that the change cut: try until one is refused.
    until(reason, async || {
        ensure!(
            echo(lab, who, "10.244.1.2").await.is_err(),
            "{who} got through"
        );
        let lines = [
            lab.node("n1").access_log().await?,
            lab.node("n2").access_log().await?,
        ]
        .concat();
        ensure!(
            lines
                .iter()
                .any(|l| l.contains(&format!("reason={reason}"))),
            "no line says {reason}:\n{}",
            lines.join("\n")
        );
        Ok(())
    })
    .await
}

/// T19: plaintext from outside the mesh is taken under PERMISSIVE and refused under STRICT; the mesh goes on.
pub async fn t19_strict_refuses_who_is_not_in_the_mesh() -> Result<()> {
    let lab = with(OUTSIDER).await?;
    echo(&lab, "outside/stranger", "10.244.1.2").await?;
    lab.apply(STRICT).await?;
    refused(&lab, "outside/stranger", "mtls_required").await?;
    echo(&lab, "shop/client", "echo").await?;
    let failed = lab
        .node("n1")
        .metric(
            "istio_tcp_connections_failed_total",
            &[("reporter", "destination")],
        )
        .await?;
    ensure!(failed >= 1.0, "the refusal is counted: {failed}");
    // Somebody who speaks to the tunnel's port without a certificate of the mesh gets no further.
    let script =
        "exec 3<>/dev/tcp/10.244.1.2/15008 && echo hello >&3 && timeout 5 head -c1 <&3 | wc -c";
    let ran = lab
        .exec("outside/stranger", &["bash", "-c", script])
        .await?;
    ensure!(
        !ran.out.contains("hello"),
        "15008 echoed plaintext: {ran:?}"
    );
    lab.delete(STRICT).await?;
    until("plaintext after STRICT is gone", async || {
        echo(&lab, "outside/stranger", "10.244.1.2").await
    })
    .await
}

/// T15: a DENY cuts the live connections of whom it names within a second, and leaves others alone.
pub async fn t15_a_deny_cuts_live_connections_of_whom_it_names() -> Result<()> {
    let lab = with(FRIEND).await?;
    let streams = [
        "--seconds",
        "4",
        "streams",
        "10.244.1.2:9000",
        "--count",
        "10",
        "--every-ms",
        "50",
    ];
    let (denied, friend, applied) = tokio::join!(
        load(&lab, "shop/client", &streams),
        flawless(&lab, "shop/friend", &streams),
        async {
            tokio::time::sleep(Duration::from_millis(1500)).await;
            lab.apply(DENY).await
        }
    );
    applied?;
    friend?;
    let denied = denied?;
    ensure!(
        denied["failures"]["connection reset"] == 10,
        "all ten are reset: {denied}"
    );
    let seconds = denied["seconds"].as_f64().unwrap_or_default();
    ensure!(
        (1.0..3.5).contains(&seconds),
        "cut soon after 1.5 s: {denied}"
    );
    let cut = [
        ("src.workload", "client"),
        ("direction", "inbound"),
        ("reason", "policy_changed"),
    ];
    logged(&lab, "n1", &cut, |found| found.len() == 10).await?;
    let changed = [("reason", "policy_changed")];
    let counted = lab
        .node("n1")
        .metric("warren_flow_failures_total", &changed)
        .await?;
    ensure!(counted == 10.0, "{counted} of 10 cut flows are counted");
    refused(&lab, "shop/client", "policy_denied").await?;
    let begun = Instant::now();
    lab.delete(DENY).await?;
    until("service after the policy is gone", async || {
        echo(&lab, "shop/client", "10.244.1.2").await
    })
    .await?;
    ensure!(
        begun.elapsed() < Duration::from_secs(5),
        "{:?} until service",
        begun.elapsed()
    );
    Ok(())
}

/// T15 on one node: a DENY cuts live connections of the direct path too.
pub async fn t15_a_deny_cuts_live_direct_connections() -> Result<()> {
    let lab = with(&FRIEND.replace("n2", "n1")).await?;
    let deny = DENY.replace("sa/client", "sa/friend");
    // The first connection goes through the proxy, which tells the kernel about the next.
    echo(&lab, "shop/friend", "10.244.1.2").await?;
    let streams = [
        "--seconds",
        "4",
        "streams",
        "10.244.1.2:9000",
        "--count",
        "5",
        "--every-ms",
        "50",
    ];
    let (report, applied) = tokio::join!(load(&lab, "shop/friend", &streams), async {
        tokio::time::sleep(Duration::from_millis(1500)).await;
        lab.apply(&deny).await
    });
    applied?;
    let report = report?;
    ensure!(report["failed"] == 5, "all five are cut: {report}");
    until("the access log", async || {
        let lines = lab.node("n1").access_log().await?;
        let cut = lines
            .iter()
            .filter(|l| l.contains("direction=direct") && l.contains("reason=policy_changed"))
            .count();
        ensure!(cut == 5, "{cut} of 5 lines:\n{}", lines.join("\n"));
        Ok(())
    })
    .await
}

/// With an ALLOW policy in force, what it does not name is refused, whoever asks first.
pub async fn an_allow_refuses_everybody_else() -> Result<()> {
    let lab = with(FRIEND).await?;
    echo(&lab, "shop/client", "echo").await?;
    lab.apply(ALLOW).await?;
    refused(&lab, "shop/client", "policy_not_allowed").await?;
    echo(&lab, "shop/friend", "echo").await
}

/// A policy that cannot be understood whole refuses instead of widening, and says so in the log.
pub async fn a_policy_with_a_bad_part_denies() -> Result<()> {
    let lab = with(FRIEND).await?;
    let bad = ALLOW.replace(
        "serviceAccounts: [friend]",
        "serviceAccounts: [friend], ipBlocks: [10.0.0.0/77]",
    );
    lab.apply(&bad).await?;
    refused(&lab, "shop/client", "policy_invalid").await?;
    refused(&lab, "shop/friend", "policy_invalid").await?;
    lab.apply(ALLOW).await?;
    until("service after the policy is mended", async || {
        echo(&lab, "shop/friend", "echo").await
    })
    .await
}
