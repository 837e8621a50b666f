//! What capture promises about the node around the pods: whose interfaces are guarded, who may go direct, who
//! counts as kubelet, and who is left alone.

use std::{fs, path::PathBuf};

use anyhow::{Context, Result, bail, ensure};
use mesh_tests::lab::{Lab, control::PodStatus, suite};

use super::{
    frames,
    tunnel::{SOON, echo, until},
};

/// An echo and its client on one node, both in the mesh, and beside them somebody who is not.
const NEIGHBOURS: &str = r#"
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {warren.dev/mesh: enabled}}
---
apiVersion: v1
kind: Namespace
metadata: {name: outside}
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
spec: {nodeName: n1, serviceAccountName: client, containers: [{name: c, image: idle}]}
---
apiVersion: v1
kind: Pod
metadata: {name: stranger, namespace: outside}
spec: {nodeName: n1, serviceAccountName: stranger, containers: [{name: c, image: idle}]}
"#;

/// A lab with the neighbours settled; `tc`: how programs get on interfaces.
pub async fn neighbours(tc: &str) -> Result<Lab> {
    let spec = mesh_tests::lab::supervisor::Spec {
        nodes: 1,
        agent_env: vec![("WARREN_TC".into(), tc.into())],
        ..suite::spec()
    };
    let lab = Lab::up(spec).await?;
    lab.apply(NEIGHBOURS).await?;
    lab.wait_ready(SOON).await?;
    lab.wait_for(SOON, |s| {
        let settled = |p: &&PodStatus| {
            p.mesh
                == if p.namespace == "shop" {
                    "captured"
                } else {
                    "out"
                }
        };
        match s.pods.iter().find(|p| !settled(p)) {
            None => Ok(()),
            Some(p) => bail!("{} is `{}` ({})", p.name, p.mesh, p.note),
        }
    })
    .await?;
    goes(&lab, "direct").await?;
    Ok(lab)
}

/// Connections of the client's to the echo take this path, soon.
pub async fn goes(lab: &Lab, path: &str) -> Result<()> {
    until(&format!("path={path}"), async || {
        let before = lines(lab, path).await?;
        for to in ["echo", "echo"] {
            echo(lab, "shop/client", to).await?;
        }
        ensure!(
            lines(lab, path).await? > before,
            "no new line says path={path}"
        );
        Ok(())
    })
    .await
}

async fn lines(lab: &Lab, path: &str) -> Result<usize> {
    let log = lab.node("n1").access_log().await?;
    let word = format!("path={path} ");
    Ok(log.iter().filter(|l| l.contains(&word)).count())
}

pub async fn metric(lab: &Lab, name: &str, labels: &[(&str, &str)]) -> Result<f64> {
    lab.node("n1").metric(name, labels).await
}

pub async fn pod(lab: &Lab, who: &str) -> Result<PodStatus> {
    Ok(lab.status().await?.pod(who)?.clone())
}

/// The log of the node proxy says this, soon.
pub async fn says(lab: &Lab, words: &[&str]) -> Result<()> {
    until("the node proxy's log", async || {
        let log = lab.node("n1").log()?;
        let found = log.lines().any(|l| words.iter().all(|w| l.contains(w)));
        ensure!(found, "no line has {words:?}");
        Ok(())
    })
    .await
}

/// Runs a program on the node, which must succeed.
pub async fn on_node(lab: &Lab, command: &str) -> Result<()> {
    let words: Vec<&str> = command.split(' ').collect();
    let ran = lab.exec("n1", &words).await?;
    ensure!(ran.code == 0, "{command}: {ran:?}");
    Ok(())
}

/// T32: somebody on the same bridge claims an enrolled pod's addresses: dropped, counted, told; nobody notices.
pub async fn t32_nobody_speaks_in_an_enrolled_pods_name() -> Result<()> {
    for tc in ["auto", "clsact"] {
        let lab = neighbours(tc).await?;
        claimed(&lab).await.context(tc)?;
        lab.down().await?;
    }
    Ok(())
}

