//! Deployment: read for its template's labels and account only.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{Kind, LabelSelector, ObjectMeta};

/// A deployment.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, rename_all = "camelCase")]
pub struct Deployment {
    /// Metadata.
    pub metadata: ObjectMeta,
    /// What it should be.
    pub spec: WorkloadSpec,
}

/// What a deployment or daemon set should be.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, rename_all = "camelCase")]
pub struct WorkloadSpec {
    /// How many pods; one when absent.
    pub replicas: Option<u32>,
    /// Labels of its pods.
    pub selector: LabelSelector,
    /// The pods' template.
    pub template: PodTemplateSpec,
}

/// A pod's template.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, rename_all = "camelCase")]
pub struct PodTemplateSpec {
    /// Metadata of the pods.
    pub metadata: ObjectMeta,
    /// The part of the pods' spec that is read.
    pub spec: TemplateSpec,
}

/// The part of a template's spec that is read.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, rename_all = "camelCase")]
pub struct TemplateSpec {
    /// The pods' service account.
    pub service_account_name: String,
    /// Whether the pods share the node's network.
    pub host_network: bool,
}

/// What a workload's template and its own spec have beside that.
pub(super) const UNREAD: &[&str] = &[
    "status",
    "spec.template.spec",
    "spec.strategy",
    "spec.updateStrategy",
    "spec.minReadySeconds",
    "spec.revisionHistoryLimit",
    "spec.paused",
    "spec.progressDeadlineSeconds",
    "spec.selector.matchExpressions",
];

impl Kind for Deployment {
    const KIND: &'static str = "Deployment";
    const GROUP: &'static str = "apps";
    const VERSIONS: &'static [&'static str] = &["v1"];
    const UNREAD: &'static [&'static str] = UNREAD;

    fn metadata(&self) -> &ObjectMeta {
        &self.metadata
    }
}
