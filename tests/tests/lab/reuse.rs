//! Addresses and ports that are used again, and many connections that could be taken for each other.

use anyhow::{Context, Result, ensure};
use mesh_tests::lab::Lab;

use super::{
    play::{self, Attempt, Wheres},
    tunnel::{SOON, pair, until},
};

/// The address that changes hands.
const SHARED: &str = "10.244.1.9";
/// The port that both of its holders dial from.
const PORT: &str = "45678";

fn holder(name: &str) -> String {
    format!(
        r#"
apiVersion: v1
kind: Pod
metadata: {{name: {name}, namespace: shop, labels: {{app: {name}}}, annotations: {{lab.warren.dev/ip: {SHARED}}}}}
spec: {{nodeName: n1, serviceAccountName: {name}, terminationGracePeriodSeconds: 0, containers: [{{name: c, image: tcp-echo, ports: [{{containerPort: 9000}}]}}]}}
"#
    )
}

/// Only `first` may dial the echo.
const ONLY_FIRST: &str = r#"
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: only-first, namespace: shop}
spec:
  selector: {matchLabels: {app: echo}}
  rules: [{from: [{source: {principals: [cluster.local/ns/shop/sa/first]}}]}]
"#;

/// Nobody may dial `second`.
const NOT_SECOND: &str = r#"
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: not-second, namespace: shop}
spec:
  selector: {matchLabels: {app: second}}
"#;

async fn attempt(lab: &Lab, who: &str, to: &str, from: &str) -> Result<Attempt> {
    let ran = lab
        .exec(who, &play::command("connect", &[to, from])?)
        .await?;
    serde_json::from_str(&ran.out).with_context(|| format!("{who} to {to}: {ran:?}"))
}

async fn holds(lab: &Lab, name: &str) -> Result<()> {
    lab.apply(&holder(name)).await?;
    lab.wait_ready(SOON).await?;
    lab.wait_for(SOON, |s| {
        let pod = s.pod(&format!("shop/{name}"))?;
        ensure!(
            pod.mesh == "captured" && pod.ip.to_string() == SHARED,
            "{name} is {} at {}",
            pod.mesh,
            pod.ip
        );
        Ok(())
    })
    .await?;
    Ok(())
}

/// T28: a pod that gets another's address, and even dials from its ports, gets nothing of its identity; and
/// who was allowed to dial the old holder is not for that allowed to dial the new one.
pub async fn t28_an_address_that_is_used_again_brings_no_old_identity() -> Result<()> {
    let lab = pair().await?;
    lab.apply(ONLY_FIRST).await?;
    lab.apply(NOT_SECOND).await?;
    holds(&lab, "first").await?;
    let echo = "10.244.1.2:9000";
    let there = format!("{SHARED}:9000");
    until("the first holder's connections", async || {
        // On one node the second of these is the kernel's own verdict.
        for _ in 0..2 {
            let seen = attempt(&lab, "shop/first", echo, PORT).await?;
            ensure!(seen.connect == 0 && seen.read == 1, "{seen:?}");
            for who in ["shop/client", "shop/echo"] {
                let seen = attempt(&lab, who, &there, "0").await?;
                ensure!(seen.connect == 0 && seen.read == 1, "{who}: {seen:?}");
            }
        }
        Ok(())
    })
    .await?;
    lab.delete(&holder("first")).await?;
    lab.wait_for(SOON, |s| {
        ensure!(s.pod("shop/first").is_err(), "it is still there");
        Ok(())
    })
    .await?;
    holds(&lab, "second").await?;
    for _ in 0..30 {
        let seen = attempt(&lab, "shop/second", echo, PORT).await?;
        ensure!(
            seen.connect != 0 || seen.read <= 0,
            "the new holder of {SHARED} got through as the old one: {seen:?}"
        );
        for who in ["shop/client", "shop/echo"] {
            let seen = attempt(&lab, who, &there, "0").await?;
            ensure!(
                seen.connect != 0 || seen.read <= 0,
                "{who} reached the new holder by what it was allowed of the old: {seen:?}"
            );
        }
    }
    let words = ["sa/second", "policy=deny", "reason="];
    lab.until_logged("n1", &words).await?;
    let counters = lab.node("n1").metrics().await?;
    ensure!(
        counters.contains("policy_not_allowed"),
        "the kernel's refusals are counted by their reason"
    );
    Ok(())
}

