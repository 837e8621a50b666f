//! CustomResourceDefinitions: of our own kinds, and of the Istio kinds that are read.
//!
//! Invariants: a label tells those that an installation made; none goes with it, because users' objects would. What we
//! define of Istio's kinds lets every field through: what is understood is the translation's to say, in the status.

use mesh_k8s::{
    Kind,
    definition::{Names, definition},
    networking::{DestinationRule, ServiceEntry, VirtualService, WorkloadEntry},
    security::{AuthorizationPolicy, PeerAuthentication},
    telemetry::Telemetry,
};
use serde_json::{Value, json};

use super::Values;
use super::object::PART_OF;

/// The definitions that these values ask for.
pub(super) fn objects(values: &Values) -> Vec<Value> {
    let mut objects = Vec::new();
    if values.crds.install {
        objects.extend(own());
    }
    if values.crds.istio {
        objects.extend(istio());
    }
    objects
}

/// Those of our own kinds.
pub(super) fn own() -> Vec<Value> {
    mesh_k8s::warren::crds().into_iter().map(marked).collect()
}

/// Those of Istio's kinds.
pub(super) fn istio() -> Vec<Value> {
    vec![
        open::<AuthorizationPolicy>("authorizationpolicies", "ap"),
        open::<PeerAuthentication>("peerauthentications", "pa"),
        open::<ServiceEntry>("serviceentries", "se"),
        open::<WorkloadEntry>("workloadentries", "we"),
        open::<VirtualService>("virtualservices", "vs"),
        open::<DestinationRule>("destinationrules", "dr"),
        open::<Telemetry>("telemetries", "telemetry"),
    ]
}

/// Marks a definition as ours, to be kept when everything else goes.
fn marked(mut definition: Value) -> Value {
    definition["metadata"]["labels"] = json!({"app.kubernetes.io/part-of": PART_OF});
    definition["metadata"]["annotations"] = json!({"helm.sh/resource-policy": "keep"});
    definition
}

fn open<K: Kind>(plural: &str, short: &str) -> Value {
    let open = |description: &str| json!({"type": "object", "description": description, "x-kubernetes-preserve-unknown-fields": true});
    let schema = json!({
        "type": "object",
        "properties": {
            "spec": open("As Istio defines it."),
            "status": open("What the mesh says about this object."),
        },
    });
    let family = K::GROUP.split('.').next().unwrap_or_default();
    let names = Names {
        plural,
        short,
        categories: &["istio-io", &format!("{family}-istio-io")],
    };
    marked(definition::<K>(names, &["Accepted"], &schema))
}
