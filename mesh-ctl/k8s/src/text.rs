//! Values that users write as number or as text.

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize};

/// A port by number or by name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum IntOrString {
    /// A number.
    Int(i64),
    /// A name (or a number in quotes).
    Text(String),
}

impl Default for IntOrString {
    fn default() -> Self {
        Self::Int(0)
    }
}

/// Reads a list of texts in which numbers are also understood: `ports: ["80", 443]`.
pub(crate) fn texts<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    let items = Vec::<IntOrString>::deserialize(deserializer)?;
    let text = |item| match item {
        IntOrString::Int(n) => n.to_string(),
        IntOrString::Text(t) => t,
    };
    Ok(items.into_iter().map(text).collect())
}
