//! The node beside the mesh: its own processes, its kubelet, pods that cannot be captured, and pods that want
//! all there is.

use std::{
    net::{SocketAddr, TcpStream},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use mesh_tests::lab::{
    Lab,
    capture::contains,
    component::Order,
    enter::in_netns,
    kubelet::{self, Probe},
};

use nix::sys::signal::Signal;

use super::{
    load::{flawless, load},
    tunnel::{MARKER, SOON, echo, pair, until},
};

/// A pod whose kubelet probes one of its two ports, in a namespace that takes mutual TLS only; and one that
/// shares the node's network.
const PROBED: &str = r#"
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: default, namespace: shop}
spec: {mtls: {mode: STRICT}}
---
apiVersion: v1
kind: Pod
metadata: {name: probed, namespace: shop, labels: {app: probed}}
spec:
  nodeName: n1
  containers:
    - {name: declared, image: httpbin, ports: [{containerPort: 80}], readinessProbe: {httpGet: {path: /status/200, port: 80}, periodSeconds: 1}}
    - {name: other, image: httpbin, env: [{name: PORT, value: "8081"}], ports: [{containerPort: 8081}]}
---
apiVersion: v1
kind: Pod
metadata: {name: onthenode, namespace: shop}
spec: {nodeName: n1, hostNetwork: true, containers: [{name: c, image: idle}]}
"#;

/// T33: under STRICT the node's processes and pods in its network are refused; kubelet's probes pass, to the
/// ports that the pod declares for them.
pub async fn t33_only_kubelet_probes_a_strict_pod() -> Result<()> {
    let lab = pair().await?;
    lab.apply(PROBED).await?;
    // Readiness is kubelet's probe: nobody told the node proxy where kubelet is.
    lab.wait_ready(SOON).await?;
    let log = lab.node("n1").log()?;
    ensure!(
        log.contains("kubelet was found"),
        "it was found by its port"
    );
    ensure!(lab.node("n1").metric("warren_kubelet_found", &[]).await? == 1.0);
    let ip = lab.status().await?.pod("shop/probed")?.ip;
    let get = |port: u16| {
        format!("curl -s -m 5 -o /dev/null -w %{{http_code}} http://{ip}:{port}/status/200")
    };
    until("STRICT in force", async || {
        for who in ["n1", "shop/onthenode"] {
            for port in [80, 8081] {
                let ran = lab
                    .exec(who, &get(port).split(' ').collect::<Vec<_>>())
                    .await?;
                ensure!(
                    ran.code != 0 && ran.out == "000",
                    "{who} to port {port}: {ran:?}"
                );
            }
        }
        Ok(())
    })
    .await?;
    let socket = kubelet::socket(&lab.place.node_run("n1"));
    for (port, passes) in [(80, true), (8081, false)] {
        let probe = Probe {
            ip: ip.into(),
            port,
            path: Some("/status/200".into()),
            host: None,
            timeout_ms: 5000,
        };
        let said = kubelet::ask(&socket, &probe).await;
        ensure!(said.ok == passes, "kubelet to port {port}: {said:?}");
    }
    refused_and_counted(&lab, "mtls_required").await?;
    const PROBES: &[(&str, &str)] = &[("kind", "decision"), ("name", "inbound_probe")];
    let passed = lab.node("n1").metric("warren_kernel_total", PROBES).await?;
    ensure!(passed >= 2.0, "{passed} probes passed");
    ensure!(
        lab.status().await?.pod("shop/probed")?.ready,
        "it stays ready"
    );
    // The mesh's own way in is open all the time.
    let ran = lab
        .exec("shop/client", &get(8081).split(' ').collect::<Vec<_>>())
        .await?;
    ensure!(ran.out == "200", "{ran:?}");
    Ok(())
}

async fn refused_and_counted(lab: &Lab, reason: &str) -> Result<()> {
    refused_and_counted_on(lab, "n1", reason).await
}

