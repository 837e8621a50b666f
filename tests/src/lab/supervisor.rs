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
    time::SystemTime,
};

use anyhow::{Context, Result, anyhow, bail};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::{
    net::UnixListener,
    sync::{mpsc, oneshot, watch},
};

use super::{
    boot,
    component::Component,
    control::{self, ComponentStatus, Question, Request, ServiceStatus, Status},
    manifest::{Document, Key, Object, Source},
    net::NodeIndex,
    place::{LabName, Place},
    pod::{self, Happening, Programs, Reports, Settled},
    podspec, publish,
    record::{PodRecord, random_uid},
    register::Listed,
    schedule::{self, Existing, NewPod, Nodes},
    service::{Allocator, Backend, ClusterIps},
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
    /// Environment of the node proxies.
    #[serde(default)]
    pub agent_env: Vec<(String, String)>,
    /// Further arguments of the controller.
    #[serde(default)]
    pub controller_args: Vec<String>,
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
    services: Allocator,
    last_host: BTreeMap<NodeIndex, u8>,
    components: BTreeMap<String, Component>,
    warnings: Vec<String>,
    reports: Reports,
}

/// Runs a lab until it is ended.
pub async fn run(spec: Spec, programs: Programs) -> Result<()> {
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
        reports,
    };
    world.settle();
    world.components = boot::components(&place, &spec, &programs, starts).await?;
    let (listed, mut lists) = mpsc::channel(64);
    for node in (1..=spec.nodes).map(NodeIndex).filter(|_| spec.mesh) {
        tokio::spawn(boot::follow(place.clone(), node, listed.clone()));
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
            ended = &mut serving => return ended.context("the control socket")?,
        }
    }
}

impl World {
    fn answer(&mut self, (request, reply): Question) {
        let done = match request {
            Request::Status => serde_json::to_value(self.status()).map_err(Into::into),
            Request::Apply { sources, namespace } => Ok(self.apply(&sources, &namespace)),
            Request::Delete { sources, namespace } => Ok(self.delete(&sources, &namespace)),
            Request::DeletePod { pod } => self.delete_pod(&pod),
            Request::Component { name, order } => return self.order(&name, order, reply),
        };
        self.settle();
        // Whoever asked may have gone meanwhile.
        let _ = reply.send(done);
    }

    fn order(
        &self,
        name: &str,
        order: super::component::Order,
        reply: oneshot::Sender<Result<Value>>,
    ) {
        let Some(component) = self.components.get(name) else {
            let _ = reply.send(Err(anyhow!(
                "no component `{name}`; there are: {}",
                self.components
                    .keys()
                    .cloned()
                    .collect::<Vec<_>>()
                    .join(", ")
            )));
            return;
        };
        let done = component.order(order);
        tokio::spawn(async move {
            let _ = reply.send(done.await.map(|()| Value::Null));
        });
    }

    fn apply(&mut self, sources: &[Source], namespace: &str) -> Value {
        let mut said = Vec::new();
        for document in sources.iter().flat_map(|s| s.documents(namespace)) {
            match document {
                Document::Object(object) => {
                    let verb = match self.objects.get(&object.key) {
                        None => "created",
                        Some(old) if old.value == object.value => "unchanged",
                        Some(_) => "configured",
                    };
                    said.push(format!("{} {verb}", object.key));
                    self.objects.insert(object.key.clone(), *object);
                }
                Document::Opaque { file, text, why } => {
                    said.push(format!("{file}: {why}; left to the controller as it is"));
                    self.opaque.insert(file, text);
                }
            }
        }
        json!(said)
    }

    fn delete(&mut self, sources: &[Source], namespace: &str) -> Value {
        let mut said = Vec::new();
        for document in sources.iter().flat_map(|s| s.documents(namespace)) {
            let (what, there) = match document {
                Document::Object(object) => {
                    let there = self.objects.remove(&object.key).is_some();
                    if object.key.kind == "Namespace" {
                        // What is in a namespace goes with it.
                        self.objects.retain(|k, _| k.namespace != object.key.name);
                    }
                    (object.key.to_string(), there)
                }
                Document::Opaque { file, .. } => {
                    (file.clone(), self.opaque.remove(&file).is_some())
                }
            };
            said.push(format!(
                "{what} {}",
                if there { "deleted" } else { "not found" }
            ));
        }
        json!(said)
    }

