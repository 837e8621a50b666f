//! How the command line and the tests talk to a lab's supervisor: one JSON line each way on a Unix socket.

use std::{
    net::{Ipv4Addr, Ipv6Addr},
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{UnixListener, UnixStream},
    sync::{mpsc, oneshot},
    time::timeout,
};

use super::{
    component::{Condition, Order},
    manifest::{Key, Source},
};

/// What can be asked of a supervisor.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "kebab-case")]
pub enum Request {
    /// How is everything?
    Status,
    /// Make objects, or change them.
    Apply {
        /// The files.
        sources: Vec<Source>,
        /// For objects that name none.
        namespace: String,
    },
    /// Take objects away.
    Delete {
        /// The files that name them.
        sources: Vec<Source>,
        /// For objects that name none.
        namespace: String,
    },
    /// Take one pod away; its owner makes another.
    DeletePod {
        /// Its name.
        pod: Key,
    },
    /// Do something to a component.
    Component {
        /// `controller`, `dns`, `n1`, ...
        name: String,
        /// What to do.
        order: Order,
    },
}

/// A pod as `ps` shows it.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PodStatus {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its uid.
    pub uid: String,
    /// Its node.
    pub node: String,
    /// Its addresses.
    pub ip: Ipv4Addr,
    /// The IPv6 one.
    pub ip6: Ipv6Addr,
    /// `Pending`, `Running`, `Succeeded`, `Failed` or `Terminating`.
    pub phase: String,
    /// Whether it is ready.
    pub ready: bool,
    /// Whether it runs no program: nothing stands in for its images. Such a pod is ready, whatever its probe.
    pub idle: bool,
    /// What the node proxy said of it: `captured`, `out`, `refused`; empty before it did.
    pub mesh: String,
    /// How often a program of it was started again.
    pub restarts: u32,
    /// What a person should know.
    pub note: String,
    /// Path of its network namespace.
    pub netns: PathBuf,
    /// Name of its interface on the node's side.
    pub veth: String,
    /// What a program inside it sees of the world.
    pub cgroup: PathBuf,
    /// Its resolver's file.
    pub resolv: PathBuf,
    /// Its host name.
    pub hostname: String,
    /// Its labels.
    pub labels: std::collections::BTreeMap<String, String>,
}

/// A component as `ps` shows it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ComponentStatus {
    /// `controller`, `dns`, `n1`, `n1-kubelet`, ...
    pub name: String,
    /// How it is.
    #[serde(flatten)]
    pub condition: Condition,
}

/// A service as `ps` shows it.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ServiceStatus {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its addresses; none when it is headless.
    pub cluster_ips: Vec<String>,
}

/// How everything is.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Status {
    /// The lab's name.
    pub name: String,
    /// Its nodes.
    pub nodes: Vec<String>,
    /// Whether it has a mesh.
    pub mesh: bool,
    /// Its programs.
    pub components: Vec<ComponentStatus>,
    /// Its pods.
    pub pods: Vec<PodStatus>,
    /// Its services.
    pub services: Vec<ServiceStatus>,
    /// What cannot be done, and why.
    pub warnings: Vec<String>,
}

impl Status {
    /// The first address of the service of this name.
    pub fn cluster_ip(&self, name: &str) -> Result<&str> {
        let of_name = self.services.iter().filter(|s| s.name == name);
        let first = of_name.flat_map(|s| &s.cluster_ips).next();
        first
            .map(String::as_str)
            .with_context(|| format!("no service {name} has an address"))
    }

    /// The pod that `who` means: `namespace/name`, a name, or the beginning of exactly one kind of name.
    pub fn pod(&self, who: &str) -> Result<&PodStatus> {
        let (namespace, name) = who
            .split_once('/')
            .map_or((None, who), |(ns, n)| (Some(ns), n));
        let candidates: Vec<&PodStatus> = self
            .pods
            .iter()
            .filter(|p| namespace.is_none_or(|ns| ns == p.namespace) && p.phase != "Terminating")
            .collect();
        if let Some(exact) = candidates.iter().find(|p| p.name == name) {
            return Ok(exact);
        }
        let begins = |p: &&&PodStatus| {
            p.name
                .strip_prefix(name)
                .is_some_and(|rest| rest.starts_with('-'))
        };
        let found = candidates.iter().filter(begins).max_by_key(|p| p.ready);
        found.copied().with_context(|| {
            format!(
                "no pod `{who}`; there are: {}",
                self.pods
                    .iter()
                    .map(|p| format!("{}/{}", p.namespace, p.name))
                    .collect::<Vec<_>>()
                    .join(", ")
            )
        })
    }

    /// The component called `name`.
    pub fn component(&self, name: &str) -> Result<&ComponentStatus> {
        self.components
            .iter()
            .find(|c| c.name == name)
            .with_context(|| {
                format!(
                    "no component `{name}`; there are: {}",
                    self.components
                        .iter()
                        .map(|c| c.name.as_str())
                        .collect::<Vec<_>>()
                        .join(", ")
                )
            })
    }
}

/// Asks the supervisor behind a socket.
pub async fn ask<T: DeserializeOwned>(socket: &Path, request: &Request) -> Result<T> {
    let asked = async {
        let mut stream = UnixStream::connect(socket).await.with_context(|| {
            format!(
                "the lab does not run (no answer on {}): start it with `lab up`",
                socket.display()
            )
        })?;
        let mut line = serde_json::to_string(request)?;
        line.push('\n');
        stream.write_all(line.as_bytes()).await?;
        let mut text = String::new();
        stream.read_to_string(&mut text).await?;
        let mut answer: Value =
            serde_json::from_str(&text).context("reading the supervisor's answer")?;
        if let Some(error) = answer["error"].as_str() {
            bail!("{error}");
        }
        serde_json::from_value(answer["result"].take())
            .context("understanding the supervisor's answer")
    };
    timeout(Duration::from_secs(60), asked)
        .await
        .context("the supervisor did not answer within 60 s")?
}

/// A question with the place for its answer.
pub type Question = (Request, oneshot::Sender<Result<Value>>);

/// Takes questions until the supervisor ends.
pub async fn serve(listener: UnixListener, questions: mpsc::Sender<Question>) -> Result<()> {
    loop {
        let (stream, _) = listener
            .accept()
            .await
            .context("accepting on the control socket")?;
        let questions = questions.clone();
        tokio::spawn(async move {
            if let Err(e) = converse(stream, questions).await {
                eprintln!("control: {e:#}");
            }
        });
    }
}

async fn converse(stream: UnixStream, questions: mpsc::Sender<Question>) -> Result<()> {
    let (read, mut write) = stream.into_split();
    let mut line = String::new();
    BufReader::new(read).read_line(&mut line).await?;
    if line.is_empty() {
        return Ok(());
    }
    let answer = async {
        let request = serde_json::from_str(&line).context("understanding the request")?;
        let (reply, answer) = oneshot::channel();
        questions
            .send((request, reply))
            .await
            .ok()
            .context("the supervisor is ending")?;
        answer.await.context("the supervisor is ending")?
    };
    let text = match answer.await {
        Ok(value) => json!({"result": value}),
        Err(e) => json!({"error": format!("{e:#}")}),
    };
    write.write_all(text.to_string().as_bytes()).await?;
    Ok(())
}
