//! What routes change in requests and responses.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::BackendRef;

/// One change, told apart by `type`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, rename_all = "camelCase")]
pub struct RouteFilter {
    /// `RequestHeaderModifier`, `ResponseHeaderModifier`, `RequestMirror`, `RequestRedirect`, `URLRewrite`, `CORS`,
    /// `ExternalAuth` or `ExtensionRef`.
    #[serde(rename = "type")]
    pub kind: String,
    /// Changes to the request's headers.
    pub request_header_modifier: Option<HeaderModifier>,
    /// Changes to the response's headers.
    pub response_header_modifier: Option<HeaderModifier>,
    /// Who gets a copy.
    #[schemars(with = "Option<serde_json::Map<String, serde_json::Value>>")]
    pub request_mirror: Option<Box<RequestMirror>>,
    /// Where the client is sent.
    pub request_redirect: Option<RequestRedirect>,
    /// Changes to the target.
    pub url_rewrite: Option<UrlRewrite>,
    /// Cross-origin requests.
    pub cors: Option<Cors>,
    /// Something of somebody else's.
    pub extension_ref: Option<serde_json::Map<String, serde_json::Value>>,
    /// A service that is asked.
    pub external_auth: Option<serde_json::Map<String, serde_json::Value>>,
}

/// Changes to headers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, rename_all = "camelCase")]
pub struct HeaderModifier {
    /// Headers to have this value only.
    pub set: Vec<NameValue>,
    /// Values to add.
    pub add: Vec<NameValue>,
    /// Headers to remove.
    pub remove: Vec<String>,
}

/// A header and its value.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, rename_all = "camelCase")]
pub struct NameValue {
    /// The name.
    pub name: String,
    /// The value.
    pub value: String,
}

/// Who gets a copy of how many requests.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, rename_all = "camelCase")]
pub struct RequestMirror {
    /// Who.
    pub backend_ref: BackendRef,
    /// How many, in per cent; all when nothing is said.
    pub percent: Option<u32>,
    /// How many, as a fraction.
    pub fraction: Option<Fraction>,
}

/// A fraction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, rename_all = "camelCase")]
pub struct Fraction {
    /// So many.
    pub numerator: u32,
    /// Of so many; 100 when absent.
    pub denominator: Option<u32>,
}

/// Where a client is sent.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, rename_all = "camelCase")]
pub struct RequestRedirect {
    /// The scheme; the request's when absent.
    pub scheme: Option<String>,
    /// The host; the request's when absent.
    pub hostname: Option<String>,
    /// The path; the request's when absent.
    pub path: Option<PathModifier>,
    /// The port.
    pub port: Option<u16>,
    /// The status; 302 when absent.
    pub status_code: Option<u16>,
}

/// Changes to a target.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, rename_all = "camelCase")]
pub struct UrlRewrite {
    /// The new host.
    pub hostname: Option<String>,
    /// The new path.
    pub path: Option<PathModifier>,
}

/// A new path.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, rename_all = "camelCase")]
pub struct PathModifier {
    /// `ReplaceFullPath` or `ReplacePrefixMatch`.
    #[serde(rename = "type")]
    pub kind: String,
    /// Instead of the whole path.
    pub replace_full_path: Option<String>,
    /// Instead of the matched prefix.
    pub replace_prefix_match: Option<String>,
}

/// Cross-origin requests.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, rename_all = "camelCase")]
pub struct Cors {
    /// Origins that are let in; a `*` stands for labels of the host, or for all.
    pub allow_origins: Vec<String>,
    /// Whether credentials may be sent.
    pub allow_credentials: Option<bool>,
    /// Methods; `*` for all.
    pub allow_methods: Vec<String>,
    /// Request headers; `*` for all.
    pub allow_headers: Vec<String>,
    /// Response headers that scripts may read.
    pub expose_headers: Vec<String>,
    /// How long a preflight's answer may be kept, in seconds; 5 when absent.
    pub max_age: Option<u32>,
}
