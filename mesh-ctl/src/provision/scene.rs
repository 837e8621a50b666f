//! What there is of waypoints in a cluster, as far as it is seen: read from the view in one go.
//!
//! Invariant: only what carries our labels counts as made here.

use std::collections::BTreeMap;

use mesh_k8s::{ObjectMeta, core::Pod};
use mesh_translate::{ACTIVE, ClusterView, Entry, GATEWAY_NAME, Key, MANAGED_BY, Wanted};

/// The label of a slice, with the name of its service.
const SERVICE_NAME: &str = "kubernetes.io/service-name";

/// What there is of one waypoint.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Made {
    pub(super) account: bool,
    pub(super) deployment: bool,
    pub(super) service: bool,
    /// Whether its service is in use.
    pub(super) active: bool,
    /// How many pods it has, those that are ending included.
    pub(super) pods: usize,
    /// Whether one of them is ready.
    pub(super) ready: bool,
    /// Whether its service has an endpoint that is ready.
    pub(super) endpoint: bool,
    /// The uid of the Gateway of its name.
    pub(super) gateway: Option<String>,
}

/// All waypoints that were made here, by namespace and name.
#[derive(Debug, Default)]
pub(super) struct Scene {
    pub(super) all: BTreeMap<(String, String), Made>,
    /// Gateways by namespace and name, with their uids.
    gateways: BTreeMap<(String, String), String>,
}

impl Scene {
    /// Looks at a view.
    pub(super) fn of(view: &ClusterView, wanted: &[Wanted]) -> Self {
        let mut scene = Self::default();
        for entry in view.service_accounts.values() {
            scene.note(&entry.object.metadata, |made| made.account = true);
        }
        for entry in view.deployments.values() {
            scene.note(&entry.object.metadata, |made| made.deployment = true);
        }
        for entry in view.services.values() {
            let meta = &entry.object.metadata;
            let active = meta.annotation(ACTIVE) == Some("true");
            scene.note(meta, |made| {
                made.service = true;
                made.active = active;
            });
        }
        for (place, made) in &mut scene.all {
            made.look(view, place);
        }
        for wanted in wanted {
            let key = Key::new(&wanted.namespace, &wanted.name);
            if let Some(entry) = view.gateways.get(&key) {
                let place = (wanted.namespace.clone(), wanted.name.clone());
                scene
                    .gateways
                    .insert(place, entry.object.metadata.uid.clone());
            }
        }
        scene
    }

    /// What there is of a waypoint.
    pub(super) fn made(&self, namespace: &str, name: &str) -> Made {
        let place = (namespace.to_owned(), name.to_owned());
        let gateway = self.gateways.get(&place).cloned();
        let made = self.all.get(&place).cloned().unwrap_or_default();
        Made { gateway, ..made }
    }

    fn note(&mut self, meta: &ObjectMeta, what: impl FnOnce(&mut Made)) {
        let ours = meta.label(MANAGED_BY.0) == Some(MANAGED_BY.1)
            && meta.label(GATEWAY_NAME) == Some(&meta.name);
        if ours && !meta.is_terminating() {
            let place = (meta.namespace.clone(), meta.name.clone());
            what(self.all.entry(place).or_default());
        }
    }
}

impl Made {
    /// Counts pods and endpoints.
    fn look(&mut self, view: &ClusterView, (namespace, name): &(String, String)) {
        let from = Key::new(namespace, "");
        let pods = view.pods.range(from.clone()..);
        let pods = pods.take_while(|(key, _)| *key.namespace == **namespace);
        for (_, entry) in pods.filter(|(_, entry)| is_part(entry, name)) {
            self.pods += usize::from(is_alive(&entry.object));
            self.ready |= is_ready(&entry.object);
        }
        let slices = view.endpoint_slices.range(from..);
        let slices = slices.take_while(|(key, _)| *key.namespace == **namespace);
        let own =
            slices.filter(|(_, e)| e.object.metadata.label(SERVICE_NAME) == Some(name.as_str()));
        self.endpoint = own
            .flat_map(|(_, entry)| &entry.object.endpoints)
            .any(|endpoint| endpoint.conditions.ready == Some(true));
    }
}

fn is_part(entry: &Entry<Pod>, name: &str) -> bool {
    let meta = &entry.object.metadata;
    meta.label(GATEWAY_NAME) == Some(name) && meta.label(MANAGED_BY.0) == Some(MANAGED_BY.1)
}

/// Pods that ended stay as objects for a while.
fn is_alive(pod: &Pod) -> bool {
    !matches!(pod.status.phase.as_str(), "Succeeded" | "Failed")
}

fn is_ready(pod: &Pod) -> bool {
    let mut conditions = pod.status.conditions.iter();
    let ready = conditions.any(|c| c.kind == "Ready" && c.status == "True");
    ready && !pod.metadata.is_terminating()
}
