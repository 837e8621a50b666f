//! AuthorizationPolicy: who may do what to whom, with every field of Istio's API.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::selector::{PolicyTargetReference, WorkloadSelector};
use crate::{Kind, ObjectMeta, text::texts};

/// An authorization policy.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, rename_all = "camelCase")]
pub struct AuthorizationPolicy {
    /// Metadata.
    pub metadata: ObjectMeta,
    /// What it says.
    pub spec: AuthorizationPolicySpec,
}

/// What an authorization policy says.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, rename_all = "camelCase")]
pub struct AuthorizationPolicySpec {
    /// The workloads it governs.
    pub selector: Option<WorkloadSelector>,
    /// One object it is attached to (older form).
    pub target_ref: Option<PolicyTargetReference>,
    /// The objects it is attached to.
    pub target_refs: Vec<PolicyTargetReference>,
    /// Its rules.
    pub rules: Vec<Rule>,
    /// `ALLOW` (also when empty), `DENY`, `AUDIT` or `CUSTOM`.
    pub action: String,
    /// Who decides, for `CUSTOM`.
    pub provider: Option<Provider>,
}

/// An external decider.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, rename_all = "camelCase")]
pub struct Provider {
    /// Its name in the mesh configuration.
    pub name: String,
}

/// A rule: sources, operations and conditions must all match.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, rename_all = "camelCase")]
pub struct Rule {
    /// Sources, of which one must match.
    pub from: Vec<From>,
    /// Operations, of which one must match.
    pub to: Vec<To>,
    /// Conditions, which must all match.
    pub when: Vec<Condition>,
}

/// A source, wrapped.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, rename_all = "camelCase")]
pub struct From {
    /// The source.
    pub source: Option<Source>,
}

/// An operation, wrapped.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, rename_all = "camelCase")]
pub struct To {
    /// The operation.
    pub operation: Option<Operation>,
}

/// A source: every field that is given must match.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, rename_all = "camelCase")]
pub struct Source {
    /// Identities of peers.
    pub principals: Vec<String>,
    /// Not these.
    pub not_principals: Vec<String>,
    /// Identities from request tokens.
    pub request_principals: Vec<String>,
    /// Not these.
    pub not_request_principals: Vec<String>,
    /// Namespaces of peers.
    pub namespaces: Vec<String>,
    /// Not these.
    pub not_namespaces: Vec<String>,
    /// Service accounts of peers, `namespace/name` or `name`.
    pub service_accounts: Vec<String>,
    /// Not these.
    pub not_service_accounts: Vec<String>,
    /// Addresses of peers.
    pub ip_blocks: Vec<String>,
    /// Not these.
    pub not_ip_blocks: Vec<String>,
    /// Addresses of original clients, as headers tell.
    pub remote_ip_blocks: Vec<String>,
    /// Not these.
    pub not_remote_ip_blocks: Vec<String>,
    /// Trust domains of peers.
    pub trust_domains: Vec<String>,
    /// Not these.
    pub not_trust_domains: Vec<String>,
}

/// An operation: every field that is given must match.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, rename_all = "camelCase")]
pub struct Operation {
    /// Hosts of requests.
    pub hosts: Vec<String>,
    /// Not these.
    pub not_hosts: Vec<String>,
    /// Ports.
    #[serde(deserialize_with = "texts")]
    pub ports: Vec<String>,
    /// Not these.
    #[serde(deserialize_with = "texts")]
    pub not_ports: Vec<String>,
    /// Methods of requests.
    pub methods: Vec<String>,
    /// Not these.
    pub not_methods: Vec<String>,
    /// Paths of requests.
    pub paths: Vec<String>,
    /// Not these.
    pub not_paths: Vec<String>,
}

/// A condition on one attribute.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, rename_all = "camelCase")]
pub struct Condition {
    /// The attribute, e.g. `source.ip`.
    pub key: String,
    /// Values, of which one must match.
    #[serde(deserialize_with = "texts")]
    pub values: Vec<String>,
    /// Values, of which none may match.
    #[serde(deserialize_with = "texts")]
    pub not_values: Vec<String>,
}

impl Kind for AuthorizationPolicy {
    const KIND: &'static str = "AuthorizationPolicy";
    const GROUP: &'static str = "security.istio.io";
    const VERSIONS: &'static [&'static str] = &["v1", "v1beta1"];
    const UNREAD: &'static [&'static str] = &["status"];

    fn metadata(&self) -> &ObjectMeta {
        &self.metadata
    }
}
