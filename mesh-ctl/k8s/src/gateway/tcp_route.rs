//! TCPRoute: where connections to what it is attached to go.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{BackendRef, ParentReference};
use crate::{Kind, ObjectMeta};

/// Rules for TCP.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, rename_all = "camelCase")]
pub struct TcpRoute {
    /// Metadata.
    pub metadata: ObjectMeta,
    /// What it says.
    pub spec: TcpRouteSpec,
}

/// What a TCP route says.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, rename_all = "camelCase")]
pub struct TcpRouteSpec {
    /// What it is attached to.
    pub parent_refs: Vec<ParentReference>,
    /// Its rules.
    pub rules: Vec<StreamRouteRule>,
}

/// A rule for connections.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, rename_all = "camelCase")]
pub struct StreamRouteRule {
    /// Its name.
    pub name: String,
    /// Where connections go.
    pub backend_refs: Vec<BackendRef>,
}

impl Kind for TcpRoute {
    const KIND: &'static str = "TCPRoute";
    const GROUP: &'static str = "gateway.networking.k8s.io";
    const VERSIONS: &'static [&'static str] = &["v1", "v1alpha2"];
    const UNREAD: &'static [&'static str] = &["status", "spec.useDefaultGateways"];

    fn metadata(&self) -> &ObjectMeta {
        &self.metadata
    }
}
