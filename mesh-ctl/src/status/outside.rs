//! Pods that should be in the mesh and are not served there: what is said at them, with what to do.
//!
//! Invariant: nothing is said that the pod's own node does not say at present.

use mesh_api::delta::{Outcome, Outside};
use mesh_k8s::ObjectRef;
use mesh_model::name::NodeName;
use mesh_translate::{Condition, ConditionKind, Message, Severity, Status};

use super::object_of;

/// The reason, on Events as well.
pub(super) const NOT_CAPTURED: &str = "NotCaptured";

/// The pod, and what is said at it.
pub(super) fn told(node: &NodeName, outside: &Outside) -> (ObjectRef, String) {
    let Outside {
        uid,
        reason,
        outcome,
    } = outside;
    let pod = object_of(uid.as_str());
    let (namespace, name) = (&pod.namespace, &pod.name);
    let text = match outcome {
        Outcome::LeftAlone => format!(
            "node {node} cannot bring pod {namespace}/{name} into the mesh: {reason}; its connections go on without the mesh: mend that and start the pod anew, or leave it out by the label warren.dev/mesh=disabled"
        ),
        Outcome::TriedAgain => format!(
            "node {node} cannot bring pod {namespace}/{name} into the mesh: {reason}; its connections go on without the mesh until it succeeds: it is tried again, and the log of the node's proxy says more"
        ),
        Outcome::Refused => format!(
            "node {node} cannot serve pod {namespace}/{name} in the mesh: {reason}; its connections are refused until that is over: mend that, or start the pod anew"
        ),
        Outcome::Unknown => {
            format!("node {node} cannot bring pod {namespace}/{name} into the mesh: {reason}")
        }
    };
    (pod, text)
}

/// Says it at the pod, as what keeps it from being programmed.
pub(super) fn say(status: &mut Status, text: &str) {
    let programmed = ConditionKind::Programmed;
    status.conditions.retain(|c| c.kind != programmed);
    status.conditions.push(Condition {
        kind: programmed,
        status: false,
        reason: NOT_CAPTURED.to_owned(),
        message: text.to_owned(),
    });
    status.messages.push(Message {
        severity: Severity::Warning,
        field: String::new(),
        text: text.to_owned(),
    });
}
