//! MeshConfig: settings of the whole mesh.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{Kind, ObjectMeta};

/// Settings of the whole mesh; one object, anywhere.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, rename_all = "camelCase")]
pub struct MeshConfig {
    /// Metadata.
    pub metadata: ObjectMeta,
    /// What it says.
    pub spec: MeshConfigSpec,
}

/// Settings of the whole mesh.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, rename_all = "camelCase")]
pub struct MeshConfigSpec {
    /// The trust domain; `cluster.local` when empty.
    pub trust_domain: String,
    /// The namespace whose policies hold for the whole mesh; when empty, `warren-system` and `istio-system` both do.
    pub root_namespace: String,
    /// The cluster's DNS domain; `cluster.local` when empty.
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
    pub cluster_id: String,
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
