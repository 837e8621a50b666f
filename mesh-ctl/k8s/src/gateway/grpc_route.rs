//! GRPCRoute: what becomes of calls to what it is attached to.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{BackendRef, NameValueMatch, ParentReference, RouteFilter, SessionPersistence};
use crate::{Kind, ObjectMeta};

/// Rules for gRPC.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, rename_all = "camelCase")]
pub struct GrpcRoute {
    /// Metadata.
    pub metadata: ObjectMeta,
    /// What it says.
    pub spec: GrpcRouteSpec,
}

/// What a gRPC route says.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, rename_all = "camelCase")]
pub struct GrpcRouteSpec {
    /// What it is attached to.
    pub parent_refs: Vec<ParentReference>,
    /// The hosts it is for; they mean nothing to a service.
    pub hostnames: Vec<String>,
    /// Its rules; one that matches everything when absent.
    pub rules: Option<Vec<GrpcRouteRule>>,
}

/// A rule.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, rename_all = "camelCase")]
pub struct GrpcRouteRule {
    /// Its name.
    pub name: String,
    /// Calls it is for: any of these; all when empty.
    pub matches: Vec<GrpcRouteMatch>,
    /// Changes.
    pub filters: Vec<RouteFilter>,
    /// Where calls go.
    pub backend_refs: Vec<BackendRef>,
    /// How calls of a session stay together.
    pub session_persistence: Option<SessionPersistence>,
}

/// What a call must be like: everything that is given.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, rename_all = "camelCase")]
pub struct GrpcRouteMatch {
    /// What is called.
    pub method: Option<GrpcMethodMatch>,
    /// Its headers.
    pub headers: Vec<NameValueMatch>,
}

/// What is called.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, rename_all = "camelCase")]
pub struct GrpcMethodMatch {
    /// `Exact` (also when absent) or `RegularExpression`.
    #[serde(rename = "type")]
    pub kind: Option<String>,
    /// The service; any when absent.
    pub service: Option<String>,
    /// The method; any when absent.
    pub method: Option<String>,
}

impl Kind for GrpcRoute {
    const KIND: &'static str = "GRPCRoute";
    const GROUP: &'static str = "gateway.networking.k8s.io";
    const VERSIONS: &'static [&'static str] = &["v1", "v1beta1"];
    const UNREAD: &'static [&'static str] = &["status", "spec.useDefaultGateways"];

    fn metadata(&self) -> &ObjectMeta {
        &self.metadata
    }
}
