//! MeshConfig: settings of the whole mesh.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{Kind, ObjectMeta};

/// Settings of the whole mesh; one object, anywhere.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, rename_all = "camelCase")]
pub struct MeshConfig {
    /// Metadata.
    pub metadata: ObjectMeta,
    /// What it says.
    pub spec: MeshConfigSpec,
}

/// Settings of the whole mesh.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, rename_all = "camelCase")]
pub struct MeshConfigSpec {
    /// The trust domain; `cluster.local` when empty.
    #[schemars(length(max = 255))]
    pub trust_domain: String,
    /// The namespace whose policies hold for the whole mesh; when empty, `warren-system` and `istio-system` both do.
    #[schemars(length(max = 63))]
    pub root_namespace: String,
    /// The cluster's DNS domain; `cluster.local` when empty.
    #[schemars(length(max = 253))]
    pub cluster_domain: String,
    /// `ALLOW_ANY` (also when empty) or `REGISTRY_ONLY`.
    #[schemars(extend("enum" = ["", "ALLOW_ANY", "REGISTRY_ONLY"]))]
    pub outbound_traffic_policy: String,
    /// `auto` (also when empty), `tunnel` or `direct`.
    #[schemars(extend("enum" = ["", "auto", "tunnel", "direct"]))]
    pub same_node: String,
    /// Which of Istio's enrolment labels count.
    pub honour_istio_labels: HonourIstioLabels,
    /// `auto` (also when empty): a namespace whose objects need a waypoint gets one; `manual`: only what is asked for.
    #[schemars(extend("enum" = ["", "auto", "manual"]))]
    pub waypoint: String,
    /// The name of this cluster's network.
    pub network: String,
    /// The name of this cluster; `Kubernetes` when empty.
    #[schemars(length(max = 253))]
    pub cluster_id: String,
    /// Where spans may go, each under a name; an entry of Istio's MeshConfig works unchanged.
    #[schemars(length(max = 64))]
    pub extension_providers: Vec<ExtensionProvider>,
    /// Which of them are used where no Telemetry object names one.
    pub default_providers: DefaultProviders,
    /// Settings of every proxy, as in Istio's MeshConfig.
    pub default_config: DefaultConfig,
    /// Whether there are spans at all, as in Istio's MeshConfig; there are when it is absent.
    pub enable_tracing: Option<bool>,
}

/// Somebody who is told of requests.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, rename_all = "camelCase")]
pub struct ExtensionProvider {
    /// The name that other objects say.
    #[schemars(length(max = 253))]
    pub name: String,
    /// A collector that speaks OTLP.
    pub opentelemetry: Option<OpenTelemetryProvider>,
}

/// A collector that speaks OTLP.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, rename_all = "camelCase")]
pub struct OpenTelemetryProvider {
    /// Its service: a full host name, or `<namespace>/<host name>`.
    #[schemars(length(max = 512))]
    pub service: String,
    /// The port of the service.
    #[schemars(range(min = 1, max = 65535))]
    pub port: u32,
    /// OTLP over HTTP, which is not spoken.
    pub http: Option<OtlpHttp>,
}

/// OTLP over HTTP.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, rename_all = "camelCase")]
pub struct OtlpHttp {
    /// The path of its endpoint.
    pub path: String,
}

/// Providers that are used where nothing else is said.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, rename_all = "camelCase")]
pub struct DefaultProviders {
    /// Of spans: the first.
    #[schemars(length(max = 1), inner(length(max = 253)))]
    pub tracing: Vec<String>,
}

/// Settings of every proxy.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, rename_all = "camelCase")]
pub struct DefaultConfig {
    /// Spans.
    pub tracing: DefaultTracing,
}

/// Which requests leave spans where nothing else is said.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, rename_all = "camelCase")]
pub struct DefaultTracing {
    /// The share of requests in per cent; 1 when absent.
    #[schemars(range(min = 0.0, max = 100.0))]
    pub sampling: Option<f64>,
}

/// Which of Istio's enrolment labels count.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, rename_all = "camelCase")]
pub struct HonourIstioLabels {
    /// `istio.io/dataplane-mode=ambient|none`.
    pub dataplane_mode: bool,
    /// `istio-injection=enabled|disabled` and `sidecar.istio.io/inject`.
    pub injection: bool,
}

impl Default for HonourIstioLabels {
    fn default() -> Self {
        Self {
            dataplane_mode: true,
            injection: true,
        }
    }
}

impl Kind for MeshConfig {
    const KIND: &'static str = "MeshConfig";
    const GROUP: &'static str = "warren.dev";
    const VERSIONS: &'static [&'static str] = &["v1alpha1"];
    const UNREAD: &'static [&'static str] = &["status"];

    fn metadata(&self) -> &ObjectMeta {
        &self.metadata
    }
}
