//! What peers may ask of a tunnel, what reaches an application before it is allowed, and how connections end.

use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader},
    process::Child,
    sync::{Arc, Mutex},
};

use anyhow::{Context, Result, ensure};
use mesh_tests::lab::Lab;
use nix::sys::signal::Signal;

use super::{
    hbone::{Root, Trap, Tunnel, leaf},
    play::{self, SCENES, Seen},
    trust::pid,
    tunnel::{SOON, echo, pair, pair_in, until},
};

const CLIENT: &str = "spiffe://cluster.local/ns/shop/sa/client";
const EARLY: &[u8] = b"bytes that came before they were allowed";

const DENY: &str = r#"
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: deny-client, namespace: shop}
spec:
  selector: {matchLabels: {app: echo}}
  action: DENY
  rules: [{from: [{source: {principals: [cluster.local/ns/shop/sa/client]}}]}]
"#;

async fn netns(lab: &Lab, who: &str) -> Result<std::path::PathBuf> {
    Ok(lab.status().await?.pod(who)?.netns.clone())
}

/// T17: a tunnel to a pod carries to that pod's applications and to nothing else, whatever its peer asks for.
pub async fn t17_a_connect_to_anything_but_the_pod_is_refused_undialed() -> Result<()> {
    let root = Root::new()?;
    let lab = pair_in(root.spec()).await?;
    let (pod, node, other) = (
        netns(&lab, "shop/echo").await?,
        lab.place.netns_path("n1"),
        netns(&lab, "shop/client").await?,
    );
    let at = |list: &[&str]| -> Result<Vec<std::net::SocketAddr>> {
        list.iter().map(|a| Ok(a.parse()?)).collect()
    };
    let traps = [
        Trap::set(
            &pod,
            at(&["127.0.0.1:7777", "[::1]:7777", "10.244.1.2:7777"])?,
        )?,
        Trap::set(&node, at(&["172.30.0.11:7777", "127.0.0.1:7777"])?)?,
        Trap::set(&other, at(&["10.244.2.2:7777"])?)?,
    ];
    let from = lab.place.netns_path("n2");
    let shown = root.signs(leaf(&[CLIENT])?)?;
    let mut tunnel = Tunnel::open(&from, "10.244.1.2:15008".parse()?, Some(&shown)).await?;
    let targets = [
        "10.244.2.2:7777",
        "172.30.0.11:7777",
        "172.30.0.11:15020",
        "127.0.0.1:7777",
        "[::1]:7777",
        "0.0.0.0:7777",
        "[::]:7777",
        "10.244.1.2:15001",
        "10.244.1.2:15002",
        "10.244.1.2:15006",
        "10.244.1.2:15008",
        "10.244.1.2:15053",
        "169.254.169.254:80",
        "[::ffff:10.244.1.2]:7777",
        "[::ffff:127.0.0.1]:7777",
        "[fd00:244:1::2]:7777",
        "localhost:7777",
        "echo.shop.svc.cluster.local:9000",
        "10.244.1.2:0",
    ];
    let count = async || {
        lab.node("n1")
            .metric(
                "istio_tcp_connections_failed_total",
                &[("reporter", "destination")],
            )
            .await
    };
    let before = count().await?;
    for target in targets {
        let status = tunnel
            .ask(target, b"")
            .await
            .with_context(|| format!("asking for {target}"))?;
        ensure!(
            [400, 401].contains(&status),
            "a CONNECT to {target} was answered {status}"
        );
    }
    let caught: usize = traps.iter().map(|t| t.caught().0).sum();
    ensure!(caught == 0, "{caught} connections were dialed");
    until("the access log and the metric", async || {
        let counted = count().await? - before;
        ensure!(
            counted >= targets.len() as f64,
            "{counted} refusals are counted"
        );
        let lines = lab.node("n1").access_log().await?;
        let told = lines
            .iter()
            .filter(|l| l.contains("reason=bad_authority") || l.contains("reason=loop"))
            .count();
        ensure!(told >= targets.len(), "{told} lines:\n{}", lines.join("\n"));
        Ok(())
    })
    .await?;
    // The tunnel itself is fine, and the traps would have caught what came.
    let status = tunnel.ask("10.244.1.2:7777", b"").await?;
    ensure!(status == 200, "its own port was answered {status}");
    until("the trap", async || {
        ensure!(traps[0].caught().0 == 1, "{:?}", traps[0].caught());
        Ok(())
    })
    .await
}

