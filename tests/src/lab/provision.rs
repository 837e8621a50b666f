//! Waypoints that the controller wants, made as a cluster's leader would make them: account, pod, and service.
//!
//! Invariants: pure, with the time as an argument; only objects of its own label are ever replaced or taken away; the
//! service comes when a pod is ready, and goes after the last pod, which goes only some time after nobody wants it.

use std::{
    collections::BTreeMap,
    fs,
    path::PathBuf,
    time::{Duration, Instant},
};

use serde::Deserialize;
use serde_json::{Value, json};
use tokio::{sync::mpsc, time::sleep};

use super::manifest::{Key, Object, render};

/// How often the list is looked at.
const LOOK: Duration = Duration::from_millis(100);
/// How long a waypoint serves on that nobody wants any more.
const LINGER: Duration = Duration::from_secs(3);
/// The label of what is made here, with its value.
const MANAGED: (&str, &str) = ("app.kubernetes.io/managed-by", "warren");
/// The label of a waypoint's objects, with its name.
const GATEWAY: &str = "gateway.networking.k8s.io/gateway-name";

/// A waypoint as the controller's list has it (CONTRACTS.md).
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Wanted {
    namespace: String,
    name: String,
    origin: Origin,
    #[serde(default)]
    extras: Extras,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
enum Origin {
    Gateway,
    Namespace { name: String },
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
struct Extras {
    labels: BTreeMap<String, String>,
    annotations: BTreeMap<String, String>,
    parameters: Option<String>,
}

#[derive(Deserialize)]
struct List {
    waypoints: Vec<Wanted>,
}

/// Reads the controller's list again and again, and tells what it says; also when nothing changed, as time has passed.
pub async fn follow(path: PathBuf, told: mpsc::Sender<Vec<Wanted>>) {
    loop {
        sleep(LOOK).await;
        let Ok(text) = fs::read(&path) else { continue };
        match serde_json::from_slice::<List>(&text) {
            Ok(list) => {
                if told.send(list.waypoints).await.is_err() {
                    return;
                }
            }
            Err(e) => eprintln!("{}: {e}", path.display()),
        }
    }
}

/// A pod that is part of a waypoint.
#[derive(Clone, Debug)]
pub struct Part {
    /// Its namespace.
    pub namespace: String,
    /// The waypoint's name.
    pub waypoint: String,
    /// Whether it is ready.
    pub ready: bool,
}

/// What is to be done to objects.
#[derive(Debug, Default)]
pub struct Work {
    /// Objects that are new or different.
    pub put: Vec<Object>,
    /// Objects to take away.
    pub take: Vec<Key>,
    /// What cannot be done, and why.
    pub warnings: Vec<String>,
}

/// The waypoints that are wanted, and since when others are not.
#[derive(Debug, Default)]
pub struct Provision {
    wanted: Vec<Wanted>,
    unwanted: BTreeMap<(String, String), Instant>,
}

impl Provision {
    /// Takes a list over.
    pub fn want(&mut self, wanted: Vec<Wanted>) {
        self.wanted = wanted;
    }

    /// Compares what is wanted with what is there.
    pub fn work(&mut self, objects: &BTreeMap<Key, Object>, parts: &[Part], now: Instant) -> Work {
        let mut work = Work::default();
        for wanted in &self.wanted {
            let place = (wanted.namespace.clone(), wanted.name.clone());
            self.unwanted.remove(&place);
            let of = |part: &&Part| part.namespace == place.0 && part.waypoint == place.1;
            let ready = parts.iter().filter(of).any(|part| part.ready);
            let service = Key::core("Service", &place.0, &place.1);
            let mut all = vec![wanted.account(), wanted.pod()];
            if ready || objects.contains_key(&service) {
                all.push(wanted.service());
            }
            for object in all {
                match objects.get(&object.key) {
                    Some(there) if there.value == object.value => {}
                    Some(there) if !is_ours(there) => work.warnings.push(format!(
                        "{} is somebody's own: the waypoint of that name is not made",
                        there.key
                    )),
                    _ => work.put.push(object),
                }
            }
            if let Some(map) = &wanted.extras.parameters {
                work.warnings.push(format!(
                    "waypoint {}/{}: parametersRef to {map} is not honoured in a lab",
                    place.0, place.1
                ));
            }
        }
        for object in objects.values().filter(|object| is_ours(object)) {
            let place = (object.key.namespace.clone(), object.key.name.clone());
            let same = |w: &Wanted| w.namespace == place.0 && w.name == place.1;
            if self.wanted.iter().any(same) {
                continue;
            }
            let since = *self.unwanted.entry(place.clone()).or_insert(now);
            let of = |part: &Part| part.namespace == place.0 && part.waypoint == place.1;
            let last = !parts.iter().any(of);
            if now.duration_since(since) >= LINGER && (object.key.kind == "Pod" || last) {
                work.take.push(object.key.clone());
            }
        }
        let there = |place: &(String, String)| {
            let at = |o: &&Object| o.key.namespace == place.0 && o.key.name == place.1;
            objects.values().filter(at).any(is_ours)
        };
        self.unwanted.retain(|place, _| there(place));
        work
    }
}

fn is_ours(object: &Object) -> bool {
    let labels = &object.value["metadata"]["labels"];
    labels[MANAGED.0] == MANAGED.1 && labels[GATEWAY] == object.key.name
}

impl Wanted {
    fn object(&self, kind: &str, mut rest: Value) -> Object {
        let mut labels = self.extras.labels.clone();
        labels.insert(MANAGED.0.to_owned(), MANAGED.1.to_owned());
        labels.insert(GATEWAY.to_owned(), self.name.clone());
        if let Origin::Namespace { name } = &self.origin {
            let label = "warren.dev/waypoint-for-namespace";
            labels.insert(label.to_owned(), name.clone());
        }
        let mut annotations = self.extras.annotations.clone();
        if kind == "Service" {
            annotations.insert("warren.dev/waypoint-active".to_owned(), "true".to_owned());
        }
        rest["apiVersion"] = "v1".into();
        rest["kind"] = kind.into();
        rest["metadata"] = json!({"name": self.name, "namespace": self.namespace, "labels": labels, "annotations": annotations});
        Object {
            key: Key::core(kind, &self.namespace, &self.name),
            text: render(&rest),
            value: rest,
        }
    }

    fn account(&self) -> Object {
        self.object("ServiceAccount", json!({}))
    }

    fn pod(&self) -> Object {
        let probe = json!({"httpGet": {"port": 15020, "path": "/readyz"}, "periodSeconds": 1});
        let container =
            json!({"name": "waypoint", "image": "warren/waypoint", "readinessProbe": probe});
        let spec = json!({"serviceAccountName": self.name, "containers": [container]});
        self.object("Pod", json!({ "spec": spec }))
    }

    fn service(&self) -> Object {
        let port = json!({"name": "hbone", "port": 15008, "appProtocol": "hbone"});
        let spec = json!({"selector": {GATEWAY: self.name}, "ports": [port]});
        self.object("Service", json!({ "spec": spec }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted() -> Wanted {
        let value = json!({"namespace": "warren-system", "name": "waypoint-shop",
            "origin": {"namespace": {"name": "shop", "because": ["VirtualService shop/a"]}},
            "purpose": {"services": true, "workloads": false}, "extras": {"labels": {"team": "a"}, "annotations": {}}});
        serde_json::from_value(value).expect("reads")
    }

    /// A world that does at once what it is told.
    #[derive(Default)]
    struct Small {
        provision: Provision,
        objects: BTreeMap<Key, Object>,
        parts: Vec<Part>,
    }

    impl Small {
        fn step(&mut self, now: Instant) -> Vec<String> {
            let work = self.provision.work(&self.objects, &self.parts, now);
            for object in work.put {
                self.objects.insert(object.key.clone(), object);
            }
            for key in work.take {
                self.objects.remove(&key);
            }
            self.objects.keys().map(|key| key.kind.clone()).collect()
        }
    }

    #[test]
    fn the_service_comes_with_a_ready_pod_and_goes_after_the_last() {
        let (mut small, start) = (Small::default(), Instant::now());
        assert!(small.step(start).is_empty());
        small.provision.want(vec![wanted()]);
        assert_eq!(small.step(start), ["Pod", "ServiceAccount"]);
        let part = |ready| Part {
            namespace: "warren-system".into(),
            waypoint: "waypoint-shop".into(),
            ready,
        };
        small.parts = vec![part(false)];
        assert_eq!(small.step(start), ["Pod", "ServiceAccount"]);
        small.parts = vec![part(true)];
        let all = ["Pod", "Service", "ServiceAccount"];
        assert_eq!(small.step(start), all);
        let key = Key::core("Service", "warren-system", "waypoint-shop");
        let meta = &small.objects[&key].value["metadata"];
        assert_eq!(meta["labels"]["warren.dev/waypoint-for-namespace"], "shop");
        assert_eq!(meta["labels"]["team"], "a");
        // It stays when its pods are gone: they are missed.
        small.parts = Vec::new();
        assert_eq!(small.step(start), all);
        small.parts = vec![part(true)];
        small.provision.want(Vec::new());
        assert_eq!(small.step(start), all);
        assert_eq!(small.step(start + LINGER / 2), all);
        // Wanted again, the time begins anew.
        small.provision.want(vec![wanted()]);
        assert_eq!(small.step(start + LINGER), all);
        small.provision.want(Vec::new());
        assert_eq!(small.step(start + LINGER), all);
        assert_eq!(
            small.step(start + LINGER * 2),
            ["Service", "ServiceAccount"]
        );
        small.parts = Vec::new();
        assert!(small.step(start + LINGER * 2).is_empty());
    }

    #[test]
    fn what_is_somebodys_own_stays() {
        let (mut small, now) = (Small::default(), Instant::now());
        let mut own = wanted().service();
        own.value["metadata"]["labels"] = json!({});
        small.objects.insert(own.key.clone(), own.clone());
        small.provision.want(vec![wanted()]);
        let work = small.provision.work(&small.objects, &[], now);
        assert_eq!((work.put.len(), work.warnings.len()), (2, 1));
        small.provision.want(Vec::new());
        small.step(now);
        small.step(now + LINGER);
        assert_eq!(small.objects[&own.key].value, own.value);
    }
}
