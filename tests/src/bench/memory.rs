//! What proxies hold: idle, for idle connections, and for pods they know.

use std::{
    io::{BufRead, BufReader, Read},
    process::{Child, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::resource::{Resource, getrlimit};
use serde_json::{Value, json};

use super::{subject::Subject, usage::Memory, world::World};
use crate::lab::manifest::write_atomically;

/// How long memory may take to settle.
const SETTLE: Duration = Duration::from_secs(3);
/// How long a node may take to learn of many pods.
const LEARN: Duration = Duration::from_secs(60);

/// What a subject's proxies hold, in the order client, server.
pub async fn held(world: &World, subject: Subject) -> Result<Vec<Memory>> {
    let pids = world.proxies(subject).await?;
    pids.into_iter().map(Memory::of).collect()
}

/// Descriptors that a proxy may need besides those of the idle connections: its pods' sockets, tunnels, maps.
const BESIDES: u64 = 1_000;

/// How many idle connections a subject's busiest process can hold, at most `wanted`; processes inherit this one's limit
/// of descriptors. One proxy that is client and server needs two for each connection.
pub fn fitting(subject: Subject, wanted: usize) -> Result<usize> {
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE)?;
    let each = if subject.nodes().len() == 1 { 2 } else { 1 };
    let fit = most.saturating_sub(BESIDES) / each;
    Ok(usize::try_from(fit).map_or(wanted, |fit| fit.min(wanted)))
}

/// Bytes that a thousand idle connections cost each of a subject's proxies, which are started for it.
pub async fn per_connections(
    world: &mut World,
    subject: Subject,
    count: usize,
) -> Result<Vec<f64>> {
    world.renew_proxies(subject).await?;
    // What a first connection makes is not the price of the next thousand.
    drop(Idle::open(world, subject, 32).await?);
    tokio::time::sleep(SETTLE).await;
    let before = held(world, subject).await?;
    let idle = Idle::open(world, subject, count).await?;
    tokio::time::sleep(SETTLE).await;
    let with = held(world, subject).await?;
    drop(idle);
    let grown = |(after, before): (&Memory, &Memory)| {
        (after.anonymous as f64 - before.anonymous as f64) * 1e3 / count as f64
    };
    Ok(with.iter().zip(&before).map(grown).collect())
}

/// Connections that a load generator keeps.
struct Idle(Child);

impl Idle {
    async fn open(world: &World, subject: Subject, count: usize) -> Result<Self> {
        let to = world.address(subject).await?.to_string();
        let program = world.lab.program("warren-load").display().to_string();
        let words = [
            program,
            "idle".into(),
            to,
            "--count".into(),
            count.to_string(),
        ];
        let mut command = world.lab.command(&subject.client(), &words).await?;
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut idle = Self(command.spawn().context("starting the load generator")?);
        let out = idle.0.stdout.take().context("it was piped")?;
        let said = tokio::task::spawn_blocking(move || {
            let mut line = String::new();
            BufReader::new(out).read_line(&mut line).map(|_| line)
        });
        let Ok(said) = serde_json::from_str::<Value>(&said.await??) else {
            // It has ended, or it would have said something.
            let mut why = String::new();
            let err = idle.0.stderr.take().context("it was piped")?;
            BufReader::new(err).read_to_string(&mut why)?;
            bail!(
                "{count} idle connections through {} did not come up: {}",
                subject.title(),
                why.trim()
            );
        };
        ensure!(
            said["open"] == json!(count),
            "only {} connections came up",
            said["open"]
        );
        Ok(idle)
    }
}

impl Drop for Idle {
    fn drop(&mut self) {
        // It closes them when its input ends; whatever hangs is ended.
        drop(self.0.stdin.take());
        let deadline = Instant::now() + SETTLE;
        while Instant::now() < deadline && matches!(self.0.try_wait(), Ok(None)) {
            std::thread::sleep(Duration::from_millis(5));
        }
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Bytes that each of `count` pods of other nodes costs a node proxy, which is started for it.
pub async fn per_known_pod(world: &mut World, subject: Subject, count: usize) -> Result<f64> {
    world.renew_proxies(subject).await?;
    let world = &*world;
    let node = world.lab.node("n1");
    let known = async || {
        node.metric("warren_xds_resources_total", &[("type", "Address")])
            .await
    };
    let begun = Instant::now();
    let first = loop {
        match known().await {
            // On the direct path connections work before their node proxy is all there.
            Err(_) if begun.elapsed() < LEARN => tokio::time::sleep(SETTLE / 30).await,
            told => break told?,
        }
    };
    tokio::time::sleep(SETTLE).await;
    let before = held(world, subject).await?;
    let entries = |n: usize| {
        let (team, service) = (n / 20 % 200, n / 20);
        let ip = format!("10.{}.{}.{}", 64 + (n >> 16), n >> 8 & 255, n & 255);
        format!(
            "---\napiVersion: v1\nkind: Pod\n\
             metadata: {{name: service-{service}-7d4b9c6f5d-{:05x}, namespace: team-{team}, labels: {{app: service-{service}}}, \
             ownerReferences: [{{apiVersion: apps/v1, kind: ReplicaSet, name: service-{service}-7d4b9c6f5d, uid: u-{service}, controller: true}}]}}\n\
             spec: {{nodeName: elsewhere-{}, serviceAccountName: service-{service}, containers: [{{name: c, image: idle}}]}}\n\
             status: {{phase: Running, podIP: {ip}, podIPs: [{{ip: {ip}}}], conditions: [{{type: Ready, status: \"True\"}}]}}\n",
            n * 7919 % 0xf_ffff,
            n % 100
        )
    };
    let yaml: String = (0..count).map(entries).collect();
    // As a file of its own: to the lab it would be ten thousand.
    let file = world.lab.place.manifests().join("bench_known.yaml");
    write_atomically(&file, &yaml)?;
    let deadline = Instant::now() + LEARN;
    loop {
        let learnt = known().await? - first;
        if learnt >= count as f64 {
            break;
        }
        ensure!(
            Instant::now() < deadline,
            "n1 knows {learnt} of {count} workloads after {LEARN:?}"
        );
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    tokio::time::sleep(SETTLE).await;
    let after = held(world, subject).await?;
    let (after, before) = (after.first().copied(), before.first().copied());
    let (after, before) = (after.unwrap_or_default(), before.unwrap_or_default());
    Ok((after.anonymous as f64 - before.anonymous as f64) / count as f64)
}
