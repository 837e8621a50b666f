//! EndpointSlice: which addresses and ports serve a service.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{Kind, ObjectMeta};

/// A part of the endpoints of a service.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, rename_all = "camelCase")]
pub struct EndpointSlice {
    /// Metadata; the label `kubernetes.io/service-name` names the service.
    pub metadata: ObjectMeta,
    /// `IPv4`, `IPv6` or `FQDN`.
    pub address_type: String,
    /// The endpoints.
    pub endpoints: Vec<Endpoint>,
    /// The ports that each of them serves.
    pub ports: Vec<EndpointPort>,
}

/// An endpoint.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, rename_all = "camelCase")]
pub struct Endpoint {
    /// Its addresses, which are interchangeable.
    pub addresses: Vec<String>,
    /// Whether it may be used.
    pub conditions: EndpointConditions,
    /// The object behind it.
    pub target_ref: Option<ObjectReference>,
    /// The node it is on.
    pub node_name: String,
    /// The zone it is in.
    pub zone: String,
    /// Its host name, for headless services.
    pub hostname: String,
}

/// Whether an endpoint may be used; what is absent is to be taken for ready.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, rename_all = "camelCase")]
pub struct EndpointConditions {
    /// Ready for traffic.
    pub ready: Option<bool>,
    /// Able to serve, though it may be ending.
    pub serving: Option<bool>,
    /// Ending.
    pub terminating: Option<bool>,
}

/// A reference to another object.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, rename_all = "camelCase")]
pub struct ObjectReference {
    /// Its kind.
    pub kind: String,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

/// A port of the slice.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, rename_all = "camelCase")]
pub struct EndpointPort {
    /// The name of the service's port.
    pub name: String,
    /// The endpoints' port; all ports when absent.
    pub port: Option<u16>,
    /// `TCP` (also when empty), `UDP` or `SCTP`.
    pub protocol: String,
    /// The declared application protocol.
    pub app_protocol: String,
}

impl Kind for EndpointSlice {
    const KIND: &'static str = "EndpointSlice";
    const GROUP: &'static str = "discovery.k8s.io";
    const VERSIONS: &'static [&'static str] = &["v1", "v1beta1"];
    const UNREAD: &'static [&'static str] = &[
        "endpoints[].hints",
        "endpoints[].deprecatedTopology",
        "endpoints[].targetRef",
    ];

    fn metadata(&self) -> &ObjectMeta {
        &self.metadata
    }
}
