//! GatewayClass: whose gateways are ours.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{Kind, ObjectMeta};

/// A class of gateways.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, rename_all = "camelCase")]
pub struct GatewayClass {
    /// Metadata.
    pub metadata: ObjectMeta,
    /// What it says.
    pub spec: GatewayClassSpec,
}

/// What a class says.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, rename_all = "camelCase")]
pub struct GatewayClassSpec {
    /// Who manages gateways of the class.
    pub controller_name: String,
}

impl Kind for GatewayClass {
    const KIND: &'static str = "GatewayClass";
    const GROUP: &'static str = "gateway.networking.k8s.io";
    const VERSIONS: &'static [&'static str] = &["v1", "v1beta1"];
    const NAMESPACED: bool = false;
    const UNREAD: &'static [&'static str] = &["status", "spec.description", "spec.parametersRef"];

    fn metadata(&self) -> &ObjectMeta {
        &self.metadata
    }
}
