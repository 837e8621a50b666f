//! Who may do what: the accounts of controller and node proxies.
//!
//! Invariants: the node proxies' account has no rights at all, it only proves where a proxy runs; what the controller
//! changes is limited by name wherever Kubernetes can limit it (`create` cannot be). The rights to make waypoints beside
//! Gateways of other namespaces are a ClusterRole of their own: without its binding only the mesh's own namespace has some.

use serde_json::{Value, json};

use super::object::{cluster_meta, meta};
use super::{Values, controller, node};
use crate::webhook;

/// The accounts and their rights.
pub(super) fn objects(values: &Values, namespace: &str) -> Vec<Value> {
    let name = controller::NAME;
    let of =
        |kind: &str| json!({"apiGroup": "rbac.authorization.k8s.io", "kind": kind, "name": name});
    let subjects = json!([{"kind": "ServiceAccount", "name": name, "namespace": namespace}]);
    vec![
        account(name, namespace),
        account(node::NAME, namespace),
        json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole",
            "metadata": cluster_meta(name), "rules": cluster_rules(values),
        }),
        json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding",
            "metadata": cluster_meta(name), "roleRef": of("ClusterRole"), "subjects": subjects,
        }),
        json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role",
            "metadata": meta(name, namespace), "rules": rules(),
        }),
        json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding",
            "metadata": meta(name, namespace), "roleRef": of("Role"), "subjects": subjects,
        }),
        json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole",
            "metadata": cluster_meta(WAYPOINTS), "rules": waypoint_rules(),
        }),
        json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding",
            "metadata": cluster_meta(WAYPOINTS), "subjects": subjects,
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": WAYPOINTS},
        }),
        json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding",
            "metadata": meta(WAYPOINTS, namespace), "subjects": subjects,
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": WAYPOINTS},
        }),
    ]
}

/// Tokens are mounted where they are needed, with their audience.
fn account(name: &str, namespace: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "ServiceAccount",
        "metadata": meta(name, namespace), "automountServiceAccountToken": false,
    })
}

fn rule(group: &str, resources: &[&str], verbs: &[&str]) -> Value {
    json!({"apiGroups": [group], "resources": resources, "verbs": verbs})
}

fn named(group: &str, resource: &str, name: &str, verbs: &[&str]) -> Value {
    let mut rule = rule(group, &[resource], verbs);
    rule["resourceNames"] = json!([name]);
    rule
}

/// The name of the rights to make waypoints.
const WAYPOINTS: &str = "warren-waypoints";

/// What a waypoint consists of, and what its Gateway's parameters are.
fn waypoint_rules() -> Vec<Value> {
    const MAKE: [&str; 3] = ["create", "patch", "delete"];
    vec![
        rule("", &["serviceaccounts", "services"], &MAKE),
        rule("apps", &["deployments"], &MAKE),
        rule("policy", &["poddisruptionbudgets"], &MAKE),
        rule("autoscaling", &["horizontalpodautoscalers"], &MAKE),
        rule("", &["configmaps"], &["get"]),
    ]
}

const READ: [&str; 3] = ["get", "list", "watch"];

fn cluster_rules(values: &Values) -> Vec<Value> {
    let mut rules = vec![
        rule(
            "",
            &["namespaces", "nodes", "pods", "serviceaccounts", "services"],
            &READ,
        ),
        rule("discovery.k8s.io", &["endpointslices"], &READ),
        rule("apps", &["daemonsets", "deployments"], &READ),
        rule("networking.k8s.io", &["networkpolicies"], &READ),
        rule(
            "security.istio.io",
            &[
                "authorizationpolicies",
                "peerauthentications",
                "requestauthentications",
            ],
            &READ,
        ),
        rule(
            "networking.istio.io",
            &[
                "destinationrules",
                "envoyfilters",
                "gateways",
                "proxyconfigs",
                "serviceentries",
                "sidecars",
                "virtualservices",
                "workloadentries",
                "workloadgroups",
            ],
            &READ,
        ),
        rule("extensions.istio.io", &["wasmplugins"], &READ),
        rule(
            "gateway.networking.k8s.io",
            &[
                "gatewayclasses",
                "gateways",
                "grpcroutes",
                "httproutes",
                "referencegrants",
                "tcproutes",
                "tlsroutes",
            ],
            &READ,
        ),
        rule("telemetry.istio.io", &["telemetries"], &READ),
        rule("warren.dev", &["meshconfigs"], &READ),
        // Conditions.
        rule(
            "security.istio.io",
            &[
                "authorizationpolicies/status",
                "peerauthentications/status",
                "requestauthentications/status",
            ],
            &["patch"],
        ),
        rule(
            "networking.istio.io",
            &[
                "destinationrules/status",
                "envoyfilters/status",
                "gateways/status",
                "proxyconfigs/status",
                "serviceentries/status",
                "sidecars/status",
                "virtualservices/status",
                "workloadentries/status",
                "workloadgroups/status",
            ],
            &["patch"],
        ),
        rule("extensions.istio.io", &["wasmplugins/status"], &["patch"]),
        rule("telemetry.istio.io", &["telemetries/status"], &["patch"]),
        rule(
            "gateway.networking.k8s.io",
            &[
                "grpcroutes/status",
                "httproutes/status",
                "tcproutes/status",
                "tlsroutes/status",
            ],
            &["patch"],
        ),
        rule("warren.dev", &["meshconfigs/status"], &["patch"]),
        rule(
            "gateway.networking.k8s.io",
            &["gatewayclasses/status", "gateways/status"],
            &["patch"],
        ),
        rule("events.k8s.io", &["events"], &["create", "patch"]),
        // Whether a node's token is good.
        rule("authentication.k8s.io", &["tokenreviews"], &["create"]),
        // The webhook's registration carries a certificate that the controller makes.
        rule(
            "admissionregistration.k8s.io",
            &["validatingwebhookconfigurations"],
            &["create"],
        ),
        named(
            "admissionregistration.k8s.io",
            "validatingwebhookconfigurations",
            webhook::NAME,
            &["get", "patch"],
        ),
    ];
    if values.taint {
        // Nothing but a taint is taken off; Kubernetes cannot limit it to that.
        rules.push(rule("", &["nodes"], &["patch"]));
    }
    rules
}

fn rules() -> Vec<Value> {
    vec![
        rule("", &["configmaps", "secrets"], &["create"]),
        named("", "secrets", "warren-ca", &["get", "update"]),
        named("", "configmaps", "warren-root", &["get", "patch"]),
        rule("coordination.k8s.io", &["leases"], &["create"]),
        named(
            "coordination.k8s.io",
            "leases",
            controller::NAME,
            &["get", "update"],
        ),
    ]
}
