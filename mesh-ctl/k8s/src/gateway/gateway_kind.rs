//! Gateway: a proxy that is asked for; of a waypoint's class, one that requests to services go through.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{Kind, ObjectMeta};

/// A gateway.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, rename_all = "camelCase")]
pub struct Gateway {
    /// Metadata.
    pub metadata: ObjectMeta,
    /// What it should be.
    pub spec: GatewaySpec,
    /// What it is.
    pub status: GatewayStatus,
}

/// What a gateway should be.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, rename_all = "camelCase")]
pub struct GatewaySpec {
    /// Its class.
    pub gateway_class_name: String,
    /// What it listens to.
    pub listeners: Vec<Listener>,
    /// What is made for it.
    pub infrastructure: Option<Infrastructure>,
}

/// What the objects that are made for a gateway carry besides.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, rename_all = "camelCase")]
pub struct Infrastructure {
    /// Labels of each.
    pub labels: BTreeMap<String, String>,
    /// Annotations of each.
    pub annotations: BTreeMap<String, String>,
    /// An object of the gateway's namespace that says more.
    pub parameters_ref: Option<ParametersReference>,
}

/// An object of the same namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, rename_all = "camelCase")]
pub struct ParametersReference {
    /// Its group.
    pub group: String,
    /// Its kind.
    pub kind: String,
    /// Its name.
    pub name: String,
}

/// What a gateway listens to.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, rename_all = "camelCase")]
pub struct Listener {
    /// Its name.
    pub name: String,
    /// The host it is for.
    pub hostname: String,
    /// Its port.
    pub port: u16,
    /// `HBONE` at a waypoint; `HTTP`, `HTTPS`, `TLS`, `TCP`, `UDP` elsewhere.
    pub protocol: String,
    /// Who may use it.
    pub allowed_routes: Option<AllowedRoutes>,
}

/// Who may use a listener.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, rename_all = "camelCase")]
pub struct AllowedRoutes {
    /// By namespace.
    pub namespaces: Option<RouteNamespaces>,
}

/// Namespaces.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, rename_all = "camelCase")]
pub struct RouteNamespaces {
    /// `Same` (also when empty), `All`, `Selector` or `None`.
    pub from: String,
    /// For `Selector`.
    pub selector: Option<NamespaceSelector>,
}

/// Namespaces by label.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, rename_all = "camelCase")]
pub struct NamespaceSelector {
    /// Labels that must be equal.
    pub match_labels: BTreeMap<String, String>,
    /// Further conditions.
    pub match_expressions: Vec<LabelExpression>,
}

/// A condition on a label.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, rename_all = "camelCase")]
pub struct LabelExpression {
    /// The label.
    pub key: String,
    /// `In`, `NotIn`, `Exists` or `DoesNotExist`.
    pub operator: String,
    /// Values.
    pub values: Vec<String>,
}

/// What a gateway is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, rename_all = "camelCase")]
pub struct GatewayStatus {
    /// Where it is reached.
    pub addresses: Vec<GatewayStatusAddress>,
}

/// Where a gateway is reached.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, rename_all = "camelCase")]
pub struct GatewayStatusAddress {
    /// `IPAddress` (also when empty) or `Hostname`.
    #[serde(rename = "type")]
    pub kind: String,
    /// The address.
    pub value: String,
}

impl Kind for Gateway {
    const KIND: &'static str = "Gateway";
    const GROUP: &'static str = "gateway.networking.k8s.io";
    const VERSIONS: &'static [&'static str] = &["v1", "v1beta1"];
    const UNREAD: &'static [&'static str] = &[
        "status.conditions",
        "status.listeners",
        "status.attachedListenerSets",
        "spec.addresses",
        "spec.allowedListeners",
        "spec.listeners[].tls",
        "spec.listeners[].allowedRoutes.kinds",
    ];

    fn metadata(&self) -> &ObjectMeta {
        &self.metadata
    }
}
