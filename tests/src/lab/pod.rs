//! One pod's life: network, registration, programs, readiness, end.
//!
//! Invariants: no program starts before the node proxy has answered for the pod (where there is one);
//! the pod's identity is taken back only after its last process has ended, and before its namespace goes.

use std::{
    collections::BTreeMap,
    fs::{File, OpenOptions},
    net::IpAddr,
    path::PathBuf,
    process::Stdio,
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, Result};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;
use tokio::{
    process::{Child, Command},
    sync::{mpsc, watch},
    task::{JoinSet, spawn_blocking},
    time::{Instant, sleep, timeout},
};

use super::{
    cgroup,
    enter::Surroundings,
    kubelet,
    manifest::Key,
    net::{self, DNS_VIP, NodeIndex, PodWire},
    place::Place,
    podspec::{self, Action, Check, Container, Facts},
    register::{self, Registration},
};

/// How often something that is about to happen is looked for.
const GLANCE: Duration = Duration::from_millis(50);
const REGISTRATION: Duration = Duration::from_secs(10);

/// All that is fixed about a pod once it has a node and addresses.
#[derive(Clone, Debug)]
pub struct Settled {
    /// Its name.
    pub key: Key,
    /// Its uid.
    pub uid: String,
    /// Its node.
    pub node: NodeIndex,
    /// Its number on the node; none when it shares the node's network.
    pub host: Option<u8>,
    /// Its manifest.
    pub value: Value,
    /// Whether a node proxy has to answer first.
    pub mesh: bool,
}

/// What happens to a pod.
#[derive(Clone, Debug)]
pub enum Happening {
    /// It got its network.
    Wired(u32),
    /// The node proxy answered: state and reason.
    Registered(String, String),
    /// Something that a person should know.
    Note(String),
    /// Its programs run.
    Running,
    /// It became ready, or no longer is.
    Ready(bool),
    /// A program ended and is started again.
    Restarted,
    /// All its programs ended and stay so; whether all succeeded.
    Completed(bool),
    /// Nothing is left of it.
    Gone,
}

/// Where happenings go.
pub type Reports = mpsc::Sender<(Key, Happening)>;

impl Settled {
    /// The name of the pod's network namespace, without the lab's prefix.
    pub fn netns(&self) -> String {
        if self.host.is_none() {
            self.node.name()
        } else {
            format!("{}.{}", self.key.namespace, self.key.name)
        }
    }

    /// The pod's addresses.
    pub fn ips(&self) -> (std::net::Ipv4Addr, std::net::Ipv6Addr) {
        self.host.map_or((self.node.ip(), self.node.ip6()), |h| {
            (self.node.pod_ip(h), self.node.pod_ip6(h))
        })
    }

    /// The pod's cgroup.
    pub fn cgroup(&self, place: &Place) -> PathBuf {
        place
            .cgroup()
            .join(self.node.name())
            .join("kubepods")
            .join(format!("pod{}", self.uid))
    }

    /// What its programs see of the world.
    pub fn surroundings(&self, place: &Place, part: &str) -> Surroundings {
        Surroundings {
            netns: Some(place.netns_path(&self.netns())),
            cgroup: Some(self.cgroup(place).join(part)),
            resolv: Some(self.resolv(place)),
            hostname: Some(
                self.value["spec"]["hostname"]
                    .as_str()
                    .unwrap_or(&self.key.name)
                    .to_owned(),
            ),
            ..Surroundings::default()
        }
    }

    /// The pod as the node proxy is told of it.
    pub fn registration(&self, place: &Place, veth_ifindex: u32) -> Registration {
        let (v4, v6) = self.ips();
        Registration {
            uid: self.uid.clone(),
            namespace: self.key.namespace.clone(),
            name: self.key.name.clone(),
            service_account: service_account(&self.value),
            addresses: vec![IpAddr::V4(v4), IpAddr::V6(v6)],
            veth_ifindex,
            cgroup: self.cgroup(place),
            probe_ports: podspec::probe_ports(&self.value),
            netns: place.netns_path(&self.netns()),
        }
    }

