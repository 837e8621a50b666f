//! What an installation consists of: objects made from one value, the same that the Helm chart renders.
//!
//! Invariants: making objects is pure, and only `cluster` changes something; `objects` and `deploy/chart` give the same
//! objects for the same values (a test compares them through the real helm); what can be set is in
//! `deploy/chart/values.yaml` and nowhere else.

pub mod check;
pub mod cluster;
mod controller;
mod crds;
mod node;
mod object;
pub mod owner;
mod platform;
mod rbac;
mod remembered;
pub mod remove;
pub mod rollout;
mod set;
mod steps;
mod values;

pub use object::VERSION;
pub use platform::with_directories;
pub use remembered::remembered;
pub use set::{Asked, Assignment, Profile, SetError, values};
pub use steps::{found, install};
pub use values::{Cni, Controller, Crds, Image, Log, Node, Resources, Values};

use serde_json::{Value, json};

/// The namespace that an installation is in, unless told otherwise.
pub const NAMESPACE: &str = "warren-system";

/// Every object, in the order in which they are applied.
pub fn objects(values: &Values, namespace: &str) -> Vec<Value> {
    let mut objects = vec![self::namespace(namespace)];
    objects.extend(crds::objects(values));
    objects.extend(rbac::objects(values, namespace));
    objects.extend(controller::objects(values, namespace));
    objects.extend(node::objects(values, namespace));
    objects
}

/// The namespace. Node proxies need what a stricter pod security would refuse. The chart has no such object: helm
/// puts a release into a namespace that is there.
fn namespace(name: &str) -> Value {
    let labels = json!({
        "app.kubernetes.io/part-of": object::PART_OF,
        "pod-security.kubernetes.io/enforce": "privileged",
        "pod-security.kubernetes.io/audit": "privileged",
        "pod-security.kubernetes.io/warn": "privileged",
    });
    json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}})
}

#[cfg(test)]
mod tests;