/// T18: bytes that a peer sends before its answer reach nobody when the answer is no.
pub async fn t18_early_bytes_of_a_denied_stream_reach_nobody() -> Result<()> {
    let root = Root::new()?;
    let lab = pair_in(root.spec()).await?;
    lab.apply(DENY).await?;
    until("the policy", async || {
        ensure!(
            echo(&lab, "shop/client", "10.244.1.2").await.is_err(),
            "not yet"
        );
        Ok(())
    })
    .await?;
    let pod = netns(&lab, "shop/echo").await?;
    let trap = Trap::set(&pod, vec!["10.244.1.2:7777".parse()?])?;
    let from = lab.place.netns_path("n2");
    let shown = root.signs(leaf(&[CLIENT])?)?;
    let to = "10.244.1.2:15008".parse()?;
    let denied = [("reporter", "destination"), ("response_flags", "DENY")];
    let failed = "istio_tcp_connections_failed_total";
    let before = lab.node("n1").metric(failed, &denied).await?;
    let mut tunnel = Tunnel::open(&from, to, Some(&shown)).await?;
    for _ in 0..20 {
        let status = tunnel.ask("10.244.1.2:7777", EARLY).await?;
        ensure!(status == 401, "answered {status}");
    }
    // Another tunnel, so that the first streams of one are tested too.
    for _ in 0..5 {
        let mut fresh = Tunnel::open(&from, to, Some(&shown)).await?;
        let status = fresh.ask("10.244.1.2:7777", EARLY).await?;
        ensure!(status == 401, "answered {status} on a fresh tunnel");
    }
    until("the access log and the metric", async || {
        let counted = lab.node("n1").metric(failed, &denied).await? - before;
        ensure!(counted >= 25.0, "{counted} denials are counted");
        let lines = lab.node("n1").access_log().await?;
        let told = lines
            .iter()
            .filter(|l| l.contains("reason=policy_denied") && l.contains(":7777"))
            .count();
        ensure!(told >= 25, "{told} lines:\n{}", lines.join("\n"));
        Ok(())
    })
    .await?;
    ensure!(
        trap.caught() == (0, 0),
        "the backend got {:?}",
        trap.caught()
    );
    // The same bytes do arrive, once and whole, as soon as they may.
    lab.delete(DENY).await?;
    until("service without the policy", async || {
        let status = tunnel.ask("10.244.1.2:7777", EARLY).await?;
        ensure!(status == 200, "answered {status}");
        Ok(())
    })
    .await?;
    until("the bytes", async || {
        ensure!(trap.caught() == (1, EARLY.len()), "{:?}", trap.caught());
        Ok(())
    })
    .await
}

const OTHERS: &str = r#"
apiVersion: v1
kind: Pod
metadata: {name: near, namespace: shop}
spec: {nodeName: n1, serviceAccountName: near, containers: [{name: c, image: idle}]}
---
apiVersion: v1
kind: Namespace
metadata: {name: outside}
---
apiVersion: v1
kind: Pod
metadata: {name: client, namespace: outside}
spec: {nodeName: n2, containers: [{name: c, image: idle}]}
---
apiVersion: v1
kind: Pod
metadata: {name: server, namespace: outside}
spec: {nodeName: n1, containers: [{name: c, image: idle}]}
"#;

/// A server of scenes in a pod, and what it saw.
struct Server {
    child: Child,
    seen: Arc<Mutex<Vec<Result<Seen, String>>>>,
    at: String,
}

impl Server {
    async fn start(lab: &Lab, who: &str) -> Result<Self> {
        let mut child = lab
            .spawn(who, &play::command("ends-server", &["7000"])?)
            .await?;
        let out = child.stdout.take().context("a pipe")?;
        let seen = Arc::new(Mutex::new(Vec::new()));
        let (told, ready) = std::sync::mpsc::channel();
        let lines = seen.clone();
        std::thread::spawn(move || {
            for line in BufReader::new(out).lines().map_while(Result::ok) {
                if line == "ready" {
                    // Nobody waits for it a second time.
                    let _ = told.send(());
                    continue;
                }
                let one = serde_json::from_str(&line).map_err(|_| line);
                lines.lock().expect("not poisoned").push(one);
            }
        });
        ready
            .recv_timeout(SOON)
            .with_context(|| format!("the server of scenes in {who}"))?;
        let ip = lab.status().await?.pod(who)?.ip;
        let at = format!("{ip}:7000");
        Ok(Self { child, seen, at })
    }

    /// Plays a scene with a client in `who`; gives what the client and the server saw.
    async fn plays(&self, lab: &Lab, who: &str, scene: &str) -> Result<(String, Seen)> {
        let client = self.played_by(lab, who, scene).await?;
        Ok((client, self.saw(scene).await?))
    }