    fn resolv(&self, place: &Place) -> PathBuf {
        place.run().join(format!("resolv.{}", self.uid))
    }

    fn facts(&self, samples: PathBuf) -> Facts {
        let (v4, v6) = self.ips();
        let fields = [
            ("metadata.name", self.key.name.clone()),
            ("metadata.namespace", self.key.namespace.clone()),
            ("metadata.uid", self.uid.clone()),
            ("spec.nodeName", self.node.name()),
            ("spec.serviceAccountName", service_account(&self.value)),
            ("status.podIP", v4.to_string()),
            ("status.podIPs", format!("{v4},{v6}")),
            ("status.hostIP", self.node.ip().to_string()),
        ];
        Facts {
            fields: fields
                .into_iter()
                .map(|(k, v)| (k.to_owned(), v))
                .collect::<BTreeMap<_, _>>(),
            samples,
        }
    }
}

/// The pod's service account.
pub fn service_account(pod: &Value) -> String {
    let spec = &pod["spec"];
    spec["serviceAccountName"]
        .as_str()
        .or_else(|| spec["serviceAccount"].as_str())
        .unwrap_or("default")
        .to_owned()
}

/// The programs of the lab.
#[derive(Clone, Debug)]
pub struct Programs {
    /// This program.
    pub lab: PathBuf,
    /// The sample applications.
    pub samples: PathBuf,
}

/// Lives the pod's life until `stop` turns true and everything of it is gone.
pub async fn live(
    place: Arc<Place>,
    pod: Arc<Settled>,
    programs: Arc<Programs>,
    reports: Reports,
    mut stop: watch::Receiver<bool>,
) {
    let life = Life {
        place,
        pod,
        programs,
        reports,
    };
    let mut early = stop.clone();
    tokio::select! {
        done = life.begin() => match done {
            Ok(tasks) => {
                life.programs_until(&mut stop, tasks).await;
            }
            Err(e) => {
                life.report(Happening::Note(format!("{e:#}"))).await;
                stopped(&mut stop).await;
            }
        },
        () = stopped(&mut early) => {}
    }
    if let Err(e) = life.end().await {
        life.report(Happening::Note(format!("taking it away: {e:#}")))
            .await;
    }
    life.report(Happening::Gone).await;
}

async fn stopped(stop: &mut watch::Receiver<bool>) {
    // Without a sender the supervisor itself is ending: that stops the pod as well.
    let _ = stop.wait_for(|s| *s).await;
}

struct Life {
    place: Arc<Place>,
    pod: Arc<Settled>,
    programs: Arc<Programs>,
    reports: Reports,
}

impl Life {
    async fn report(&self, what: Happening) {
        // The receiver is gone only when the supervisor ends.
        let _ = self.reports.send((self.pod.key.clone(), what)).await;
    }

    async fn begin(&self) -> Result<Vec<Container>> {
        let (place, pod) = (self.place.clone(), self.pod.clone());
        let ifindex = spawn_blocking(move || wire(&place, &pod))
            .await
            .context("wiring the pod")??;
        if let Some(ifindex) = ifindex {
            self.report(Happening::Wired(ifindex)).await;
            if self.pod.mesh {
                self.register(ifindex).await;
            }
        }
        let (first, main) = podspec::containers(
            &self.pod.value,
            &self.pod.facts(self.programs.samples.clone()),
        );
        for container in &first {
            self.run_to_end(container).await?;
        }
        Ok(main)
    }

    /// Waits for the node proxy for as long as it takes, as a container runtime waits for its network plugin.
    async fn register(&self, ifindex: u32) {
        let mut last = String::new();
        loop {
            let socket = agent_socket(&self.place, self.pod.node);
            let registration = self.pod.registration(&self.place, ifindex);
            match spawn_blocking(move || register::add(&socket, &registration, REGISTRATION)).await
            {
                Ok(Ok(answer)) => {
                    return self
                        .report(Happening::Registered(answer.state, answer.reason))
                        .await;
                }
                Ok(Err(e)) => {
                    let why = format!("waiting for the node proxy: {e:#}");
                    if why != last {
                        self.report(Happening::Note(why.clone())).await;
                        last = why;
                    }
                }
                Err(e) => {
                    return self
                        .report(Happening::Note(format!("registration: {e}")))
                        .await;
                }
            }
            sleep(GLANCE * 2).await;
        }
    }

