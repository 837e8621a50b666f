//! The demo's steps.

use std::{
    process::Stdio,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use super::{Demo, no_marker};
use crate::lab::{capture::contains, component::Order};

const SOON: Duration = Duration::from_secs(10);

const ENROL: &str = "apiVersion: v1\nkind: Namespace\nmetadata: {name: demo, labels: {warren.dev/mesh: enabled}}\n---\napiVersion: v1\nkind: Namespace\nmetadata: {name: bookinfo, labels: {warren.dev/mesh: enabled}}\n";
const TUNNEL: &str = "apiVersion: warren.dev/v1alpha1\nkind: MeshConfig\nmetadata: {name: mesh, namespace: warren-system}\nspec: {sameNode: tunnel}\n";
const STRICT: &str = "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: strict, namespace: demo}\nspec: {mtls: {mode: STRICT}}\n";
const DENY: &str = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: no-far, namespace: demo}\nspec:\n  action: DENY\n  rules: [{from: [{source: {principals: [cluster.local/ns/demo/sa/far]}}]}]\n";
const ALLOW: &str = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: only-near, namespace: demo}\nspec:\n  selector: {matchLabels: {app: echo}}\n  action: ALLOW\n  rules: [{from: [{source: {principals: [cluster.local/ns/demo/sa/near]}}]}]\n";

pub async fn in_the_clear(demo: &Demo) -> Result<()> {
    let capture = demo.lab.capture("n1")?;
    let ran = demo.say_marker("demo/far", "echo.demo").await?;
    let page = demo
        .exec(
            "demo/far",
            &[
                "curl",
                "-s",
                "-m",
                "5",
                "http://productpage.bookinfo:9080/api/v1/products/0/reviews",
            ],
        )
        .await?;
    let packets = capture.stop()?;
    say!(
        "$ lab capture n1 # ran meanwhile: {} packets",
        packets.len()
    );
    ensure!(ran.code == 0, "the echo did not answer: {}", ran.err);
    ensure!(
        page.code == 0 && page.out.contains("reviews"),
        "the bookstore did not answer: {}{}",
        page.out,
        page.err
    );
    ensure!(
        contains(&packets, super::MARKER.as_bytes()),
        "the capture does not see plaintext, so it could not prove anything later"
    );
    say!("   the marker is on the wire, readable by anyone");
    Ok(())
}

pub async fn captured(demo: &Demo) -> Result<()> {
    let before = demo.lab.status().await?;
    demo.apply(
        "label the namespaces demo and bookinfo: warren.dev/mesh=enabled",
        ENROL,
    )
    .await?;
    let after = demo
        .lab
        .wait_for(SOON, |s| {
            let late: Vec<&str> = s
                .pods
                .iter()
                .filter(|p| p.namespace != "outside" && p.mesh != "captured")
                .map(|p| p.name.as_str())
                .collect();
            if late.is_empty() {
                Ok(())
            } else {
                bail!("not captured: {}", late.join(", "))
            }
        })
        .await?;
    for old in before.pods.iter().filter(|p| p.namespace != "outside") {
        let new = after
            .pods
            .iter()
            .find(|p| p.uid == old.uid)
            .with_context(|| format!("{} was replaced", old.name))?;
        ensure!(new.restarts == old.restarts, "{} was restarted", old.name);
    }
    say!(
        "$ lab ps # {} pods captured, the same pods as before, no restart",
        after.pods.iter().filter(|p| p.mesh == "captured").count()
    );
    let capture = demo.lab.capture("n1")?;
    let ran = demo.say_marker("demo/far", "echo.demo").await?;
    let page = demo
        .exec(
            "demo/far",
            &[
                "curl",
                "-s",
                "-m",
                "5",
                "http://productpage.bookinfo:9080/api/v1/products/0/reviews",
            ],
        )
        .await?;
    let packets = capture.stop()?;
    say!("$ lab capture n1 # ran meanwhile");
    ensure!(ran.code == 0, "the echo did not answer: {}", ran.err);
    ensure!(
        page.code == 0 && page.out.contains("reviews"),
        "the bookstore did not answer: {}{}",
        page.out,
        page.err
    );
    no_marker(&packets)?;
    let words = ["inbound", "hbone", "sa/far"];
    demo.lab.until_logged("n1", &words).await?;
    demo.log_line("n1", &words).await.map(drop)
}

