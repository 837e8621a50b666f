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
use serde_json::Value;
use tokio::{
    process::{Child, Command},
    sync::{mpsc, watch},
    task::{JoinSet, spawn_blocking},
    time::sleep,
};

use super::{
    cgroup,
    container::Keeper,
    enter::Surroundings,
    images::Images,
    manifest::Key,
    net::{self, DNS_VIP, NodeIndex, PodWire},
    place::Place,
    podspec::{self, Container, Facts},
    register::{self, Registration},
    waypoint,
};

/// How often something that is about to happen is looked for.
pub(super) const GLANCE: Duration = Duration::from_millis(50);
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
    /// Its programs run; or it idles, because it has none.
    Running {
        /// Whether no container has a program.
        idle: bool,
    },
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

    fn facts(&self, programs: &Programs) -> Facts {
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
            samples: programs.samples.clone(),
            images: programs.images.clone(),
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
    /// What the user has for images.
    pub images: Images,
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

pub(super) async fn stopped(stop: &mut watch::Receiver<bool>) {
    // Without a sender the supervisor itself is ending: that stops the pod as well.
    let _ = stop.wait_for(|s| *s).await;
}

pub(super) struct Life {
    pub(super) place: Arc<Place>,
    pub(super) pod: Arc<Settled>,
    pub(super) programs: Arc<Programs>,
    reports: Reports,
}

impl Life {
    pub(super) async fn report(&self, what: Happening) {
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
        let (first, mut main) =
            podspec::containers(&self.pod.value, &self.pod.facts(&self.programs));
        let (place, pod, programs) = (self.place.clone(), self.pod.clone(), self.programs.clone());
        if main.iter().any(|c| c.waypoint) {
            let told = spawn_blocking(move || waypoint::prepare(&place, &programs, &pod))
                .await
                .context("preparing the waypoint")??;
            let waypoints = main.iter_mut().filter(|c| c.waypoint);
            // What the manifest says goes before it.
            waypoints.for_each(|c| c.env = [told.clone(), std::mem::take(&mut c.env)].concat());
        }
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

    pub(super) fn start(&self, container: &Container) -> Result<Option<Child>> {
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
        let idle = containers.iter().all(|c| c.program.is_none());
        self.report(Happening::Running { idle }).await;
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