    async fn run_to_end(&self, container: &Container) -> Result<()> {
        let Some(mut child) = self.start(container)? else {
            return Ok(());
        };
        let status = child.wait().await?;
        if !status.success() {
            anyhow::bail!("init container {} ended with {status}", container.name);
        }
        Ok(())
    }

    fn start(&self, container: &Container) -> Result<Option<Child>> {
        let Some(program) = &container.program else {
            return Ok(None);
        };
        let cgroup = self.pod.cgroup(&self.place).join(&container.name);
        cgroup::create(&cgroup)?;
        let log = self.log()?;
        let surroundings = Surroundings {
            dir: container.dir.clone(),
            uid: container.user.0,
            gid: container.user.1,
            ..self.pod.surroundings(&self.place, &container.name)
        };
        let mut command = Command::from(surroundings.command(&self.programs.lab, program));
        command
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("HOSTNAME", &self.pod.key.name);
        command.envs(container.env.iter().map(|(k, v)| (k, v)));
        command
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        command
            .spawn()
            .map(Some)
            .with_context(|| format!("starting container {}", container.name))
    }

    fn log(&self) -> Result<File> {
        let path = self
            .place
            .log(&format!("{}/{}", self.pod.key.namespace, self.pod.key.name));
        OpenOptions::new()
            .create(true)
            .append(true)
            .open(&path)
            .with_context(|| format!("opening {}", path.display()))
    }

    async fn programs_until(&self, stop: &mut watch::Receiver<bool>, containers: Vec<Container>) {
        let again = self.pod.value["spec"]["restartPolicy"]
            .as_str()
            .unwrap_or("Always")
            .to_owned();
        let mut tasks = JoinSet::new();
        let mut readiness = Vec::new();
        self.report(Happening::Running).await;
        let count = containers.len();
        for container in containers {
            if let Some(note) = &container.note {
                self.report(Happening::Note(note.clone())).await;
            }
            let (ready, watcher) = watch::channel(false);
            readiness.push(watcher);
            let keeper = Keeper {
                life: self.share(),
                again: again.clone(),
                ready,
                stop: stop.clone(),
            };
            tasks.spawn(keeper.keep(container));
        }
        let (mut done, mut good) = (0, true);
        let watching = self.watch_readiness(readiness);
        tokio::pin!(watching);
        loop {
            tokio::select! {
                ended = tasks.join_next(), if done < count => {
                    good &= matches!(ended, Some(Ok(true)));
                    done += 1;
                    if done == count && !*stop.borrow() {
                        self.report(Happening::Completed(good)).await;
                    }
                }
                () = &mut watching, if count > 0 => {}
                () = stopped(stop) => break,
            }
        }
        // Each keeper ends its own program with grace; the cgroup ends what is left.
        while tasks.join_next().await.is_some() {}
    }

    /// Reports the pod's readiness whenever it changes; never returns.
    async fn watch_readiness(&self, mut containers: Vec<watch::Receiver<bool>>) {
        let mut last = None;
        loop {
            let now = containers.iter_mut().all(|c| *c.borrow_and_update());
            if last != Some(now) {
                self.report(Happening::Ready(now)).await;
                last = Some(now);
            }
            let changes = containers.iter_mut().map(|c| Box::pin(c.changed()));
            if futures_util::future::select_all(changes).await.0.is_err() {
                // A keeper ended: its container counts as not ready.
                containers.retain(|c| c.has_changed().is_ok());
                self.report(Happening::Ready(false)).await;
                last = Some(false);
                if containers.is_empty() {
                    std::future::pending::<()>().await;
                }
            }
        }
    }

    fn share(&self) -> Life {
        Life {
            place: self.place.clone(),
            pod: self.pod.clone(),
            programs: self.programs.clone(),
            reports: self.reports.clone(),
        }
    }

