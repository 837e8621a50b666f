//! What all objects have in common: labels, and the image that a container runs.

use serde_json::{Value, json};

use super::Values;

/// The label value that tells our objects from others.
pub(super) const PART_OF: &str = "warren";
/// The version of this program, and of the images unless told otherwise.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Metadata of an object in the installation's namespace.
pub(super) fn meta(component: &str, namespace: &str) -> Value {
    let mut meta = cluster_meta(component);
    meta["namespace"] = namespace.into();
    meta
}

/// Metadata of an object that is in no namespace.
pub(super) fn cluster_meta(component: &str) -> Value {
    json!({"name": component, "labels": labels(component)})
}

/// Labels of an object of a component.
pub(super) fn labels(component: &str) -> Value {
    json!({
        "app.kubernetes.io/name": component,
        "app.kubernetes.io/part-of": PART_OF,
        "app.kubernetes.io/version": VERSION,
    })
}

/// What selects a component's pods; it never changes, because a selector cannot.
pub(super) fn selector(component: &str) -> Value {
    json!({"app.kubernetes.io/name": component})
}

/// Metadata of a component's pods. The mesh's own pods are never captured, whatever their namespace says.
pub(super) fn pod_meta(component: &str) -> Value {
    json!({"labels": {
        "app.kubernetes.io/name": component,
        "app.kubernetes.io/part-of": PART_OF,
        "warren.dev/mesh": "disabled",
        "sidecar.istio.io/inject": "false",
    }})
}

/// The image of a program.
pub(super) fn image(values: &Values, program: &str) -> String {
    let image = &values.image;
    let tag = match image.tag.as_str() {
        "" => VERSION,
        tag => tag,
    };
    format!("{}/{program}:{tag}", image.repository)
}

/// References to the Secrets with which images are fetched.
pub(super) fn pull_secrets(values: &Values) -> Vec<Value> {
    let secrets = values.image.pull_secrets.iter();
    secrets.map(|name| json!({"name": name})).collect()
}

/// Sets a field when there is something to say.
pub(super) fn set_unless_empty(object: &mut Value, field: &str, value: Value) {
    let empty = match &value {
        Value::Array(items) => items.is_empty(),
        Value::Object(fields) => fields.is_empty(),
        Value::String(text) => text.is_empty(),
        _ => false,
    };
    if !empty {
        object[field] = value;
    }
}

/// An environment variable.
pub(super) fn env(name: &str, value: impl Into<String>) -> Value {
    json!({"name": name, "value": value.into()})
}

/// An environment variable that holds a field of the pod.
pub(super) fn env_field(name: &str, path: &str) -> Value {
    json!({"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}})
}
