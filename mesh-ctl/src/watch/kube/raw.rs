//! An object as the API server sent it, slimmed, whatever it holds.
//!
//! Invariant: reading one never fails, so that one malformed object cannot stop the watch of its kind; what is wrong
//! with it is found by the reading that all sources share.

use std::borrow::Cow;

use kube::{
    Resource,
    api::ObjectMeta,
    core::{ApiResource, DynamicResourceScope},
};
use serde::{Deserialize, Deserializer};
use serde_json::Value;

/// Metadata that is large and never looked at.
const LARGE: [&str; 2] = ["managedFields", "selfLink"];
/// An annotation that repeats the whole object.
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";

/// An object of any kind.
#[derive(Clone, Debug)]
pub(super) struct Raw {
    /// Name, namespace and resource version only: what the protocol of watches needs.
    meta: ObjectMeta,
    value: Value,
}

impl Raw {
    /// The object with its kind, which items of a list leave out.
    pub(super) fn value(mut self, resource: &ApiResource) -> Value {
        if let Some(fields) = self.value.as_object_mut() {
            let mut fill = |field: &str, text: &str| {
                fields
                    .entry(field)
                    .or_insert_with(|| Value::String(text.to_owned()));
            };
            fill("apiVersion", &resource.api_version);
            fill("kind", &resource.kind);
        }
        self.value
    }
}

impl<'de> Deserialize<'de> for Raw {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut value = Value::deserialize(deserializer)?;
        if let Some(meta) = value.get_mut("metadata").and_then(Value::as_object_mut) {
            for field in LARGE {
                meta.remove(field);
            }
            if let Some(annotations) = meta.get_mut("annotations").and_then(Value::as_object_mut) {
                annotations.remove(LAST_APPLIED);
            }
        }
        let text = |path: &str| {
            value
                .pointer(path)
                .and_then(Value::as_str)
                .map(str::to_owned)
        };
        let meta = ObjectMeta {
            name: text("/metadata/name"),
            namespace: text("/metadata/namespace"),
            resource_version: text("/metadata/resourceVersion"),
            ..ObjectMeta::default()
        };
        Ok(Self { meta, value })
    }
}

impl Resource for Raw {
    type DynamicType = ApiResource;
    type Scope = DynamicResourceScope;

    fn kind(resource: &ApiResource) -> Cow<'_, str> {
        resource.kind.as_str().into()
    }

    fn group(resource: &ApiResource) -> Cow<'_, str> {
        resource.group.as_str().into()
    }

    fn version(resource: &ApiResource) -> Cow<'_, str> {
        resource.version.as_str().into()
    }

    fn api_version(resource: &ApiResource) -> Cow<'_, str> {
        resource.api_version.as_str().into()
    }

    fn plural(resource: &ApiResource) -> Cow<'_, str> {
        resource.plural.as_str().into()
    }

    fn meta(&self) -> &ObjectMeta {
        &self.meta
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.meta
    }
}
