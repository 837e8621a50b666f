//! Telemetry: what is told of requests, of which only spans are read. Source: Istio's Telemetry API,
//! `telemetry.istio.io/v1`.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    Kind, ObjectMeta,
    security::{PolicyTargetReference, WorkloadSelector},
};

/// What is told of requests.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, rename_all = "camelCase")]
pub struct Telemetry {
    /// Metadata.
    pub metadata: ObjectMeta,
    /// What it says.
    pub spec: TelemetrySpec,
}

/// What a telemetry object says.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, rename_all = "camelCase")]
pub struct TelemetrySpec {
    /// The workloads it is about.
    pub selector: Option<WorkloadSelector>,
    /// The object it is attached to.
    pub target_ref: Option<PolicyTargetReference>,
    /// The objects it is attached to.
    pub target_refs: Vec<PolicyTargetReference>,
    /// Spans.
    pub tracing: Vec<Tracing>,
}

/// Which requests leave spans, and where these go.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, rename_all = "camelCase")]
pub struct Tracing {
    /// On which side of a request.
    pub r#match: Option<TracingMatch>,
    /// Where spans go, by names of the mesh's extension providers; inherited when empty.
    pub providers: Vec<ProviderRef>,
    /// The share of requests in per cent; inherited when absent.
    pub random_sampling_percentage: Option<f64>,
    /// Whether no spans are sent; inherited when absent.
    pub disable_span_reporting: Option<bool>,
    /// What spans say besides; inherited when absent.
    pub custom_tags: Option<BTreeMap<String, CustomTag>>,
}

/// On which side of a request.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, rename_all = "camelCase")]
pub struct TracingMatch {
    /// `CLIENT_AND_SERVER` (also when empty), `CLIENT` or `SERVER`.
    pub mode: String,
}

/// An extension provider by name.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, rename_all = "camelCase")]
pub struct ProviderRef {
    /// Its name.
    pub name: String,
}

/// The value of one tag: one of these.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, rename_all = "camelCase")]
pub struct CustomTag {
    /// Always the same.
    pub literal: Option<LiteralTag>,
    /// A header of the request.
    pub header: Option<HeaderTag>,
}

/// A fixed text.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, rename_all = "camelCase")]
pub struct LiteralTag {
    /// The text.
    pub value: String,
}

/// A header of the request.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, rename_all = "camelCase")]
pub struct HeaderTag {
    /// Its name.
    pub name: String,
    /// What is said where it is missing; nothing when empty.
    pub default_value: String,
}

impl Kind for Telemetry {
    const KIND: &'static str = "Telemetry";
    const GROUP: &'static str = "telemetry.istio.io";
    const VERSIONS: &'static [&'static str] = &["v1", "v1alpha1"];
    const UNREAD: &'static [&'static str] = &["status"];

    fn metadata(&self) -> &ObjectMeta {
        &self.metadata
    }
}
