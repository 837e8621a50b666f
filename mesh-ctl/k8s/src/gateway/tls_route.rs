//! TLSRoute: where connections of TLS go, by the name that they ask for.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{ParentReference, tcp_route::StreamRouteRule};
use crate::{Kind, ObjectMeta};

/// Rules for TLS.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, rename_all = "camelCase")]
pub struct TlsRoute {
    /// Metadata.
    pub metadata: ObjectMeta,
    /// What it says.
    pub spec: TlsRouteSpec,
}

/// What a TLS route says.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, rename_all = "camelCase")]
pub struct TlsRouteSpec {
    /// What it is attached to.
    pub parent_refs: Vec<ParentReference>,
    /// Names that connections ask for, any of them; `*.` stands for one or more labels. All connections when empty.
    pub hostnames: Vec<String>,
    /// Its rules.
    pub rules: Vec<StreamRouteRule>,
}

impl Kind for TlsRoute {
    const KIND: &'static str = "TLSRoute";
    const GROUP: &'static str = "gateway.networking.k8s.io";
    const VERSIONS: &'static [&'static str] = &["v1", "v1alpha3", "v1alpha2"];
    const UNREAD: &'static [&'static str] = &["status", "spec.useDefaultGateways"];

    fn metadata(&self) -> &ObjectMeta {
        &self.metadata
    }
}
