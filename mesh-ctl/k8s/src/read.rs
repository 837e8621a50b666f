//! The one way from a JSON value to a typed object, with every surprise named by its path.

use std::marker::PhantomData;

use serde_json::{Map, Value};

use crate::{
    meta::ObjectMeta,
    object::{Kind, Object, ObjectRef, Other, name_of},
    path,
};

/// Metadata that exists and is not read.
const META_UNREAD: [&str; 5] = [
    "metadata.managedFields",
    "metadata.generateName",
    "metadata.selfLink",
    "metadata.finalizers",
    "metadata.deletionGracePeriodSeconds",
];

/// An object that was read.
#[derive(Clone, Debug)]
pub struct Parsed {
    /// The object.
    pub object: Object,
    /// Paths of fields that no type knows: misspelt, or newer than this build.
    pub unknown: Vec<String>,
    /// The version, when the group has one that this build does not know.
    pub unknown_version: Option<String>,
}

/// Why a value is not an object.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}{}: {message}", .object.as_ref().map_or_else(|| "object".to_owned(), ToString::to_string),
    if .field.is_empty() { String::new() } else { format!(" field {}", .field) })]
pub struct ReadError {
    /// The object, as far as its name could be read.
    pub object: Option<ObjectRef>,
    /// The field that is wrong.
    pub field: String,
    /// What is wrong with it.
    pub message: String,
}

/// The name of the object that a value holds, as far as it can be told.
pub fn reference(value: &Value) -> Option<ObjectRef> {
    let text = |path: &str| value.pointer(path).and_then(Value::as_str);
    let (kind, name) = (text("/kind")?, text("/metadata/name")?);
    let namespace = text("/metadata/namespace").unwrap_or_default();
    let group = group_of(text("/apiVersion")?).0;
    let namespaced = Object::typed(group, kind).is_none_or(|reader| reader.namespaced());
    let namespace = match (namespaced, namespace) {
        (false, _) => "",
        (true, "") => "default",
        (true, namespace) => namespace,
    };
    Some(ObjectRef::new(&name_of(group, kind), namespace, name))
}

/// Reads an object. A namespaced object without a namespace belongs to `default`.
pub fn read(mut value: Value) -> Result<Parsed, ReadError> {
    let object = reference(&value);
    let fail = |field: &str, message: String| ReadError {
        object: object.clone(),
        field: field.to_owned(),
        message,
    };
    let text = |field: &str| match value.get(field) {
        Some(Value::String(text)) if !text.is_empty() => Ok(text.clone()),
        Some(Value::String(_) | Value::Null) | None => Err(fail(field, "is missing".into())),
        Some(other) => Err(fail(field, format!("is {other}; expected text"))),
    };
    let (api_version, kind) = (text("apiVersion")?, text("kind")?);
    let (group, version) = group_of(&api_version);
    drop_nulls(&mut value);
    let reader = Object::typed(group, &kind);
    let namespaced = reader.is_none_or(|reader| reader.namespaced());
    fix_metadata(&mut value, namespaced).map_err(|(field, message)| fail(field, message))?;
    let Some(reader) = reader else {
        let metadata = value.get("metadata").cloned().unwrap_or_default();
        let metadata: ObjectMeta = serde_path_to_error::deserialize(metadata)
            .map_err(|e| fail("metadata", e.to_string()))?;
        let object = Object::Other(std::sync::Arc::new(Other {
            api_version,
            kind,
            metadata,
        }));
        return Ok(Parsed {
            object,
            unknown: Vec::new(),
            unknown_version: None,
        });
    };
    let unknown_version = (!reader.versions().contains(&version)).then(|| api_version.clone());
    if let Value::Object(fields) = &mut value {
        fields.remove("apiVersion");
        fields.remove("kind");
    }
    let mut unknown = Vec::new();
    let parsed = reader
        .read(value, &mut unknown)
        .map_err(|(field, message)| fail(&field, message))?;
    Ok(Parsed {
        object: parsed,
        unknown,
        unknown_version,
    })
}

