//! The lab: a cluster of network namespaces on one machine, with real programs in it.
//!
//! Start reading at `supervisor` (the process a lab lives in) and `boot` (what it starts). This file holds the
//! handle by which the command line and the tests use a lab.
//! Invariant: dropping a handle made by `Lab::up` removes the lab, unless it was kept.

mod answer;
pub mod boot;
pub mod capture;
pub mod cgroup;
pub mod component;
mod container;
pub mod control;
pub mod dns;
pub mod down;
pub mod enter;
pub mod images;
pub mod kubelet;
pub mod manifest;
pub mod net;
pub mod node;
pub mod place;
pub mod pod;
pub mod podspec;
mod provision;
pub mod publish;
pub mod record;
pub mod register;
pub mod schedule;
pub mod service;
pub mod show;
pub mod suite;
pub mod supervisor;
mod view;
pub mod waypoint;

use std::{
    fs::{self, File},
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use tokio::{task::spawn_blocking, time::sleep};

use self::{
    capture::Capture,
    component::Order,
    control::{PodStatus, Request, Status, ask},
    enter::Surroundings,
    manifest::{Key, Source},
    net::{FABRIC_NAME, NodeIndex},
    node::Node,
    place::{LabName, Place},
    pod::Programs,
    supervisor::Spec,
};

const PATIENCE: Duration = Duration::from_millis(20);

/// A lab that runs.
pub struct Lab {
    /// Its places.
    pub place: Place,
    programs: Programs,
    keep: bool,
}

/// What a tested thing wrote and how it ended.
#[derive(Clone, Debug)]
pub struct Ran {
    /// Its exit code; -1 when a signal ended it.
    pub code: i32,
    /// Its standard output.
    pub out: String,
    /// Its error output.
    pub err: String,
}

impl From<Output> for Ran {
    fn from(done: Output) -> Self {
        let text = |b: Vec<u8>| String::from_utf8_lossy(&b).into_owned();
        Self {
            code: done.status.code().unwrap_or(-1),
            out: text(done.stdout),
            err: text(done.stderr),
        }
    }
}

impl Lab {
    /// Starts a lab; removes first what a dead one of the same name left. Dropping the handle removes it.
    pub async fn up(spec: Spec) -> Result<Self> {
        if !nix::unistd::geteuid().is_root() {
            bail!(
                "the lab needs root: it makes network namespaces, cgroups and loads kernel programs"
            );
        }
        let place = Place::new(spec.name.clone())?;
        let programs = programs()?;
        if down::supervisor(&place).is_some() {
            bail!(
                "lab {} is already up: use it, end it by `lab down --name {0}`, or choose another --name",
                spec.name
            );
        }
        spawn_blocking({
            let place = place.clone();
            move || down::down(&place)
        })
        .await
        .context("removing an earlier lab")??;
        let lab = Self {
            place,
            programs,
            keep: false,
        };
        lab.launch(&spec).await?;
        Ok(lab)
    }

    /// A lab that was started before; dropping the handle leaves it alone.
    pub fn attach(name: LabName) -> Result<Self> {
        Ok(Self {
            place: Place::new(name)?,
            programs: programs()?,
            keep: true,
        })
    }

    /// Leaves the lab running when the handle is dropped.
    pub fn keep(mut self) {
        self.keep = true;
    }

    async fn launch(&self, spec: &Spec) -> Result<()> {
        place::private_dir(
            self.place
                .state()
                .parent()
                .context("a lab's state has a parent")?,
        )?;
        place::private_dir(&self.place.state().join("logs"))?;
        let file = self.place.state().join("spec.json");
        fs::write(&file, serde_json::to_string_pretty(spec)?)?;
        let log = File::create(self.place.log("supervisor"))?;
        // Whatever the supervisor starts is born in the lab's cgroup, so that `down` finds it at any moment.
        let cgroup = self.place.cgroup().join("supervisor");
        cgroup::create(&cgroup)?;
        let surroundings = Surroundings {
            cgroup: Some(cgroup),
            ..Surroundings::default()
        };
        let words = [&self.programs.lab, Path::new("supervise"), &file];
        let mut command =
            surroundings.command(&self.programs.lab, &words.map(|w| w.display().to_string()));
        command
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .current_dir("/");
        // Its own process group: a Ctrl-C meant for the command line does not reach it.
        let child = command
            .process_group(0)
            .spawn()
            .context("starting the supervisor")?;
        let mut supervisor = Launched {
            child,
            serves: false,
        };
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            if ask::<Status>(&self.place.control(), &Request::Status)
                .await
                .is_ok()
            {
                supervisor.serves = true;
                return Ok(());
            }
            let ended = supervisor.child.try_wait()?;
            if ended.is_some() || Instant::now() > deadline {
                let log = fs::read_to_string(self.place.log("supervisor")).unwrap_or_default();
                bail!(
                    "the lab did not come up ({}):\n{}",
                    ended.map_or("no answer within 60 s".to_owned(), |s| s.to_string()),
                    log.trim()
                );
            }
            sleep(PATIENCE).await;
        }
    }

    /// How everything is.
    pub async fn status(&self) -> Result<Status> {
        ask(&self.place.control(), &Request::Status).await
    }

    /// Makes or changes objects; returns a line per object.
    pub async fn apply(&self, yaml: &str) -> Result<Vec<String>> {
        let sources = vec![Source {
            path: "text.yaml".into(),
            text: yaml.to_owned(),
        }];
        self.apply_sources(sources, "default").await
    }

    /// The same for files that were read.
    pub async fn apply_sources(
        &self,
        sources: Vec<Source>,
        namespace: &str,
    ) -> Result<Vec<String>> {
        ask(
            &self.place.control(),
            &Request::Apply {
                sources,
                namespace: namespace.to_owned(),
            },
        )
        .await
    }

    /// Takes objects away; returns a line per object.
    pub async fn delete(&self, yaml: &str) -> Result<Vec<String>> {
        let sources = vec![Source {
            path: "text.yaml".into(),
            text: yaml.to_owned(),
        }];
        self.delete_sources(sources, "default").await
    }

    /// The same for files that were read.
    pub async fn delete_sources(
        &self,
        sources: Vec<Source>,
        namespace: &str,
    ) -> Result<Vec<String>> {
        ask(
            &self.place.control(),
            &Request::Delete {
                sources,
                namespace: namespace.to_owned(),
            },
        )
        .await
    }

    /// Takes one pod away; its owner makes another.
    pub async fn delete_pod(&self, who: &str) -> Result<()> {
        let status = self.status().await?;
        let pod = status.pod(who)?;
        let pod = Key::core("Pod", &pod.namespace, &pod.name);
        ask::<Vec<String>>(&self.place.control(), &Request::DeletePod { pod })
            .await
            .map(drop)
    }

    /// Does something to a component: `controller`, `dns`, or a node's proxy by the node's name.
    pub async fn component(&self, name: &str, order: Order) -> Result<()> {
        ask(
            &self.place.control(),
            &Request::Component {
                name: name.to_owned(),
                order,
            },
        )
        .await
    }

    /// Waits until no pod is pending, going, or unready; the error says what is missing.
    pub async fn wait_ready(&self, patience: Duration) -> Result<Status> {
        self.wait_for(patience, |status| {
            let waiting: Vec<String> = status
                .pods
                .iter()
                .filter(|p| !settled(p))
                .map(|p| {
                    format!(
                        "{}/{} is {}{}",
                        p.namespace,
                        p.name,
                        p.phase,
                        if p.note.is_empty() {
                            String::new()
                        } else {
                            format!(" ({})", p.note)
                        }
                    )
                })
                .collect();
            if waiting.is_empty() {
                Ok(())
            } else {
                bail!("{}", waiting.join("; "))
            }
        })
        .await
    }

    /// Waits until `good` says so of the lab's status; after `patience` its last complaint is the error.
    pub async fn wait_for(
        &self,
        patience: Duration,
        good: impl Fn(&Status) -> Result<()>,
    ) -> Result<Status> {
        let deadline = Instant::now() + patience;
        loop {
            let status = self.status().await?;
            match good(&status) {
                Ok(()) => return Ok(status),
                Err(e) if Instant::now() > deadline => {
                    return Err(e.context(format!("not so within {patience:?}")));
                }
                Err(_) => sleep(PATIENCE).await,
            }
        }
    }

    /// What a program sees when it runs in a pod, on a node (`n1`) or on the fabric (`fabric`).
    pub async fn surroundings(&self, who: &str) -> Result<Surroundings> {
        if who == FABRIC_NAME || NodeIndex::from_name(who).is_some() {
            let cgroup = self.place.cgroup().join(who).join("exec");
            cgroup::create(&cgroup)?;
            return Ok(Surroundings {
                netns: Some(self.place.netns_path(who)),
                cgroup: Some(cgroup),
                ..Surroundings::default()
            });
        }
        let status = self.status().await?;
        let pod = status.pod(who)?;
        Ok(Surroundings {
            netns: Some(pod.netns.clone()),
            cgroup: Some(pod.cgroup.clone()),
            resolv: Some(pod.resolv.clone()),
            hostname: Some(pod.hostname.clone()),
            ..Surroundings::default()
        })
    }

    /// A command that runs in a pod, on a node or on the fabric.
    pub async fn command(&self, who: &str, program: &[impl AsRef<str>]) -> Result<Command> {
        let words: Vec<String> = program.iter().map(|w| w.as_ref().to_owned()).collect();
        let mut command = self
            .surroundings(who)
            .await?
            .command(&self.programs.lab, &words);
        // What this workspace builds can be called by its name, as what the machine has.
        let own = self.programs.lab.parent().map(Path::to_owned);
        let path = std::env::var_os("PATH").unwrap_or_default();
        let dirs = std::env::split_paths(&path).chain(own);
        command.env("PATH", std::env::join_paths(dirs)?);
        Ok(command)
    }

    /// Runs a program to its end, at most a minute.
    pub async fn exec(&self, who: &str, program: &[impl AsRef<str>]) -> Result<Ran> {
        let mut command = tokio::process::Command::from(self.command(who, program).await?);
        command.stdin(Stdio::null()).kill_on_drop(true);
        let done = tokio::time::timeout(Duration::from_secs(60), command.output())
            .await
            .with_context(|| {
                format!(
                    "{:?} in {who} did not end within 60 s",
                    program.iter().map(AsRef::as_ref).collect::<Vec<_>>()
                )
            })?;
        Ok(done?.into())
    }

    /// Starts a program with pipes; it ends with the pod at the latest.
    pub async fn spawn(&self, who: &str, program: &[impl AsRef<str>]) -> Result<Child> {
        let mut command = self.command(who, program).await?;
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        Ok(command.spawn()?)
    }

    /// A program of the workspace, from the same build as the lab's own.
    pub fn program(&self, name: &str) -> PathBuf {
        boot::beside(&self.programs, name)
    }

    /// A node.
    pub fn node(&self, name: &str) -> Node<'_> {
        Node {
            lab: self,
            name: name.to_owned(),
        }
    }

    /// Where a log is: of a component, of a node's proxy, or of a pod.
    pub async fn log(&self, who: &str) -> Result<PathBuf> {
        let own = self.place.log(who);
        if own.exists() {
            return Ok(own);
        }
        let status = self.status().await?;
        let pod = status.pod(who)?;
        Ok(self.place.log(&format!("{}/{}", pod.namespace, pod.name)))
    }

    /// Packets on the wire between this node and the others.
    pub fn capture(&self, node: &str) -> Result<Capture> {
        Capture::start(
            self.place.netns_path(FABRIC_NAME),
            node.to_owned(),
            None,
            true,
        )
    }

    /// Removes the lab.
    pub async fn down(mut self) -> Result<down::Removed> {
        self.save_logs();
        self.keep = true;
        let place = self.place.clone();
        spawn_blocking(move || down::down(&place))
            .await
            .context("removing the lab")?
    }
}