const SERVICES: &str = r#"
apiVersion: v1
kind: Service
metadata: {name: one, namespace: shop}
spec: {clusterIP: 10.96.77.1, selector: {app: echo}, ports: [{name: a, port: 80, targetPort: 7101}, {name: b, port: 81, targetPort: 7102}]}
---
apiVersion: v1
kind: Service
metadata: {name: two, namespace: shop}
spec: {clusterIP: 10.96.77.2, selector: {app: echo}, ports: [{name: a, port: 80, targetPort: 7103}, {name: b, port: 7101, targetPort: 7104}]}
---
apiVersion: v1
kind: Pod
metadata: {name: near, namespace: shop}
spec: {nodeName: n1, serviceAccountName: near, containers: [{name: c, image: idle}]}
"#;

/// T37: with few local ports, both families and thousands of short connections, each reaches what it dialed.
pub async fn t37_no_connection_is_taken_for_another() -> Result<()> {
    const CONNECTIONS: &str = "4000";
    let lab = pair().await?;
    lab.apply(SERVICES).await?;
    lab.wait_ready(SOON).await?;
    let mut server = lab
        .spawn(
            "shop/echo",
            &play::command("where-server", &["7101", "7102", "7103", "7104"])?,
        )
        .await?;
    let pod = "10.244.1.2";
    let mut targets: Vec<String> = [
        ("10.96.77.1:80", "7101"),
        ("10.96.77.1:81", "7102"),
        ("10.96.77.2:80", "7103"),
        ("10.96.77.2:7101", "7104"),
        ("[::ffff:10.96.77.2]:80", "7103"),
        ("10.244.1.2:7101", "7101"),
        ("10.244.1.2:7104", "7104"),
        ("[::ffff:10.244.1.2]:7102", "7102"),
    ]
    .iter()
    .map(|(dialed, port)| format!("{dialed}={pod}:{port}"))
    .collect();
    for port in ["7101", "7102", "7103", "7104"] {
        let at = format!("[fd00:244:1::2]:{port}");
        targets.push(format!("{at}={at}"));
    }
    let words = |count: &str| {
        let mut args = vec![count];
        args.extend(targets.iter().map(String::as_str));
        play::command("where-client", &args)
    };
    for who in ["shop/client", "shop/near"] {
        let narrow = "echo 40000 40199 > /proc/sys/net/ipv4/ip_local_port_range && cat /proc/sys/net/ipv4/ip_local_port_range";
        let ran = lab.exec(who, &["sh", "-c", narrow]).await?;
        ensure!(ran.out.contains("40199"), "{ran:?}");
        until("every target", async || {
            let ran = lab.exec(who, &words("24")?).await?;
            let seen: Wheres =
                serde_json::from_str(&ran.out).with_context(|| format!("{ran:?}"))?;
            ensure!(seen.right == 24, "{seen:?}");
            Ok(())
        })
        .await?;
        let ran = lab.exec(who, &words(CONNECTIONS)?).await?;
        let seen: Wheres = serde_json::from_str(&ran.out).with_context(|| format!("{ran:?}"))?;
        println!("T37: {who}: {} right, failed {:?}", seen.right, seen.failed);
        ensure!(seen.wrong.is_empty(), "{who}: {:?}", seen.wrong);
        // With this few ports some may find none free, which is no fault; those that were made count.
        let bad: Vec<_> = seen
            .failed
            .keys()
            .filter(|why| !why.contains("Cannot assign requested address"))
            .collect();
        ensure!(bad.is_empty(), "{who}: {:?}", seen.failed);
        ensure!(seen.right >= 2000, "{who}: only {} were made", seen.right);
    }
    let orphans = lab
        .node("n2")
        .metric(
            "istio_tcp_connections_failed_total",
            &[("reporter", "source")],
        )
        .await?;
    let lines = lab.node("n2").access_log().await?;
    ensure!(
        !lines
            .iter()
            .any(|l| l.contains("reason=no_original_destination")),
        "connections lost their destination ({orphans} failed)"
    );
    // It ends with its pod if it has not by now.
    let _ = server.kill();
    let _ = server.wait();
    Ok(())
}
