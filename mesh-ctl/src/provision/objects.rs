//! What a waypoint consists of in a cluster: account, Deployment, PodDisruptionBudget, HorizontalPodAutoscaler, Service.
//!
//! Invariants: pure; names, selectors, labels and owners are ours to say, everything else may be changed by whoever owns
//! the Gateway. Pods run as nobody, write nowhere but in directories of their own, and hold a token of our audience only.

use mesh_translate::{ACTIVE, FOR_NAMESPACE, GATEWAY_NAME, MANAGED_BY, Wanted, WantedBy};
use serde_json::{Map, Value, json};

/// The kinds of objects, as keys of a Gateway's parameters have them; in the order in which they are made.
pub(super) const KINDS: [Kind; 5] = [
    Kind::Account,
    Kind::Deployment,
    Kind::Budget,
    Kind::Autoscaler,
    Kind::Service,
];

/// A kind of object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Kind {
    Account,
    Deployment,
    Budget,
    Autoscaler,
    Service,
}

/// HBONE.
const HBONE: u16 = 15008;
/// Metrics and health.
const METRICS: u16 = 15020;
/// The user of the pods, in an image that has no other.
const USER: u32 = 65532;
/// The audience of the tokens by which waypoints prove themselves.
const AUDIENCE: &str = "warren.dev";
/// How long a pod that is to end serves what it has, in seconds, and what it may take beyond.
const DRAIN: (u32, u32) = (30, 15);
/// The annotation that holds the roots to know the controller by.
const ROOTS: &str = "warren.dev/roots";
/// What a waypoint takes over from the node proxies' settings.
const INHERITED: [&str; 5] = [
    "WARREN_CONTROLLER",
    "WARREN_CLUSTER_ID",
    "WARREN_ACCESS_LOG",
    "WARREN_LOG",
    "WARREN_LOG_FORMAT",
];

impl Kind {
    /// The key in a Gateway's parameters.
    pub(super) fn key(self) -> &'static str {
        match self {
            Self::Account => "serviceAccount",
            Self::Deployment => "deployment",
            Self::Budget => "podDisruptionBudget",
            Self::Autoscaler => "horizontalPodAutoscaler",
            Self::Service => "service",
        }
    }

    /// API version, kind, and the plural of the kind.
    pub(super) fn api(self) -> (&'static str, &'static str, &'static str) {
        match self {
            Self::Account => ("v1", "ServiceAccount", "serviceaccounts"),
            Self::Deployment => ("apps/v1", "Deployment", "deployments"),
            Self::Budget => ("policy/v1", "PodDisruptionBudget", "poddisruptionbudgets"),
            Self::Autoscaler => (
                "autoscaling/v2",
                "HorizontalPodAutoscaler",
                "horizontalpodautoscalers",
            ),
            Self::Service => ("v1", "Service", "services"),
        }
    }
}

/// What the installation says of a waypoint's pods.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Install {
    image: Value,
    pull_policy: Value,
    pull_secrets: Value,
    environment: Vec<Value>,
    /// Roots to know the controller by, PEM.
    roots: String,
}

impl Install {
    /// As the node proxies' DaemonSet has it; `None` when it is none of ours.
    pub(super) fn of(node: &Value, roots: String) -> Option<Self> {
        let pod = &node["spec"]["template"]["spec"];
        let containers = pod["containers"].as_array()?;
        let container = containers.iter().find(|c| c["name"] == "node")?;
        container["image"].as_str()?;
        let all = container["env"].as_array().into_iter().flatten();
        let inherited = |v: &&Value| {
            let name = v["name"].as_str().unwrap_or_default();
            INHERITED.contains(&name) && v["value"].is_string()
        };
        Some(Self {
            image: container["image"].clone(),
            pull_policy: container["imagePullPolicy"].clone(),
            pull_secrets: pod["imagePullSecrets"].clone(),
            environment: all.filter(inherited).cloned().collect(),
            roots,
        })
    }
}

/// Who owns the objects: a Gateway's name and uid.
pub(super) type Owner = (String, String);

