//! The process that a lab lives in: one task owns the world, everything else reports to it.
//!
//! Invariants: the world changes only in `World`'s own methods, one event at a time; files are written before
//! the pods they describe are started; nothing here waits for a pod or a component without a bound.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    net::Ipv4Addr,
    path::PathBuf,
    sync::Arc,
    time::{Instant, SystemTime},
};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::{
    net::UnixListener,
    sync::{mpsc, watch},
};

use super::{
    boot,
    component::Component,
    control::{self, Question},
    images::Images,
    manifest::{Key, Object},
    net::NodeIndex,
    place::{LabName, Place},
    pod::{self, Happening, Programs, Reports, Settled},
    provision::{self, Part, Provision},
    publish,
    record::{PodRecord, random_uid},
    register::Listed,
    schedule::{self, Existing, NewPod},
    service::Allocator,
};

/// What a lab is made of.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Spec {
    /// Its name.
    pub name: LabName,
    /// How many nodes.
    pub nodes: u8,
    /// Whether controller and node proxies run.
    pub mesh: bool,
    /// Environment of the node proxies; `{node}` stands for the node's name.
    #[serde(default)]
    pub agent_env: Vec<(String, String)>,
    /// Further arguments of the controller.
    #[serde(default)]
    pub controller_args: Vec<String>,
    /// What runs in place of images, besides the samples.
    #[serde(default)]
    pub images: Images,
}

/// All that a lab knows.
pub struct World {
    /// Its places.
    pub place: Arc<Place>,
    /// What it is made of.
    pub spec: Spec,
    /// What users asked for.
    pub objects: BTreeMap<Key, Object>,
    /// Documents that only the controller may judge, by file.
    pub opaque: BTreeMap<String, String>,
    /// Its pods.
    pub pods: BTreeMap<Key, PodRecord>,
    /// What was written last.
    pub published: publish::Published,
    programs: Arc<Programs>,
    pub(super) services: Allocator,
    last_host: BTreeMap<NodeIndex, u8>,
    pub(super) components: BTreeMap<String, Component>,
    pub(super) warnings: Vec<String>,
    provision: Provision,
    not_provided: Vec<String>,
    reports: Reports,
}

/// Runs a lab until it is ended.
pub async fn run(spec: Spec, mut programs: Programs) -> Result<()> {
    programs.images = spec.images.clone();
    let place = Arc::new(Place::new(spec.name.clone())?);
    boot::prepare(&place, &spec)?;
    let (reports, mut happenings) = mpsc::channel(4096);
    let (questions, mut asked) = mpsc::channel::<Question>(64);
    let (starts, mut started) = mpsc::channel::<NodeIndex>(64);
    let programs = Arc::new(programs);
    let mut world = World {
        place: place.clone(),
        spec: spec.clone(),
        objects: BTreeMap::new(),
        opaque: BTreeMap::new(),
        pods: BTreeMap::new(),
        published: publish::Published::default(),
        programs: programs.clone(),
        services: Allocator::default(),
        last_host: BTreeMap::new(),
        components: BTreeMap::new(),
        warnings: Vec::new(),
        provision: Provision::default(),
        not_provided: Vec::new(),
        reports,
    };
    world.settle();
    world.components = boot::components(&place, &spec, &programs, starts).await?;
    let (listed, mut lists) = mpsc::channel(64);
    for node in (1..=spec.nodes).map(NodeIndex).filter(|_| spec.mesh) {
        tokio::spawn(boot::follow(place.clone(), node, listed.clone()));
    }
    let (list, mut wanted) = mpsc::channel(1);
    if spec.mesh {
        let file = boot::controller_state(&place).join("waypoints.json");
        tokio::spawn(provision::follow(file, list));
    }
    // Only now the lab answers: whoever asks finds it complete.
    let listener = UnixListener::bind(place.control())
        .with_context(|| format!("listening on {}", place.control().display()))?;
    let mut serving = tokio::spawn(control::serve(listener, questions));
    loop {
        tokio::select! {
            Some((key, what)) = happenings.recv() => {
                world.note(&key, what);
                // What has piled up is taken in one go: settling is not free.
                while let Ok((key, what)) = happenings.try_recv() {
                    world.note(&key, what);
                }
                world.settle();
            }
            Some(question) = asked.recv() => world.answer(question),
            Some(node) = started.recv() => world.introduce(node),
            Some((node, list)) = lists.recv() => world.compare(node, &list),
            Some(list) = wanted.recv() => {
                world.provision.want(list);
                if world.provide() {
                    world.settle();
                }
            }
            ended = &mut serving => return ended.context("the control socket")?,
        }
    }
}

impl World {
    /// Makes the world what the objects say, as far as one step goes, and writes it down.
    pub(super) fn settle(&mut self) {
        self.provide();
        let existing: Vec<Existing> = self
            .pods
            .values()
            .filter(|p| !p.terminating)
            .map(PodRecord::existing)
            .collect();
        let mut plan = schedule::plan(&self.objects, &self.nodes(), &existing, &mut dice);
        self.warnings = std::mem::take(&mut plan.warnings);
        self.warnings.append(&mut self.not_provided);
        for key in &plan.delete {
            self.end(key);
        }
        let mut fresh = Vec::new();
        for new in plan.create {
            // A pod of this name is still going: its end brings us back here.
            if self.pods.contains_key(&new.key) {
                continue;
            }
            match self.admit(new) {
                Ok(begin) => fresh.push(begin),
                Err(e) => self.warnings.push(format!("{e:#}")),
            }
        }
        let services = self.cluster_ips();
        if let Err(e) = publish::publish(self, &services) {
            eprintln!("publish: {e:#}");
            self.warnings.push(format!("{e:#}"));
        }
        for (settled, stop) in fresh {
            tokio::spawn(pod::live(
                self.place.clone(),
                settled,
                self.programs.clone(),
                self.reports.clone(),
                stop,
            ));
        }
    }

