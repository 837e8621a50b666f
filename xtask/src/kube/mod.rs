//! `cargo xtask kube`: a real Kubernetes cluster on this machine, its nodes made of namespaces.
//!
//! Invariants: a user's own cluster, named by KUBECONFIG, is used where commands are sent to one (`kubectl`, `status`,
//! `with`) and is never started or removed, nor its nodes touched; what this starts is removed whole by `down`, whatever
//! state it is in.

pub mod conformance;
mod demo;
mod go;
pub mod helm;
mod parts;
pub mod policies;
pub mod protocols;

use std::{
    env,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
};

use anyhow::{Context, Result, bail};
use clap::Subcommand;

use self::image::Content;
use crate::{image::oci as image, provision, root, step, workspace};

/// Where a running cluster keeps its keys, its etcd and its nodes' disks. Not in a container's overlay, which cannot
/// hold the container runtime's own.
const STATE: &str = "/var/tmp/warren-kube";

/// What the help of all but these says: `kubectl`, `status`, `with`.
const REFUSES: &str = "Refuses while KUBECONFIG names a cluster of your own: this makes, breaks or removes nodes, and those of \
    the cluster on this machine alone. `kubectl`, `status` and `with` are for yours then.";

/// Start, use and remove a real Kubernetes cluster on this machine.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Cmd,
}

#[derive(Debug, Subcommand)]
enum Cmd {
    /// Build what is missing (6 minutes once, on two cores) and start a cluster (12 seconds).
    #[command(after_help = REFUSES)]
    Up {
        /// How many nodes: n1, n2, and so on.
        #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u8).range(1..=9))]
        nodes: u8,
    },
    /// Remove the cluster with everything that it kept.
    #[command(after_help = REFUSES)]
    Down,
    /// Run kubectl against the cluster, or against the one that KUBECONFIG names.
    #[command(disable_help_flag = true)]
    Kubectl {
        /// What kubectl is told.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
    /// Run a program of this machine in the control plane's network, with the cluster's KUBECONFIG and helm on its path:
    /// `kube with -- helm list -A`, `kube with -- target/debug/mesh-ctl check`. With a KUBECONFIG of your own, in this
    /// machine's network and with that one.
    With {
        /// The program and its arguments.
        #[arg(last = true, required = true)]
        command: Vec<String>,
    },
    /// Run a command as a process of a node: `kube exec n1 -- ip addr`.
    #[command(after_help = REFUSES)]
    Exec {
        /// The node.
        node: String,
        /// The command.
        #[arg(last = true, required = true)]
        command: Vec<String>,
    },
    /// Import an image, an OCI layout in a tar file, on every node.
    #[command(after_help = REFUSES)]
    Load {
        /// The tar file.
        image: PathBuf,
    },
    /// Cut a node's power; its disk stays.
    #[command(after_help = REFUSES)]
    PowerOff {
        /// The node.
        node: String,
    },
    /// Start a node whose power was cut.
    #[command(after_help = REFUSES)]
    PowerOn {
        /// The node.
        node: String,
    },
    /// From an empty cluster to mutual TLS between two Deployments that run, in two commands.
    #[command(after_help = REFUSES)]
    Demo {
        /// Leave the cluster running.
        #[arg(long)]
        keep: bool,
    },
    /// Show the nodes and all pods.
    Status,
}

/// Does what was asked for.
pub fn run(args: &Args) -> Result<ExitCode> {
    let own = env::var_os("KUBECONFIG").filter(|v| !v.is_empty());
    match &args.command {
        Cmd::Kubectl { args } => return step::hand_over(&mut kubectl(own.is_some(), args)?),
        Cmd::Status => {
            let all = |what: &str| {
                vec![
                    "get".to_owned(),
                    what.to_owned(),
                    "-o".into(),
                    "wide".into(),
                ]
            };
            step::run(&mut kubectl(own.is_some(), &all("nodes"))?)?;
            let pods = [all("pods"), vec!["--all-namespaces".into()]].concat();
            return step::hand_over(&mut kubectl(own.is_some(), &pods)?);
        }
        Cmd::With { command } if own.is_some() => {
            return step::hand_over(&mut beside(helm_if_it_can_be()?, command)?);
        }
        _ => {}
    }
    if let Some(config) = own {
        bail!(
            "KUBECONFIG names a cluster of yours ({}), which is not started or stopped from here, nor are its nodes \
             touched: unset it, or use `kubectl`, `status` or `with` of `cargo xtask kube`, which are for that cluster",
            config.display()
        );
    }
    match &args.command {
        Cmd::Up { nodes } => up(*nodes)?,
        Cmd::Demo { keep } => demo::run(*keep)?,
        Cmd::Down => {
            down()?;
            println!("kube: the cluster is removed");
        }
        Cmd::With { command } => {
            return step::hand_over(with(helm_if_it_can_be()?)?.args(command));
        }
        Cmd::Exec { node, command } => {
            return step::hand_over(script("exec", None)?.arg(node).args(command));
        }
        Cmd::Load { image } => {
            let image = image
                .canonicalize()
                .with_context(|| format!("the image {}", image.display()))?;
            step::run(script("load", Some(running()?))?.arg(image))?;
        }
        Cmd::PowerOff { node } => step::run(script("node-down", None)?.arg(known(node)?))?,
        Cmd::PowerOn { node } => step::run(script("node-up", Some(running()?))?.arg(known(node)?))?,
        Cmd::Kubectl { .. } | Cmd::Status => unreachable!("done above"),
    }
    Ok(ExitCode::SUCCESS)
}

/// A cluster that was started for the tests.
pub struct Cluster(());

/// Why the tests in a cluster cannot run here, if that is so. A gate also goes on without the cluster's parts, when
/// what they are built from cannot be fetched.
pub fn missing(lenient: bool) -> Option<String> {
    if env::var_os("KUBECONFIG").is_some_and(|v| !v.is_empty()) {
        return Some("KUBECONFIG names a cluster of yours, and they break nodes: unset it".into());
    }
    match parts::build() {
        // Somebody who asked for this tier by name gets the error itself.
        Err(e) if lenient || !root::on_path("go") => Some(format!("{e:#}")),
        _ => None,
    }
}

impl Cluster {
    /// Builds what is missing, starts two nodes, and loads Warren's images. What is left of an earlier one goes first.
    /// `release`: with images of optimised programs, for measurements.
    pub fn start(release: bool) -> Result<Self> {
        if let Some(why) = missing(false) {
            bail!("{why}");
        }
        crate::image::run(&crate::image::Args::all(release))?;
        down()?;
        if let Err(e) = up(2).and_then(|()| load_all()) {
            // Its own failure would hide why there is something to remove.
            let _ = down();
            return Err(e);
        }
        Ok(Self(()))
    }

