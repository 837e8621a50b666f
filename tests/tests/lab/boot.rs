//! Starting from nothing in whatever order: pods, node proxies and controller after a power cut.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail, ensure};
use mesh_tests::lab::{
    Lab,
    capture::contains,
    component::Order,
    control::{PodStatus, Status},
    suite,
};
use nix::sys::signal::Signal;

use super::{
    flows::{flows, logged},
    packets::{in_the_clear, outsiders, tunnelled},
    tunnel::{SOON, until},
};

const SECRET: &str = "secret-of-the-first-moment";
const OPEN: &str = "open-word-of-the-first-moment";

/// The talker says the secret from its first instruction on, and writes down what became of it. The pair outside
/// the mesh does the same in the clear, so that the capture has something to see.
const PODS: &str = r#"
apiVersion: v1
kind: Pod
metadata: {name: echo, namespace: shop, annotations: {lab.warren.dev/ip: 10.244.1.77}}
spec: {nodeName: n1, serviceAccountName: echo, containers: [{name: c, image: tcp-echo, ports: [{containerPort: 9000}]}]}
---
apiVersion: v1
kind: Pod
metadata: {name: talker, namespace: shop, annotations: {lab.warren.dev/ip: 10.244.2.77}}
spec:
  nodeName: n2
  serviceAccountName: talker
  containers: [{name: c, image: shell, command: [bash, -c, "SECRET"]}]
---
apiVersion: v1
kind: Pod
metadata: {name: loud, namespace: outside, annotations: {lab.warren.dev/ip: 10.244.1.78}}
spec: {nodeName: n1, containers: [{name: c, image: tcp-echo, ports: [{containerPort: 9000}]}]}
---
apiVersion: v1
kind: Pod
metadata: {name: stranger, namespace: outside, annotations: {lab.warren.dev/ip: 10.244.2.78}}
spec:
  nodeName: n2
  containers: [{name: c, image: shell, command: [bash, -c, "OPEN"]}]
"#;

const NAMESPACES: &str = r#"
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {warren.dev/mesh: enabled}}
---
apiVersion: v1
kind: Namespace
metadata: {name: outside}
"#;

#[derive(Clone, Copy, Debug, PartialEq)]
enum Step {
    Pods,
    Controller,
    N1,
    N2,
}

/// T06: whatever starts first, pods of the mesh are blocked until they are enrolled, then served as they are.
pub async fn t06_whatever_starts_first_nothing_leaves_unprotected() -> Result<()> {
    use Step::{Controller, N1, N2, Pods};
    let lab = Lab::up(suite::spec()).await?;
    lab.apply(NAMESPACES).await?;
    let mut any = [Pods, Controller, N1, N2];
    fastrand::shuffle(&mut any);
    for order in [[Pods, N2, N1, Controller], [N2, Controller, Pods, N1], any] {
        println!("boot order {order:?}");
        boot(&lab, &order)
            .await
            .with_context(|| format!("boot order {order:?}"))?;
    }
    Ok(())
}

fn talk(to: &str, word: &str) -> String {
    format!(
        "while :; do if exec 3<>/dev/tcp/{to}/9000; then echo {word} >&3; \
         if read -t 2 line <&3; then echo heard $line; else echo unheard; fi; exec 3>&-; \
         else echo unheard; fi; sleep 0.05; done 2>/dev/null"
    )
}

fn pods() -> String {
    PODS.replace("SECRET", &talk("10.244.1.77", SECRET))
        .replace("OPEN", &talk("10.244.1.78", OPEN))
}

