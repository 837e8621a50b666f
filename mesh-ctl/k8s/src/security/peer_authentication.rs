//! PeerAuthentication: whether plaintext is accepted.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::selector::WorkloadSelector;
use crate::{Kind, ObjectMeta};

/// What workloads accept.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, rename_all = "camelCase")]
pub struct PeerAuthentication {
    /// Metadata.
    pub metadata: ObjectMeta,
    /// What it says.
    pub spec: PeerAuthenticationSpec,
}

/// What a peer authentication says.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, rename_all = "camelCase")]
pub struct PeerAuthenticationSpec {
    /// The workloads it governs.
    pub selector: Option<WorkloadSelector>,
    /// What they accept.
    pub mtls: Option<MutualTls>,
    /// What they accept on a port; only together with a selector.
    pub port_level_mtls: BTreeMap<String, MutualTls>,
}

/// A mode.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, rename_all = "camelCase")]
pub struct MutualTls {
    /// `UNSET` (also when empty), `DISABLE`, `PERMISSIVE` or `STRICT`.
    pub mode: String,
}

impl Kind for PeerAuthentication {
    const KIND: &'static str = "PeerAuthentication";
    const GROUP: &'static str = "security.istio.io";
    const VERSIONS: &'static [&'static str] = &["v1", "v1beta1"];
    const UNREAD: &'static [&'static str] = &["status"];

    fn metadata(&self) -> &ObjectMeta {
        &self.metadata
    }
}