    /// The client's part, and what it saw.
    async fn played_by(&self, lab: &Lab, who: &str, scene: &str) -> Result<String> {
        self.seen.lock().expect("not poisoned").clear();
        let ran = lab
            .exec(who, &play::command("ends-client", &[&self.at, scene])?)
            .await?;
        Ok(match scene {
            "client-killed" => format!("ended with {}", ran.code),
            _ => {
                ensure!(ran.code == 0, "{scene} in {who}: {ran:?}");
                ran.out.trim().to_owned()
            }
        })
    }

    /// What the server saw.
    async fn saw(&self, scene: &str) -> Result<Seen> {
        let mut server = None;
        until(scene, async || {
            server = self.seen.lock().expect("not poisoned").first().cloned();
            ensure!(server.is_some(), "the server of {scene} did not end");
            Ok(())
        })
        .await?;
        let server = server.context("it was there")?;
        server.map_err(|e| anyhow::anyhow!("the server of {scene}: {e}"))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn open_files(pid: u32) -> Result<usize> {
    Ok(std::fs::read_dir(format!("/proc/{pid}/fd"))?.count())
}

/// T20: however a connection ends, both applications see what they would see without the mesh; nothing leaks.
pub async fn t20_connections_end_as_they_would_without_the_mesh() -> Result<()> {
    const ROUNDS: usize = 3;
    let lab = pair().await?;
    lab.apply(OTHERS).await?;
    lab.wait_ready(SOON).await?;
    let (inside, outside) = (
        Server::start(&lab, "shop/echo").await?,
        Server::start(&lab, "outside/server").await?,
    );
    let mut reference = BTreeMap::new();
    for scene in SCENES {
        let seen = outside.plays(&lab, "outside/client", scene).await?;
        reference.insert(scene, seen);
    }
    for (scene, seen) in &reference {
        println!("T20: {scene}: {seen:?}");
    }
    // Whatever is kept for a while (a tunnel for each thread) is there after the first connections.
    for who in ["shop/client", "shop/near", "outside/client"] {
        for _ in 0..10 {
            inside.plays(&lab, who, "client-half-close").await?;
        }
    }
    quiet(&lab).await?;
    let before = [files(&lab, "n1").await?, files(&lab, "n2").await?];
    for _ in 0..ROUNDS {
        for who in ["shop/client", "shop/near", "outside/client"] {
            for scene in SCENES {
                let seen = inside.plays(&lab, who, scene).await?;
                ensure!(
                    seen == reference[scene],
                    "{scene} from {who}: {seen:?}; without the mesh: {:?}",
                    reference[scene]
                );
            }
        }
    }
    // The same where the client is gone before a proxy has looked at all.
    for who in ["shop/client", "shop/near", "outside/client"] {
        for scene in ["client-reset-at-once", "client-killed"] {
            signal(&lab, Signal::SIGSTOP).await?;
            let client = inside.played_by(&lab, who, scene).await;
            signal(&lab, Signal::SIGCONT).await?;
            let seen = (client?, inside.saw(scene).await?);
            ensure!(
                seen == reference[scene],
                "{scene} from {who} while the proxies hang: {seen:?}"
            );
        }
    }
    quiet(&lab).await?;
    let after = [files(&lab, "n1").await?, files(&lab, "n2").await?];
    for (node, (before, after)) in ["n1", "n2"].iter().zip(before.iter().zip(after)) {
        // A tunnel for a thread that had none yet is no leak.
        ensure!(
            after <= before + 6,
            "{node} had {before} descriptors and has {after}"
        );
    }
    for path in ["path=hbone", "path=plain", "direction=direct"] {
        let lines = lab.node("n1").access_log().await?;
        ensure!(
            lines
                .iter()
                .any(|l| l.contains(path) && l.contains(":7000")),
            "no connection went {path}"
        );
    }
    Ok(())
}

async fn files(lab: &Lab, node: &str) -> Result<usize> {
    open_files(pid(lab, node).await?)
}

async fn signal(lab: &Lab, signal: Signal) -> Result<()> {
    for node in ["n1", "n2"] {
        lab.node(node).kill_agent(signal, false).await?;
    }
    Ok(())
}

/// Waits until no flow is live.
async fn quiet(lab: &Lab) -> Result<()> {
    for node in ["n1", "n2"] {
        until("the end of all flows", async || {
            let live = lab.node(node).metric("warren_sessions", &[]).await?;
            ensure!(live == 0.0, "{live} flows are live on {node}");
            Ok(())
        })
        .await?;
    }
    Ok(())
}
