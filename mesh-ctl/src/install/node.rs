//! The node proxy: a DaemonSet in the node's own network, with as few privileges as its work allows.
//!
//! Invariants: no port is declared, so that during an upgrade two of them fit on a node; one ends only after its
//! successor is ready; readiness is asked of the process in the same container, never of the port that they share.

use serde_json::{Value, json};

use super::Values;
use super::controller;
use super::object::{
    env, env_field, image, meta, pod_meta, pull_secrets, selector, set_unless_empty,
};

/// The name of everything that is the node proxy's.
pub(super) const NAME: &str = "warren-node";
/// The audience of the tokens by which nodes prove themselves.
const AUDIENCE: &str = "warren.dev";
/// How long past the drain the process may take before it is killed, in seconds.
const LAST_WORDS: u32 = 15;

/// What it may do, and what for.
const CAPABILITIES: [&str; 5] = [
    // Loading programs and making maps.
    "BPF",
    // Attaching programs to cgroups and interfaces; ending sockets by SOCK_DESTROY.
    "NET_ADMIN",
    // Programs that follow pointers of the kernel.
    "PERFMON",
    // Entering pods' network namespaces, to listen inside them; /proc/sys is remounted for a setting of theirs.
    "SYS_ADMIN",
    // Finding pods' network namespaces and kubelet's sockets below /proc/PID of other users.
    "SYS_PTRACE",
];

/// A directory of the node, and where it is in the container.
struct HostPath {
    name: &'static str,
    path: String,
    kind: &'static str,
    read_only: bool,
    propagation: Option<&'static str>,
}

/// The DaemonSet.
pub(super) fn objects(values: &Values, namespace: &str) -> Vec<Value> {
    vec![json!({
        "apiVersion": "apps/v1", "kind": "DaemonSet",
        "metadata": meta(NAME, namespace),
        "spec": {
            "selector": {"matchLabels": selector(NAME)},
            "updateStrategy": {
                "type": "RollingUpdate",
                "rollingUpdate": {"maxSurge": values.node.max_surge, "maxUnavailable": 0},
            },
            "template": {"metadata": pod_meta(NAME), "spec": pod(values, namespace)},
        },
    })]
}

fn pod(values: &Values, namespace: &str) -> Value {
    let node = &values.node;
    let paths = host_paths(values);
    let mut volumes: Vec<Value> = paths
        .iter()
        .map(|p| json!({"name": p.name, "hostPath": {"path": p.path, "type": p.kind}}))
        .collect();
    volumes.extend([
        // Written by the first controller that leads; until then the pod waits.
        json!({"name": "root", "configMap": {"name": "warren-root"}}),
        json!({"name": "token", "projected": {"sources": [{"serviceAccountToken": {
            "path": "token", "audience": AUDIENCE, "expirationSeconds": 3600,
        }}]}}),
        json!({"name": "tmp", "emptyDir": {}}),
    ]);
    let mut spec = json!({
        "serviceAccountName": NAME,
        "automountServiceAccountToken": false,
        "enableServiceLinks": false,
        "hostNetwork": true,
        // For kubelet's cgroup, the pods' namespaces, and the proxy's own cgroup, which are found by their processes.
        "hostPID": true,
        // In the node's network the default would ask the node's resolvers, which do not know the controller.
        "dnsPolicy": "ClusterFirstWithHostNet",
        "terminationGracePeriodSeconds": node.drain + LAST_WORDS,
        "securityContext": {"seccompProfile": {"type": "RuntimeDefault"}},
        "containers": [container(values, namespace, &paths)],
        "volumes": volumes,
    });
    set_unless_empty(
        &mut spec,
        "priorityClassName",
        node.priority_class.as_str().into(),
    );
    set_unless_empty(&mut spec, "nodeSelector", json!(node.node_selector));
    set_unless_empty(&mut spec, "tolerations", json!(node.tolerations));
    set_unless_empty(&mut spec, "imagePullSecrets", pull_secrets(values).into());
    spec
}