async fn claimed(lab: &Lab) -> Result<()> {
    let (stranger, victim, peer) = (
        pod(lab, "outside/stranger").await?,
        pod(lab, "shop/echo").await?,
        pod(lab, "shop/client").await?,
    );
    const DROPPED: &[(&str, &str)] = &[("kind", "dropped"), ("name", "address_claimed")];
    let before = metric(lab, "warren_kernel_total", DROPPED).await?;
    let link = frames::interface(&stranger.netns)?;
    let sent = frames::claims(&link, &victim, &peer, 9000);
    let count = sent.len() as f64;
    frames::send_from(&stranger.netns, sent)?;
    until("every claim is counted", async || {
        let now = metric(lab, "warren_kernel_total", DROPPED).await?;
        ensure!(
            now - before == count,
            "{} of {count} were dropped",
            now - before
        );
        Ok(())
    })
    .await?;
    says(
        lab,
        &[
            "a packet was dropped",
            "address_claimed",
            &victim.ip.to_string(),
        ],
    )
    .await?;
    // The client still knows the victim by its own hardware address, and goes on talking to it directly.
    let own = frames::interface(&victim.netns)?.to_string();
    let table = lab.exec("shop/client", &["ip", "neigh"]).await?;
    let impostor = link.to_string().to_lowercase();
    ensure!(
        !table.out.to_lowercase().contains(&impostor),
        "the client believes {impostor}: {table:?}"
    );
    for address in frames::addresses(&victim) {
        echo(lab, "shop/client", &address.to_string()).await?;
    }
    goes(lab, "direct")
        .await
        .with_context(|| format!("{own}: {table:?}"))
}

/// An anchor that somebody detaches is put back, and nothing goes direct until all has been found in order.
pub async fn a_detached_anchor_withdraws_the_direct_path() -> Result<()> {
    let lab = neighbours("auto").await?;
    let held = Held::open(&lab).await?;
    let link = anchor_of(&lab, &pod(&lab, "outside/stranger").await?).await?;
    if !link.exists() {
        println!("passed over: this kernel has no TCX, whose links are pinned");
        return Ok(());
    }
    fs::remove_file(&link).with_context(|| format!("detaching {}", link.display()))?;
    for words in [
        &["was not in its place", "program=\"anchor\""][..],
        &["the direct path is withdrawn"],
        &["every interface is guarded"],
    ] {
        says(&lab, words).await?;
    }
    ensure!(link.exists(), "it is pinned again");
    let restored = metric(
        &lab,
        "warren_programs_restored_total",
        &[("program", "anchor")],
    )
    .await?;
    ensure!(restored == 1.0, "{restored} were put back");
    goes(&lab, "direct").await?;
    // It was put back at once: who talked was not interrupted.
    held.goes_on().await
}

/// The pin of the link that anchors a pod's interface.
async fn anchor_of(lab: &Lab, pod: &PodStatus) -> Result<PathBuf> {
    let ran = lab
        .exec(
            "n1",
            &["cat", &format!("/sys/class/net/{}/ifindex", pod.veth)],
        )
        .await?;
    let index = match ran.code {
        0 => ran.out.trim().to_owned(),
        // The machine's sysfs shows the machine's own interfaces.
        _ => {
            let ran = lab
                .exec("n1", &["ip", "-o", "link", "show", &pod.veth])
                .await?;
            ran.out.split(':').next().unwrap_or_default().to_owned()
        }
    };
    let pins = PathBuf::from("/sys/fs/bpf/warren").join(lab.place.instance("n1"));
    let layout = fs::read_dir(&pins)?
        .next()
        .context("the node proxy pins its links")??;
    Ok(layout
        .path()
        .join("links")
        .join(format!("if-{index}-anchor")))
}

