//! HTTPRoute: what becomes of requests to what it is attached to.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{BackendRef, ParentReference, RouteFilter, SessionPersistence};
use crate::{Kind, ObjectMeta};

/// Rules for HTTP.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, rename_all = "camelCase")]
pub struct HttpRoute {
    /// Metadata.
    pub metadata: ObjectMeta,
    /// What it says.
    pub spec: HttpRouteSpec,
}

/// What an HTTP route says.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, rename_all = "camelCase")]
pub struct HttpRouteSpec {
    /// What it is attached to.
    pub parent_refs: Vec<ParentReference>,
    /// The hosts it is for; they mean nothing to a service.
    pub hostnames: Vec<String>,
    /// Its rules; one that matches everything when absent.
    pub rules: Option<Vec<HttpRouteRule>>,
}

/// A rule.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, rename_all = "camelCase")]
pub struct HttpRouteRule {
    /// Its name.
    pub name: String,
    /// Requests it is for: any of these; all when empty.
    pub matches: Vec<HttpRouteMatch>,
    /// Changes.
    pub filters: Vec<RouteFilter>,
    /// Where requests go.
    pub backend_refs: Vec<BackendRef>,
    /// How long they may take.
    pub timeouts: Option<HttpRouteTimeouts>,
    /// When they are tried again.
    pub retry: Option<HttpRouteRetry>,
    /// How requests of a session stay together.
    pub session_persistence: Option<SessionPersistence>,
}

/// What a request must be like: everything that is given.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, rename_all = "camelCase")]
pub struct HttpRouteMatch {
    /// Its path.
    pub path: Option<HttpPathMatch>,
    /// Its headers.
    pub headers: Vec<NameValueMatch>,
    /// Its query parameters.
    pub query_params: Vec<NameValueMatch>,
    /// Its method.
    pub method: Option<String>,
}

/// What a path must be like.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, rename_all = "camelCase")]
pub struct HttpPathMatch {
    /// `PathPrefix` (also when absent), `Exact` or `RegularExpression`.
    #[serde(rename = "type")]
    pub kind: Option<String>,
    /// The text; `/` when absent.
    pub value: Option<String>,
}

/// What a named value must be like.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, rename_all = "camelCase")]
pub struct NameValueMatch {
    /// `Exact` (also when absent) or `RegularExpression`.
    #[serde(rename = "type")]
    pub kind: Option<String>,
    /// The name.
    pub name: String,
    /// The text.
    pub value: String,
}

/// How long requests may take.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, rename_all = "camelCase")]
pub struct HttpRouteTimeouts {
    /// As a whole.
    pub request: Option<String>,
    /// Each try.
    pub backend_request: Option<String>,
}

/// When requests are tried again.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, rename_all = "camelCase")]
pub struct HttpRouteRetry {
    /// On these statuses.
    pub codes: Vec<u16>,
    /// How often.
    pub attempts: Option<u32>,
    /// The least pause.
    pub backoff: Option<String>,
}

impl Kind for HttpRoute {
    const KIND: &'static str = "HTTPRoute";
    const GROUP: &'static str = "gateway.networking.k8s.io";
    const VERSIONS: &'static [&'static str] = &["v1", "v1beta1"];
    const UNREAD: &'static [&'static str] = &["status", "spec.useDefaultGateways"];

    fn metadata(&self) -> &ObjectMeta {
        &self.metadata
    }
}