async fn boot(lab: &Lab, order: &[Step; 4]) -> Result<()> {
    power_cut(lab).await?;
    let wires = [lab.capture("n1")?, lab.capture("n2")?];
    for (at, step) in order.iter().enumerate() {
        take(lab, *step).await?;
        if at < 3 {
            blocked(lab, &order[..=at])
                .await
                .with_context(|| format!("after {step:?}"))?;
        }
    }
    let log = lab.place.log("shop/talker");
    until("service", async || {
        ensure!(said(&log, &format!("heard {SECRET}"))? > 3, "not served");
        Ok(())
    })
    .await?;
    let open = lab.place.log("outside/stranger");
    until("the pair outside", async || {
        ensure!(said(&open, &format!("heard {OPEN}"))? > 3, "not served");
        Ok(())
    })
    .await?;
    let status = lab.status().await?;
    let ours: Vec<&PodStatus> = status
        .pods
        .iter()
        .filter(|p| p.namespace == "shop")
        .collect();
    let whole = |p: &&PodStatus| p.mesh == "captured" && p.restarts == 0;
    ensure!(ours.iter().all(whole), "{ours:?}");
    let others = outsiders(lab).await?;
    for wire in wires {
        let packets = wire.stop()?;
        ensure!(contains(&packets, OPEN.as_bytes()), "the capture is blind");
        ensure!(tunnelled(&packets) > 0, "nothing was tunnelled");
        ensure!(
            !contains(&packets, SECRET.as_bytes()),
            "the secret crossed the wire in the clear"
        );
        let clear = in_the_clear(&packets, &others);
        ensure!(clear.is_empty(), "segments outside the tunnel: {clear:?}");
    }
    let hbone = [
        ("src.workload", "talker"),
        ("path", "hbone"),
        ("mtls", "true"),
    ];
    logged(lab, "n2", &hbone, |f| !f.is_empty()).await?;
    let secured = [("connection_security_policy", "mutual_tls")];
    let opened = lab
        .node("n1")
        .metric("istio_tcp_connections_opened_total", &secured)
        .await?;
    ensure!(opened >= 1.0, "{opened} connections are counted as secured");
    let plain = flows(lab, "n2", &[("src.workload", "talker"), ("path", "plain")]).await?;
    ensure!(plain.is_empty(), "logged as plaintext: {plain:?}");
    Ok(())
}

/// Nothing runs any more, and the nodes have forgotten all but how to join.
async fn power_cut(lab: &Lab) -> Result<()> {
    for who in ["n1", "n2", "controller"] {
        let kill = Order::SignalAndLeave(Signal::SIGKILL as i32);
        lab.component(who, kill).await?;
    }
    lab.delete(&pods()).await?;
    lab.wait_for(SOON, |s| {
        ensure!(s.pods.is_empty(), "{} pods are left", s.pods.len());
        Ok(())
    })
    .await?;
    for pins in lab.place.existing_pins() {
        fs::remove_dir_all(&pins).with_context(|| format!("removing {}", pins.display()))?;
    }
    for node in ["n1", "n2"] {
        clear(&lab.place.node_run(node), "")?;
        clear(&lab.place.node_state(node), "token")?;
        ensure!(lab.place.node_state(node).join("token").exists(), "a token");
    }
    for who in ["shop/talker", "outside/stranger"] {
        fs::write(lab.place.log(who), "")?;
    }
    Ok(())
}

/// Removes what is in a directory, but for one entry.
fn clear(dir: &Path, keep: &str) -> Result<()> {
    let entries: Vec<PathBuf> = fs::read_dir(dir)?.flatten().map(|e| e.path()).collect();
    for path in entries
        .iter()
        .filter(|p| !p.ends_with(keep) || keep.is_empty())
    {
        let done = match path.is_dir() {
            true => fs::remove_dir_all(path),
            false => fs::remove_file(path),
        };
        done.with_context(|| format!("removing {}", path.display()))?;
    }
    Ok(())
}

async fn take(lab: &Lab, step: Step) -> Result<()> {
    match step {
        Step::Pods => lab.apply(&pods()).await.map(drop),
        Step::Controller => lab.component("controller", Order::Start).await,
        Step::N1 => lab.component("n1", Order::Start).await,
        Step::N2 => lab.component("n2", Order::Start).await,
    }
}

/// Waits until each pod has come as far as it can with what there is, and expects that none was served.
async fn blocked(lab: &Lab, there: &[Step]) -> Result<()> {
    let log = lab.place.log("shop/talker");
    if there.contains(&Step::Pods) {
        let expect = |pod: &PodStatus, proxy: Step| match there.contains(&proxy) {
            true => pod.mesh == "captured",
            false => pod.note.contains("waiting for the node proxy"),
        };
        let settled = |s: &Status| {
            let pod = |who| s.pod(who);
            let (echo, talker) = (pod("shop/echo")?, pod("shop/talker")?);
            if !(expect(echo, Step::N1) && expect(talker, Step::N2)) {
                bail!("{echo:?}, {talker:?}");
            }
            Ok(())
        };
        lab.wait_for(SOON, settled).await?;
        if there.contains(&Step::N2) {
            until("the talker's attempts", async || {
                ensure!(said(&log, "unheard")? > 2, "it has not tried");
                Ok(())
            })
            .await?;
        } else {
            ensure!(
                said(&log, "heard")? == 0,
                "a program ran before its capture"
            );
        }
    }
    ensure!(
        said(&log, &format!("heard {SECRET}"))? == 0,
        "served too early"
    );
    Ok(())
}

/// How many lines of a log begin with `word`.
fn said(log: &Path, word: &str) -> Result<usize> {
    let text = fs::read_to_string(log).unwrap_or_default();
    Ok(text.lines().filter(|l| l.starts_with(word)).count())
}
