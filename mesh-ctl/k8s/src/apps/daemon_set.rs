//! DaemonSet: read for its template's labels and account only.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::deployment::{UNREAD, WorkloadSpec};
use crate::{Kind, ObjectMeta};

/// A daemon set.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, rename_all = "camelCase")]
pub struct DaemonSet {
    /// Metadata.
    pub metadata: ObjectMeta,
    /// What it should be.
    pub spec: WorkloadSpec,
}

impl Kind for DaemonSet {
    const KIND: &'static str = "DaemonSet";
    const GROUP: &'static str = "apps";
    const VERSIONS: &'static [&'static str] = &["v1"];
    const UNREAD: &'static [&'static str] = UNREAD;

    fn metadata(&self) -> &ObjectMeta {
        &self.metadata
    }
}
