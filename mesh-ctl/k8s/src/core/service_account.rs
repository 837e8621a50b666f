//! ServiceAccount: the name that a pod's identity is made of.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{Kind, ObjectMeta};

/// A service account.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, rename_all = "camelCase")]
pub struct ServiceAccount {
    /// Metadata.
    pub metadata: ObjectMeta,
}

impl Kind for ServiceAccount {
    const KIND: &'static str = "ServiceAccount";
    const GROUP: &'static str = "";
    const VERSIONS: &'static [&'static str] = &["v1"];
    const UNREAD: &'static [&'static str] = &[
        "automountServiceAccountToken",
        "imagePullSecrets",
        "secrets",
    ];

    fn metadata(&self) -> &ObjectMeta {
        &self.metadata
    }
}
