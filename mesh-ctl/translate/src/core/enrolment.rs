//! Whether a pod's traffic is to be captured.
//!
//! Invariant: a pod that asks for the mesh and cannot have it is refused with a reason, never quietly left out.

use mesh_k8s::{ObjectMeta, core::Pod, warren::HonourIstioLabels};
use mesh_model::{mesh::Enrolment, name::Namespace};

use crate::{
    status::{Message, Severity},
    view::ClusterView,
};

/// Our own label, on pods and namespaces.
pub(crate) const MESH_LABEL: &str = "warren.dev/mesh";
/// Annotation that tolerates traffic forwarded for others.
pub(crate) const ALLOW_FORWARDED: &str = "warren.dev/allow-forwarded";
/// Annotation that ends connections older than enrolment.
pub(crate) const CUT_EXISTING: &str = "warren.dev/cut-existing";

/// Decides, and says what is odd about the labels.
pub(crate) fn decide(
    view: &ClusterView,
    pod: &Pod,
    honour: &HonourIstioLabels,
    messages: &mut Vec<Message>,
) -> Enrolment {
    let meta = &pod.metadata;
    let wanted = asked(meta, honour, false, messages)
        .unwrap_or_else(|| of_namespace(view, &meta.namespace, honour));
    if !wanted {
        return Enrolment::Out;
    }
    match obstacle(pod) {
        None => Enrolment::Enrolled,
        Some((field, reason)) => {
            messages.push(Message {
                severity: Severity::Warning,
                field: field.to_owned(),
                text: format!("not enrolled: {reason}"),
            });
            Enrolment::Refused(reason.into())
        }
    }
}

/// Whether a pod takes part because of its own labels, whatever those of its namespace say.
pub(crate) fn by_itself(pod: &Pod, honour: &HonourIstioLabels) -> bool {
    asked(&pod.metadata, honour, false, &mut Vec::new()) == Some(true) && obstacle(pod).is_none()
}

/// Whether a namespace's labels ask for the mesh.
pub(crate) fn of_namespace(view: &ClusterView, name: &str, honour: &HonourIstioLabels) -> bool {
    view.namespaces
        .get(&crate::Key::new("", name))
        .and_then(|entry| asked(&entry.object.metadata, honour, true, &mut Vec::new()))
        .unwrap_or(false)
}

/// The namespaces whose labels ask for the mesh, in order.
pub(crate) fn namespaces(view: &ClusterView, honour: &HonourIstioLabels) -> Box<[Namespace]> {
    let asking = view.namespaces.values().filter(|entry| {
        asked(&entry.object.metadata, honour, true, &mut Vec::new()).unwrap_or(false)
    });
    let mut names: Vec<Namespace> = asking
        .map(|entry| Namespace::new(entry.object.metadata.name.as_str()))
        .collect();
    names.sort();
    names.into()
}

/// What labels ask for; `None` when they are silent.
fn asked(
    meta: &ObjectMeta,
    honour: &HonourIstioLabels,
    namespace: bool,
    messages: &mut Vec<Message>,
) -> Option<bool> {
    if let Some(value) = meta.label(MESH_LABEL) {
        match value {
            "enabled" => return Some(true),
            "disabled" => return Some(false),
            other => messages.push(odd_label(other)),
        }
    }
    if honour.dataplane_mode {
        match meta.label("istio.io/dataplane-mode") {
            Some("ambient") => return Some(true),
            Some("none") => return Some(false),
            _ => {}
        }
    }
    let injection = if namespace {
        meta.label("istio-injection")
    } else {
        meta.label("sidecar.istio.io/inject")
    };
    match injection.filter(|_| honour.injection) {
        Some("enabled" | "true") => Some(true),
        Some("disabled" | "false") => Some(false),
        _ => None,
    }
}

/// Says that a namespace's label is odd; once for the namespace, not for each of its pods.
pub(crate) fn odd_namespace_label(meta: &ObjectMeta) -> Option<Message> {
    meta.label(MESH_LABEL)
        .filter(|value| !matches!(*value, "enabled" | "disabled"))
        .map(odd_label)
}

fn odd_label(value: &str) -> Message {
    Message {
        severity: Severity::Error,
        field: format!("metadata.labels[{MESH_LABEL}]"),
        text: format!("{value:?} is neither \"enabled\" nor \"disabled\"; the label is ignored"),
    }
}

/// Why a pod cannot be captured, with the field that shows it.
fn obstacle(pod: &Pod) -> Option<(&'static str, String)> {
    let meta = &pod.metadata;
    if meta
        .annotations
        .contains_key("ambient.istio.io/redirection")
    {
        let reason = "another ambient mesh redirects this pod's traffic (annotation ambient.istio.io/redirection)";
        return Some((
            "metadata.annotations[ambient.istio.io/redirection]",
            reason.to_owned(),
        ));
    }
    if meta.annotations.contains_key("sidecar.istio.io/status") {
        let reason = "the pod has a sidecar of another mesh (annotation sidecar.istio.io/status)";
        return Some((
            "metadata.annotations[sidecar.istio.io/status]",
            reason.to_owned(),
        ));
    }
    if pod.spec.host_network {
        return Some((
            "spec.hostNetwork",
            "the pod shares its node's network".to_owned(),
        ));
    }
    let class = pod.spec.runtime_class_name.to_ascii_lowercase();
    let foreign_sockets = ["gvisor", "runsc", "kata"]
        .iter()
        .any(|name| class.contains(name));
    if foreign_sockets && !is_true(meta, ALLOW_FORWARDED) {
        let reason = format!(
            "runtime class {:?} keeps the pod's sockets out of its network namespace; annotate {ALLOW_FORWARDED}: \"true\" to tolerate it",
            pod.spec.runtime_class_name
        );
        return Some(("spec.runtimeClassName", reason));
    }
    None
}

/// Whether an annotation says `true`.
pub(crate) fn is_true(meta: &ObjectMeta, annotation: &str) -> bool {
    meta.annotation(annotation) == Some("true")
}
