//! A node proxy that runs out of descriptors or of memory.

use std::{
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use mesh_tests::lab::{Lab, capture::contains};

use super::{
    load::flawless,
    trust::{cpu, pid},
    tunnel::{MARKER, SOON, echo, pair, until},
};

const STRANGER: &str = r#"
apiVersion: v1
kind: Namespace
metadata: {name: outside}
---
apiVersion: v1
kind: Pod
metadata: {name: stranger, namespace: outside}
spec: {nodeName: n2, containers: [{name: c, image: idle}]}
"#;

/// Descriptors that the node proxy may have.
const FILES: usize = 200;

fn limit_files(pid: u32, most: usize) -> Result<()> {
    let done = Command::new("prlimit")
        .args(["--pid", &pid.to_string(), &format!("--nofile={most}:20000")])
        .output()
        .context("running prlimit")?;
    ensure!(
        done.status.success(),
        "prlimit: {}",
        String::from_utf8_lossy(&done.stderr)
    );
    Ok(())
}

fn open_files(pid: u32) -> Result<usize> {
    Ok(std::fs::read_dir(format!("/proc/{pid}/fd"))?.count())
}

/// T25: without descriptors the proxy neither spins nor drops what it carries, and goes on when there are some.
pub async fn t25_without_descriptors_live_streams_go_on() -> Result<()> {
    let lab = pair().await?;
    lab.apply(STRANGER).await?;
    lab.wait_ready(SOON).await?;
    echo(&lab, "outside/stranger", "10.244.1.2").await?;
    let agent = pid(&lab, "n1").await?;
    let used = open_files(agent)?;
    ensure!(used + 40 <= FILES, "{used} descriptors are open at rest");
    limit_files(agent, FILES)?;
    let node = lab.node("n1");
    let backoffs = node.metric("warren_accept_backoffs_total", &[]).await?;
    let streams = [
        "--seconds",
        "12",
        "streams",
        "10.244.1.2:9000",
        "--count",
        "10",
        "--every-ms",
        "100",
    ];
    // Far more connections than there are descriptors, held for a while.
    let flood = "for i in $(seq 400); do exec {fd}<>/dev/tcp/10.244.1.2/9000 || true; done 2>/dev/null; sleep 5";
    let (streams, flooded, seen) = tokio::join!(
        flawless(&lab, "shop/client", &streams),
        async {
            until("the streams", async || {
                let live = node
                    .metric("warren_sessions", &[("direction", "inbound")])
                    .await?;
                ensure!(live >= 10.0, "{live} streams");
                Ok(())
            })
            .await?;
            lab.exec("outside/stranger", &["bash", "-c", flood]).await
        },
        async {
            until("descriptors run out", async || {
                let now = node.metric("warren_accept_backoffs_total", &[]).await?;
                ensure!(now > backoffs, "accepting never paused");
                Ok(())
            })
            .await?;
            let (begun, before) = (Instant::now(), cpu(agent)?);
            tokio::time::sleep(Duration::from_secs(2)).await;
            anyhow::Ok((begun.elapsed(), cpu(agent)? - before))
        }
    );
    let (watched, spent) = seen?;
    flooded?;
    println!("T25: {spent:?} of CPU in {watched:?} without descriptors");
    ensure!(
        spent < watched / 2,
        "it spins: {spent:?} of CPU in {watched:?}"
    );
    streams?;
    let log = node.log()?;
    ensure!(log.contains("accepting pauses"), "the log says so");
    // The limit is still there; the flood is not.
    until("service with the flood gone", async || {
        echo(&lab, "outside/stranger", "10.244.1.2").await?;
        echo(&lab, "shop/client", "10.244.1.2").await
    })
    .await?;
    ensure!(pid(&lab, "n1").await? == agent, "it is the same process");
    Ok(())
}

/// A memory cgroup of the test's own, in whichever hierarchy has the controller.
struct Memory(PathBuf);

impl Memory {
    fn new(name: &str) -> Result<Option<Self>> {
        let first = Path::new("/sys/fs/cgroup/memory");
        if !first.join("memory.limit_in_bytes").exists() {
            println!("skipped: no memory controller at {}", first.display());
            return Ok(None);
        }
        let own = first.join(name);
        std::fs::create_dir_all(&own).with_context(|| format!("making {}", own.display()))?;
        Ok(Some(Self(own)))
    }

    fn hold(&self, pid: u32, bytes: usize) -> Result<()> {
        std::fs::write(self.0.join("cgroup.procs"), pid.to_string())?;
        std::fs::write(self.0.join("memory.limit_in_bytes"), bytes.to_string())
            .with_context(|| format!("limiting {}", self.0.display()))
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // Whoever is left goes back to the root, so that the directory can go.
        if let Ok(left) = std::fs::read_to_string(self.0.join("cgroup.procs")) {
            for pid in left.lines() {
                let _ = std::fs::write("/sys/fs/cgroup/memory/cgroup.procs", pid);
            }
        }
        let _ = std::fs::remove_dir(&self.0);
    }
}

/// T25: a proxy that is out of memory goes on or is killed; either way nothing leaks and service comes back.
pub async fn t25_without_memory_nothing_leaks_and_service_comes_back() -> Result<()> {
    let lab: Lab = pair().await?;
    let Some(memory) = Memory::new(&format!("warren-{}", lab.place.name))? else {
        return Ok(());
    };
    let capture = lab.capture("n1")?;
    let agent = pid(&lab, "n1").await?;
    // What it has stays charged elsewhere; what it takes from now on is counted here.
    memory.hold(agent, 1 << 20)?;
    let streams = [
        "--seconds",
        "4",
        "conns",
        "10.244.1.2:9000",
        "--clients",
        "64",
    ];
    // Whether these survive depends on what the kernel can take back.
    let report = super::load::load(&lab, "shop/client", &streams).await?;
    println!("T25: under 1 MiB: {report}");
    until("service after the shortage", async || {
        echo(&lab, "shop/client", "10.244.1.2").await
    })
    .await?;
    lab.until_logged("n1", &["direction=inbound", "path=hbone", "mtls=true"])
        .await?;
    let carried = lab
        .node("n2")
        .metric(
            "istio_tcp_connections_opened_total",
            &[("reporter", "source")],
        )
        .await?;
    ensure!(
        carried >= report["ok"].as_f64().unwrap_or(f64::MAX),
        "{carried} connections are counted, and {report}"
    );
    let now = pid(&lab, "n1").await?;
    println!(
        "T25: the process was {}",
        if now == agent { "kept" } else { "killed" }
    );
    let packets = capture.stop()?;
    ensure!(
        !contains(&packets, MARKER.as_bytes()),
        "plaintext between nodes"
    );
    drop(memory);
    Ok(())
}