    /// Makes what waypoints need that the controller wants, and takes away what they need no longer; whether anything is
    /// different now.
    fn provide(&mut self) -> bool {
        let part = |pod: &PodRecord| {
            let Settled { key, value, .. } = &*pod.settled;
            let label = &value["metadata"]["labels"]["gateway.networking.k8s.io/gateway-name"];
            Some(Part {
                namespace: key.namespace.clone(),
                waypoint: label.as_str()?.to_owned(),
                ready: pod.ready && !pod.terminating,
            })
        };
        let parts: Vec<Part> = self.pods.values().filter_map(part).collect();
        let work = self.provision.work(&self.objects, &parts, Instant::now());
        let changed = !work.put.is_empty() || !work.take.is_empty();
        for key in &work.take {
            self.objects.remove(key);
        }
        let new = work.put.into_iter();
        self.objects
            .extend(new.map(|object| (object.key.clone(), object)));
        self.not_provided = work.warnings;
        changed
    }

    fn admit(&mut self, new: NewPod) -> Result<(Arc<Settled>, watch::Receiver<bool>)> {
        let host = if new.value["spec"]["hostNetwork"] == true {
            None
        } else {
            Some(self.free_host(new.node, &new.value)?)
        };
        let uid = random_uid();
        let settled = Arc::new(Settled {
            key: new.key.clone(),
            uid,
            node: new.node,
            host,
            value: new.value,
            mesh: self.spec.mesh,
        });
        let (stop, stopped) = watch::channel(false);
        let record = PodRecord {
            settled: settled.clone(),
            owner: new.owner,
            generation: new.generation,
            phase: "Pending",
            ready: false,
            idle: false,
            terminating: false,
            since: SystemTime::now(),
            mesh: Default::default(),
            note: String::new(),
            restarts: 0,
            ifindex: None,
            stop,
        };
        self.pods.insert(new.key, record);
        Ok((settled, stopped))
    }

    /// The next free number on a node; one that was just given back comes last.
    fn free_host(&mut self, node: NodeIndex, pod: &Value) -> Result<u8> {
        let taken: BTreeSet<u8> = self
            .pods
            .values()
            .filter(|p| p.settled.node == node)
            .filter_map(|p| p.settled.host)
            .collect();
        if let Some(text) = pod["metadata"]["annotations"]["lab.warren.dev/ip"].as_str() {
            let ip: Ipv4Addr = text
                .parse()
                .with_context(|| format!("annotation lab.warren.dev/ip: `{text}`"))?;
            let host = ip.octets()[3];
            if ip != node.pod_ip(host) || taken.contains(&host) {
                bail!(
                    "annotation lab.warren.dev/ip: {ip} is taken or not one of {}",
                    node.name()
                );
            }
            return Ok(host);
        }
        let last = self.last_host.get(&node).copied().unwrap_or(1);
        let host = (last + 1..=250)
            .chain(2..=last)
            .find(|h| !taken.contains(h))
            .with_context(|| format!("{} has no free address", node.name()))?;
        self.last_host.insert(node, host);
        Ok(host)
    }

    pub(super) fn end(&mut self, key: &Key) {
        if let Some(pod) = self.pods.get_mut(key) {
            pod.terminating = true;
            pod.stop.send_replace(true);
        }
    }

    fn note(&mut self, key: &Key, what: Happening) {
        if matches!(what, Happening::Gone) {
            self.pods.remove(key);
            return;
        }
        let Some(pod) = self.pods.get_mut(key) else {
            return;
        };
        match what {
            Happening::Wired(index) => pod.ifindex = Some(index),
            Happening::Registered(state, reason) => {
                pod.mesh = (state, reason);
                pod.note.clear();
            }
            Happening::Note(text) => {
                eprintln!("{key}: {text}");
                pod.note = text;
            }
            Happening::Running { idle } => (pod.phase, pod.idle) = ("Running", idle),
            Happening::Ready(ready) => pod.ready = ready,
            Happening::Restarted => pod.restarts += 1,
            Happening::Completed(good) => {
                (pod.phase, pod.ready) = (if good { "Succeeded" } else { "Failed" }, false)
            }
            Happening::Gone => {}
        }
    }

    /// Tells a node proxy that has just started of all pods that were there before it.
    fn introduce(&self, node: NodeIndex) {
        for pod in self
            .pods
            .values()
            .filter(|p| p.settled.node == node && !p.terminating)
        {
            // A pod that has no answer yet is still asking by itself.
            if let (Some(ifindex), false) = (pod.ifindex, pod.mesh.0.is_empty()) {
                tokio::spawn(boot::introduce(
                    self.place.clone(),
                    pod.settled.clone(),
                    ifindex,
                    self.reports.clone(),
                ));
            }
        }
    }

    /// Takes over what a node proxy says of its pods.
    fn compare(&mut self, node: NodeIndex, list: &[Listed]) {
        for pod in self.pods.values_mut().filter(|p| p.settled.node == node) {
            if let Some(said) = list.iter().find(|l| l.uid == pod.settled.uid) {
                pod.mesh = (said.state.clone(), said.reason.clone());
            }
        }
    }
}

fn dice() -> String {
    let alphabet = b"bcdfghjklmnpqrstvwxz2456789";
    (0..5)
        .map(|_| char::from(alphabet[fastrand::usize(..alphabet.len())]))
        .collect()
}

/// Reads the lab's own description.
pub fn read_spec(path: &PathBuf) -> Result<Spec> {
    serde_json::from_str(
        &fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?,
    )
    .context("reading the lab's description")
}