async fn refused_and_counted_on(lab: &Lab, node: &str, reason: &str) -> Result<()> {
    until(reason, async || {
        let lines = lab.node(node).access_log().await?;
        let word = format!("reason={reason}");
        ensure!(
            lines.iter().any(|l| l.contains(&word)),
            "no line says {word}"
        );
        let failed = lab
            .node(node)
            .metric("warren_flow_failures_total", &[("reason", reason)])
            .await?;
        ensure!(failed >= 1.0, "{failed} are counted");
        Ok(())
    })
    .await
}

/// Pods that ask for the mesh and cannot be captured as they are.
const UNFIT: &str = r#"
apiVersion: v1
kind: Namespace
metadata: {name: unfit}
---
apiVersion: v1
kind: Pod
metadata: {name: redirected, namespace: unfit, annotations: {ambient.istio.io/redirection: enabled}}
spec: {nodeName: n2, containers: [{name: c, image: idle}]}
---
apiVersion: v1
kind: Pod
metadata: {name: nested, namespace: unfit}
spec: {nodeName: n2, containers: [{name: c, image: idle}]}
---
apiVersion: v1
kind: Pod
metadata: {name: bridging, namespace: unfit}
spec: {nodeName: n2, containers: [{name: c, image: idle}]}
---
apiVersion: v1
kind: Pod
metadata: {name: forwarding, namespace: unfit}
spec: {nodeName: n2, containers: [{name: c, image: idle}]}
---
apiVersion: v1
kind: Pod
metadata: {name: permitted, namespace: unfit, annotations: {warren.dev/allow-forwarded: "true"}}
spec: {nodeName: n2, containers: [{name: c, image: idle}]}
"#;

/// T34: pods that cannot be captured are refused with a status, and their traffic goes as it did before.
pub async fn t34_pods_that_cannot_be_captured_are_left_alone() -> Result<()> {
    let lab = pair().await?;
    lab.apply(UNFIT).await?;
    lab.wait_ready(SOON).await?;
    const INNER: &str =
        "ip link add in0 type veth peer name in1 && ip link set in0 up && ip link set in1 up";
    for (who, script) in [
        (
            "unfit/nested",
            format!("{INNER} && ip addr add 172.31.9.1/24 dev in0"),
        ),
        ("unfit/bridging", INNER.to_owned()),
        (
            "unfit/forwarding",
            "echo 1 > /proc/sys/net/ipv6/conf/all/forwarding".to_owned(),
        ),
        (
            "unfit/permitted",
            "echo 1 > /proc/sys/net/ipv6/conf/all/forwarding".to_owned(),
        ),
    ] {
        let ran = lab.exec(who, &["bash", "-c", &script]).await?;
        ensure!(ran.code == 0, "{who}: {ran:?}");
    }
    lab.apply(&UNFIT.replace(
        "{name: unfit}",
        "{name: unfit, labels: {warren.dev/mesh: enabled}}",
    ))
    .await?;
    lab.wait_for(SOON, |s| {
        for p in s.pods.iter().filter(|p| p.namespace == "unfit") {
            let want = if p.name == "permitted" {
                "captured"
            } else {
                "refused"
            };
            if p.mesh != want {
                bail!("{} is `{}` and not {want} ({})", p.name, p.mesh, p.note);
            }
        }
        Ok(())
    })
    .await?;
    let log = lab.node("n2").log()?;
    for (who, why) in [
        ("redirected", "ambient.istio.io/redirection"),
        ("nested", "a further interface in0 with address 172.31.9.1"),
        ("bridging", "a further interface in"),
        ("forwarding", "net.ipv6.conf.all.forwarding is on"),
    ] {
        let told = |l: &str| l.contains("cannot be captured") && l.contains(who) && l.contains(why);
        ensure!(
            log.lines().any(told),
            "the log does not say why {who} is refused:\n{log}"
        );
        // Untouched: native TCP, which the server's proxy takes for plaintext from outside the mesh.
        echo(&lab, &format!("unfit/{who}"), "10.244.1.2").await?;
    }
    echo(&lab, "unfit/permitted", "10.244.1.2").await?;
    let refused = lab
        .node("n2")
        .metric("warren_pods", &[("state", "refused")])
        .await?;
    ensure!(refused == 4.0, "{refused} pods count as refused");
    let own = lab.node("n2").access_log().await?;
    ensure!(
        own.iter()
            .all(|l| ["redirected", "nested", "bridging", "forwarding"]
                .iter()
                .all(|w| !l.contains(&format!("src.workload=\"{w}\"")))),
        "their own node's proxy saw nothing of them"
    );
    Ok(())
}