/// While one port of the pods' bridge cannot be anchored, pods of the node talk through tunnels, and what was
/// direct is cut; when it can, the direct path is back.
pub async fn an_open_port_keeps_the_direct_path_withdrawn() -> Result<()> {
    let lab = neighbours("clsact").await?;
    let held = Held::open(&lab).await?;
    for command in [
        "ip link add open0 type veth peer name open1",
        "tc qdisc add dev open0 clsact",
    ] {
        on_node(&lab, command).await?;
    }
    // A priority belongs to one protocol: ours finds the first place taken.
    let mut words: Vec<&str> = "tc filter add dev open0 ingress prio 1 protocol ip bpf bytecode"
        .split(' ')
        .collect();
    words.extend(["1,6 0 0 0,", "flowid", "1:1"]);
    let ran = lab.exec("n1", &words).await?;
    ensure!(ran.code == 0, "{ran:?}");
    on_node(&lab, "ip link set open0 master cni0 up").await?;
    says(
        &lab,
        &["an interface is not guarded", "open0", "priority 1"],
    )
    .await?;
    says(&lab, &["the direct path is withdrawn"]).await?;
    held.ends().await?;
    let words = ["direction=direct", "reason=policy_changed", "open0"];
    lab.until_logged("n1", &words).await?;
    ensure!(metric(&lab, "warren_direct_allowed", &[]).await? == 0.0);
    ensure!(metric(&lab, "warren_interfaces_open", &[]).await? == 1.0);
    goes(&lab, "hbone").await?;
    let direct = lines(&lab, "direct").await?;
    for _ in 0..5 {
        echo(&lab, "shop/client", "echo").await?;
    }
    ensure!(
        lines(&lab, "direct").await? == direct,
        "nothing goes direct"
    );
    on_node(&lab, "tc filter del dev open0 ingress prio 1").await?;
    says(&lab, &["every interface is guarded"]).await?;
    goes(&lab, "direct").await?;
    ensure!(metric(&lab, "warren_direct_allowed", &[]).await? == 1.0);
    ensure!(metric(&lab, "warren_interfaces_open", &[]).await? == 0.0);
    Ok(())
}

/// A direct connection that stays open.
struct Held {
    child: std::process::Child,
}

impl Held {
    /// The first connection to the pod's own address goes through the proxy, which teaches the kernel the next.
    async fn open(lab: &Lab) -> Result<Self> {
        const DIRECT: &[(&str, &str)] = &[("kind", "decision"), ("name", "connect_direct")];
        let to = pod(lab, "shop/echo").await?.ip;
        let script = format!(
            "exec 3<>/dev/tcp/{to}/9000; while read -r line; do echo \"$line\" >&3 && read -r back <&3 && echo \"$back\" || exit 9; done"
        );
        let mut held = None;
        until("a direct connection", async || {
            let before = metric(lab, "warren_kernel_total", DIRECT).await?;
            let child = lab.spawn("shop/client", &["bash", "-c", &script]).await?;
            let mut this = Self { child };
            this.exchange()?;
            ensure!(
                metric(lab, "warren_kernel_total", DIRECT).await? > before,
                "it goes through the proxy"
            );
            held = Some(this);
            Ok(())
        })
        .await?;
        held.context("it was opened")
    }

    fn exchange(&mut self) -> Result<()> {
        use std::io::{BufRead, BufReader, Write};
        let input = self.child.stdin.as_mut().context("piped")?;
        input.write_all(b"hello\n")?;
        let mut line = String::new();
        // A pipe's reader keeps nothing: one line is asked for and one comes.
        BufReader::with_capacity(64, self.child.stdout.as_mut().context("piped")?)
            .read_line(&mut line)?;
        ensure!(line.trim() == "hello", "the connection said {line:?}");
        Ok(())
    }

    async fn goes_on(mut self) -> Result<()> {
        self.exchange()
    }

    async fn ends(mut self) -> Result<()> {
        until("the connection is cut", async || {
            ensure!(self.exchange().is_err(), "it goes on");
            Ok(())
        })
        .await
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
