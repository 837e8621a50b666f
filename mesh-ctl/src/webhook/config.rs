//! The ValidatingWebhookConfiguration `warren-validator`, kept by the leader.
//!
//! Invariants: it names the resources that it is for, never all of a group, and none that a cluster needs to come up;
//! it fails open. A root is in it before anything is signed by that root, because `prepare` comes before `switch`.

use std::{
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use k8s_openapi::{
    ByteString, api::admissionregistration::v1::ValidatingWebhookConfiguration as Configuration,
};
use kube::{
    Api, Client,
    api::{Patch, PatchParams},
};
use mesh_k8s::warren::{HonourIstioLabels, crds};
use mesh_translate::Settings;
use serde_json::{Value, json};
use tokio::{
    sync::watch,
    time::{interval, timeout},
};
use tracing::{info, warn};

use super::{PATH, TIMEOUT_SECONDS};
use crate::{FIELD_MANAGER, ca::Authority, view::View};

/// The configuration's name.
pub const NAME: &str = "warren-validator";

/// What is enough to find the configuration by.
pub fn registration() -> Value {
    json!({
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "ValidatingWebhookConfiguration",
        "metadata": {"name": NAME},
    })
}

/// The Service in front of the controllers, and the port of it that leads here.
const SERVICE: (&str, u16) = ("warren-controller", 443);
/// How often what is there is compared with what should be.
const COMPARE: Duration = Duration::from_secs(10);
/// Kinds of Istio and of the Gateway API: those that are honoured, and those whose authors must hear that they are not.
const ISTIO: [(&str, &[&str]); 5] = [
    (
        "security.istio.io",
        &[
            "authorizationpolicies",
            "peerauthentications",
            "requestauthentications",
        ],
    ),
    (
        "networking.istio.io",
        &[
            "serviceentries",
            "workloadentries",
            "destinationrules",
            "envoyfilters",
            "gateways",
            "proxyconfigs",
            "sidecars",
            "virtualservices",
            "workloadgroups",
        ],
    ),
    (
        "gateway.networking.k8s.io",
        &[
            "gateways",
            "grpcroutes",
            "httproutes",
            "tcproutes",
            "tlsroutes",
        ],
    ),
    ("telemetry.istio.io", &["telemetries"]),
    ("extensions.istio.io", &["wasmplugins"]),
];

/// Keeps the configuration while this replica leads. Never ends.
pub async fn keep(
    client: Client,
    namespace: String,
    authority: Arc<Authority>,
    view: Arc<RwLock<View>>,
    mut leads: watch::Receiver<bool>,
) {
    let api: Api<Configuration> = Api::all(client);
    let mut kept = authority.watch();
    let mut ticks = interval(COMPARE);
    let mut trouble = String::new();
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            changed = kept.changed() => if changed.is_err() { return },
            changed = leads.changed() => if changed.is_err() { return },
        }
        if !*leads.borrow_and_update() {
            continue;
        }
        let honour = {
            let view = view.read().unwrap_or_else(PoisonError::into_inner);
            view.is_complete()
                .then(|| Settings::of(view.cluster()).honour)
        };
        // Which labels enrol is not known before the cluster was read.
        let Some(honour) = honour else { continue };
        let wanted = configuration(&namespace, &honour, &authority.roots());
        let done = timeout(COMPARE, write(&api, wanted)).await;
        let said = done
            .unwrap_or_else(|_| Err("the API server did not answer in time".to_owned()))
            .err()
            .unwrap_or_default();
        if said != trouble {
            match said.as_str() {
                "" => info!("the webhook's configuration is in place again"),
                said => {
                    warn!(
                        error = said,
                        name = NAME,
                        "the webhook's configuration could not be kept; objects are written unchecked"
                    );
                }
            }
            trouble = said;
        }
    }
}

/// Writes the configuration where it is not there, or another.
async fn write(api: &Api<Configuration>, wanted: Value) -> Result<(), String> {
    let failed = |error: kube::Error| {
        format!(
            "{error}; the ClusterRole of warren-controller has to allow get and patch on validatingwebhookconfigurations {NAME}, and create on validatingwebhookconfigurations"
        )
    };
    let found = api.get_opt(NAME).await.map_err(failed)?;
    let found = found.map(|found| serde_json::to_value(found).unwrap_or_default());
    if found.is_some_and(|found| is_there(&found["webhooks"], &wanted["webhooks"])) {
        return Ok(());
    }
    let params = PatchParams::apply(FIELD_MANAGER).force();
    api.patch(NAME, &params, &Patch::Apply(wanted))
        .await
        .map_err(failed)?;
    info!(name = NAME, "the webhook's configuration was written");
    Ok(())
}

