//! Whether Istio runs in the same cluster, and which namespaces each mesh takes.
//!
//! Invariant: a namespace is said to be taken by both when its labels make both take new pods of it; single pods that
//! already have a sidecar or are redirected are left alone by enrolment, wherever they are.

use mesh_k8s::{
    Kind, ObjectMeta, ObjectRef,
    apps::{DaemonSet, Deployment},
};
use serde::Serialize;

use crate::{core::enrolment, settings::Settings, view::ClusterView};

/// Labels of the pods of Istio's parts: its control plane, its node proxy and its CNI plugin.
const PARTS: [(&str, &str); 3] = [
    ("app", "istiod"),
    ("app", "ztunnel"),
    ("k8s-app", "istio-cni-node"),
];

/// A running Istio.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct IstioPresence {
    /// The deployments and daemon sets that it consists of.
    pub parts: Vec<ObjectRef>,
    /// Namespaces that are labelled for it and are enrolled here as well.
    pub both: Vec<String>,
    /// Namespaces that are labelled for it alone.
    pub theirs: Vec<String>,
}

impl IstioPresence {
    /// What a view shows of it; `None` when no part of it runs.
    pub fn of(view: &ClusterView) -> Option<Self> {
        let deployments = view.deployments.values().filter_map(|entry| {
            let Deployment { metadata, spec } = &*entry.object;
            let runs = spec.replicas != Some(0) && is_part(&spec.template.metadata);
            runs.then(|| ObjectRef::of::<Deployment>(metadata))
        });
        let daemon_sets = view.daemon_sets.values().filter_map(|entry| {
            let DaemonSet { metadata, spec } = &*entry.object;
            is_part(&spec.template.metadata).then(|| ObjectRef::of::<DaemonSet>(metadata))
        });
        let parts: Vec<ObjectRef> = deployments.chain(daemon_sets).collect();
        if parts.is_empty() {
            return None;
        }
        let honour = Settings::of(view).honour;
        let claimed = view
            .namespaces
            .values()
            .map(|entry| entry.object.metadata())
            .filter(|meta| is_claimed(meta))
            .map(|meta| meta.name.clone());
        let (both, theirs) = claimed.partition(|name| enrolment::of_namespace(view, name, &honour));
        Some(Self {
            parts,
            both,
            theirs,
        })
    }
}

/// Whether pods of this kind are a part of Istio.
pub(crate) fn is_part(pods: &ObjectMeta) -> bool {
    PARTS
        .iter()
        .any(|(key, value)| pods.label(key) == Some(value))
}

/// Whether Istio takes the pods of a namespace.
fn is_claimed(meta: &ObjectMeta) -> bool {
    let injects = match meta.label("istio-injection") {
        Some(value) => value == "enabled",
        None => meta.label("istio.io/rev").is_some(),
    };
    injects || meta.label("istio.io/dataplane-mode") == Some("ambient")
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::Origin;

    fn view(objects: Vec<Value>) -> ClusterView {
        let mut view = ClusterView::default();
        for object in objects {
            let parsed = mesh_k8s::read(object).expect("reads");
            view.apply(parsed.object, Origin::default(), [].into());
        }
        view
    }

    fn namespace(name: &str, labels: Value) -> Value {
        json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}})
    }

    fn workload(kind: &str, name: &str, labels: Value, replicas: u32) -> Value {
        let spec = json!({"replicas": replicas, "template": {"metadata": {"labels": labels}}});
        json!({"apiVersion": "apps/v1", "kind": kind, "metadata": {"name": name, "namespace": "istio-system"}, "spec": spec})
    }

    #[test]
    fn istio_is_known_by_its_parts_and_namespaces_by_who_takes_them() {
        let namespaces = || {
            vec![
                namespace("ambient", json!({"istio.io/dataplane-mode": "ambient"})),
                namespace("injected", json!({"istio-injection": "enabled"})),
                namespace("revision", json!({"istio.io/rev": "canary"})),
                namespace(
                    "given",
                    json!({"istio-injection": "enabled", "warren.dev/mesh": "disabled"}),
                ),
                namespace(
                    "refused",
                    json!({"istio-injection": "disabled", "istio.io/rev": "canary"}),
                ),
                namespace("ours", json!({"warren.dev/mesh": "enabled"})),
                workload("Deployment", "web", json!({"app": "web"}), 1),
            ]
        };
        assert_eq!(IstioPresence::of(&view(namespaces())), None);
        let with = |more: Vec<Value>| {
            let all = namespaces().into_iter().chain(more).collect();
            IstioPresence::of(&view(all))
        };
        let stopped = workload("Deployment", "istiod", json!({"app": "istiod"}), 0);
        assert_eq!(with(vec![stopped]), None);
        let istiod = workload("Deployment", "istiod-canary", json!({"app": "istiod"}), 1);
        let cni = json!({"k8s-app": "istio-cni-node"});
        let cni = workload("DaemonSet", "istio-cni-node", cni, 0);
        let found = with(vec![istiod.clone(), cni]).expect("runs");
        let parts: Vec<String> = found.parts.iter().map(ToString::to_string).collect();
        assert_eq!(
            parts,
            [
                "Deployment istio-system/istiod-canary",
                "DaemonSet istio-system/istio-cni-node"
            ]
        );
        assert_eq!(found.both, ["ambient", "injected"]);
        assert_eq!(found.theirs, ["given", "revision"]);
        let settings = json!({"apiVersion": "warren.dev/v1alpha1", "kind": "MeshConfig", "metadata": {"name": "mesh"},
            "spec": {"honourIstioLabels": {"dataplaneMode": false, "injection": false}}});
        let apart = with(vec![istiod, settings]).expect("runs");
        assert!(apart.both.is_empty(), "{apart:?}");
        assert_eq!(apart.theirs.len(), 4);
    }
}