    async fn end(&self) -> Result<()> {
        let (place, pod) = (self.place.clone(), self.pod.clone());
        spawn_blocking(move || {
            let cgroup = pod.cgroup(&place);
            cgroup::kill(&cgroup, Duration::from_secs(5))?;
            if pod.host.is_some() {
                let socket = agent_socket(&place, pod.node);
                // A node proxy that is away learns of it when it lists what it has; the namespace must not wait for it.
                if pod.mesh
                    && let Err(e) = register::del(&socket, &pod.uid, Duration::from_secs(5))
                {
                    eprintln!("{}: {e:#}", pod.key);
                }
                let netns = place.netns(&pod.netns());
                if place.netns_path(&pod.netns()).exists() {
                    net::remove_netns(&netns)?;
                }
            }
            let _ = std::fs::remove_file(pod.resolv(&place));
            cgroup::remove(&cgroup)
        })
        .await
        .context("taking the pod away")?
    }
}

/// The registration socket of a node's proxy.
pub fn agent_socket(place: &Place, node: NodeIndex) -> PathBuf {
    place
        .node_run(&node.name())
        .join(place.instance(&node.name()))
        .join("pods.sock")
}

fn wire(place: &Place, pod: &Settled) -> Result<Option<u32>> {
    cgroup::create(&pod.cgroup(place).join("exec"))?;
    let ns = &pod.key.namespace;
    let resolv = format!(
        "search {ns}.svc.cluster.local svc.cluster.local cluster.local\nnameserver {DNS_VIP}\noptions ndots:5\n"
    );
    std::fs::write(pod.resolv(place), resolv)?;
    let Some(host) = pod.host else {
        return Ok(None);
    };
    let wire = PodWire {
        node: pod.node,
        host,
        netns: pod.netns(),
        veth: format!("veth{}", &pod.uid[..8]),
    };
    net::add_pod(place, &wire).map(Some)
}

/// Keeps one container running.
struct Keeper {
    life: Life,
    again: String,
    ready: watch::Sender<bool>,
    stop: watch::Receiver<bool>,
}

impl Keeper {
    /// Runs the container until it is to stop or stays ended; whether it succeeded.
    async fn keep(mut self, container: Container) -> bool {
        let mut pause = Duration::from_millis(500);
        loop {
            let begun = Instant::now();
            let good = match self.life.start(&container) {
                Ok(Some(child)) => match self.attend(child, &container).await {
                    Some(good) => good,
                    None => return true,
                },
                Ok(None) => {
                    self.ready.send_replace(true);
                    stopped(&mut self.stop).await;
                    return true;
                }
                Err(e) => {
                    self.life.report(Happening::Note(format!("{e:#}"))).await;
                    false
                }
            };
            self.ready.send_replace(false);
            if self.again == "Never" || (self.again == "OnFailure" && good) {
                return good;
            }
            self.life.report(Happening::Restarted).await;
            if begun.elapsed() > Duration::from_secs(10) {
                pause = Duration::from_millis(500);
            }
            tokio::select! {
                () = sleep(pause) => {}
                () = stopped(&mut self.stop) => return good,
            }
            pause = (pause * 2).min(Duration::from_secs(30));
        }
    }

    /// Watches a running program; `None` when it was told to stop, otherwise whether it succeeded.
    async fn attend(&mut self, mut child: Child, container: &Container) -> Option<bool> {
        let pid = child
            .id()
            .and_then(|p| i32::try_from(p).ok())
            .map(Pid::from_raw);
        let mut stop = self.stop.clone();
        tokio::select! {
            status = child.wait() => return Some(status.is_ok_and(|s| s.success())),
            () = self.probe(container) => {
                self.life.report(Happening::Note(format!("container {}: liveness probe failed; restarting", container.name))).await;
                let _ = child.kill().await;
                return Some(false);
            }
            () = stopped(&mut stop) => {}
        }
        self.ready.send_replace(false);
        if let Some(pid) = pid {
            // The child is not reaped yet, so the number is still its own.
            let _ = kill(pid, Signal::SIGTERM);
        }
        let grace = self.life.pod.value["spec"]["terminationGracePeriodSeconds"]
            .as_u64()
            .unwrap_or(30);
        if timeout(Duration::from_secs(grace), child.wait())
            .await
            .is_err()
        {
            let _ = child.kill().await;
        }
        None
    }