/// An object of a waypoint, with what its owner says changed.
pub(super) fn object(
    kind: Kind,
    wanted: &Wanted,
    install: &Install,
    owner: Option<&Owner>,
    active: bool,
    said: &Map<String, Value>,
) -> Value {
    let labels = labels(wanted);
    let mut object = match kind {
        Kind::Account => json!({"automountServiceAccountToken": false}),
        Kind::Deployment => deployment(wanted, install, &labels),
        Kind::Budget => {
            json!({"spec": {"maxUnavailable": 1, "selector": {"matchLabels": selector(wanted)}}})
        }
        Kind::Autoscaler => autoscaler(wanted),
        Kind::Service => json!({"spec": {
            "selector": selector(wanted),
            "ports": [
                {"name": "hbone", "port": HBONE, "targetPort": HBONE, "protocol": "TCP", "appProtocol": "hbone"},
            ],
        }}),
    };
    let extra = said.get(kind.key()).cloned().unwrap_or(Value::Null);
    if extra.is_object() {
        merge(&mut object, extra);
    }
    let (version, name, _) = kind.api();
    object["apiVersion"] = version.into();
    object["kind"] = name.into();
    if matches!(kind, Kind::Deployment | Kind::Budget) {
        object["spec"]["selector"] = json!({"matchLabels": selector(wanted)});
    }
    if kind == Kind::Deployment {
        let template = &mut object["spec"]["template"];
        own(&mut template["metadata"], &labels);
        template["spec"]["serviceAccountName"] = wanted.name.clone().into();
    }
    if kind == Kind::Service {
        object["spec"]["selector"] = json!(selector(wanted));
    }
    let meta = &mut object["metadata"];
    own(meta, &labels);
    for (name, value) in &wanted.extras.annotations {
        if meta["annotations"][name].is_null() {
            meta["annotations"][name] = value.clone().into();
        }
    }
    if kind == Kind::Service {
        // Whether it is to be used is never the owner's to say.
        meta["annotations"][ACTIVE] = active.to_string().into();
    }
    meta["name"] = wanted.name.clone().into();
    meta["namespace"] = wanted.namespace.clone().into();
    if let Some((name, uid)) = owner {
        meta["ownerReferences"] = json!([{
            "apiVersion": "gateway.networking.k8s.io/v1", "kind": "Gateway", "name": name, "uid": uid,
            "controller": true, "blockOwnerDeletion": false,
        }]);
    }
    object
}

fn own(meta: &mut Value, labels: &Map<String, Value>) {
    for (name, value) in labels {
        meta["labels"][name] = value.clone();
    }
}

/// What tells a waypoint's pods from others; it never changes, because a selector cannot.
fn selector(wanted: &Wanted) -> Value {
    json!({ (GATEWAY_NAME): wanted.name })
}

/// The labels of all its objects.
fn labels(wanted: &Wanted) -> Map<String, Value> {
    let given = wanted.extras.labels.iter();
    let mut labels: Map<String, Value> =
        given.map(|(k, v)| (k.clone(), v.clone().into())).collect();
    labels.insert(GATEWAY_NAME.to_owned(), wanted.name.clone().into());
    labels.insert(MANAGED_BY.0.to_owned(), MANAGED_BY.1.into());
    if let WantedBy::Namespace { name, .. } = &wanted.origin {
        labels.insert(FOR_NAMESPACE.to_owned(), name.clone().into());
    }
    labels
}

fn autoscaler(wanted: &Wanted) -> Value {
    json!({"spec": {
        "minReplicas": 1, "maxReplicas": 5,
        "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": wanted.name},
        "metrics": [{"type": "Resource", "resource": {
            "name": "cpu", "target": {"type": "Utilization", "averageUtilization": 80},
        }}],
    }})
}