/// A neighbour of the client, so that the two have a direct path.
const NEIGHBOUR: &str = r#"
apiVersion: v1
kind: Pod
metadata: {name: near, namespace: shop}
spec: {nodeName: n2, serviceAccountName: echo, containers: [{name: c, image: tcp-echo, ports: [{containerPort: 9000}]}]}
"#;

/// A pod that begins to forward after it was captured is refused with a reason and stays captured, also when its
/// node proxy starts over; when it forwards no more, it is as it was.
pub async fn a_captured_pod_that_begins_to_forward_is_refused() -> Result<()> {
    let lab = pair().await?;
    lab.apply(NEIGHBOUR).await?;
    lab.wait_ready(SOON).await?;
    let near = lab.status().await?.pod("shop/near")?.ip.to_string();
    let held = format!(
        "exec 3<>/dev/tcp/{near}/9000; for i in $(seq 400); do echo x >&3 && read -t 5 -u 3 a || exit 7; sleep 0.1; done"
    );
    let directs = async || {
        let lines = [("kind", "decision"), ("name", "connect_direct")];
        lab.node("n2").metric("warren_kernel_total", &lines).await
    };
    until("a direct connection", async || {
        echo(&lab, "shop/client", &near).await?;
        ensure!(directs().await? >= 1.0, "none was direct");
        Ok(())
    })
    .await?;
    let held = lab.spawn("shop/client", &["bash", "-c", &held]).await?;
    let forward = async |on: u8| {
        let script = format!("echo {on} > /proc/sys/net/ipv6/conf/all/forwarding");
        let ran = lab.exec("shop/client", &["bash", "-c", &script]).await?;
        ensure!(ran.code == 0, "{ran:?}");
        Ok(())
    };
    let barred = async |count: f64| {
        let now = lab.node("n2").metric("warren_pods_barred", &[]).await?;
        ensure!(now == count, "{now} pods are barred");
        Ok(())
    };
    let capture = lab.capture("n2")?;
    forward(1).await?;
    until("it is barred", async || barred(1.0).await).await?;
    let ended = tokio::task::spawn_blocking(move || held.wait_with_output()).await??;
    ensure!(
        ended.status.code() == Some(7),
        "its direct flow went on: {ended:?}"
    );
    for round in ["at once", "after a restart of its node proxy"] {
        let direct = directs().await?;
        for to in [near.as_str(), "10.244.1.2"] {
            ensure!(
                echo(&lab, "shop/client", to).await.is_err(),
                "{to} was reached {round}"
            );
        }
        refused_and_counted_on(&lab, "n2", "forwards_others").await?;
        ensure!(directs().await? == direct, "it went direct {round}");
        let status = lab.status().await?;
        let shown = status.pod("shop/client")?;
        ensure!(shown.mesh == "captured", "it is {} {round}", shown.mesh);
        if round == "at once" {
            lab.node("n2").kill_agent(Signal::SIGKILL, true).await?;
            lab.node("n2").agent(Order::Start).await?;
            until("it is barred again", async || barred(1.0).await).await?;
        }
    }
    let log = lab.node("n2").log()?;
    let told = |l: &str| l.contains("a captured pod is refused") && l.contains("forwarding is on");
    ensure!(log.lines().any(told), "the log does not say why:\n{log}");
    forward(0).await?;
    until("it is admitted again", async || {
        echo(&lab, "shop/client", "10.244.1.2").await?;
        echo(&lab, "shop/client", &near).await?;
        barred(0.0).await
    })
    .await?;
    let packets = capture.stop()?;
    ensure!(
        !contains(&packets, MARKER.as_bytes()),
        "plaintext left the node"
    );
    Ok(())
}