    /// By which variables the tests find it.
    pub fn environment(&self) -> Result<[(&'static str, PathBuf); 2]> {
        Ok([
            ("WARREN_KUBE_PARTS", parts::directory()?),
            ("WARREN_KUBE_STATE", STATE.into()),
        ])
    }

    /// Shows on it what `kube demo` shows, which leaves Warren installed as the tests have it.
    pub fn demo(&self) -> Result<()> {
        demo::in_passing()
    }

    /// Removes it with everything that it kept.
    pub fn remove(self) -> Result<()> {
        down()
    }
}

/// Removes the cluster, whatever state it is in.
fn down() -> Result<()> {
    step::run(&mut script("down", None)?)
}

fn load_all() -> Result<()> {
    step::timed("loading the images", || {
        for tar in crate::image::tars()? {
            step::run(script("load", Some(running()?))?.arg(tar))?;
        }
        Ok(())
    })
}

/// Writes the image of clients, a shell and this machine's curl, among those that every node imports.
fn client() -> Result<()> {
    provision::packages(&["curl"])?;
    let parts = parts::directory()?;
    let mut content = vec![Content::file("bin/busybox", &parts.join("bin/busybox"))?];
    content.extend(["sh", "sleep", "cat"].map(|a| Content::link(&format!("bin/{a}"), "busybox")));
    content.extend(crate::image::with_libraries(
        "bin/curl",
        Path::new("/usr/bin/curl"),
    )?);
    let tar = parts.join("images/client.tar");
    image::write(&tar, "warren.test/client:1", &["/bin/sh"], content)
}

fn up(nodes: u8) -> Result<()> {
    refuse_beside_a_lab()?;
    parts::build()?;
    client()?;
    let names: Vec<String> = (1..=nodes).map(|n| format!("n{n}")).collect();
    let begin = || step::run(&mut script("up", Some(names.join(" ")))?);
    if let Err(e) = step::timed("starting the cluster", begin) {
        bail!("{e:#}. Remove what there is of it by `cargo xtask kube down`");
    }
    println!(
        "kube: use it by `cargo xtask kube kubectl get pods -A`, remove it by `cargo xtask kube down`"
    );
    Ok(())
}

/// A lab and a cluster would both be too slow to tell failure from load, and both own the machine's kernel programs.
fn refuse_beside_a_lab() -> Result<()> {
    let listed = Command::new("ip").args(["netns", "list"]).output();
    let text = listed.map(|out| String::from_utf8_lossy(&out.stdout).into_owned());
    let lab = |line: &str| line.starts_with("warren-");
    if text.is_ok_and(|t| t.lines().any(lab)) {
        bail!("a lab is running: remove it first by `cargo xtask lab down`");
    }
    Ok(())
}

/// The nodes of the cluster that runs.
fn running() -> Result<String> {
    let disks = Path::new(STATE).join("nodes");
    let listed = disks
        .read_dir()
        .context("no cluster is running: start one by `cargo xtask kube up`")?;
    let mut names: Vec<String> = listed
        .flatten()
        .filter_map(|e| e.file_name().into_string().ok())
        .collect();
    names.sort();
    Ok(names.join(" "))
}

fn known(node: &str) -> Result<&str> {
    let nodes = running()?;
    match nodes.split(' ').any(|n| n == node) {
        true => Ok(node),
        false => bail!("there is no node {node:?}; the nodes are {nodes}"),
    }
}

fn kubectl(own: bool, args: &[String]) -> Result<Command> {
    let mut command = if own {
        Command::new("kubectl")
    } else {
        running()?;
        script("kubectl", None)?
    };
    command.args(args);
    Ok(command)
}

/// helm, where it can be built.
fn helm_if_it_can_be() -> Result<Option<PathBuf>> {
    root::on_path("go").then(helm::program).transpose()
}

/// What runs a program for the cluster that KUBECONFIG names, with `helm` on its path where there is one.
fn beside(helm: Option<PathBuf>, words: &[String]) -> Result<Command> {
    let (program, args) = words.split_first().context("no program is named")?;
    let mut command = Command::new(program);
    command.args(args);
    if let Some(folder) = helm.as_deref().and_then(Path::parent) {
        let path = env::var_os("PATH").unwrap_or_default();
        let all = std::iter::once(folder.to_owned()).chain(env::split_paths(&path));
        command.env("PATH", env::join_paths(all)?);
    }
    Ok(command)
}

/// What runs a program of this machine in the control plane's network, with `helm` on its path where there is one.
fn with(helm: Option<PathBuf>) -> Result<Command> {
    let mut with = script("with", Some(running()?))?;
    with.arg(helm.unwrap_or_default());
    Ok(with)
}

/// What `mesh-ctl` is told to install the images of this tree.
const INSTALL: [&str; 5] = [
    "install",
    "--profile",
    "minimal",
    "--set",
    "image.tag=dev,node.accessLog=true",
];

/// A script of the cluster, told where things are.
fn script(name: &str, nodes: Option<String>) -> Result<Command> {
    let why = "the nodes of the cluster are made of namespaces";
    let mut command = root::command(Path::new("env"), why)?;
    let mut told = vec![
        format!("KUBE_PARTS={}", parts::directory()?.display()),
        format!("KUBE_STATE={STATE}"),
    ];
    told.extend(nodes.map(|n| format!("KUBE_NODES={n}")));
    command.args(told).arg("bash").arg(
        workspace()?
            .join("tests/kube/node")
            .join(format!("{name}.sh")),
    );
    Ok(command)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_for_a_users_cluster_finds_helm_first() {
        let words = ["helm", "list", "-A"].map(str::to_owned);
        let command = beside(Some("/parts/helm".into()), &words).expect("is made");
        assert_eq!(command.get_program(), "helm");
        assert!(command.get_args().eq(["list", "-A"]));
        let path = command.get_envs().find(|(name, _)| *name == "PATH");
        let path = path.and_then(|(_, value)| value).expect("is set");
        assert_eq!(env::split_paths(path).next(), Some("/parts".into()));
        let plain = beside(None, &words).expect("is made");
        assert_eq!(
            plain.get_envs().count(),
            0,
            "KUBECONFIG is passed on as it is"
        );
        assert!(beside(None, &[]).is_err());
    }
}