pub async fn direct(demo: &Demo) -> Result<()> {
    let measure = async |who: &str, to: &str| -> Result<f64> {
        let report = demo
            .load(who, &["rtt", to, "--seconds", "2", "--warm-up", "0.5"])
            .await?;
        ensure!(
            report["failed"] == 0,
            "round trips failed: {}",
            report["failures"]
        );
        report["latencyUs"]["p50"]
            .as_f64()
            .context("the report has a p50")
    };
    say!("   two pods on one node, without any mesh, for comparison:");
    let plain = measure("outside/near", "echo.outside:9000").await?;
    say!(
        "   two pods in the mesh: their first connection goes through the node proxy, which checks policy and then tells the kernel"
    );
    measure("demo/near", "echo.demo:9000").await?;
    say!("   every next one the kernel connects by itself, under the same policy:");
    let direct = measure("demo/near", "echo.demo:9000").await?;
    let words = ["path=direct", "sa/near"];
    demo.lab.until_logged("n1", &words).await?;
    demo.log_line("n1", &words).await?;
    demo.apply("sameNode: tunnel, to compare", TUNNEL).await?;
    let lines = demo.lab.node("n1").access_log().await?.len();
    // The setting has arrived when a new connection takes the tunnel.
    demo.until(SOON, async || {
        demo.lab
            .exec(
                "demo/near",
                &[
                    "bash",
                    "-c",
                    "exec 3<>/dev/tcp/echo.demo/9000 && echo hi >&3 && timeout 5 head -1 <&3",
                ],
            )
            .await?;
        let log = demo.lab.node("n1").access_log().await?;
        log.iter()
            .skip(lines)
            .any(|l| l.contains("path=hbone") && l.contains("sa/near"))
            .then_some(())
            .context("flows still take the direct path")
    })
    .await?;
    say!("   the same two pods through the node proxy and its encrypted tunnel:");
    let tunnel = measure("demo/near", "echo.demo:9000").await?;
    demo.delete("back to sameNode: auto", TUNNEL).await?;
    say!(
        "   1-byte round trip, median:  no mesh {plain:.1} us   direct {direct:.1} us ({:.2}x)   tunnel {tunnel:.1} us ({:.2}x)",
        direct / plain,
        tunnel / plain
    );
    Ok(())
}

pub async fn strict(demo: &Demo) -> Result<()> {
    let open = demo.say_marker("outside/far", "echo.demo").await?;
    ensure!(
        open.code == 0,
        "under PERMISSIVE the client outside the mesh must be served: {}",
        open.err
    );
    demo.apply("PeerAuthentication STRICT for the namespace demo", STRICT)
        .await?;
    let took = demo.until(SOON, async || {
        let ran = demo.lab.exec("outside/far", &["bash", "-c", "exec 3<>/dev/tcp/echo.demo/9000 && echo hi >&3 && timeout 5 head -1 <&3 | grep hi"]).await?;
        ensure!(ran.code != 0, "the client outside the mesh is still served");
        Ok(())
    }).await?;
    say!("   in force after {:.0} ms", took.as_secs_f64() * 1e3);
    let shut = demo.say_marker("outside/far", "echo.demo").await?;
    ensure!(
        !shut.out.contains(super::MARKER),
        "the client outside the mesh was served"
    );
    say!("   refused, as it must be; a client in the mesh goes on:");
    let inside = demo.say_marker("demo/far", "echo.demo").await?;
    ensure!(
        inside.code == 0,
        "the client in the mesh must go on: {}",
        inside.err
    );
    demo.delete("PeerAuthentication", STRICT).await
}

pub async fn policy(demo: &Demo) -> Result<()> {
    say!("   one connection that says something every 50 ms:");
    // One connection that says something every 50 ms.
    let script = "exec 3<>/dev/tcp/echo.demo/9000 || exit 9; while echo tick >&3 2>/dev/null && read -t 2 -u 3 line; do echo $line; sleep 0.05; done";
    say!("$ lab exec demo/far -- bash -c '{script}' &");
    let mut command = tokio::process::Command::from(
        demo.lab
            .command("demo/far", &["bash", "-c", script])
            .await?,
    );
    let mut live = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()?;
    let mut out = tokio::io::BufReader::new(live.stdout.take().context("it was piped")?);
    let mut line = String::new();
    tokio::time::timeout(
        SOON,
        tokio::io::AsyncBufReadExt::read_line(&mut out, &mut line),
    )
    .await
    .context("the live connection says nothing")??;
    ensure!(line.trim() == "tick", "the live connection did not come up");
    // Its output is read on, or it would stall by itself.
    let drain =
        tokio::spawn(async move { tokio::io::copy(&mut out, &mut tokio::io::sink()).await });
    let at = Instant::now();
    demo.apply("AuthorizationPolicy: DENY the service account far", DENY)
        .await?;
    tokio::time::timeout(SOON, live.wait())
        .await
        .context("the live connection was not cut")??;
    say!(
        "   the live connection was cut {:.0} ms after the policy was applied",
        at.elapsed().as_secs_f64() * 1e3
    );
    drain.abort();
    let denied = demo.say_marker("demo/far", "echo.demo").await?;
    ensure!(!denied.out.contains(super::MARKER), "far is still served");
    say!("   a new one is refused as well; near, which the policy does not name, goes on:");
    let near = demo.say_marker("demo/near", "echo.demo").await?;
    ensure!(near.code == 0, "near must go on: {}", near.err);
    demo.delete("the DENY", DENY).await?;
    let served = async |who: &str, want: bool| {
        let ran = demo.lab.exec(who, &["bash", "-c", "exec 3<>/dev/tcp/echo.demo/9000 && echo hi >&3 && timeout 5 head -1 <&3 | grep hi"]).await?;
        ensure!(
            (ran.code == 0) == want,
            "{who} is {}served",
            if want { "not " } else { "" }
        );
        Ok(())
    };
    demo.until(SOON, async || served("demo/far", true).await)
        .await?;
    demo.apply(
        "AuthorizationPolicy: ALLOW only the service account near",
        ALLOW,
    )
    .await?;
    demo.until(SOON, async || served("demo/far", false).await)
        .await?;
    served("demo/near", true).await?;
    say!("   far is refused, near is served");
    demo.delete("the ALLOW", ALLOW).await?;
    demo.until(SOON, async || served("demo/far", true).await)
        .await
        .map(drop)
}