/// How many pods there are is the autoscaler's to say.
fn deployment(wanted: &Wanted, install: &Install, labels: &Map<String, Value>) -> Value {
    let mut annotations: Map<String, Value> = Map::new();
    for (name, value) in &wanted.extras.annotations {
        annotations.insert(name.clone(), value.clone().into());
    }
    annotations.insert(ROOTS.to_owned(), install.roots.clone().into());
    // A part of the mesh is never captured, whatever its namespace says.
    let mut pod_labels = labels.clone();
    pod_labels.insert("warren.dev/mesh".to_owned(), "disabled".into());
    pod_labels.insert("sidecar.istio.io/inject".to_owned(), "false".into());
    let spread = json!([{
        "maxSkew": 1, "topologyKey": "kubernetes.io/hostname", "whenUnsatisfiable": "ScheduleAnyway",
        "labelSelector": {"matchLabels": selector(wanted)},
    }]);
    let mut pod = json!({
        "serviceAccountName": wanted.name,
        "automountServiceAccountToken": false,
        "enableServiceLinks": false,
        "terminationGracePeriodSeconds": DRAIN.0 + DRAIN.1,
        "securityContext": {
            "runAsNonRoot": true, "runAsUser": USER, "runAsGroup": USER, "fsGroup": USER,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "topologySpreadConstraints": spread,
        "containers": [container(install)],
        "volumes": [
            {"name": "roots", "downwardAPI": {"items": [
                {"path": "root.pem", "fieldRef": {"fieldPath": format!("metadata.annotations['{ROOTS}']")}},
            ]}},
            {"name": "token", "projected": {"sources": [{"serviceAccountToken": {
                "path": "token", "audience": AUDIENCE, "expirationSeconds": 3600,
            }}]}},
            {"name": "run", "emptyDir": {"medium": "Memory"}},
            {"name": "state", "emptyDir": {}},
        ],
    });
    if !install.pull_secrets.is_null() {
        pod["imagePullSecrets"] = install.pull_secrets.clone();
    }
    json!({"spec": {
        // One more before one less, and none that has not served for a moment takes another's place.
        "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}},
        "minReadySeconds": 2,
        "template": {"metadata": {"labels": pod_labels, "annotations": annotations}, "spec": pod},
    }})
}

fn container(install: &Install) -> Value {
    let env = |name: &str, value: &str| json!({"name": name, "value": value});
    let field = |name: &str, path: &str| json!({"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}});
    let mut environment = vec![
        field("WARREN_POD_NAMESPACE", "metadata.namespace"),
        field("WARREN_POD_NAME", "metadata.name"),
        field("WARREN_POD_IPS", "status.podIPs"),
        field("WARREN_SERVICE_ACCOUNT", "spec.serviceAccountName"),
        field("WARREN_NODE_NAME", "spec.nodeName"),
        field("WARREN_NODE_IP", "status.podIP"),
        env(
            "WARREN_CONTROLLER_CA",
            "/var/run/secrets/warren-root/root.pem",
        ),
        env("WARREN_TOKEN_FILE", "/var/run/secrets/warren/token"),
        env("WARREN_DRAIN", &format!("{}s", DRAIN.0)),
    ];
    environment.extend(install.environment.iter().cloned());
    let port =
        |name: &str, port: u16| json!({"name": name, "containerPort": port, "protocol": "TCP"});
    let probe = |path: &str, period: u32, failures: u32| {
        json!({
            "httpGet": {"path": path, "port": METRICS},
            "periodSeconds": period, "failureThreshold": failures, "timeoutSeconds": 5,
        })
    };
    let mut container = json!({
        "name": "waypoint",
        "image": install.image,
        "args": ["waypoint"],
        "env": environment,
        "ports": [port("hbone", HBONE), port("metrics", METRICS)],
        "startupProbe": probe("/livez", 1, 60),
        "readinessProbe": probe("/readyz", 2, 2),
        "livenessProbe": probe("/livez", 10, 6),
        "resources": {"requests": {"cpu": "50m", "memory": "32Mi"}},
        "securityContext": {
            "allowPrivilegeEscalation": false,
            "readOnlyRootFilesystem": true,
            "capabilities": {"drop": ["ALL"]},
        },
        "volumeMounts": [
            {"name": "roots", "mountPath": "/var/run/secrets/warren-root", "readOnly": true},
            {"name": "token", "mountPath": "/var/run/secrets/warren", "readOnly": true},
            {"name": "run", "mountPath": "/run/warren"},
            {"name": "state", "mountPath": "/var/lib/warren"},
        ],
    });
    if !install.pull_policy.is_null() {
        container["imagePullPolicy"] = install.pull_policy.clone();
    }
    container
}

/// What a Gateway's parameters say: a ConfigMap's data, each key the part of an object in YAML.
pub(super) fn parameters(data: &Value) -> Result<Map<String, Value>, String> {
    let mut said = Map::new();
    for (key, text) in data.as_object().into_iter().flatten() {
        if !KINDS.iter().any(|kind| kind.key() == key) {
            let known: Vec<&str> = KINDS.iter().map(|kind| kind.key()).collect();
            return Err(format!("{key:?} is none of {}", known.join(", ")));
        }
        let text = text.as_str().unwrap_or_default();
        let value: Value = serde_saphyr::from_str(text).map_err(|e| format!("{key}: {e}"))?;
        match value {
            Value::Null => {}
            Value::Object(_) => {
                said.insert(key.clone(), value);
            }
            _ => return Err(format!("{key}: it is no part of an object")),
        }
    }
    Ok(said)
}

/// Field by field; what has a name in a list is merged with what has the same name there. `null` takes a field away.
fn merge(into: &mut Value, from: Value) {
    match (into, from) {
        (Value::Object(into), Value::Object(from)) => {
            for (name, value) in from {
                match value {
                    Value::Null => drop(into.remove(&name)),
                    value => merge(into.entry(name).or_insert(Value::Null), value),
                }
            }
        }
        (Value::Array(into), Value::Array(from)) if is_named(into) && is_named(&from) => {
            for item in from {
                match into.iter_mut().find(|there| there["name"] == item["name"]) {
                    Some(there) => merge(there, item),
                    None => into.push(item),
                }
            }
        }
        (into, from) => *into = from,
    }
}

fn is_named(list: &[Value]) -> bool {
    !list.is_empty() && list.iter().all(|item| item["name"].is_string())
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::{
        apps::v1::Deployment,
        autoscaling::v2::HorizontalPodAutoscaler,
        core::v1::{Service, ServiceAccount},
        policy::v1::PodDisruptionBudget,
    };

    use super::*;

    fn install() -> Install {
        let node = json!({"spec": {"template": {"spec": {
            "imagePullSecrets": [{"name": "pull"}],
            "containers": [{"name": "node", "image": "r.test/mesh-node:1", "imagePullPolicy": "Never", "env": [
                {"name": "WARREN_CONTROLLER", "value": "https://c:15012"},
                {"name": "WARREN_CNI", "value": "on"},
                {"name": "WARREN_NODE_NAME", "valueFrom": {}},
            ]}],
        }}}});
        Install::of(&node, "PEM".to_owned()).expect("is ours")
    }

    fn wanted(extras: Value) -> Wanted {
        serde_json::from_value(
            json!({"namespace": "warren-system", "name": "waypoint-shop",
            "origin": {"namespace": {"name": "shop", "because": []}},
            "purpose": {"services": true, "workloads": false}, "extras": extras}),
        )
        .expect("reads")
    }

    fn made(kind: Kind, extras: Value, said: Value) -> Value {
        let said = parameters(&said).expect("is understood");
        object(kind, &wanted(extras), &install(), None, true, &said)
    }

    #[test]
    fn every_object_is_one_of_kubernetes() {
        let of = |kind| made(kind, json!({}), json!({}));
        serde_json::from_value::<ServiceAccount>(of(Kind::Account)).expect("reads");
        serde_json::from_value::<PodDisruptionBudget>(of(Kind::Budget)).expect("reads");
        serde_json::from_value::<HorizontalPodAutoscaler>(of(Kind::Autoscaler)).expect("reads");
        serde_json::from_value::<Service>(of(Kind::Service)).expect("reads");
        let deployment = of(Kind::Deployment);
        serde_json::from_value::<Deployment>(deployment.clone()).expect("reads");
        let pod = &deployment["spec"]["template"]["spec"];
        let container = &pod["containers"][0];
        assert_eq!(container["image"], "r.test/mesh-node:1");
        let has = |name: &str| {
            let env = container["env"].as_array().expect("a list");
            env.iter().filter(|e| e["name"] == name).count()
        };
        assert_eq!(has("WARREN_CONTROLLER"), 1);
        assert_eq!(has("WARREN_CNI"), 0, "a waypoint installs no plugin");
        assert_eq!(has("WARREN_NODE_NAME"), 1);
        assert_eq!(pod["imagePullSecrets"][0]["name"], "pull");
        assert!(deployment["spec"].get("replicas").is_none());
    }

    #[test]
    fn the_owner_changes_all_but_names_and_selectors() {
        let said = json!({"deployment": "
metadata: {name: mine, labels: {app.kubernetes.io/managed-by: me, team: b}}
spec:
  selector: {matchLabels: {a: b}}
  template:
    metadata: {labels: {gateway.networking.k8s.io/gateway-name: x}}
    spec:
      serviceAccountName: admin
      terminationGracePeriodSeconds: null
      nodeSelector: {disk: ssd}
      containers:
      - {name: waypoint, resources: {limits: {memory: 1Gi}}, env: [{name: WARREN_LOG, value: debug}]}
      - {name: beside, image: other}
"});
        let extras = json!({"labels": {"team": "a"}, "annotations": {"note": "x"}});
        let object = made(Kind::Deployment, extras, said);
        let (meta, spec) = (&object["metadata"], &object["spec"]);
        assert_eq!(meta["name"], "waypoint-shop");
        assert_eq!(meta["labels"][MANAGED_BY.0], MANAGED_BY.1);
        assert_eq!(meta["labels"][FOR_NAMESPACE], "shop");
        assert_eq!(meta["annotations"]["note"], "x");
        assert_eq!(
            spec["selector"]["matchLabels"],
            json!({(GATEWAY_NAME): "waypoint-shop"})
        );
        let pod = &spec["template"]["spec"];
        assert_eq!(pod["serviceAccountName"], "waypoint-shop");
        assert_eq!(pod["nodeSelector"]["disk"], "ssd");
        assert!(pod.get("terminationGracePeriodSeconds").is_none());
        let containers = pod["containers"].as_array().expect("a list");
        assert_eq!(containers.len(), 2);
        assert_eq!(containers[0]["resources"]["limits"]["memory"], "1Gi");
        assert_eq!(containers[0]["resources"]["requests"]["cpu"], "50m");
        let env = containers[0]["env"].as_array().expect("a list");
        assert!(env.iter().any(|e| e["value"] == "debug") && env.len() > 5);
        let labels = &spec["template"]["metadata"]["labels"];
        assert_eq!(labels[GATEWAY_NAME], "waypoint-shop");
    }

    #[test]
    fn whether_a_service_is_used_is_not_the_owners_to_say() {
        let said = json!({"service": "{metadata: {annotations: {warren.dev/waypoint-active: 'true'}}, spec: {type: LoadBalancer}}"});
        let said = parameters(&said).expect("is understood");
        let service = object(
            Kind::Service,
            &wanted(json!({})),
            &install(),
            None,
            false,
            &said,
        );
        assert_eq!(service["metadata"]["annotations"][ACTIVE], "false");
        assert_eq!(service["spec"]["type"], "LoadBalancer");
    }

    #[test]
    fn parameters_that_are_not_understood_are_named() {
        let check = |data: Value, expect: &str| {
            let error = parameters(&data).expect_err("is wrong");
            assert!(error.contains(expect), "{error}");
        };
        check(json!({"deploymnt": "{}"}), "deploymnt");
        check(json!({"deployment": "{"}), "deployment");
        check(json!({"service": "5"}), "no part");
        assert!(
            parameters(&json!({"service": ""}))
                .expect("is empty")
                .is_empty()
        );
    }
}
