//! The controller: its Deployment, its Service, and how many replicas may be missing.

use serde_json::{Value, json};

use super::Values;
use super::object::{env_field, image, meta, pod_meta, pull_secrets, selector, set_unless_empty};
use crate::taint;

/// The name of everything that is the controller's.
pub(super) const NAME: &str = "warren-controller";
/// Where nodes subscribe and have certificates signed.
pub(super) const XDS_PORT: u16 = 15012;
/// The validating webhook.
const WEBHOOK_PORT: u16 = 15017;
/// Metrics and health.
const MONITOR_PORT: u16 = 15014;
/// Its user, in an image that has no other.
const USER: u32 = 65532;

/// Service, Deployment and PodDisruptionBudget.
pub(super) fn objects(values: &Values, namespace: &str) -> Vec<Value> {
    let mut objects = vec![service(namespace), deployment(values, namespace)];
    if values.controller.disruption_budget {
        objects.push(json!({
            "apiVersion": "policy/v1", "kind": "PodDisruptionBudget",
            "metadata": meta(NAME, namespace),
            "spec": {"maxUnavailable": 1, "selector": {"matchLabels": selector(NAME)}},
        }));
    }
    objects
}

fn service(namespace: &str) -> Value {
    let port = |name: &str, port: u16, target: &str| json!({"name": name, "port": port, "targetPort": target, "protocol": "TCP"});
    json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": meta(NAME, namespace),
        "spec": {
            "selector": selector(NAME),
            "ports": [
                port("tls-xds", XDS_PORT, "xds"),
                port("https-webhook", 443, "webhook"),
                port("http-monitor", MONITOR_PORT, "monitor"),
            ],
        },
    })
}

fn deployment(values: &Values, namespace: &str) -> Value {
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": meta(NAME, namespace),
        "spec": {
            "replicas": values.controller.replicas,
            "selector": {"matchLabels": selector(NAME)},
            // One more before one less: nodes always find a controller.
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}},
            "template": {"metadata": pod_meta(NAME), "spec": pod(values)},
        },
    })
}

fn pod(values: &Values) -> Value {
    let mut tolerations = vec![json!({"key": taint::KEY, "operator": "Exists"})];
    tolerations.extend(values.controller.tolerations.iter().map(|t| json!(t)));
    let mut spec = json!({
        "serviceAccountName": NAME,
        // The account's own setting is for whoever else uses it.
        "automountServiceAccountToken": true,
        "enableServiceLinks": false,
        "securityContext": {
            "runAsNonRoot": true, "runAsUser": USER, "runAsGroup": USER, "fsGroup": USER,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "affinity": {"podAntiAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [{
            "weight": 100,
            "podAffinityTerm": {
                "topologyKey": "kubernetes.io/hostname",
                "labelSelector": {"matchLabels": selector(NAME)},
            },
        }]}},
        "tolerations": tolerations,
        "containers": [container(values)],
        "volumes": [{"name": "state", "emptyDir": {}}],
    });
    let own = &values.controller;
    set_unless_empty(
        &mut spec,
        "priorityClassName",
        own.priority_class.as_str().into(),
    );
    set_unless_empty(&mut spec, "nodeSelector", json!(own.node_selector));
    set_unless_empty(&mut spec, "imagePullSecrets", pull_secrets(values).into());
    spec
}

fn container(values: &Values) -> Value {
    let mut args = vec![
        "controller".to_owned(),
        "--kubernetes".to_owned(),
        "--state=/var/lib/warren-controller".to_owned(),
        format!("--trust-domain={}", values.trust_domain),
        format!("--leaf-ttl={}", values.controller.leaf_ttl),
        format!("--log={}", values.log.level),
        format!("--log-format={}", values.log.format),
    ];
    args.extend(values.taint.then(|| "--node-taint".to_owned()));
    let port =
        |name: &str, port: u16| json!({"name": name, "containerPort": port, "protocol": "TCP"});
    let probe = |path: &str, period: u32, failures: u32| {
        json!({
            "httpGet": {"path": path, "port": "monitor"},
            "periodSeconds": period, "failureThreshold": failures, "timeoutSeconds": 5,
        })
    };
    let mut container = json!({
        "name": "controller",
        "image": image(values, "mesh-ctl"),
        "imagePullPolicy": values.image.pull_policy,
        "args": args,
        "env": [env_field("WARREN_CTL_NAMESPACE", "metadata.namespace")],
        "ports": [
            port("xds", XDS_PORT), port("webhook", WEBHOOK_PORT), port("monitor", MONITOR_PORT),
        ],
        "readinessProbe": probe("/readyz", 2, 3),
        "livenessProbe": probe("/livez", 10, 6),
        "securityContext": {
            "allowPrivilegeEscalation": false,
            "readOnlyRootFilesystem": true,
            "capabilities": {"drop": ["ALL"]},
        },
        // Roots and statuses; keys are in the Secret warren-ca only.
        "volumeMounts": [{"name": "state", "mountPath": "/var/lib/warren-controller"}],
    });
    set_unless_empty(
        &mut container,
        "resources",
        json!(values.controller.resources),
    );
    container
}
