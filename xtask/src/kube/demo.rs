//! `cargo xtask kube demo`: from an empty cluster to mutual TLS between two Deployments that run already, in two commands.
//!
//! Invariant: what is printed was seen; a step that does not come about within its time ends the demo with what was seen
//! last.

use std::{
    fs,
    io::Write,
    path::Path,
    process::{Command, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};

use super::{Cluster, INSTALL, STATE, script, with};
use crate::step;

/// How long until what was asked for shows.
const PATIENCE: Duration = Duration::from_secs(60);
const LOOK: Duration = Duration::from_millis(200);

/// Two Deployments of a user who knows nothing of a mesh.
const SHOP: &str = "apiVersion: v1
kind: Namespace
metadata: {name: shop}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec:
  selector: {app: web}
  ports: [{name: http, port: 80, targetPort: 8080}]
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, namespace: shop}
spec:
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      nodeName: n1
      containers:
      - name: web
        image: warren/samples:dev
        args: [httpbin, --port, '8080']
        readinessProbe: {httpGet: {path: /status/200, port: 8080}, periodSeconds: 1}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: client, namespace: shop}
spec:
  selector: {matchLabels: {app: client}}
  template:
    metadata: {labels: {app: client}}
    spec:
      nodeName: n2
      terminationGracePeriodSeconds: 0
      containers:
      - {name: client, image: 'warren.test/client:1', args: [-c, 'sleep 100000']}
";

/// Runs it; the cluster goes afterwards, unless it is to be kept.
pub fn run(keep: bool) -> Result<()> {
    let cluster = Cluster::start(false)?;
    let outcome = show();
    if keep {
        println!(
            "\nThe cluster stays: `cargo xtask kube kubectl ...` uses it, `cargo xtask kube down` removes it."
        );
        return outcome;
    }
    let removed = cluster.remove();
    outcome.and(removed)
}

/// Shows it on a cluster that goes on to be used.
pub(super) fn in_passing() -> Result<()> {
    show()?;
    kubectl(&["delete", "namespace", "shop", "--wait=false"]).map(drop)
}

fn show() -> Result<()> {
    println!("\n-- A cluster of two nodes, and two Deployments that somebody has --");
    apply(SHOP)?;
    for name in ["deployment/web", "deployment/client"] {
        kubectl(&["-n", "shop", "rollout", "status", name, "--timeout=60s"])?;
    }
    let before = pods()?;
    print!("{before}");
    println!(
        "client -> web: HTTP status {}, in plaintext: there is no mesh",
        ask()?
    );

    println!("\n-- The first command --");
    let mesh_ctl = step::built()?.join("mesh-ctl").display().to_string();
    let begun = Instant::now();
    println!("$ mesh-ctl {}", INSTALL.join(" "));
    step::run(with(None)?.arg(&mesh_ctl).args(INSTALL))?;
    println!("it took {:.1} s", begun.elapsed().as_secs_f32());
    println!(
        "client -> web: HTTP status {}, in plaintext still: nothing was enrolled",
        ask()?
    );

    println!("\n-- The second command --");
    let label = ["label", "namespace", "shop", "warren.dev/mesh=enabled"];
    println!("$ kubectl {}", label.join(" "));
    let begun = Instant::now();
    kubectl(&label)?;
    let line = until("a request over mutual TLS", || {
        let status = ask()?;
        ensure!(status == "200", "client -> web: HTTP status {status}");
        tunnelled()
    })?;
    println!(
        "{:.1} s later the node of the client wrote:\n{line}",
        begun.elapsed().as_secs_f32()
    );
    println!("client -> web: HTTP status {}", ask()?);
    let after = pods()?;
    print!("{after}");
    let names = |text: &str| -> Vec<String> {
        let columns = text
            .lines()
            .map(|l| l.split_whitespace().take(4).collect::<Vec<_>>().join(" "));
        columns.collect()
    };
    ensure!(
        names(&before) == names(&after),
        "the pods are not those of before"
    );
    println!("They are the same pods, and none was restarted.");
    Ok(())
}

/// One request of the client's; what curl calls the status.
fn ask() -> Result<String> {
    let curl = [
        "curl",
        "-s",
        "-m",
        "5",
        "-o",
        "/dev/null",
        "-w",
        "%{http_code}",
        "http://web/status/200",
    ];
    kubectl(&[&["-n", "shop", "exec", "deploy/client", "--"][..], &curl].concat())
}

fn pods() -> Result<String> {
    kubectl(&["-n", "shop", "get", "pods"])
}

/// The last line of the client's node about a tunnelled flow.
fn tunnelled() -> Result<String> {
    let folder = Path::new(STATE).join("nodes/n2/log/pods");
    let mut found = None;
    for pod in fs::read_dir(&folder)
        .with_context(|| folder.display().to_string())?
        .flatten()
    {
        if !pod
            .file_name()
            .to_string_lossy()
            .starts_with("warren-system_warren-node-")
        {
            continue;
        }
        for file in fs::read_dir(pod.path().join("node"))
            .into_iter()
            .flatten()
            .flatten()
        {
            let text = fs::read_to_string(file.path()).unwrap_or_default();
            let last = text
                .lines()
                .rfind(|l| l.contains("src.namespace=shop") && l.contains("mtls=true"));
            found = last.map(str::to_owned).or(found);
        }
    }
    // Container runtimes put time, stream and a flag in front of each line.
    let line = found.context("no tunnelled flow was logged")?;
    Ok(line.splitn(4, ' ').last().unwrap_or_default().to_owned())
}

fn until<T>(what: &str, mut attempt: impl FnMut() -> Result<T>) -> Result<T> {
    let begun = Instant::now();
    loop {
        match attempt() {
            Ok(value) => return Ok(value),
            Err(e) if begun.elapsed() > PATIENCE => {
                return Err(e.context(format!("waited {PATIENCE:?} in vain for {what}")));
            }
            Err(_) => sleep(LOOK),
        }
    }
}

fn apply(yaml: &str) -> Result<()> {
    let mut child = command(&["apply", "-f", "-"])?
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .context("starting kubectl")?;
    let mut stdin = child.stdin.take().context("a pipe was asked for")?;
    stdin.write_all(yaml.as_bytes()).context("kubectl apply")?;
    drop(stdin);
    ensure!(child.wait()?.success(), "kubectl apply failed");
    Ok(())
}

/// What kubectl says; an unsuccessful one is an error.
fn kubectl(args: &[&str]) -> Result<String> {
    let out = command(args)?.output().context("starting kubectl")?;
    if !out.status.success() {
        let why = String::from_utf8_lossy(&out.stderr).into_owned();
        bail!("kubectl {}: {}", args.join(" "), why.trim());
    }
    Ok(String::from_utf8_lossy(&out.stdout).into_owned())
}

fn command(args: &[&str]) -> Result<Command> {
    let mut command = script("kubectl", None)?;
    command.args(args);
    Ok(command)
}
