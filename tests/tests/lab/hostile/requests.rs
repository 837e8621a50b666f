//! Floods of frames where a waypoint expects requests: from an application whose node carries its bytes as they are.

use std::{
    fs,
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use mesh_tests::lab::Lab;
use serde::{Deserialize, Serialize};

use super::frames::{block, frame, preface};
use crate::{
    load::flawless,
    play,
    tunnel::until,
    waypoint::{self, POD},
};

/// What is sent over and over: empty SETTINGS, PING, DATA of nothing.
const FLOODS: [&str; 3] = ["settings", "pings", "nothing"];
/// How long a flood goes on at most.
const LASTS: Duration = Duration::from_secs(1);
/// The memory that a flood may cost (T24).
const COST: u64 = 20 << 20;
/// How long others may wait, all but one in a hundred of them, in microseconds: they wait for milliseconds, and for more
/// than a second where a flood is read without a break.
const WAIT: f64 = 500_000.0;
/// Frames that are written at once.
const BATCH: usize = 1_000;

/// What became of a flood.
#[derive(Debug, Serialize, Deserialize)]
struct Flooded {
    /// Frames that were written.
    frames: usize,
    /// Whether the other side ended the connection.
    ended: bool,
}

/// Plays the part of a flooding client inside a pod.
pub fn flood(to: SocketAddr, what: &str) -> Result<()> {
    let (one, first) = match what {
        "settings" => (frame(4, 0, 0, &[]), Vec::new()),
        "pings" => (frame(6, 0, 0, b"12345678"), Vec::new()),
        "nothing" => {
            let begin = [
                (":method", "POST"),
                (":scheme", "http"),
                (":path", "/rate/1"),
                (":authority", "rating:8080"),
            ];
            (frame(0, 0, 1, &[]), frame(1, 4, 1, &block(&begin)))
        }
        other => bail!("{other:?} is no flood"),
    };
    let mut tcp = TcpStream::connect(to)?;
    tcp.set_write_timeout(Some(LASTS))?;
    tcp.write_all(&[preface(), first].concat())?;
    let mut answers = tcp.try_clone()?;
    // Whoever is answered reads it, so that nothing but a bound of the other side ends the flood.
    let reader = std::thread::spawn(move || {
        let mut block = [0; 64 << 10];
        while answers.read(&mut block).is_ok_and(|n| n > 0) {}
    });
    let (begun, batch) = (Instant::now(), one.repeat(BATCH));
    let mut frames = 0;
    while begun.elapsed() < LASTS && !reader.is_finished() && tcp.write_all(&batch).is_ok() {
        frames += BATCH;
    }
    let ended = reader.is_finished() || begun.elapsed() < LASTS;
    let flooded = Flooded { frames, ended };
    println!("{}", serde_json::to_string(&flooded)?);
    Ok(())
}

/// What the waypoint's processes have in memory.
async fn memory(lab: &Lab) -> Result<u64> {
    let exec = lab.status().await?.pod(POD)?.cgroup.clone();
    let mut sum = 0;
    // Each container of a pod has a cgroup of its own.
    for part in fs::read_dir(exec.parent().context("a pod has a cgroup")?)? {
        let Ok(procs) = fs::read_to_string(part?.path().join("cgroup.procs")) else {
            continue;
        };
        for pid in procs.lines() {
            let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
            let resident = status.lines().find_map(|l| l.strip_prefix("VmRSS:"));
            let kib = resident.and_then(|l| l.trim().strip_suffix(" kB"));
            sum += kib.context("a size in kB")?.trim().parse::<u64>()? << 10;
        }
    }
    ensure!(sum > 0, "the waypoint has no process");
    Ok(sum)
}

/// Each costs little memory and leaves others served in time, however long it goes on.
pub async fn floods_where_requests_belong_cost_others_nothing() -> Result<()> {
    let lab = waypoint::world().await?;
    let to = format!("{}:8080", lab.status().await?.cluster_ip("rating")?);
    let others = [
        "--seconds",
        "1.5",
        "http",
        "rating:8080",
        "--path",
        "/rate/1",
        "--connections",
        "4",
        "--rate",
        "100",
    ];
    let quiet = flawless(&lab, "shop/client", &others).await?;
    println!("without a flood: {quiet}");
    for what in FLOODS {
        let before = memory(&lab).await?;
        let part = play::command("flood-requests", &[&to, what])?;
        let mut most = before;
        let (flooded, served) = {
            let mut both = std::pin::pin!(async {
                tokio::join!(
                    lab.exec("shop/client", &part),
                    flawless(&lab, "shop/client", &others)
                )
            });
            loop {
                tokio::select! {
                    both = both.as_mut() => break both,
                    () = tokio::time::sleep(Duration::from_millis(50)) => most = most.max(memory(&lab).await?),
                }
            }
        };
        let (flooded, served) = (flooded?, served.with_context(|| format!("beside {what}"))?);
        let flood: Flooded =
            serde_json::from_str(&flooded.out).with_context(|| format!("{flooded:?}"))?;
        println!("{what}: {flood:?}, memory {before} to {most}, others: {served}");
        ensure!(
            most < before + COST,
            "{what}: memory went from {before} to {most}"
        );
        let late = served["latencyUs"]["p99"].as_f64().context("a p99")?;
        ensure!(late < WAIT, "{what}: others waited {late} us");
        until("service after a flood", async || {
            let asked = waypoint::ask(&lab, "/rate/[1-4]").await?;
            ensure!(asked.answers == 4, "{asked:?}");
            Ok(())
        })
        .await?;
    }
    Ok(())
}