/// Whether each wanted entry is there under its name. Entries of others are theirs.
fn is_there(found: &Value, wanted: &Value) -> bool {
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let found = list(found);
    let ours = found.iter().filter(|entry| {
        let name = entry["name"].as_str().unwrap_or_default();
        name.ends_with(SUFFIX)
    });
    let wanted = list(wanted);
    ours.count() == wanted.len()
        && wanted.iter().all(|entry| {
            let there = found.iter().find(|other| other["name"] == entry["name"]);
            there.is_some_and(|there| covers(there, entry))
        })
}

/// Whether everything wanted is found; the API server fills in what was left out.
fn covers(found: &Value, wanted: &Value) -> bool {
    match (found, wanted) {
        (Value::Object(found), Value::Object(wanted)) => wanted
            .iter()
            .all(|(key, value)| found.get(key).is_some_and(|there| covers(there, value))),
        (Value::Array(found), Value::Array(wanted)) => {
            found.len() == wanted.len() && found.iter().zip(wanted).all(|(f, w)| covers(f, w))
        }
        (found, wanted) => found == wanted,
    }
}

/// How the names of our entries end.
const SUFFIX: &str = ".validate.warren.dev";

/// The configuration for a controller in this namespace.
fn configuration(namespace: &str, honour: &HonourIstioLabels, roots: &str) -> Value {
    let entry = |name: &str, rules: &[Value], selector: Vec<Value>| {
        json!({
            "name": format!("{name}{SUFFIX}"),
            "admissionReviewVersions": ["v1"],
            "clientConfig": {
                "service": {"namespace": namespace, "name": SERVICE.0, "port": SERVICE.1, "path": PATH},
                "caBundle": ByteString(roots.as_bytes().to_vec()),
            },
            "rules": rules,
            "namespaceSelector": {"matchExpressions": selector},
            "failurePolicy": "Ignore",
            "matchPolicy": "Equivalent",
            "sideEffects": "None",
            "timeoutSeconds": TIMEOUT_SECONDS,
        })
    };
    let name = "kubernetes.io/metadata.name";
    let outside = |names: &[&str]| one(name, "NotIn", names);
    let others = || outside(&["kube-system", namespace]);
    let istio: Vec<Value> = ISTIO
        .iter()
        .map(|(group, resources)| rule(group, resources, "Namespaced"))
        .collect();
    // One label decides over the next, as it does for pods.
    let own =
        |values: &[&str], not| one("warren.dev/mesh", if not { "NotIn" } else { "In" }, values);
    let ambient = "istio.io/dataplane-mode";
    let mut entries = vec![
        // Where the mesh's settings are is seldom an enrolled namespace; no other object is looked at there.
        entry("own", &own_rules(), vec![outside(&["kube-system"])]),
        entry("mesh", &istio, vec![others(), own(&["enabled"], false)]),
    ];
    let silent = own(&["enabled", "disabled"], true);
    if honour.dataplane_mode {
        let selector = vec![others(), silent.clone(), one(ambient, "In", &["ambient"])];
        entries.push(entry("ambient", &istio, selector));
    }
    if honour.injection {
        let mut selector = vec![others(), silent];
        if honour.dataplane_mode {
            selector.push(one(ambient, "NotIn", &["ambient", "none"]));
        }
        selector.push(one("istio-injection", "In", &["enabled"]));
        entries.push(entry("injection", &istio, selector));
    }
    json!({
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "ValidatingWebhookConfiguration",
        "metadata": {"name": NAME, "labels": {"app.kubernetes.io/part-of": "warren"}},
        "webhooks": entries,
    })
}

fn own_rules() -> Vec<Value> {
    let rule = |crd: Value| {
        let spec = &crd["spec"];
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let scope = text(&spec["scope"]);
        rule(
            &text(&spec["group"]),
            &[&text(&spec["names"]["plural"])],
            &scope,
        )
    };
    crds().into_iter().map(rule).collect()
}

fn rule(group: &str, resources: &[&str], scope: &str) -> Value {
    json!({
        "apiGroups": [group],
        "apiVersions": ["*"],
        "operations": ["CREATE", "UPDATE"],
        "resources": resources,
        "scope": scope,
    })
}

fn one(key: &str, operator: &str, values: &[&str]) -> Value {
    json!({"key": key, "operator": operator, "values": values})
}

#[cfg(test)]
mod tests;
