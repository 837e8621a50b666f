//! WorkloadEntry: a workload that is not a pod.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{Kind, ObjectMeta};

/// A workload outside Kubernetes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, rename_all = "camelCase")]
pub struct WorkloadEntry {
    /// Metadata.
    pub metadata: ObjectMeta,
    /// What it says.
    pub spec: WorkloadEntrySpec,
}

/// What a workload entry says; also an endpoint inside a service entry.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, rename_all = "camelCase")]
pub struct WorkloadEntrySpec {
    /// Its address: an IP, a host name, or `unix://`.
    pub address: String,
    /// Its own ports, by the names of the service's ports.
    pub ports: BTreeMap<String, u16>,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Its network.
    pub network: String,
    /// `region/zone/subzone`.
    pub locality: String,
    /// Relative weight.
    pub weight: Option<u32>,
    /// The service account it runs as.
    pub service_account: String,
}

impl Kind for WorkloadEntry {
    const KIND: &'static str = "WorkloadEntry";
    const GROUP: &'static str = "networking.istio.io";
    const VERSIONS: &'static [&'static str] = &["v1", "v1beta1", "v1alpha3"];
    const UNREAD: &'static [&'static str] = &["status"];

    fn metadata(&self) -> &ObjectMeta {
        &self.metadata
    }
}
