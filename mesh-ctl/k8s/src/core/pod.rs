//! Pod: the part of it that a mesh needs; the rest is known by name and not read.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{Kind, ObjectMeta, text::IntOrString};

/// A pod.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, rename_all = "camelCase")]
pub struct Pod {
    /// Metadata.
    pub metadata: ObjectMeta,
    /// What was asked for.
    pub spec: PodSpec,
    /// What was observed.
    pub status: PodStatus,
}

/// What a pod should be.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, rename_all = "camelCase")]
pub struct PodSpec {
    /// The node it runs on.
    pub node_name: String,
    /// Its service account; empty means `default`.
    pub service_account_name: String,
    /// The older name of the same field.
    pub service_account: String,
    /// Whether it shares the node's network.
    pub host_network: bool,
    /// The class of its runtime, e.g. `gvisor`.
    pub runtime_class_name: String,
    /// Its containers.
    pub containers: Vec<Container>,
    /// Containers that run before, or beside when they restart always.
    pub init_containers: Vec<Container>,
}

impl PodSpec {
    /// The service account that it runs as.
    pub fn account(&self) -> &str {
        let named = [&self.service_account_name, &self.service_account];
        let account = named.into_iter().find(|name| !name.is_empty());
        account.map_or("default", String::as_str)
    }
}

/// A container.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, rename_all = "camelCase")]
pub struct Container {
    /// Its name.
    pub name: String,
    /// `Always` makes an init container one that keeps running.
    pub restart_policy: String,
    /// Its declared ports.
    pub ports: Vec<ContainerPort>,
    /// Probe of life.
    pub liveness_probe: Option<Probe>,
    /// Probe of readiness.
    pub readiness_probe: Option<Probe>,
    /// Probe of start.
    pub startup_probe: Option<Probe>,
    /// What happens at start and end.
    pub lifecycle: Option<Lifecycle>,
}

/// A declared port of a container.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, rename_all = "camelCase")]
pub struct ContainerPort {
    /// Its name.
    pub name: String,
    /// Its number.
    pub container_port: u16,
    /// `TCP` (also when empty), `UDP` or `SCTP`.
    pub protocol: String,
}

/// A probe, as far as it connects to a port.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, rename_all = "camelCase")]
pub struct Probe {
    /// By HTTP.
    pub http_get: Option<HandlerPort>,
    /// By TCP.
    pub tcp_socket: Option<HandlerPort>,
    /// By gRPC.
    pub grpc: Option<HandlerPort>,
}

/// Hooks at start and end of a container.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, rename_all = "camelCase")]
pub struct Lifecycle {
    /// After start.
    pub post_start: Option<Handler>,
    /// Before the end.
    pub pre_stop: Option<Handler>,
}

/// A hook that the kubelet runs, as far as it connects to a port.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, rename_all = "camelCase")]
pub struct Handler {
    /// By HTTP.
    pub http_get: Option<HandlerPort>,
    /// By TCP.
    pub tcp_socket: Option<HandlerPort>,
}

/// The port that a probe or hook connects to.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, rename_all = "camelCase")]
pub struct HandlerPort {
    /// By number, or by the name of a declared port.
    pub port: IntOrString,
    /// Another host than the pod, when given.
    pub host: String,
}

/// What was observed of a pod.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, rename_all = "camelCase")]
pub struct PodStatus {
    /// `Pending`, `Running`, `Succeeded`, `Failed` or `Unknown`.
    pub phase: String,
    /// Its first address.
    #[serde(rename = "podIP")]
    pub pod_ip: String,
    /// Its addresses.
    #[serde(rename = "podIPs")]
    pub pod_ips: Vec<PodIp>,
    /// The node's address.
    #[serde(rename = "hostIP")]
    pub host_ip: String,
    /// Conditions, of which `Ready` matters here.
    pub conditions: Vec<PodCondition>,
}

/// An address of a pod.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, rename_all = "camelCase")]
pub struct PodIp {
    /// The address.
    pub ip: String,
}

/// A condition of a pod.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, rename_all = "camelCase")]
pub struct PodCondition {
    /// Its type, e.g. `Ready`.
    #[serde(rename = "type")]
    pub kind: String,
    /// `True`, `False` or `Unknown`.
    pub status: String,
}

impl Kind for Pod {
    const KIND: &'static str = "Pod";
    const GROUP: &'static str = "";
    const VERSIONS: &'static [&'static str] = &["v1"];
    const UNREAD: &'static [&'static str] = &[
        "status",
        "spec.activeDeadlineSeconds",
        "spec.affinity",
        "spec.automountServiceAccountToken",
        "spec.dnsConfig",
        "spec.dnsPolicy",
        "spec.enableServiceLinks",
        "spec.ephemeralContainers",
        "spec.hostAliases",
        "spec.hostIPC",
        "spec.hostPID",
        "spec.hostUsers",
        "spec.hostname",
        "spec.hostnameOverride",
        "spec.imagePullSecrets",
        "spec.nodeSelector",
        "spec.os",
        "spec.overhead",
        "spec.preemptionPolicy",
        "spec.priority",
        "spec.priorityClassName",
        "spec.readinessGates",
        "spec.resourceClaims",
        "spec.resources",
        "spec.restartPolicy",
        "spec.schedulerName",
        "spec.schedulingGates",
        "spec.securityContext",
        "spec.setHostnameAsFQDN",
        "spec.shareProcessNamespace",
        "spec.subdomain",
        "spec.terminationGracePeriodSeconds",
        "spec.tolerations",
        "spec.topologySpreadConstraints",
        "spec.volumes",
        "spec.initContainers",
        "spec.containers[].args",
        "spec.containers[].command",
        "spec.containers[].env",
        "spec.containers[].envFrom",
        "spec.containers[].image",
        "spec.containers[].imagePullPolicy",
        "spec.containers[].lifecycle",
        "spec.containers[].livenessProbe",
        "spec.containers[].ports[].hostIP",
        "spec.containers[].ports[].hostPort",
        "spec.containers[].readinessProbe",
        "spec.containers[].resizePolicy",
        "spec.containers[].resources",
        "spec.containers[].restartPolicyRules",
        "spec.containers[].securityContext",
        "spec.containers[].startupProbe",
        "spec.containers[].stdin",
        "spec.containers[].stdinOnce",
        "spec.containers[].terminationMessagePath",
        "spec.containers[].terminationMessagePolicy",
        "spec.containers[].tty",
        "spec.containers[].volumeDevices",
        "spec.containers[].volumeMounts",
        "spec.containers[].workingDir",
    ];

    fn metadata(&self) -> &ObjectMeta {
        &self.metadata
    }
}