/// One that floods, and one that is not in the mesh.
const FLOODERS: &str = r#"
apiVersion: v1
kind: Pod
metadata: {name: flooder, namespace: shop}
spec: {nodeName: n2, serviceAccountName: flooder, containers: [{name: c, image: idle}]}
---
apiVersion: v1
kind: Namespace
metadata: {name: outside}
---
apiVersion: v1
kind: Pod
metadata: {name: stranger, namespace: outside}
spec: {nodeName: n2, containers: [{name: c, image: idle}]}
"#;
/// Connections to the tunnel's port that never say anything: more than one source may have under way.
const HALF_OPEN: usize = 400;
/// What one source may have under way.
const PER_SOURCE: f64 = 256.0;

/// T36: one pod floods connections, another half-open tunnels; their neighbour keeps its rate, and nothing of
/// its own is lost.
pub async fn t36_a_flood_costs_the_neighbours_nothing() -> Result<()> {
    let lab = pair().await?;
    lab.apply(FLOODERS).await?;
    lab.wait_ready(SOON).await?;
    echo(&lab, "shop/flooder", "echo").await?;
    let stranger = lab.status().await?.pod("outside/stranger")?.netns.clone();
    let to: SocketAddr = "10.244.1.2:15008".parse()?;
    let half_open = tokio::task::spawn_blocking(move || {
        in_netns(&stranger, move || {
            let connect = |_| TcpStream::connect_timeout(&to, Duration::from_secs(5));
            let made: Vec<TcpStream> = (0..HALF_OPEN).filter_map(|i| connect(i).ok()).collect();
            Ok(made)
        })
    })
    .await??;
    // Those beyond are reset, some of them before `connect` has returned.
    ensure!(
        half_open.len() >= PER_SOURCE as usize,
        "{} half-open tunnels",
        half_open.len()
    );
    let neighbour = ["--seconds", "8", "conns", "10.244.1.2:9000", "--rate", "50"];
    let flood = [
        "--seconds",
        "10",
        "conns",
        "10.244.1.2:9000",
        "--clients",
        "128",
    ];
    let unreachable = [
        "--seconds",
        "10",
        "conns",
        "10.244.1.2:9",
        "--clients",
        "32",
    ];
    let (good, flooded, failed) = tokio::join!(
        flawless(&lab, "shop/client", &neighbour),
        load(&lab, "shop/flooder", &flood),
        load(&lab, "shop/flooder", &unreachable),
    );
    let (good, flooded, failed) = (good?, flooded?, failed?);
    ensure!(good["ok"] == 400, "the neighbour keeps its rate: {good}");
    ensure!(
        flooded["ok"].as_u64() > Some(400),
        "the flood was one: {flooded}"
    );
    ensure!(
        failed["failed"].as_u64() > Some(400),
        "and so was the other: {failed}"
    );
    let over = lab
        .node("n1")
        .metric("warren_flow_failures_total", &[("reason", "overloaded")])
        .await?;
    let beyond = HALF_OPEN as f64 - PER_SOURCE;
    ensure!(
        over >= beyond,
        "{over} half-open tunnels were refused, and {beyond} should be"
    );
    lab.until_logged("n1", &["src.addr=10.244.2.", "reason=overloaded"])
        .await?;
    for node in ["n1", "n2"] {
        for lost in [
            "originals_full",
            "direct_full",
            "clients_full",
            "probes_full",
        ] {
            let labels = [("kind", "decision"), ("name", lost)];
            let count = lab
                .node(node)
                .metric("warren_kernel_total", &labels)
                .await?;
            ensure!(count == 0.0, "{node}: {lost} happened {count} times");
        }
    }
    drop(half_open);
    flawless(
        &lab,
        "shop/flooder",
        &["--seconds", "1", "conns", "10.244.1.2:9000", "--rate", "20"],
    )
    .await
    .context("the flooder itself, afterwards")?;
    Ok(())
}
