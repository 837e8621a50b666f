//! A network configuration list of the container runtime, with our plugin at its end and without it.
//!
//! Invariants: pure; every function gives the same when it is applied to its own result; values that are not ours
//! are kept as they are (the order of an object's keys is not, and means nothing in JSON).

use std::path::Path;

use serde_json::{Map, Value, json};

use crate::PLUGIN;

/// The endings of files that runtimes read, as libcni's callers (containerd, CRI-O) ask for them.
const READ: [&str; 3] = ["conf", "conflist", "json"];

/// Why a configuration cannot be worked on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// It is not an object.
    #[error("it is not a JSON object")]
    NotAnObject,
    /// A list without plugins.
    #[error("it has no list of \"plugins\", or an empty one: there is nothing to chain to")]
    NoPlugins,
    /// A plugin without a type.
    #[error("it, or one of its plugins, has no \"type\"")]
    NoType,
    /// A network without a name.
    #[error("it has no \"name\"")]
    NoName,
}

/// The file that runtimes use, of the names in the directory: the first one that has an ending which they read.
pub fn chosen<'a>(names: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    names.into_iter().filter(|name| is_read(name)).min()
}

/// Whether runtimes read a file of this name.
pub fn is_read(name: &str) -> bool {
    ending(name).is_some_and(|e| READ.contains(&e))
}

/// Whether runtimes take a file of this name for a list; others that they read hold a single plugin.
pub fn is_list(name: &str) -> bool {
    ending(name) == Some("conflist")
}

fn ending(name: &str) -> Option<&str> {
    Path::new(name).extension().and_then(|e| e.to_str())
}

/// The list with `plugin` as its last one, once. `plugin` must have our type.
pub fn chain(list: &Value, plugin: &Value) -> Result<Value, Malformed> {
    if !ours(plugin) {
        return Err(Malformed::NoType);
    }
    let mut list = unchain(list)?;
    let plugins = plugins_mut(&mut list)?;
    if plugins.is_empty() {
        return Err(Malformed::NoPlugins);
    }
    plugins.push(plugin.clone());
    Ok(list)
}

/// The list without our plugin.
pub fn unchain(list: &Value) -> Result<Value, Malformed> {
    let mut list = list.clone();
    let plugins = plugins_mut(&mut list)?;
    if plugins.iter().any(|p| type_of(p).is_none()) {
        return Err(Malformed::NoType);
    }
    plugins.retain(|p| !ours(p));
    Ok(list)
}

/// Whether our plugin is in the list, wherever.
pub fn is_chained(list: &Value) -> bool {
    list["plugins"]
        .as_array()
        .is_some_and(|plugins| plugins.iter().any(ours))
}

/// A single plugin's configuration as a list of one, as the runtime itself makes it before it uses it.
pub fn from_single(conf: &Value) -> Result<Value, Malformed> {
    let fields = conf.as_object().ok_or(Malformed::NotAnObject)?;
    type_of(conf).ok_or(Malformed::NoType)?;
    let name = fields.get("name").and_then(Value::as_str);
    if name.is_none_or(str::is_empty) {
        return Err(Malformed::NoName);
    }
    let mut list = Map::new();
    for field in ["cniVersion", "cniVersions", "name"] {
        if let Some(value) = fields.get(field) {
            list.insert(field.into(), value.clone());
        }
    }
    list.insert("plugins".into(), json!([conf]));
    Ok(Value::Object(list))
}

fn plugins_mut(list: &mut Value) -> Result<&mut Vec<Value>, Malformed> {
    list.as_object_mut()
        .ok_or(Malformed::NotAnObject)?
        .get_mut("plugins")
        .and_then(Value::as_array_mut)
        .ok_or(Malformed::NoPlugins)
}

fn type_of(plugin: &Value) -> Option<&str> {
    plugin["type"].as_str().filter(|t| !t.is_empty())
}

fn ours(plugin: &Value) -> bool {
    type_of(plugin) == Some(PLUGIN)
}

#[cfg(test)]
mod tests;