pub async fn rotation(demo: &Demo) -> Result<()> {
    let expiry = async || {
        let labels = [("identity", "spiffe://cluster.local/ns/demo/sa/far")];
        demo.lab
            .node("n2")
            .metric("warren_certificate_expiry_timestamp_seconds", &labels)
            .await
    };
    let show = |at: f64| -> Result<()> {
        say!("$ lab metrics n2 | grep 'warren_certificate_expiry.*sa/far'");
        say!("   the certificate of demo/far is valid until {at:.0} (seconds since 1970)");
        Ok(())
    };
    let before = expiry().await?;
    show(before)?;
    say!(
        "   25 seconds of new connections meanwhile; certificates live 40 s here and are renewed at half of it:"
    );
    // Half of a certificate's life, and the tenth by which renewals are spread.
    let report = demo
        .load(
            "demo/far",
            &["conns", "echo.demo:9000", "--rate", "50", "--seconds", "25"],
        )
        .await?;
    let after = expiry().await?;
    show(after)?;
    ensure!(
        after > before,
        "the certificate was not renewed in this time"
    );
    say!(
        "   renewed under load: the new one lives {:.0} s longer",
        after - before
    );
    no_failure(&report)
}

pub async fn killed(demo: &Demo) -> Result<()> {
    let capture = demo.lab.capture("n1")?;
    say!("$ lab component n2 crash # SIGKILL to the node proxy of n2, and it stays down");
    demo.lab.component("n2", Order::SignalAndLeave(9)).await?;
    // By address: that a name does not resolve without the proxy proves nothing about the connection.
    let address = demo.lab.status().await?.pod("demo/echo")?.ip.to_string();
    let ran = demo.say_marker("demo/far", &address).await?;
    ensure!(
        !ran.out.contains(super::MARKER),
        "traffic went on without the node proxy"
    );
    say!("   refused: without its node proxy nothing leaves the pod");
    say!("$ lab component n2 start");
    let at = Instant::now();
    demo.lab.component("n2", Order::Start).await?;
    demo.until(SOON, async || {
        let ran = demo
            .lab
            .exec(
                "demo/far",
                &[
                    "bash",
                    "-c",
                    &format!(
                        "exec 3<>/dev/tcp/echo.demo/9000 && echo {} >&3 && timeout 5 head -1 <&3",
                        super::MARKER
                    ),
                ],
            )
            .await?;
        ensure!(ran.code == 0, "not served yet");
        Ok(())
    })
    .await?;
    say!(
        "   served again {:.0} ms after the start",
        at.elapsed().as_secs_f64() * 1e3
    );
    no_marker(&capture.stop()?)
}

pub async fn upgraded(demo: &Demo) -> Result<()> {
    let load = demo.load(
        "demo/far",
        &["conns", "echo.demo:9000", "--rate", "100", "--seconds", "8"],
    );
    let upgrades = async {
        for node in ["n2", "n1"] {
            tokio::time::sleep(Duration::from_secs(2)).await;
            say!("$ lab component {node} upgrade");
            demo.lab.component(node, Order::Upgrade).await?;
        }
        Ok(())
    };
    let (report, ()) = tokio::try_join!(load, upgrades)?;
    no_failure(&report)?;
    let status = demo.lab.status().await?;
    for node in ["n1", "n2"] {
        let starts = status.component(node)?.condition.starts;
        ensure!(starts >= 2, "{node} was not replaced");
    }
    Ok(())
}

fn no_failure(report: &Value) -> Result<()> {
    ensure!(
        report["ok"].as_u64().unwrap_or(0) > 0,
        "the load did nothing"
    );
    ensure!(
        report["failed"] == 0,
        "connections failed: {}",
        report["failures"]
    );
    say!("   {} connections, none failed", report["ok"]);
    Ok(())
}
