//! Commands to the cluster and to its nodes.

use std::{
    collections::BTreeMap,
    env, fs,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use anyhow::{Context, Result, bail};
use serde_json::Value;
use tokio::{
    io::AsyncWriteExt,
    process::Command,
    time::{Instant, sleep},
};

use super::{SYSTEM, process};
use crate::lab::suite;

/// Set by `cargo xtask test kube`: where the cluster's programs are, and where it keeps its state.
const PARTS: &str = "WARREN_KUBE_PARTS";
const STATE: &str = "WARREN_KUBE_STATE";
/// What one command may take at most.
const LIMIT: Duration = Duration::from_secs(120);
/// Between two looks at what is waited for.
const PAUSE: Duration = Duration::from_millis(100);

/// Why no test can run, if that is so.
pub fn reason_to_skip() -> Option<String> {
    suite::passed_over().or_else(|| {
        let missing = env::var_os(PARTS).is_none() || env::var_os(STATE).is_none();
        missing.then(|| "no cluster is running: run `cargo xtask test kube`".to_owned())
    })
}

/// What a command said.
#[derive(Clone, Debug)]
pub struct Said {
    /// Whether it was successful.
    pub ok: bool,
    /// On its standard output.
    pub out: String,
    /// On its standard error.
    pub err: String,
}

/// The cluster that runs.
#[derive(Clone, Debug)]
pub struct Cluster {
    parts: PathBuf,
    state: PathBuf,
}

impl Cluster {
    /// The one that this process was told of.
    pub fn running() -> Result<Self> {
        let told = |name: &str| {
            env::var_os(name)
                .map(PathBuf::from)
                .with_context(|| format!("{name} is not set: run `cargo xtask test kube`"))
        };
        Ok(Self {
            parts: told(PARTS)?,
            state: told(STATE)?,
        })
    }

    /// Where it keeps its state.
    pub(super) fn state(&self) -> &Path {
        &self.state
    }

    /// Where a node's container runtime is configured, as this machine sees it.
    pub fn runtime_configuration(&self, node: &str) -> PathBuf {
        self.state.join("nodes").join(node).join("etc-cni")
    }

    /// The nodes' names.
    pub fn nodes(&self) -> Result<Vec<String>> {
        let listed = fs::read_dir(self.state.join("nodes")).context("the nodes' disks")?;
        let mut names: Vec<String> = listed
            .flatten()
            .filter_map(|e| e.file_name().into_string().ok())
            .collect();
        names.sort();
        Ok(names)
    }

    /// Runs kubectl; an unsuccessful one is an error. What it said otherwise.
    pub async fn kubectl(&self, args: &[&str]) -> Result<String> {
        let said = self.script("kubectl", args, None).await?;
        if !said.ok {
            bail!("kubectl {}: {}", args.join(" "), said.err.trim());
        }
        Ok(said.out)
    }

    /// The same for one that may fail.
    pub async fn try_kubectl(&self, args: &[&str]) -> Result<Said> {
        self.script("kubectl", args, None).await
    }

    /// The same with something to read.
    pub async fn kubectl_with(&self, args: &[&str], input: &str) -> Result<Said> {
        self.script("kubectl", args, Some(input)).await
    }

    /// What kubectl says as JSON.
    pub async fn json(&self, args: &[&str]) -> Result<Value> {
        let text = self.kubectl(&[args, &["-o", "json"]].concat()).await?;
        serde_json::from_str(&text).with_context(|| format!("kubectl {}", args.join(" ")))
    }

    /// Applies manifests.
    pub async fn apply(&self, yaml: &str) -> Result<()> {
        let args = ["apply", "--server-side", "--force-conflicts", "-f", "-"];
        let said = self.kubectl_with(&args, yaml).await?;
        if !said.ok {
            bail!("kubectl apply: {}", said.err.trim());
        }
        Ok(())
    }

    /// Runs a command in a pod's first container.
    pub async fn exec(&self, namespace: &str, pod: &str, command: &[&str]) -> Result<Said> {
        let args = [&["-n", namespace, "exec", pod, "--"], command].concat();
        self.script("kubectl", &args, None).await
    }

    /// Runs a command as a process of a node.
    pub async fn on_node(&self, node: &str, command: &[&str]) -> Result<Said> {
        self.script("exec", &[&[node], command].concat(), None)
            .await
    }

    /// Runs a command beside the cluster, in the network that its nodes are connected by.
    pub async fn outside(&self, command: &[&str]) -> Result<Said> {
        self.script("outside", command, None).await
    }

    /// Runs a program there with the cluster's KUBECONFIG; the first word is the path of helm.
    pub(super) async fn with(&self, command: &[&str]) -> Result<Said> {
        self.script("with", command, None).await
    }

    /// Cuts a node's power. Its disk stays.
    pub async fn power_off(&self, node: &str) -> Result<()> {
        self.done("node-down", &[node]).await
    }

    /// Starts a node whose power was cut.
    pub async fn power_on(&self, node: &str) -> Result<()> {
        self.done("node-up", &[node]).await
    }

    /// Stops the API server, or starts it again as it ran.
    pub async fn api_server(&self, on: bool) -> Result<()> {
        self.done("apiserver", &[if on { "on" } else { "off" }])
            .await
    }

    /// Has every node's NetworkPolicies kept by a program of other make, kube-router; without one it ends, and its rules go.
    pub async fn policy_engine(&self, engine: Option<&Path>) -> Result<()> {
        let engine = engine.map(|path| path.display().to_string());
        match &engine {
            Some(engine) => self.done("policies", &["on", engine]).await,
            None => self.done("policies", &["off"]).await,
        }
    }

    /// Keeps a copy of all objects as they are now.
    pub async fn save_objects(&self) -> Result<()> {
        self.done("etcd", &["save"]).await
    }

    /// Makes the objects again what they were when they were saved, as from a backup of etcd.
    pub async fn restore_objects(&self) -> Result<()> {
        self.done("etcd", &["restore"]).await
    }

    /// Kills a container's processes; `id` as the API has it. It takes no API server.
    pub async fn kill_container(&self, node: &str, id: &str) -> Result<()> {
        let id = id.rsplit('/').next().unwrap_or(id);
        let kill = [
            "ctr", "-n", "k8s.io", "tasks", "kill", "-a", "-s", "SIGKILL", id,
        ];
        let said = self.on_node(node, &kill).await?;
        anyhow::ensure!(
            said.ok,
            "killing container {id} on {node}: {}",
            said.err.trim()
        );
        Ok(())
    }

    /// Lets a container have only so many bytes more than it has; `id` as the API has it.
    pub fn starve(&self, id: &str, more: u64) -> Result<()> {
        let id = id.rsplit('/').next().unwrap_or(id);
        let (_, group) =
            process::of(id).with_context(|| format!("container {id} has no process"))?;
        let group = group.with_context(|| format!("container {id} has no memory cgroup"))?;
        let (used, limit) = match group.join("memory.current").exists() {
            true => ("memory.current", "memory.max"),
            false => ("memory.usage_in_bytes", "memory.limit_in_bytes"),
        };
        let used = fs::read_to_string(group.join(used))?;
        let most: u64 = used.trim().parse::<u64>()? + more;
        let file = group.join(limit);
        fs::write(&file, most.to_string())
            .with_context(|| format!("writing {most} to {}", file.display()))
    }

    /// Every line that Warren's pods of this name have written on a node, the oldest first.
    pub fn log(&self, node: &str, workload: &str) -> Result<Vec<String>> {
        let lines = self.lines(node, &format!("{SYSTEM}_{workload}-"))?;
        Ok(lines.into_iter().map(|(_, text)| text).collect())
    }

    /// Every line that a pod has written, on whatever node, with its time; the oldest first.
    pub fn log_of(&self, namespace: &str, pod: &str) -> Result<Vec<(String, String)>> {
        let mut lines = Vec::new();
        for node in self.nodes()? {
            lines.extend(self.lines(&node, &format!("{namespace}_{pod}_"))?);
        }
        lines.sort();
        Ok(lines)
    }

    /// How often a pod's containers have been started, on whatever node: each time they write to a file of its own, whose
    /// number counts, because the file before it may be gone. It takes no API server.
    pub fn starts_of(&self, namespace: &str, pod: &str) -> Result<usize> {
        let mut last = BTreeMap::new();
        for node in self.nodes()? {
            let folder = self.state.join("nodes").join(node).join("log/pods");
            for found in fs::read_dir(folder)?.flatten() {
                let name = found.file_name();
                if name
                    .to_string_lossy()
                    .starts_with(&format!("{namespace}_{pod}_"))
                {
                    for file in logs(&found.path()) {
                        let starts = start(&file) + 1;
                        let of = file.parent().map(Path::to_owned);
                        let most = last.entry(of).or_insert(starts);
                        *most = starts.max(*most);
                    }
                }
            }
        }
        Ok(last.into_values().sum())
    }

    /// What is in the log files of the pods on a node whose folders begin so.
    fn lines(&self, node: &str, prefix: &str) -> Result<Vec<(String, String)>> {
        let pods = self.state.join("nodes").join(node).join("log/pods");
        let mut files = Vec::new();
        for pod in fs::read_dir(&pods).with_context(|| pods.display().to_string())? {
            let pod = pod?;
            if pod.file_name().to_string_lossy().starts_with(prefix) {
                files.extend(logs(&pod.path()));
            }
        }
        let mut lines = Vec::new();
        for file in files {
            // A file that was rotated away meanwhile.
            let text = fs::read_to_string(&file).unwrap_or_default();
            lines.extend(text.lines().filter_map(written));
        }
        // Container runtimes put the time in front of each line.
        lines.sort();
        Ok(lines)
    }

    /// Waits for a line of a node proxy's log that holds all these words.
    pub async fn until_logged(&self, node: &str, words: &[&str]) -> Result<String> {
        let what = format!("a line with {words:?} in the log of {node}");
        self.until(&what, 20, async || {
            let lines = self.log(node, "warren-node")?;
            let found = lines.iter().rfind(|l| words.iter().all(|w| l.contains(w)));
            match found {
                Some(line) => Ok(line.clone()),
                None => bail!("{}", lines[lines.len().saturating_sub(20)..].join("\n")),
            }
        })
        .await
    }

    /// Tries again until it succeeds, for so many seconds at most; then the last error counts.
    pub async fn until<T>(
        &self,
        what: &str,
        seconds: u64,
        mut attempt: impl AsyncFnMut() -> Result<T>,
    ) -> Result<T> {
        let deadline = Instant::now() + Duration::from_secs(seconds);
        loop {
            match attempt().await {
                Ok(value) => return Ok(value),
                Err(e) if Instant::now() > deadline => {
                    return Err(e.context(format!("waited {seconds} s in vain for {what}")));
                }
                Err(_) => sleep(PAUSE).await,
            }
        }
    }

    async fn done(&self, script: &str, args: &[&str]) -> Result<()> {
        let said = self.script(script, args, None).await?;
        if !said.ok {
            bail!("{script} {}: {}", args.join(" "), said.err.trim());
        }
        Ok(())
    }

    async fn script(&self, name: &str, args: &[&str], input: Option<&str>) -> Result<Said> {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("kube/node/{name}.sh"));
        let about = || format!("{name} {}", args.join(" "));
        let mut child = Command::new("bash")
            .arg(file)
            .args(args)
            .env("KUBE_PARTS", &self.parts)
            .env("KUBE_STATE", &self.state)
            .env("KUBE_NODES", self.nodes()?.join(" "))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .with_context(about)?;
        let mut stdin = child.stdin.take().context("a pipe was asked for")?;
        stdin
            .write_all(input.unwrap_or_default().as_bytes())
            .await
            .with_context(about)?;
        drop(stdin);
        let ended = tokio::time::timeout(LIMIT, child.wait_with_output()).await;
        let out = ended
            .with_context(|| format!("{} did not end within {LIMIT:?}", about()))?
            .with_context(about)?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Ok(Said {
            ok: out.status.success(),
            out: text(&out.stdout),
            err: text(&out.stderr),
        })
    }
}

/// The log files of a pod's containers.
fn logs(pod: &Path) -> Vec<PathBuf> {
    let entries = |dir: &Path| fs::read_dir(dir).into_iter().flatten().flatten();
    entries(pod)
        .flat_map(|container| {
            entries(&container.path())
                .map(|f| f.path())
                .collect::<Vec<_>>()
        })
        .collect()
}

/// Which start of a container a log file is of, counted from none: `0.log`, `1.log`, and `0.log.TIME` once it is full.
fn start(file: &Path) -> usize {
    let name = file.file_name().and_then(|n| n.to_str());
    let number = name.and_then(|n| n.split('.').next());
    number.and_then(|n| n.parse().ok()).unwrap_or_default()
}

/// Time and text of a line as container runtimes write it: `TIME STREAM FLAG TEXT`.
fn written(line: &str) -> Option<(String, String)> {
    let mut parts = line.splitn(4, ' ');
    let (time, _, _) = (parts.next()?, parts.next()?, parts.next()?);
    Some((time.to_owned(), parts.next().unwrap_or_default().to_owned()))
}
