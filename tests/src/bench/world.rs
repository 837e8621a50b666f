//! The rig: a lab with the application behind every way, and what is needed to drive and watch each.
//!
//! Invariant: the application, its pod and its client are alike for every subject; only the way between differs.

use std::{
    fs,
    io::{Read, Write},
    net::{IpAddr, SocketAddr},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::Stdio,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use tokio::task::spawn_blocking;

use super::{
    Options, app,
    peers::{OUTBOUND, Pair, Running, TUNNEL},
    subject::Subject,
};
use crate::lab::{Lab, Ran, component::Order, enter::in_netns, images::Images, supervisor::Spec};

const WORLD: &str = include_str!("world.yaml");
/// Long enough for anything that has to happen at all.
const SOON: Duration = Duration::from_secs(30);
/// What is sent in the clear by the application, to look for it on the wire.
pub const MARKER: &str = "warren-bench-plaintext-marker";

/// The rig.
pub struct World {
    /// The lab.
    pub lab: Lab,
    /// What is measured in it.
    pub subjects: Vec<Subject>,
    pair: Option<Pair>,
    running: Option<Running>,
}

impl World {
    /// Starts the lab with what the subjects need. Fails when one of them does not carry a byte.
    pub async fn up(options: &Options, pair: Option<Pair>) -> Result<Self> {
        let threads = options.threads.to_string();
        let spec = Spec {
            name: options.name.clone(),
            nodes: 2,
            mesh: true,
            agent_env: vec![
                ("WARREN_ACCESS_LOG".into(), "off".into()),
                ("WARREN_THREADS".into(), threads),
            ],
            controller_args: Vec::new(),
            images: Images::default(),
        };
        let mut world = Self {
            lab: Lab::up(spec).await?,
            subjects: options.subjects.clone(),
            pair,
            running: None,
        };
        world
            .lab
            .apply(&format!("{WORLD}{}", pods(&world.subjects)))
            .await?;
        world.lab.wait_ready(SOON).await?;
        world.lab.wait_for(SOON, captured).await?;
        world.tune().await?;
        world.start_apps().await?;
        world.envoys(false).await?;
        for subject in world.subjects.clone() {
            world.works(subject).await?;
        }
        Ok(world)
    }

    /// Starts the pair of Envoys anew, with or without a line a connection.
    async fn envoys(&mut self, log: bool) -> Result<()> {
        if let Some(old) = self.running.take() {
            old.stop()?;
        }
        if let Some(pair) = &mut self.pair {
            pair.log = log;
            let (client, server) = (Subject::Envoy.client(), Subject::Envoy.server());
            self.running = Some(pair.start(&self.lab, &client, &server).await?);
        }
        Ok(())
    }

    /// Starts a subject's proxies anew: memory that was freed stays with a process, and what grows into it would
    /// not show. They carry again when this returns.
    pub async fn renew_proxies(&mut self, subject: Subject) -> Result<()> {
        for node in subject.nodes() {
            self.lab.component(node, Order::Restart).await?;
        }
        if subject == Subject::Envoy {
            self.envoys(false).await?;
        }
        self.works(subject).await
    }

    /// Switches the access log of everything that has one.
    pub async fn access_log(&mut self, on: bool) -> Result<()> {
        let word = if on { "on" } else { "off" };
        for node in ["n1", "n2"] {
            let socket = self.run_dir(node).join("admin.sock");
            let path = format!("/logging?access={word}");
            spawn_blocking(move || post(&socket, &path)).await??;
        }
        self.envoys(on).await?;
        if self.running.is_some() {
            self.works(Subject::Envoy).await?;
        }
        Ok(())
    }

    /// Where a node proxy keeps its sockets and keys.
    fn run_dir(&self, node: &str) -> PathBuf {
        let place = &self.lab.place;
        place.node_run(node).join(place.instance(node))
    }

    /// Every client opens many connections that end on its side; with the kernel's defaults it soon has no port.
    async fn tune(&self) -> Result<()> {
        for pod in self.lab.status().await?.pods {
            let set = || -> Result<()> {
                fs::write("/proc/sys/net/ipv4/tcp_tw_reuse", "1")?;
                fs::write("/proc/sys/net/ipv4/ip_local_port_range", "10000 60999")?;
                Ok(())
            };
            let netns = pod.netns.clone();
            spawn_blocking(move || in_netns(&netns, set))
                .await?
                .context("tuning a pod's ports")?;
        }
        Ok(())
    }

    async fn start_apps(&self) -> Result<()> {
        let mut servers: Vec<String> = self.subjects.iter().map(|s| s.server()).collect();
        servers.sort();
        servers.dedup();
        let program = self.lab.program("warren-bench").display().to_string();
        for server in servers {
            let mut command = self
                .lab
                .command(&server, &[program.as_str(), "app"])
                .await?;
            command.stdin(Stdio::null()).stdout(Stdio::null());
            // Ended with its pod, through the pod's cgroup.
            command
                .spawn()
                .with_context(|| format!("starting the application in {server}"))?;
        }
        Ok(())
    }

    /// Waits until a subject carries the marker there and back.
    async fn works(&self, subject: Subject) -> Result<()> {
        let deadline = Instant::now() + SOON;
        loop {
            match self.say_marker(subject).await {
                Ok(()) => return Ok(()),
                Err(e) if Instant::now() > deadline => {
                    let envoy = self.pair.as_ref().filter(|_| subject == Subject::Envoy);
                    let said = envoy.map(Pair::said).unwrap_or_default();
                    return Err(e.context(format!("`{}` does not work {said}", subject.title())));
                }
                Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
            }
        }
    }

    /// Sends the marker and expects it back.
    pub async fn say_marker(&self, subject: Subject) -> Result<()> {
        let to = self.address(subject).await?;
        let script = format!(
            "exec 3<>/dev/tcp/{}/{} && echo {MARKER} >&3 && timeout 5 head -1 <&3",
            to.ip(),
            to.port()
        );
        let ran = self
            .lab
            .exec(&subject.client(), &["bash", "-c", &script])
            .await?;
        ensure!(
            ran.out.trim() == MARKER,
            "the marker did not come back: {ran:?}"
        );
        Ok(())
    }

    /// Where a subject's client finds the application.
    pub async fn address(&self, subject: Subject) -> Result<SocketAddr> {
        if subject == Subject::Envoy {
            return Ok(SocketAddr::new(IpAddr::from([127, 0, 0, 1]), OUTBOUND));
        }
        let ip = self.lab.status().await?.pod(&subject.server())?.ip;
        Ok(SocketAddr::new(IpAddr::V4(ip), app::PORT))
    }

    /// A subject's port for tunnels, and the certificate to show there.
    pub async fn tunnel(&self, subject: Subject) -> Result<(SocketAddr, PathBuf)> {
        let ip = self.lab.status().await?.pod(&subject.server())?.ip;
        let bundle = match (subject, &self.pair) {
            (Subject::Envoy, Some(pair)) => pair.bundle(),
            _ => {
                let file = format!("w,cluster.local,{},far.pem", subject.namespace());
                self.run_dir("n2").join("keys").join(file)
            }
        };
        ensure!(
            bundle.exists(),
            "there is no certificate at {}",
            bundle.display()
        );
        Ok((SocketAddr::new(IpAddr::V4(ip), TUNNEL), bundle))
    }

    /// A subject's proxies: the client's, then the server's; one when it is both.
    pub async fn proxies(&self, subject: Subject) -> Result<Vec<u32>> {
        if subject == Subject::Envoy {
            let running = self.running.as_ref();
            return Ok(running.map(Running::pids).unwrap_or_default());
        }
        let status = self.lab.status().await?;
        let pid = |node: &&str| {
            let of = status.component(node)?.condition.pid;
            of.with_context(|| format!("the node proxy of {node} does not run"))
        };
        subject.nodes().iter().map(pid).collect()
    }

    /// Runs the load generator in a pod; its report.
    pub async fn load(&self, who: &str, words: &[String]) -> Result<Value> {
        let mut program = vec![self.lab.program("warren-load").display().to_string()];
        program.extend_from_slice(words);
        let Ran { out, err, .. } = self.lab.exec(who, &program).await?;
        serde_json::from_str(&out)
            .with_context(|| format!("the load generator said: {} {}", out.trim(), err.trim()))
    }
}

/// One pod for each place that a subject needs.
fn pods(subjects: &[Subject]) -> String {
    let mut all: Vec<(String, &str)> = Vec::new();
    for subject in subjects {
        let near = matches!(
            subject,
            Subject::NearDirect | Subject::Path | Subject::Tunnel
        );
        all.push((subject.client(), if near { "n1" } else { "n2" }));
        all.push((subject.server(), "n1"));
    }
    // Tunnels are dialed from outside the mesh, and the certificate is that of a pod on the other node.
    all.push(("plain/far".into(), "n2"));
    all.push(("strict/far".into(), "n2"));
    all.sort();
    all.dedup();
    let pod = |(name, node): &(String, &str)| {
        let (namespace, name) = name.split_once('/').unwrap_or(("plain", name));
        format!(
            "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: {namespace}}}\n\
             spec: {{nodeName: {node}, serviceAccountName: {name}, containers: [{{name: c, image: idle}}]}}\n"
        )
    };
    all.iter().map(pod).collect()
}

fn captured(status: &crate::lab::control::Status) -> Result<()> {
    let late: Vec<String> = status
        .pods
        .iter()
        .filter(|p| p.namespace != "plain" && p.mesh != "captured")
        .map(|p| format!("{} is `{}` ({})", p.name, p.mesh, p.note))
        .collect();
    if !late.is_empty() {
        bail!("not captured: {}", late.join(", "));
    }
    Ok(())
}

/// POST without a body on a Unix socket.
fn post(socket: &Path, path: &str) -> Result<()> {
    let of = || format!("asking {}", socket.display());
    let mut stream = UnixStream::connect(socket).with_context(of)?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    write!(
        stream,
        "POST {path} HTTP/1.1\r\nHost: node\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
    )?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).with_context(of)?;
    ensure!(
        answer.starts_with("HTTP/1.1 200"),
        "{path}: {}",
        answer.trim()
    );
    Ok(())
}
