//! Programs of others on the hooks that ours are on: a load balancer above the pods, classifiers before and behind
//! the guard, a filter of the older kind, and a redirect that never passes a pod's veth.
//!
//! Invariant: what is attached here goes when its value is dropped, or with the lab's namespaces.

use std::{
    ffi::CString,
    fs::File,
    net::{Ipv4Addr, UdpSocket},
    os::fd::{AsRawFd, OwnedFd},
    path::PathBuf,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use mesh_tests::lab::{Lab, control::PodStatus, enter::in_netns, place::cgroup2_root};

use super::{
    capture::{goes, metric, neighbours, on_node, pod, says},
    frames,
    tunnel::{echo, until},
};

/// Single instructions, as the loader's own tests attach them.
#[allow(unsafe_code, dead_code, clippy::unwrap_used)] // the bpf system call; what only those tests need
#[path = "../../../mesh-ebpf/loader/tests/kernel/foreign.rs"]
mod foreign;

/// Another server outside the mesh: where somebody else's load balancer sends people.
const DECOY: &str = r#"
apiVersion: v1
kind: Pod
metadata: {name: decoy, namespace: outside}
spec: {nodeName: n1, serviceAccountName: decoy, containers: [{name: c, image: tcp-echo, args: ["--banner", "decoy"], ports: [{containerPort: 9000}]}]}
"#;
/// What the guard counts when a pod's packet comes neither through the proxy nor was permitted.
const BYPASS: &[(&str, &str)] = &[("kind", "dropped"), ("name", "bypass")];

/// T31: with programs of others around ours, services are still seen as they were dialed, the guard still guards,
/// and what the others decide still counts.
pub async fn t31_programs_of_others_and_ours_let_each_other_work() -> Result<()> {
    let lab = neighbours("auto").await?;
    lab.apply(DECOY).await?;
    until("the decoy answers", async || {
        let decoy = pod(&lab, "outside/decoy").await?.ip;
        let said = says_first(&lab, "outside/stranger", decoy).await?;
        ensure!(said == "decoy", "it says {said:?}");
        Ok(())
    })
    .await?;
    balancer(&lab).await.context("a load balancer")?;
    behind(&lab).await.context("programs behind the guard")?;
    before(&lab).await.context("programs before the guard")?;
    past_the_veth(&lab).await.context("a redirect into a pod")?;
    lab.down().await.map(drop)
}

/// A load balancer in `connect4` at the root of all cgroups: it balances whoever is not ours, and a pod of ours has
/// dialed what it dialed.
async fn balancer(lab: &Lab) -> Result<()> {
    let asked = lab
        .exec("shop/client", &["getent", "ahostsv4", "echo"])
        .await?;
    let vip: Ipv4Addr = asked
        .out
        .split_whitespace()
        .next()
        .context("the service has an address")?
        .parse()?;
    let through = async |who| says_first(lab, who, vip).await;
    ensure!(through("outside/stranger").await? == "hello");
    let decoy = pod(lab, "outside/decoy").await?;
    let insns = foreign::balancer(vip, decoy.ip);
    let program = foreign::load(foreign::CGROUP_SOCK_ADDR, foreign::CONNECT4, &insns);
    let root = File::open(cgroup2_root()?)?;
    let root = u32::try_from(root.as_raw_fd())?;
    let link = foreign::attach(&program, root, foreign::CONNECT4, 0)?;
    let said = through("outside/stranger").await?;
    ensure!(said == "decoy", "the balancer's answer counts: {said:?}");
    // Through the proxy first, then decided in the kernel: the service is seen both ways.
    let seen = lab.node("n1").access_log().await?.len();
    for _ in 0..3 {
        let said = through("shop/client").await?;
        ensure!(
            said == "hello",
            "a pod of ours is balanced by others: {said:?}"
        );
    }
    until("every connection is told as the service's", async || {
        let log = lab.node("n1").access_log().await?;
        let new: Vec<&String> = log[seen..]
            .iter()
            .filter(|l| !l.contains("direction=inbound"))
            .collect();
        let is_told = |l: &&&String| {
            l.contains("dst.service=echo.shop.svc.cluster.local") && l.contains("dst.workload=echo")
        };
        ensure!(
            new.len() >= 3 && new.iter().filter(is_told).count() == new.len(),
            "{new:#?}"
        );
        Ok(())
    })
    .await?;
    goes(lab, "direct").await?;
    drop(link);
    Ok(())
}

/// The first line that `who` hears from an echo, or from who answers in its place.
async fn says_first(lab: &Lab, who: &str, at: Ipv4Addr) -> Result<String> {
    let script = format!("exec 3<>/dev/tcp/{at}/9000 && echo hello >&3 && head -1 <&3");
    let words = ["timeout", "5", "bash", "-c", script.as_str()];
    let ran = lab.exec(who, &words).await?;
    ensure!(ran.code == 0, "{who} to {at}: {ran:?}");
    Ok(ran.out.trim().to_owned())
}

/// What others say behind the guard counts, and the guard has spoken before.
async fn behind(lab: &Lab) -> Result<()> {
    let (client, server) = (pod(lab, "shop/client").await?, pod(lab, "shop/echo").await?);
    let udp = async |port| arrives(&client, &server, port);
    ensure!(udp(7770).await? && udp(7771).await?, "UDP passes untouched");
    let veth = &client.veth;
    let shot = foreign::on_udp(7771, &foreign::verdict(foreign::SHOT));
    filter(lab, veth, shot).context("a filter of the older kind")?;
    ensure!(!udp(7771).await?, "a filter of the older kind is asked");
    ensure!(udp(7770).await?);
    guards(lab).await?;
    let all = |verdict| foreign::on_udp(7771, &foreign::verdict(verdict));
    if let Some(ok) = tcx(lab, veth, all(foreign::OK), foreign::AFTER).await? {
        ensure!(udp(7771).await?, "OK ends the chain before the filter");
        guards(lab).await?;
        drop(ok);
        let into = ifindex(lab, &server.veth).await?;
        let redirect = foreign::on_udp(7771, &foreign::redirect(into));
        let redirect = tcx(lab, veth, redirect, foreign::AFTER).await?;
        ensure!(udp(7771).await?, "a redirect is one, past the filter");
        guards(lab).await?;
        drop(redirect);
        let shot = tcx(
            lab,
            veth,
            foreign::on_udp(7772, &foreign::verdict(foreign::SHOT)),
            foreign::AFTER,
        )
        .await?;
        ensure!(!udp(7772).await?, "a drop is a drop");
        drop(shot);
    } else {
        println!("passed over: this kernel has no TCX");
    }
    on_node(lab, &format!("tc filter del dev {veth} ingress prio 100")).await?;
    goes(lab, "direct").await
}

/// Who puts itself before the guard hides packets from it: it is found out, and the guard is first again.
async fn before(lab: &Lab) -> Result<()> {
    let (client, server) = (pod(lab, "shop/client").await?, pod(lab, "shop/echo").await?);
    let into = ifindex(lab, &server.veth).await?;
    let restored = async || {
        let of = [("program", "guard")];
        metric(lab, "warren_programs_restored_total", &of).await
    };
    for (what, insns) in [
        ("ok", foreign::always(foreign::OK)),
        ("redirect", foreign::on_tcp(7773, &foreign::redirect(into))),
    ] {
        let back = restored().await?;
        let Some(first) = tcx(lab, &client.veth, insns, foreign::BEFORE).await? else {
            return Ok(());
        };
        until("the guard is put back", async || {
            let now = restored().await?;
            ensure!(now > back, "{what}: {now} were put back");
            Ok(())
        })
        .await?;
        says(lab, &["was not in its place", "program=\"guard\""]).await?;
        says(lab, &["the direct path is withdrawn"]).await?;
        guards(lab).await.context(what)?;
        drop(first);
        until("the direct path is back", async || {
            let allowed = metric(lab, "warren_direct_allowed", &[]).await?;
            ensure!(allowed == 1.0, "{what}: direct is {allowed}");
            Ok(())
        })
        .await?;
        goes(lab, "direct").await.context(what)?;
    }
    Ok(())
}

/// Packets that somebody puts into a pod's namespace past its veth come to the proxy like any others.
async fn past_the_veth(lab: &Lab) -> Result<()> {
    let (stranger, server) = (
        pod(lab, "outside/stranger").await?,
        pod(lab, "shop/echo").await?,
    );
    let into = ifindex(lab, &server.veth).await?;
    let mut jumps = Vec::new();
    for port in [9000, 15001] {
        let jump = foreign::on_tcp(port, &foreign::redirect_peer(into));
        let Some(jump) = tcx(lab, &stranger.veth, jump, foreign::AFTER).await? else {
            return Ok(());
        };
        jumps.push(jump);
    }
    let seen = lab.node("n1").access_log().await?.len();
    echo(lab, "outside/stranger", &server.ip.to_string()).await?;
    until("the proxy tells of it", async || {
        let log = lab.node("n1").access_log().await?;
        let words = [
            "direction=inbound",
            "path=plain",
            "mtls=none",
            "src.workload=stranger",
            "dst.workload=echo",
        ];
        let told = log[seen..]
            .iter()
            .any(|l| words.iter().all(|w| l.contains(w)));
        ensure!(told, "{:#?}", &log[seen..]);
        Ok(())
    })
    .await?;
    let before = metric(lab, "warren_kernel_total", BYPASS).await?;
    let door = format!("exec 3<>/dev/tcp/{}/15001", server.ip);
    let ran = lab
        .exec("outside/stranger", &["timeout", "3", "bash", "-c", &door])
        .await?;
    ensure!(ran.code != 0, "the proxy's own port is open: {ran:?}");
    let dropped = metric(lab, "warren_kernel_total", BYPASS).await? - before;
    ensure!(dropped >= 1.0, "{dropped} were dropped");
    says(lab, &["a packet was dropped", "bypass", "15001"]).await?;
    drop(jumps);
    goes(lab, "direct").await
}

/// A segment that the client's pod sends past its proxy is dropped and counted, once.
async fn guards(lab: &Lab) -> Result<()> {
    let (client, server) = (pod(lab, "shop/client").await?, pod(lab, "shop/echo").await?);
    let before = metric(lab, "warren_kernel_total", BYPASS).await?;
    let link = frames::interface(&client.netns)?;
    frames::send_from(
        &client.netns,
        vec![frames::opening(&link, &client, &server, 7773)],
    )?;
    until("the guard drops it", async || {
        let dropped = metric(lab, "warren_kernel_total", BYPASS).await? - before;
        ensure!(dropped == 1.0, "{dropped} were dropped");
        Ok(())
    })
    .await
}

/// Attaches a classifier to an interface of the node; `None` where the kernel has no TCX.
async fn tcx(
    lab: &Lab,
    interface: &str,
    insns: Vec<foreign::Insn>,
    flags: u32,
) -> Result<Option<OwnedFd>> {
    let index = ifindex(lab, interface).await?;
    in_netns(&node(lab), move || {
        let program = foreign::load(foreign::SCHED_CLS, foreign::TCX_INGRESS, &insns);
        match foreign::attach(&program, index, foreign::TCX_INGRESS, flags) {
            Ok(link) => Ok(Some(link)),
            Err(e) if e.raw_os_error() == Some(libc::EINVAL) => Ok(None),
            Err(e) => Err(e).context("attaching a classifier"),
        }
    })
}

/// Adds a filter of the older kind to an interface of the node, behind whatever is there.
fn filter(lab: &Lab, interface: &str, insns: Vec<foreign::Insn>) -> Result<()> {
    let pin = format!("/sys/fs/bpf/{}-foreign", lab.place.name);
    let add = format!("filter add dev {interface} ingress prio 100 bpf da object-pinned {pin}");
    let clsact = format!("qdisc add dev {interface} clsact");
    in_netns(&node(lab), move || {
        let tc = |words: &str| {
            let mut command = std::process::Command::new("tc");
            command.args(words.split(' ')).output()
        };
        // It may be there.
        tc(&clsact)?;
        let program = foreign::load(foreign::SCHED_CLS, 0, &insns);
        foreign::pin(&program, &CString::new(pin.as_str())?);
        let added = tc(&add);
        std::fs::remove_file(&pin)?;
        let added = added?;
        ensure!(added.status.success(), "{added:?}");
        Ok(())
    })
}

async fn ifindex(lab: &Lab, interface: &str) -> Result<u32> {
    let name = interface.to_owned();
    in_netns(&node(lab), move || {
        nix::net::if_::if_nametoindex(name.as_str()).with_context(|| format!("looking for {name}"))
    })
}

fn node(lab: &Lab) -> PathBuf {
    lab.place.netns_path("n1")
}

/// Whether a datagram gets from one pod to a port of another. The way carries in order: what comes behind says that
/// the first has been decided.
fn arrives(from: &PodStatus, to: &PodStatus, port: u16) -> Result<bool> {
    const FENCE: u16 = 7799;
    const PATIENCE: Duration = Duration::from_secs(10);
    let at = |port| in_netns(&to.netns, move || Ok(UdpSocket::bind(("0.0.0.0", port))?));
    let (asked, fence) = (at(port)?, at(FENCE)?);
    asked.set_nonblocking(true)?;
    fence.set_read_timeout(Some(PATIENCE))?;
    let sender = in_netns(&from.netns, || Ok(UdpSocket::bind(("0.0.0.0", 0))?))?;
    sender.send_to(b"probe", (to.ip, port))?;
    sender.send_to(b"fence", (to.ip, FENCE))?;
    fence
        .recv(&mut [0; 8])
        .context("what is for nobody's filter arrives")?;
    Ok(asked.recv(&mut [0; 8]).is_ok())
}
