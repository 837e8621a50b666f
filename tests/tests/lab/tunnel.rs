//! Two pods on two nodes, through the mesh.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use mesh_tests::lab::{Lab, capture::contains, suite, supervisor::Spec};

/// Long enough for anything that has to happen at all.
pub const SOON: Duration = Duration::from_secs(20);
/// What must not be on the wire.
pub const MARKER: &str = "marker-that-must-not-be-on-the-wire";

/// An echo on n1, a client on n2, both in the mesh.
pub const PAIR: &str = r#"
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {warren.dev/mesh: enabled}}
---
apiVersion: v1
kind: Service
metadata: {name: echo, namespace: shop}
spec: {selector: {app: echo}, ports: [{name: tcp, port: 9000}]}
---
apiVersion: v1
kind: Pod
metadata: {name: echo, namespace: shop, labels: {app: echo}}
spec: {nodeName: n1, serviceAccountName: echo, containers: [{name: c, image: tcp-echo, ports: [{containerPort: 9000}]}]}
---
apiVersion: v1
kind: Pod
metadata: {name: client, namespace: shop}
spec: {nodeName: n2, serviceAccountName: client, containers: [{name: c, image: idle}]}
"#;

/// A lab with the pair captured.
pub async fn pair() -> Result<Lab> {
    pair_in(suite::spec()).await
}

/// The same in a lab that is made in a certain way.
pub async fn pair_in(spec: Spec) -> Result<Lab> {
    let lab = Lab::up(spec).await?;
    lab.apply(PAIR).await?;
    lab.wait_ready(SOON).await?;
    lab.wait_for(SOON, |s| {
        let late: Vec<String> = s
            .pods
            .iter()
            .filter(|p| p.mesh != "captured")
            .map(|p| format!("{} is `{}` ({})", p.name, p.mesh, p.note))
            .collect();
        if late.is_empty() {
            Ok(())
        } else {
            bail!("{}", late.join(", "))
        }
    })
    .await?;
    // Readiness travels: a node learns of an endpoint a moment after the lab does.
    until("the first echo", async || {
        echo(&lab, "shop/client", "echo").await
    })
    .await?;
    Ok(lab)
}

/// Sends the marker from `who` to `to` and expects it back.
pub async fn echo(lab: &Lab, who: &str, to: &str) -> Result<()> {
    let script =
        format!("exec 3<>/dev/tcp/{to}/9000 && echo {MARKER} >&3 && timeout 5 head -1 <&3");
    let ran = lab.exec(who, &["bash", "-c", &script]).await?;
    ensure!(
        ran.code == 0 && ran.out.trim() == MARKER,
        "{who} to {to}: {ran:?}"
    );
    Ok(())
}

/// Tries until it succeeds.
pub async fn until(what: &str, mut good: impl AsyncFnMut() -> Result<()>) -> Result<()> {
    let deadline = tokio::time::Instant::now() + SOON;
    loop {
        match good().await {
            Ok(()) => return Ok(()),
            Err(e) if tokio::time::Instant::now() > deadline => {
                return Err(e.context(format!("{what}: not within {SOON:?}")));
            }
            Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    }
}

pub async fn an_echo_across_nodes_is_encrypted_and_logged() -> Result<()> {
    let lab = pair().await?;
    let capture = lab.capture("n1")?;
    for to in [
        "echo",
        "echo.shop.svc.cluster.local",
        "10.244.1.2",
        "fd00:244:1::2",
    ] {
        echo(&lab, "shop/client", to).await?;
    }
    let packets = capture.stop()?;
    assert!(
        !packets.is_empty(),
        "traffic between nodes crosses the wire"
    );
    assert!(
        !contains(&packets, MARKER.as_bytes()),
        "no plaintext between nodes"
    );
    for (node, direction) in [("n1", "inbound"), ("n2", "outbound")] {
        until("the access log", async || {
            let lines = lab.node(node).access_log().await?;
            let words = [
                direction,
                "path=hbone",
                "mtls=true",
                "spiffe://cluster.local/ns/shop/sa/client",
            ];
            let count = lines
                .iter()
                .filter(|l| words.iter().all(|w| l.contains(w)))
                .count();
            ensure!(
                count == 5,
                "{node}: {count} of 5 lines (one from the start) with {words:?}; it says:\n{}",
                lines.join("\n")
            );
            Ok(())
        })
        .await?;
    }
    let opened = lab
        .node("n1")
        .metric(
            "istio_tcp_connections_opened_total",
            &[("connection_security_policy", "mutual_tls")],
        )
        .await?;
    assert!(
        opened >= 4.0,
        "{opened} connections counted with mutual TLS"
    );
    lab.node("n1").get("/readyz").await.context("ready")?;
    Ok(())
}