    fn delete_pod(&mut self, key: &Key) -> Result<Value> {
        if !self.pods.contains_key(key) {
            bail!("no {key}");
        }
        self.objects.remove(key);
        self.end(key);
        Ok(json!([format!("{key} deleted")]))
    }

    /// Makes the world what the objects say, as far as one step goes, and writes it down.
    fn settle(&mut self) {
        let existing: Vec<Existing> = self
            .pods
            .values()
            .filter(|p| !p.terminating)
            .map(PodRecord::existing)
            .collect();
        let mut plan = schedule::plan(&self.objects, &self.nodes(), &existing, &mut dice);
        self.warnings = std::mem::take(&mut plan.warnings);
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

    fn end(&mut self, key: &Key) {
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
            Happening::Running => pod.phase = "Running",
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

    fn cluster_ips(&mut self) -> BTreeMap<Key, ClusterIps> {
        let services: Vec<Object> = self
            .objects
            .values()
            .filter(|o| o.key.kind == "Service" && o.key.group.is_empty())
            .cloned()
            .collect();
        self.services
            .retain(|k| services.iter().any(|s| s.key == *k));
        let mut given = BTreeMap::new();
        for service in &services {
            match self.services.addresses(service) {
                Ok(ips) => drop(given.insert(service.key.clone(), ips)),
                Err(why) => self.warnings.push(why),
            }
        }
        given
    }

    /// The nodes with their labels: the lab's, and those of Node objects that users applied.
    pub fn nodes(&self) -> Nodes {
        (1..=self.spec.nodes)
            .map(NodeIndex)
            .map(|node| {
                let name = node.name();
                let own = [
                    ("kubernetes.io/hostname", name.clone()),
                    ("kubernetes.io/os", "linux".to_owned()),
                    ("topology.kubernetes.io/region", "lab".to_owned()),
                    ("topology.kubernetes.io/zone", format!("zone-{}", node.0)),
                ];
                let mut labels: BTreeMap<String, String> =
                    own.into_iter().map(|(k, v)| (k.to_owned(), v)).collect();
                if let Some(object) = self.objects.get(&Key::core("Node", "", &name)) {
                    labels.extend(publish::string_map(&object.value["metadata"]["labels"]));
                }
                (node, labels)
            })
            .collect()
    }

    /// The pods as services see them.
    pub fn backends(&self) -> Vec<Backend> {
        let nodes = self.nodes();
        let running = self
            .pods
            .values()
            .filter(|p| p.phase == "Running" || p.phase == "Pending");
        running
            .map(|p| {
                let spec = &p.settled.value["spec"];
                let named = |f: &str| spec[f].as_str().map(str::to_owned);
                Backend {
                    key: p.settled.key.clone(),
                    uid: p.settled.uid.clone(),
                    labels: publish::string_map(&p.settled.value["metadata"]["labels"]),
                    ips: p.settled.ips(),
                    node: p.settled.node.name(),
                    zone: nodes
                        .get(&p.settled.node)
                        .and_then(|l| l.get("topology.kubernetes.io/zone"))
                        .cloned()
                        .unwrap_or_default(),
                    ready: p.ready,
                    terminating: p.terminating,
                    ports: podspec::named_ports(&p.settled.value),
                    hostname: named("hostname").zip(named("subdomain")),
                }
            })
            .collect()
    }

    fn status(&mut self) -> Status {
        let services = self
            .cluster_ips()
            .into_iter()
            .map(|(key, ips)| {
                let cluster_ips = ips
                    .into_iter()
                    .flat_map(|(v4, v6)| {
                        std::iter::once(v4.to_string()).chain(v6.map(|ip| ip.to_string()))
                    })
                    .collect();
                ServiceStatus {
                    namespace: key.namespace,
                    name: key.name,
                    cluster_ips,
                }
            })
            .collect();
        Status {
            name: self.spec.name.to_string(),
            nodes: self.nodes().keys().map(|n| n.name()).collect(),
            mesh: self.spec.mesh,
            components: self
                .components
                .iter()
                .map(|(name, c)| ComponentStatus {
                    name: name.clone(),
                    condition: c.condition.borrow().clone(),
                })
                .collect(),
            pods: self.pods.values().map(|p| p.status(&self.place)).collect(),
            services,
            warnings: self.warnings.clone(),
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
