//! How routes name other objects.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::RouteFilter;

/// What a route is attached to.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, rename_all = "camelCase")]
pub struct ParentReference {
    /// Its group; the Gateway API's when absent, the core group when empty.
    pub group: Option<String>,
    /// Its kind; `Gateway` when absent.
    pub kind: Option<String>,
    /// Its namespace; the route's when empty.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// The part of it, such as a listener.
    pub section_name: String,
    /// Its port; all of them when absent.
    pub port: Option<u16>,
}

/// A place that requests go to.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, rename_all = "camelCase")]
pub struct BackendRef {
    /// Its group; the core group when empty.
    pub group: String,
    /// Its kind; `Service` when absent.
    pub kind: Option<String>,
    /// Its name.
    pub name: String,
    /// Its namespace; the route's when empty.
    pub namespace: String,
    /// Its port; needed for a service.
    pub port: Option<u16>,
    /// Its share, relative to the others'; 1 when absent.
    pub weight: Option<u32>,
    /// Changes to requests that go there.
    pub filters: Vec<RouteFilter>,
}
