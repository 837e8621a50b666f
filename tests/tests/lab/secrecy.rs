//! What is on the wire between nodes: nothing that an application of the mesh said, whatever it talks to and
//! whatever is being restarted or deleted meanwhile.
//!
//! Every stage is judged by a capture of both nodes' wires that also has to hold what an unenrolled pair said at
//! the same time, in the clear: a capture that sees nothing cannot pass.

use std::{
    net::IpAddr,
    process::Child,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use mesh_tests::lab::{Lab, capture::contains, component::Order};
use nix::sys::signal::Signal;
use tempfile::NamedTempFile;

use super::{
    flows::{flows, logged},
    packets::{in_the_clear, outsiders, tunnelled},
    tunnel::{SOON, pair, until},
};

/// A headless service in front of the echo, and a pair that is not in the mesh.
const MORE: &str = r#"
apiVersion: v1
kind: Service
metadata: {name: hidden, namespace: shop}
spec: {clusterIP: None, selector: {app: echo}, ports: [{name: tcp, port: 9000}]}
---
apiVersion: v1
kind: Service
metadata: {name: dual, namespace: shop}
spec: {ipFamilyPolicy: RequireDualStack, selector: {app: echo}, ports: [{name: tcp, port: 9000}]}
---
apiVersion: v1
kind: Pod
metadata: {name: loud, namespace: outside}
spec: {nodeName: n1, containers: [{name: c, image: tcp-echo, ports: [{containerPort: 9000}]}]}
---
apiVersion: v1
kind: Pod
metadata: {name: stranger, namespace: outside}
spec: {nodeName: n2, containers: [{name: c, image: idle}]}
"#;

async fn world() -> Result<Lab> {
    let lab = pair().await?;
    lab.apply(MORE).await?;
    lab.wait_ready(SOON).await?;
    Ok(lab)
}

/// Says `marker` to `to` and expects it back.
async fn say(lab: &Lab, who: &str, to: &str, marker: &str) -> Result<()> {
    let script =
        format!("exec 3<>/dev/tcp/{to}/9000 && echo {marker} >&3 && timeout 5 head -1 <&3");
    let ran = lab.exec(who, &["bash", "-c", &script]).await?;
    ensure!(
        ran.code == 0 && ran.out.trim() == marker,
        "{who} to {to}: {ran:?}"
    );
    Ok(())
}

/// Runs one stage under a capture. What it says must not be seen; what the unenrolled pair says must.
async fn silent(lab: &Lab, stage: &str, talk: impl AsyncFnOnce(&str) -> Result<()>) -> Result<()> {
    let (secret, open) = (
        format!("secret-of-{stage}"),
        format!("open-word-of-{stage}"),
    );
    let wires = [lab.capture("n1")?, lab.capture("n2")?];
    let loud = lab.status().await?.pod("outside/loud")?.ip.to_string();
    say(lab, "outside/stranger", &loud, &open).await?;
    talk(&secret).await.with_context(|| stage.to_owned())?;
    say(lab, "outside/stranger", &loud, &open).await?;
    let others = outsiders(lab).await?;
    for wire in wires {
        let packets = wire.stop()?;
        ensure!(
            contains(&packets, open.as_bytes()),
            "{stage}: the capture did not see what went in the clear"
        );
        ensure!(
            tunnelled(&packets) > 0,
            "{stage}: no packet to or from port 15008"
        );
        ensure!(
            !contains(&packets, secret.as_bytes()),
            "{stage}: an application's bytes crossed the wire in the clear"
        );
        let clear = in_the_clear(&packets, &others);
        ensure!(
            clear.is_empty(),
            "{stage}: segments outside a tunnel: {clear:?}"
        );
    }
    Ok(())
}

/// Nothing of the enrolled pods' traffic was logged as plaintext.
async fn never_plain(lab: &Lab) -> Result<()> {
    for node in ["n1", "n2"] {
        for source in ["client", "talker"] {
            let plain = flows(lab, node, &[("src.workload", source), ("path", "plain")]).await?;
            ensure!(plain.is_empty(), "{node} logged plaintext: {plain:?}");
        }
    }
    Ok(())
}

pub async fn every_kind_of_address_is_encrypted() -> Result<()> {
    let lab = world().await?;
    let status = lab.status().await?;
    let addresses = |name: &str| -> Vec<String> {
        let of = status.services.iter().filter(|s| s.name == name);
        of.flat_map(|s| s.cluster_ips.clone()).collect()
    };
    let dual = addresses("dual");
    let is_v6 = |ip: &&String| ip.parse::<IpAddr>().is_ok_and(|ip| ip.is_ipv6());
    let vip6 = dual.iter().find(is_v6).context("an IPv6 service address")?;
    let vip4 = addresses("echo");
    let stages = [
        ("service-address", vip4[0].as_str()),
        ("service-address-v6", vip6),
        ("headless", "hidden"),
        ("pod-address", "10.244.1.2"),
        ("pod-address-v6", "fd00:244:1::2"),
        ("dns-short", "echo.shop"),
        ("dns-whole", "echo.shop.svc.cluster.local"),
    ];
    for (stage, to) in stages {
        silent(&lab, stage, async |secret| {
            until(stage, async || say(&lab, "shop/client", to, secret).await).await
        })
        .await?;
    }
    let hbone = [
        ("src.workload", "client"),
        ("path", "hbone"),
        ("mtls", "true"),
    ];
    for node in ["n1", "n2"] {
        logged(&lab, node, &hbone, |f| f.len() > stages.len()).await?;
    }
    let labels = [("connection_security_policy", "mutual_tls")];
    let opened = lab
        .node("n1")
        .metric("istio_tcp_connections_opened_total", &labels)
        .await?;
    ensure!(opened >= 8.0, "{opened} connections with mutual TLS");
    never_plain(&lab).await
}

/// Says the secret again and again on one long connection and on new ones, whatever becomes of each.
fn chatter(to: &str, secret: &str) -> String {
    format!(
        "while :; do exec 3<>/dev/tcp/{to}/9000 && for i in 1 2 3 4 5; do \
         echo {secret} >&3 && read -t 2 line <&3 && echo heard $line || break; sleep 0.02; done; \
         exec 3>&-; sleep 0.02; done 2>/dev/null"
    )
}

/// A chatter in a pod, and what it has heard so far; it ends with its handle.
struct Chatter {
    child: Child,
    out: NamedTempFile,
    line: String,
}

impl Chatter {
    async fn start(lab: &Lab, who: &str, to: &str, secret: &str) -> Result<Self> {
        let out = NamedTempFile::new()?;
        let mut command = lab
            .command(who, &["bash", "-c", &chatter(to, secret)])
            .await?;
        let child = command.stdout(out.reopen()?).spawn()?;
        Ok(Self {
            child,
            out,
            line: format!("heard {secret}"),
        })
    }

    fn heard(&self) -> Result<usize> {
        let text = std::fs::read_to_string(self.out.path())?;
        Ok(text.lines().filter(|l| **l == self.line).count())
    }

    /// Waits until it is answered some times more.
    async fn goes_on(&self) -> Result<()> {
        let before = self.heard()?;
        until("the chatter", async || {
            let more = self.heard()? - before;
            ensure!(more > 5, "it was answered {more} times more");
            Ok(())
        })
        .await
    }
}

impl Drop for Chatter {
    fn drop(&mut self) {
        // It may have ended with its pod.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub async fn a_proxy_that_restarts_under_traffic_lets_nothing_out() -> Result<()> {
    let lab = world().await?;
    let stages = [
        ("killed", Order::Signal(Signal::SIGKILL as i32)),
        ("restarted", Order::Restart),
        ("upgraded", Order::Upgrade),
    ];
    for (stage, order) in stages {
        for node in ["n2", "n1"] {
            let name = format!("{stage}-{node}");
            silent(&lab, &name, async |secret| {
                let chatter = Chatter::start(&lab, "shop/client", "10.244.1.2", secret).await?;
                chatter.goes_on().await?;
                lab.node(node).agent(order.clone()).await?;
                for _ in 0..5 {
                    // Whether it is served or refused at this moment does not matter: nothing may be seen.
                    let _ = say(&lab, "shop/client", "10.244.1.2", secret).await;
                }
                chatter.goes_on().await
            })
            .await?;
        }
    }
    let status = lab.status().await?;
    ensure!(
        status.pods.iter().all(|p| p.restarts == 0),
        "no application died of it"
    );
    never_plain(&lab).await
}

/// A pod that does not heed SIGTERM and goes on talking through its whole grace period.
const TALKER: &str = r#"
apiVersion: v1
kind: Pod
metadata: {name: talker, namespace: shop}
spec:
  nodeName: n2
  serviceAccountName: talker
  terminationGracePeriodSeconds: 5
  containers: [{name: c, image: shell, command: [bash, -c, "trap '' TERM; SCRIPT"]}]
"#;

/// An echo that goes on serving through its whole grace period.
const STAYER: &str = r#"
apiVersion: v1
kind: Pod
metadata: {name: stayer, namespace: shop, labels: {app: stayer}}
spec:
  nodeName: n1
  serviceAccountName: stayer
  terminationGracePeriodSeconds: 5
  containers: [{name: c, image: shell, command: [bash, -c, "trap '' TERM; SAMPLE tcp-echo & wait; wait"]}]
"#;

pub async fn a_pod_that_is_being_deleted_lets_nothing_out() -> Result<()> {
    let lab = world().await?;
    silent(&lab, "deleted-client", async |secret| {
        let script = chatter("10.244.1.2", secret).replace('"', "\\\"");
        lab.apply(&TALKER.replace("SCRIPT", &script)).await?;
        let said = format!("heard {secret}");
        let log = lab.place.log("shop/talker");
        let count = || -> Result<usize> {
            let text = std::fs::read_to_string(&log).unwrap_or_default();
            Ok(text.matches(&said).count())
        };
        until("the talker", async || {
            ensure!(count()? > 5, "it has not talked yet");
            Ok(())
        })
        .await?;
        lab.delete_pod("shop/talker").await?;
        let then = count()?;
        gone(&lab, "talker").await?;
        let after = count()? - then;
        ensure!(
            after > 20,
            "it was answered {after} times while it was going"
        );
        Ok(())
    })
    .await?;
    silent(&lab, "deleted-server", async |secret| {
        let sample = env!("CARGO_BIN_EXE_warren-sample");
        lab.apply(&STAYER.replace("SAMPLE", sample)).await?;
        lab.wait_ready(SOON).await?;
        let ip = lab.status().await?.pod("shop/stayer")?.ip.to_string();
        until("the stayer", async || {
            say(&lab, "shop/client", &ip, secret).await
        })
        .await?;
        let chatter = Chatter::start(&lab, "shop/client", &ip, secret).await?;
        chatter.goes_on().await?;
        let begun = Instant::now();
        lab.delete_pod("shop/stayer").await?;
        // It serves on while it is going.
        chatter.goes_on().await?;
        gone(&lab, "stayer").await?;
        ensure!(
            begun.elapsed() > Duration::from_secs(3),
            "it was gone after {:?}, before its grace period",
            begun.elapsed()
        );
        // Its address has no owner any more: whoever goes on dialing it is refused, and nobody is asked in the clear.
        let vacant = [
            ("dst.addr", &*format!("{ip}:9000")),
            ("reason", "workload_gone"),
        ];
        until("a refusal for the vacant address", async || {
            let said = say(&lab, "shop/client", &ip, secret).await;
            ensure!(said.is_err(), "somebody answered");
            let refused = flows(&lab, "n2", &vacant).await?;
            ensure!(!refused.is_empty(), "no flow was refused for {vacant:?}");
            Ok(())
        })
        .await
    })
    .await?;
    never_plain(&lab).await
}

async fn gone(lab: &Lab, name: &str) -> Result<()> {
    lab.wait_for(SOON, |s| {
        ensure!(s.pods.iter().all(|p| p.name != name), "{name} is there");
        Ok(())
    })
    .await
    .map(drop)
}