/// A supervisor that has just been started: given up before it serves, it ends at once, for `down` may not know
/// it yet.
struct Launched {
    child: Child,
    serves: bool,
}

impl Drop for Launched {
    fn drop(&mut self) {
        if !self.serves {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

impl Lab {
    /// Copies the logs to where the suite wants them.
    fn save_logs(&self) {
        let Some(dir) = suite::logs_dir() else { return };
        let logs = self.place.state().join("logs");
        let copy = || -> std::io::Result<()> {
            fs::create_dir_all(dir)?;
            for entry in fs::read_dir(&logs)? {
                let entry = entry?;
                fs::copy(entry.path(), dir.join(entry.file_name()))?;
            }
            Ok(())
        };
        if let Err(e) = copy() {
            eprintln!("saving the logs of lab {}: {e}", self.place.name);
        }
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if !self.keep {
            self.save_logs();
        }
        if !self.keep
            && let Err(e) = down::down(&self.place)
        {
            eprintln!("{e:#}");
        }
    }
}

fn settled(pod: &PodStatus) -> bool {
    pod.ready || pod.phase == "Succeeded"
}

/// The lab's own program and the samples: beside the running program, or one directory up for a test.
fn programs() -> Result<Programs> {
    let lab = crate::built("warren-lab")?;
    let samples = lab.with_file_name("warren-sample");
    Ok(Programs {
        lab,
        samples,
        images: images::Images::default(),
    })
}
