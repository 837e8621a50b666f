//! ServiceEntry: a service that Kubernetes does not know.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::workload_entry::WorkloadEntrySpec;
use crate::{Kind, ObjectMeta};

/// A service outside Kubernetes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, rename_all = "camelCase")]
pub struct ServiceEntry {
    /// Metadata.
    pub metadata: ObjectMeta,
    /// What it says.
    pub spec: ServiceEntrySpec,
}

/// What a service entry says.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, rename_all = "camelCase")]
pub struct ServiceEntrySpec {
    /// Its host names.
    pub hosts: Vec<String>,
    /// Its virtual addresses or address ranges.
    pub addresses: Vec<String>,
    /// Its ports.
    pub ports: Vec<EntryPort>,
    /// `MESH_EXTERNAL` (also when empty) or `MESH_INTERNAL`.
    pub location: String,
    /// `NONE` (also when empty), `STATIC`, `DNS`, `DNS_ROUND_ROBIN` or `DYNAMIC_DNS`.
    pub resolution: String,
    /// Its endpoints, written here.
    pub endpoints: Vec<WorkloadEntrySpec>,
    /// Its endpoints, by label.
    pub workload_selector: Option<EntrySelector>,
    /// Namespaces that see it.
    pub export_to: Vec<String>,
    /// Identities that its endpoints may prove.
    pub subject_alt_names: Vec<String>,
}

/// Workloads by label.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, rename_all = "camelCase")]
pub struct EntrySelector {
    /// Labels that must be equal.
    pub labels: BTreeMap<String, String>,
}

/// A port of a service entry.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, rename_all = "camelCase")]
pub struct EntryPort {
    /// Its number.
    pub number: u16,
    /// Its protocol.
    pub protocol: String,
    /// Its name.
    pub name: String,
    /// The endpoints' port; the same number when absent.
    pub target_port: Option<u16>,
}

impl Kind for ServiceEntry {
    const KIND: &'static str = "ServiceEntry";
    const GROUP: &'static str = "networking.istio.io";
    const VERSIONS: &'static [&'static str] = &["v1", "v1beta1", "v1alpha3"];
    const UNREAD: &'static [&'static str] = &["status"];

    fn metadata(&self) -> &ObjectMeta {
        &self.metadata
    }
}
