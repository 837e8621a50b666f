//! How requests of a session stay together (GEP-1619).

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How requests of a session stay together.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, rename_all = "camelCase")]
pub struct SessionPersistence {
    /// The name of the cookie or header.
    pub session_name: Option<String>,
    /// When a session ends.
    pub absolute_timeout: Option<String>,
    /// When a session that is not used ends.
    pub idle_timeout: Option<String>,
    /// `Cookie` (also when absent) or `Header`.
    #[serde(rename = "type")]
    pub kind: Option<String>,
    /// What the cookie is like.
    pub cookie_config: Option<CookieConfig>,
}

/// What a session's cookie is like.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, rename_all = "camelCase")]
pub struct CookieConfig {
    /// `Session` (also when absent) or `Permanent`.
    pub lifetime_type: Option<String>,
}