/// Reads values of one kind; a table of these replaces a match in every caller.
pub(crate) trait Reader {
    fn namespaced(&self) -> bool;
    fn versions(&self) -> &'static [&'static str];
    fn read(&self, value: Value, unknown: &mut Vec<String>) -> Result<Object, (String, String)>;
}

pub(crate) struct Typed<K>(pub(crate) PhantomData<K>);

impl<K: Kind> Reader for Typed<K> {
    fn namespaced(&self) -> bool {
        K::NAMESPACED
    }

    fn versions(&self) -> &'static [&'static str] {
        K::VERSIONS
    }

    fn read(&self, value: Value, unknown: &mut Vec<String>) -> Result<Object, (String, String)> {
        let mut track = serde_path_to_error::Track::new();
        let inner = serde_path_to_error::Deserializer::new(value, &mut track);
        let mut ignored = |at: serde_ignored::Path<'_>| {
            let at = path::render(&at);
            if !K::UNREAD
                .iter()
                .chain(&META_UNREAD)
                .any(|pattern| path::below(&at, pattern))
            {
                unknown.push(at);
            }
        };
        let result = K::deserialize(serde_ignored::Deserializer::new(inner, &mut ignored));
        result.map(Into::into).map_err(|error| {
            let field = track.path().to_string();
            (
                if field == "." { String::new() } else { field },
                error.to_string(),
            )
        })
    }
}

fn group_of(api_version: &str) -> (&str, &str) {
    api_version.split_once('/').unwrap_or(("", api_version))
}

/// A null field means the same as no field, as it does for Kubernetes; a null in a list stays an error.
fn drop_nulls(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            fields.retain(|_, field| !field.is_null());
            fields.values_mut().for_each(drop_nulls);
        }
        Value::Array(items) => items.iter_mut().for_each(drop_nulls),
        _ => {}
    }
}

/// Fills in the default namespace and refuses names that could be mistaken for something else
/// further on: names become parts of identities, of host names and of resource names.
fn fix_metadata(value: &mut Value, namespaced: bool) -> Result<(), (&'static str, String)> {
    let fields = value
        .as_object_mut()
        .ok_or(("", "is not a mapping".to_owned()))?;
    let meta = fields
        .entry("metadata")
        .or_insert_with(|| Value::Object(Map::new()));
    let meta = meta
        .as_object_mut()
        .ok_or(("metadata", "is not a mapping".to_owned()))?;
    match meta.get("name") {
        Some(Value::String(name)) if is_name(name) => {}
        Some(Value::String(name)) => return Err(("metadata.name", bad_name(name))),
        Some(other) => return Err(("metadata.name", format!("is {other}; expected text"))),
        None => return Err(("metadata.name", "is missing".to_owned())),
    }
    if !namespaced {
        meta.remove("namespace");
        return Ok(());
    }
    match meta.get("namespace") {
        None => {
            meta.insert("namespace".to_owned(), Value::String("default".to_owned()));
            Ok(())
        }
        Some(Value::String(name)) if name.is_empty() => {
            meta.insert("namespace".to_owned(), Value::String("default".to_owned()));
            Ok(())
        }
        Some(Value::String(name)) if is_name(name) => Ok(()),
        Some(Value::String(name)) => Err(("metadata.namespace", bad_name(name))),
        Some(other) => Err(("metadata.namespace", format!("is {other}; expected text"))),
    }
}

fn bad_name(name: &str) -> String {
    format!(
        "{:?} is not a name: use lower-case letters, digits, '-' and '.', at most 253",
        name.escape_debug().to_string()
    )
}

/// Whether a text is a DNS-1123 subdomain, as names of objects must be.
pub fn is_name(name: &str) -> bool {
    let label = |label: &str| {
        !label.is_empty()
            && label
                .bytes()
                .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    name.len() <= 253 && name.split('.').all(label)
}

#[cfg(test)]
mod tests;
