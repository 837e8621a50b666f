//! What an application sees when there is nobody to talk to: the same as without the mesh, and as soon.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use mesh_tests::lab::Lab;

use super::{
    play::{self, Attempt},
    tunnel::{SOON, echo, pair, until},
};

const REFUSED: i32 = 111;
const UNREACHABLE: i32 = 113;
const TIMED_OUT: i32 = 110;
const RESET: i64 = -104;

const EMPTY: &str = r#"
apiVersion: v1
kind: Service
metadata: {name: empty, namespace: shop}
spec: {clusterIP: 10.96.77.9, selector: {app: late}, ports: [{name: tcp, port: 9000}]}
"#;

const LATE: &str = r#"
apiVersion: v1
kind: Pod
metadata: {name: late, namespace: shop, labels: {app: late}}
spec: {nodeName: n1, serviceAccountName: late, containers: [{name: c, image: tcp-echo, ports: [{containerPort: 9000}]}]}
"#;

const DENY: &str = r#"
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: deny-all, namespace: shop}
spec: {selector: {matchLabels: {app: echo}}}
"#;

const OUTSIDER: &str = r#"
apiVersion: v1
kind: Namespace
metadata: {name: outside}
---
apiVersion: v1
kind: Pod
metadata: {name: stranger, namespace: outside}
spec: {nodeName: n2, containers: [{name: c, image: idle}]}
---
apiVersion: v1
kind: Pod
metadata: {name: near, namespace: shop}
spec: {nodeName: n1, serviceAccountName: near, containers: [{name: c, image: idle}]}
"#;

/// Attempts in one program, so that nothing but the dial takes time between them.
async fn attempts(lab: &Lab, who: &str, to: &str, count: usize) -> Result<Vec<Attempt>> {
    let one = play::command("connect", &[to, "0"])?.join(" ");
    let script = format!("for i in $(seq {count}); do {one}; done");
    let ran = lab.exec(who, &["sh", "-c", &script]).await?;
    let lines: Result<Vec<_>, _> = ran.out.lines().map(serde_json::from_str).collect();
    lines.with_context(|| format!("{who} to {to}: {ran:?}"))
}

/// A refusal, as `connect()` itself says it or as a reset right behind it.
fn is_refusal(seen: &Attempt) -> bool {
    seen.connect == REFUSED || (seen.connect == 0 && seen.read == RESET)
}

async fn refused(lab: &Lab, who: &str, to: &str, within: Duration) -> Result<()> {
    let seen = attempts(lab, who, to, 10).await?;
    ensure!(seen.len() == 10, "{seen:?}");
    for one in &seen {
        ensure!(is_refusal(one), "{who} to {to}: {one:?}");
        ensure!(
            Duration::from_millis(one.total_ms) < within,
            "{who} to {to} waited: {one:?}"
        );
    }
    ensure!(
        seen.iter().any(|a| a.connect == REFUSED),
        "{who} to {to}: never from connect() itself: {seen:?}"
    );
    Ok(())
}

