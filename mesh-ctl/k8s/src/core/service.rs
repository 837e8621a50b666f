//! Service of Kubernetes.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{Kind, ObjectMeta, text::IntOrString};

/// A service.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, rename_all = "camelCase")]
pub struct Service {
    /// Metadata.
    pub metadata: ObjectMeta,
    /// What it should be.
    pub spec: ServiceSpec,
}

/// What a service should be.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, rename_all = "camelCase")]
pub struct ServiceSpec {
    /// `ClusterIP` (also when empty), `NodePort`, `LoadBalancer` or `ExternalName`.
    #[serde(rename = "type")]
    pub kind: String,
    /// The first virtual address, or `None` for a headless service.
    #[serde(rename = "clusterIP")]
    pub cluster_ip: String,
    /// The virtual addresses, one per family.
    #[serde(rename = "clusterIPs")]
    pub cluster_ips: Vec<String>,
    /// The name that an `ExternalName` service stands for.
    pub external_name: String,
    /// Labels of its pods.
    pub selector: BTreeMap<String, String>,
    /// Its ports.
    pub ports: Vec<ServicePort>,
    /// `Cluster` (also when empty) or `Local`.
    pub internal_traffic_policy: String,
    /// `PreferClose`, `PreferSameZone` or `PreferSameNode`.
    pub traffic_distribution: String,
    /// Whether pods that are not ready take traffic too.
    pub publish_not_ready_addresses: bool,
    /// `None` (also when empty) or `ClientIP`.
    pub session_affinity: String,
    /// Details of the affinity.
    pub session_affinity_config: Option<SessionAffinityConfig>,
}

/// A port of a service.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, rename_all = "camelCase")]
pub struct ServicePort {
    /// Its name; may be empty when it is the only one.
    pub name: String,
    /// Its number.
    pub port: u16,
    /// `TCP` (also when empty), `UDP` or `SCTP`.
    pub protocol: String,
    /// The pods' port, by number or name; the same number when absent.
    pub target_port: Option<IntOrString>,
    /// The declared application protocol.
    pub app_protocol: String,
}

/// Details of session affinity.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, rename_all = "camelCase")]
pub struct SessionAffinityConfig {
    /// For `ClientIP`.
    #[serde(rename = "clientIP")]
    pub client_ip: Option<ClientIpConfig>,
}

/// Details of affinity by client address.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, rename_all = "camelCase")]
pub struct ClientIpConfig {
    /// How long a choice holds; three hours when absent.
    pub timeout_seconds: Option<u32>,
}

impl Kind for Service {
    const KIND: &'static str = "Service";
    const GROUP: &'static str = "";
    const VERSIONS: &'static [&'static str] = &["v1"];
    const UNREAD: &'static [&'static str] = &[
        "status",
        "spec.allocateLoadBalancerNodePorts",
        "spec.externalIPs",
        "spec.externalTrafficPolicy",
        "spec.healthCheckNodePort",
        "spec.ipFamilies",
        "spec.ipFamilyPolicy",
        "spec.loadBalancerClass",
        "spec.loadBalancerIP",
        "spec.loadBalancerSourceRanges",
        "spec.ports[].nodePort",
    ];

    fn metadata(&self) -> &ObjectMeta {
        &self.metadata
    }
}