    /// Keeps readiness up to date; returns when the liveness probe has failed for good.
    async fn probe(&self, container: &Container) {
        let ready = async {
            match &container.readiness {
                Some(check) => {
                    self.watch(check, |good| {
                        self.ready.send_replace(good);
                    })
                    .await
                }
                None => {
                    self.listening(&container.sample_ports).await;
                    self.ready.send_replace(true);
                    std::future::pending::<()>().await;
                }
            }
        };
        let alive = async {
            match &container.liveness {
                Some(check) => {
                    let (told, mut dead) = watch::channel(true);
                    tokio::select! {
                        () = self.watch(check, |good| { told.send_replace(good); }) => {}
                        _ = async { sleep(check.delay + check.period).await; dead.wait_for(|good| !good).await.map(|_| ()) } => {}
                    }
                }
                None => std::future::pending().await,
            }
        };
        tokio::select! { () = ready => {}, () = alive => {} }
    }

    async fn watch(&self, check: &Check, tell: impl Fn(bool)) {
        sleep(check.delay).await;
        let (mut failed, mut was_good) = (0, false);
        loop {
            let good = self.once(check).await;
            failed = if good { 0 } else { failed + 1 };
            if good || failed >= check.failures || !was_good {
                tell(good);
                was_good = good;
            }
            // Until the first success a pod is looked at more often, so that a lab starts quickly.
            sleep(if was_good {
                check.period
            } else {
                check.period.min(Duration::from_millis(200))
            })
            .await;
        }
    }

    async fn once(&self, check: &Check) -> bool {
        let (port, path, host) = match &check.action {
            Action::Http(port, path, host) => (*port, Some(path.clone()), host.clone()),
            Action::Tcp(port) => (*port, None, None),
            Action::Exec(program) => return self.run_inside(program, check.timeout).await,
        };
        let timeout_ms = u64::try_from(check.timeout.as_millis()).unwrap_or(u64::MAX);
        let probe = kubelet::Probe {
            ip: IpAddr::V4(self.life.pod.ips().0),
            port,
            path,
            host,
            timeout_ms,
        };
        kubelet::ask(
            &kubelet::socket(&self.life.place.node_run(&self.life.pod.node.name())),
            &probe,
        )
        .await
        .ok
    }

    async fn run_inside(&self, program: &[String], patience: Duration) -> bool {
        let surroundings = self.life.pod.surroundings(&self.life.place, "exec");
        let mut command = Command::from(surroundings.command(&self.life.programs.lab, program));
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .kill_on_drop(true);
        matches!(timeout(patience, command.status()).await, Ok(Ok(status)) if status.success())
    }

    /// Waits until something listens on all these ports, by looking and not by connecting.
    async fn listening(&self, ports: &[u16]) {
        let netns = self.life.place.netns_path(&self.life.pod.netns());
        let mut missing = ports.to_vec();
        while !missing.is_empty() {
            let path = netns.clone();
            let open =
                spawn_blocking(move || super::enter::in_netns(&path, || Ok(listening_ports())))
                    .await;
            let open = open.ok().and_then(Result::ok).unwrap_or_default();
            missing.retain(|p| !open.contains(p));
            if !missing.is_empty() {
                sleep(GLANCE).await;
            }
        }
    }
}

/// TCP ports on which something listens in the calling thread's network namespace.
fn listening_ports() -> Vec<u16> {
    let tables = ["tcp", "tcp6"]
        .map(|t| std::fs::read_to_string(format!("/proc/thread-self/net/{t}")).unwrap_or_default());
    let lines = tables.iter().flat_map(|t| t.lines().skip(1));
    lines
        .filter_map(|line| {
            let mut fields = line.split_whitespace().skip(1);
            let (local, state) = (fields.next()?, fields.nth(1)?);
            (state == "0A")
                .then(|| u16::from_str_radix(local.rsplit(':').next()?, 16).ok())
                .flatten()
        })
        .collect()
}