/// T40: no endpoints, denied, nobody on the port: refused, mostly by `connect()` itself, and at once; and what
/// was refused is not refused any longer than it has to be.
pub async fn t40_what_nobody_answers_is_refused_at_once() -> Result<()> {
    const AT_ONCE: Duration = Duration::from_secs(2);
    let lab = pair().await?;
    lab.apply(OUTSIDER).await?;
    lab.apply(EMPTY).await?;
    lab.wait_ready(SOON).await?;
    until("the service without endpoints", async || {
        refused(&lab, "shop/client", "10.96.77.9:9000", AT_ONCE).await
    })
    .await?;
    // Nobody listens there, on another node and on this.
    for who in ["shop/client", "shop/near"] {
        until("the port without a listener", async || {
            let seen = attempts(&lab, who, "10.244.1.2:9999", 5).await?;
            ensure!(seen.iter().all(is_refusal), "{who}: {seen:?}");
            Ok(())
        })
        .await?;
    }
    // Somebody comes: he is reached as soon as he is known.
    lab.apply(LATE).await?;
    until("the endpoint that came late", async || {
        let seen = attempts(&lab, "shop/client", "10.96.77.9:9000", 1).await?;
        ensure!(seen[0].read == 1, "{seen:?}");
        Ok(())
    })
    .await?;
    lab.apply(DENY).await?;
    for who in ["shop/client", "shop/near"] {
        until("the policy", async || {
            refused(&lab, who, "10.244.1.2:9000", AT_ONCE).await
        })
        .await?;
    }
    until("the access logs and the metrics", async || {
        for (node, reason) in [
            ("n2", "no_endpoints"),
            ("n2", "peer_denied"),
            ("n1", "policy_not_allowed"),
        ] {
            let lines = lab.node(node).access_log().await?;
            ensure!(
                lines
                    .iter()
                    .any(|l| l.contains(&format!("reason={reason}"))),
                "{node} does not say {reason}:\n{}",
                lines.join("\n")
            );
        }
        for flag in ["CONNECT", "DENY"] {
            let counted = lab
                .node("n2")
                .metric(
                    "istio_tcp_connections_failed_total",
                    &[("response_flags", flag)],
                )
                .await?;
            ensure!(counted >= 1.0, "{flag} is counted {counted} times");
        }
        Ok(())
    })
    .await?;
    lab.delete(DENY).await?;
    until("service without the policy", async || {
        echo(&lab, "shop/client", "10.244.1.2").await?;
        echo(&lab, "shop/near", "10.244.1.2").await
    })
    .await
}

/// T40: a node that is dead looks like one, and no later than the network would have said so.
pub async fn t40_a_dead_node_looks_like_one() -> Result<()> {
    let lab = pair().await?;
    lab.apply(OUTSIDER).await?;
    lab.wait_ready(SOON).await?;
    echo(&lab, "outside/stranger", "10.244.1.2").await?;
    // The node is there no more: its wire is cut.
    let cut = lab
        .exec("fabric", &["ip", "link", "set", "n1", "down"])
        .await?;
    ensure!(cut.code == 0, "{cut:?}");
    // Where it was is not known any more either, so that the network says soon that it is not there.
    let forgotten = lab
        .exec("n2", &["ip", "neigh", "flush", "dev", "eth0"])
        .await?;
    ensure!(forgotten.code == 0, "{forgotten:?}");
    let begun = Instant::now();
    let reference = attempts(&lab, "outside/stranger", "10.244.1.2:9000", 1).await?;
    let natural = begun.elapsed();
    println!("T40: without the mesh: {reference:?} in {natural:?}");
    ensure!(
        [UNREACHABLE, TIMED_OUT].contains(&reference[0].connect),
        "the node is not dead: {reference:?}"
    );
    let seen = attempts(&lab, "shop/client", "10.244.1.2:9000", 4).await?;
    println!("T40: with the mesh: {seen:?}");
    // Ten seconds are what all attempts to reach a destination may take together.
    let most = natural.max(Duration::from_secs(10)) + Duration::from_secs(3);
    for one in &seen {
        ensure!(
            one.connect == UNREACHABLE || (one.connect == 0 && one.read == RESET),
            "{one:?}"
        );
        ensure!(
            Duration::from_millis(one.total_ms) < most,
            "{one:?}; without the mesh {natural:?}"
        );
    }
    ensure!(
        seen.iter()
            .any(|a| a.connect == UNREACHABLE && a.connect_ms < 1000),
        "never from connect() itself, at once: {seen:?}"
    );
    lab.until_logged("n2", &["reason=connect_timeout"]).await?;
    let timed_out = [("reason", "connect_timeout")];
    let counted = lab
        .node("n2")
        .metric("warren_flow_failures_total", &timed_out)
        .await?;
    ensure!(counted >= 1.0, "{counted} such failures are counted");
    Ok(())
}
