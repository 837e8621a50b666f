//! ReferenceGrant: who may name objects of another namespace.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{Kind, ObjectMeta};

/// A grant.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, rename_all = "camelCase")]
pub struct ReferenceGrant {
    /// Metadata.
    pub metadata: ObjectMeta,
    /// What it says.
    pub spec: ReferenceGrantSpec,
}

/// What a grant says.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, rename_all = "camelCase")]
pub struct ReferenceGrantSpec {
    /// Who may.
    pub from: Vec<GrantFrom>,
    /// Name what.
    pub to: Vec<GrantTo>,
}

/// Objects of a kind in a namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, rename_all = "camelCase")]
pub struct GrantFrom {
    /// Their group; the core group when empty.
    pub group: String,
    /// Their kind.
    pub kind: String,
    /// Their namespace.
    pub namespace: String,
}

/// Objects of a kind in the grant's namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, rename_all = "camelCase")]
pub struct GrantTo {
    /// Their group; the core group when empty.
    pub group: String,
    /// Their kind.
    pub kind: String,
    /// The name of one; all when empty.
    pub name: String,
}

impl Kind for ReferenceGrant {
    const KIND: &'static str = "ReferenceGrant";
    const GROUP: &'static str = "gateway.networking.k8s.io";
    const VERSIONS: &'static [&'static str] = &["v1", "v1beta1"];
    const UNREAD: &'static [&'static str] = &["status"];

    fn metadata(&self) -> &ObjectMeta {
        &self.metadata
    }
}