fn container(values: &Values, namespace: &str, paths: &[HostPath]) -> Value {
    let mut mounts: Vec<Value> = paths
        .iter()
        .map(|p| {
            let mut mount = json!({"name": p.name, "mountPath": p.path});
            if p.read_only {
                mount["readOnly"] = true.into();
            }
            if let Some(propagation) = p.propagation {
                mount["mountPropagation"] = propagation.into();
            }
            mount
        })
        .collect();
    mounts.extend([
        json!({"name": "root", "mountPath": "/var/run/secrets/warren-root", "readOnly": true}),
        json!({"name": "token", "mountPath": "/var/run/secrets/warren", "readOnly": true}),
        // The verifier's log, should a program be refused.
        json!({"name": "tmp", "mountPath": "/tmp"}),
    ]);
    let mut container = json!({
        "name": "node",
        "image": image(values, "mesh-node"),
        "imagePullPolicy": values.image.pull_policy,
        "args": ["node"],
        "env": environment(values, namespace),
        "readinessProbe": {
            "exec": {"command": ["/mesh-node", "ready"]},
            "periodSeconds": 5, "failureThreshold": 3, "timeoutSeconds": 5,
        },
        "securityContext": security(values.node.privileged),
        "volumeMounts": mounts,
    });
    set_unless_empty(&mut container, "resources", json!(values.node.resources));
    container
}

fn environment(values: &Values, namespace: &str) -> Vec<Value> {
    let (node, cni) = (&values.node, &values.cni);
    let on_off = |on: bool| if on { "on" } else { "off" };
    let service = format!("{}.{namespace}.svc", controller::NAME);
    let mut all = vec![
        env_field("WARREN_NODE_NAME", "spec.nodeName"),
        env_field("WARREN_NODE_IP", "status.hostIP"),
        env(
            "WARREN_CONTROLLER",
            format!("https://{service}:{}", controller::XDS_PORT),
        ),
        env(
            "WARREN_CONTROLLER_CA",
            "/var/run/secrets/warren-root/root.pem",
        ),
        env("WARREN_TOKEN_FILE", "/var/run/secrets/warren/token"),
        env("WARREN_TC", &node.tc),
        env("WARREN_DRAIN", format!("{}s", node.drain)),
        // Kubelet would start the container of a proxy that has handed over again, and it would take over back.
        env("WARREN_AFTER_HANDOVER", "wait"),
        env("WARREN_METRICS_PORT", node.metrics_port.to_string()),
        env("WARREN_ACCESS_LOG", on_off(node.access_log)),
        env("WARREN_LOG", &values.log.level),
        env("WARREN_LOG_FORMAT", &values.log.format),
        env("WARREN_CNI", on_off(cni.enabled)),
    ];
    if cni.enabled {
        all.extend([
            env("WARREN_CNI_BIN_DIR", &cni.bin_dir),
            env("WARREN_CNI_CONF_DIR", &cni.conf_dir),
            env("WARREN_CNI_FAIL_OPEN", on_off(cni.fail_open)),
        ]);
    }
    for (name, value) in [
        ("WARREN_PODS_CGROUP", &node.pods_cgroup),
        ("WARREN_KUBELET_CGROUP", &node.kubelet_cgroup),
    ] {
        if !value.is_empty() {
            all.push(env(name, value));
        }
    }
    all.extend(node.env.iter().map(|(name, value)| env(name, value)));
    all
}

fn host_paths(values: &Values) -> Vec<HostPath> {
    let path = |name, path: &str, kind| HostPath {
        name,
        path: path.to_owned(),
        kind,
        read_only: false,
        propagation: None,
    };
    let mut paths = vec![
        path("run", "/run/warren", "DirectoryOrCreate"),
        path("state", "/var/lib/warren", "DirectoryOrCreate"),
        path("bpf", "/sys/fs/bpf", "Directory"),
        HostPath {
            read_only: true,
            ..path("cgroup", "/sys/fs/cgroup", "Directory")
        },
        // Namespaces that are made later have to be seen too.
        HostPath {
            propagation: Some("HostToContainer"),
            ..path("netns", "/var/run/netns", "DirectoryOrCreate")
        },
    ];
    if values.cni.enabled {
        paths.extend([
            path("cni-bin", &values.cni.bin_dir, "DirectoryOrCreate"),
            path("cni-conf", &values.cni.conf_dir, "DirectoryOrCreate"),
        ]);
    }
    paths
}

fn security(privileged: bool) -> Value {
    let mut context = json!({
        "runAsUser": 0,
        "runAsGroup": 0,
        "readOnlyRootFilesystem": true,
        // The profiles that runtimes bring forbid looking at processes outside the container.
        "appArmorProfile": {"type": "Unconfined"},
        "seLinuxOptions": {"type": "spc_t"},
    });
    if privileged {
        context["privileged"] = true.into();
    } else {
        context["allowPrivilegeEscalation"] = false.into();
        context["capabilities"] = json!({"add": CAPABILITIES, "drop": ["ALL"]});
    }
    context
}
