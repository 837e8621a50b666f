//! The one reading of objects, wherever they come from.

use std::{collections::BTreeMap, sync::Arc};

use mesh_k8s::{Object, ObjectRef};
use mesh_translate::{Broken, Origin};
use serde_json::Value;

/// What a value holds.
pub(crate) enum Typed {
    /// An object, and the paths of fields that no type knows.
    Object(Object, Arc<[String]>),
    /// What is wrong with it, and its name as far as it can be told. The origin is left empty.
    Bad(Option<ObjectRef>, Broken),
}

/// Reads a value.
pub(crate) fn typed(value: Value) -> Typed {
    let selector = value.pointer("/spec/selector/matchLabels").cloned();
    match mesh_k8s::read(value) {
        Ok(parsed) => {
            let version = parsed.unknown_version.map(|_| "apiVersion".to_owned());
            let unknown = parsed.unknown.into_iter().chain(version).collect();
            Typed::Object(parsed.object, unknown)
        }
        Err(error) => {
            let selector = selector
                .and_then(|labels| serde_json::from_value::<BTreeMap<String, String>>(labels).ok());
            let broken = Broken {
                origin: Origin::default(),
                field: error.field,
                message: error.message,
                selector,
            };
            Typed::Bad(error.object, broken)
        }
    }
}
