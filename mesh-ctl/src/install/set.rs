//! From profile, files and assignments to checked values.
//!
//! Invariants: later wins (values.yaml, then the profile, then files, then assignments); what cannot be set is named
//! with its path; assignments read as helm's `--set` reads them.

use serde::Deserialize;
use serde_json::{Map, Value};

use super::Values;

const DEFAULTS: &str = include_str!("../../../deploy/chart/values.yaml");

/// A set of values with a name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Profile {
    /// One small node, or continuous integration.
    Minimal,
    /// A cluster.
    #[default]
    Default,
    /// Looking around.
    Demo,
}

impl Profile {
    /// Every profile.
    pub const ALL: [Self; 3] = [Self::Minimal, Self::Default, Self::Demo];

    /// Its name, and that of its file.
    pub fn name(self) -> &'static str {
        match self {
            Self::Minimal => "minimal",
            Self::Default => "default",
            Self::Demo => "demo",
        }
    }

    fn text(self) -> &'static str {
        match self {
            Self::Minimal => include_str!("../../../deploy/chart/profiles/minimal.yaml"),
            Self::Default => include_str!("../../../deploy/chart/profiles/default.yaml"),
            Self::Demo => include_str!("../../../deploy/chart/profiles/demo.yaml"),
        }
    }
}

/// Why there are no values.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum SetError {
    /// Not `path=value`.
    #[error(
        "{0:?}: write PATH=VALUE, such as node.drain=60; deploy/chart/values.yaml has the paths"
    )]
    NoAssignment(String),
    /// Part of the path is a value already.
    #[error("{path:?}: {parent} is a value and holds no others")]
    NoMap {
        /// The whole path.
        path: String,
        /// Where it ends.
        parent: String,
    },
    /// A file, or all together, makes no sense.
    #[error("{what}: {why}")]
    Invalid {
        /// Which text, or `values`.
        what: String,
        /// What is wrong.
        why: String,
    },
}

/// One `path=value`.
#[derive(Clone, Debug, PartialEq)]
pub struct Assignment {
    path: Vec<String>,
    value: Value,
}

impl Assignment {
    /// Reads `a.b=1,c=x`: a path's dots and values' commas can be escaped by a backslash; `{a,b}` is a list; `true`,
    /// `false`, `null` and whole numbers are what they look like unless they are to be `text`.
    pub fn parse(written: &str, text: bool) -> Result<Vec<Self>, SetError> {
        let none = || SetError::NoAssignment(written.to_owned());
        let parts = split(written, ',').ok_or_else(none)?;
        parts
            .iter()
            .map(|part| {
                let (path, value) = part.split_once('=').ok_or_else(none)?;
                let path = split(path, '.').ok_or_else(none)?;
                if path.iter().any(String::is_empty) {
                    return Err(none());
                }
                let value = match value.strip_prefix('{').and_then(|v| v.strip_suffix('}')) {
                    Some("") => Value::Array(Vec::new()),
                    Some(items) => {
                        let items = split(items, ',').ok_or_else(none)?;
                        items.iter().map(|item| scalar(item, text)).collect()
                    }
                    None => scalar(&unescaped(value), text),
                };
                Ok(Self {
                    path: path.iter().map(|p| unescaped(p)).collect(),
                    value,
                })
            })
            .collect()
    }

    pub(super) fn apply(self, values: &mut Value) -> Result<(), SetError> {
        let mut at = values;
        for (index, name) in self.path.iter().enumerate() {
            if at.is_null() {
                *at = Value::Object(Map::new());
            }
            at = match at {
                Value::Object(fields) => fields.entry(name.clone()).or_insert(Value::Null),
                _ => {
                    return Err(SetError::NoMap {
                        path: self.path.join("."),
                        parent: self.path[..index].join("."),
                    });
                }
            };
        }
        *at = self.value;
        Ok(())
    }
}

/// Parts between separators that are neither escaped nor within braces; they stay escaped. `None`: a brace is open.
fn split(text: &str, separator: char) -> Option<Vec<String>> {
    let (mut parts, mut escaped, mut depth) = (vec![String::new()], false, 0_usize);
    for c in text.chars() {
        match c {
            '{' if !escaped => depth += 1,
            '}' if !escaped => depth = depth.checked_sub(1)?,
            _ => {}
        }
        if c == separator && !escaped && depth == 0 {
            parts.push(String::new());
        } else {
            parts.last_mut()?.push(c);
        }
        escaped = c == '\\' && !escaped;
    }
    (depth == 0).then_some(parts)
}

fn unescaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        out.extend(if c == '\\' { chars.next() } else { Some(c) });
    }
    out
}

fn scalar(text: &str, is_text: bool) -> Value {
    match text {
        _ if is_text => text.into(),
        "true" => true.into(),
        "false" => false.into(),
        "null" => Value::Null,
        // A leading zero makes it text, as in file modes.
        "0" => 0.into(),
        number if !number.starts_with('0') => number
            .parse::<i64>()
            .map_or_else(|_| text.into(), Value::from),
        text => text.into(),
    }
}

/// The values of a profile, with what files (name and text) and assignments change about it.
pub fn values(
    profile: Profile,
    files: &[(String, String)],
    assignments: Vec<Assignment>,
) -> Result<Values, SetError> {
    Asked::default()
        .with(Some(profile), files, assignments)?
        .values()
}

/// What a user asks for: a profile, and what is different from it.
#[derive(Clone, Debug, PartialEq)]
pub struct Asked {
    /// The set of values to begin with.
    pub profile: Profile,
    /// What is set about it, as a mapping; `null` takes a field away.
    pub changes: Value,
}

impl Default for Asked {
    fn default() -> Self {
        Self {
            profile: Profile::default(),
            changes: Value::Object(Map::new()),
        }
    }
}

impl Asked {
    /// The same with more on top: what is asked for later wins, and a profile stays unless one is given.
    pub fn with(
        mut self,
        profile: Option<Profile>,
        files: &[(String, String)],
        assignments: Vec<Assignment>,
    ) -> Result<Self, SetError> {
        self.profile = profile.unwrap_or(self.profile);
        for (name, text) in files {
            lay_over(&mut self.changes, document(name, text)?);
        }
        for assignment in assignments {
            assignment.apply(&mut self.changes)?;
        }
        Ok(self)
    }

    /// All values, checked.
    pub fn values(&self) -> Result<Values, SetError> {
        let mut values = document("values.yaml", DEFAULTS)?;
        let profile = document(self.profile.name(), self.profile.text())?;
        merge(&mut values, profile);
        merge(&mut values, self.changes.clone());
        checked(values)
    }

    /// The paths of what is set.
    pub fn paths(&self) -> Vec<String> {
        fn walk(at: &Value, path: &str, found: &mut Vec<String>) {
            match at {
                Value::Object(fields) if !fields.is_empty() => {
                    for (name, value) in fields {
                        let dot = if path.is_empty() { "" } else { "." };
                        walk(value, &format!("{path}{dot}{name}"), found);
                    }
                }
                _ if path.is_empty() => {}
                _ => found.push(path.to_owned()),
            }
        }
        let mut found = Vec::new();
        walk(&self.changes, "", &mut found);
        found
    }
}

pub(super) fn document(what: &str, text: &str) -> Result<Value, SetError> {
    let value: Value = serde_saphyr::from_str(text).map_err(|e| invalid(what, &e))?;
    match value {
        Value::Null => Ok(Value::Object(Map::new())),
        Value::Object(_) => Ok(value),
        _ => Err(invalid(what, &"it is no mapping")),
    }
}

/// One set of changes over another: what takes a field away is kept, for what will be below.
fn lay_over(into: &mut Value, from: Value) {
    match (into, from) {
        (Value::Object(into), Value::Object(from)) => {
            for (name, value) in from {
                lay_over(into.entry(name).or_insert(Value::Null), value);
            }
        }
        (into, from) => *into = from,
    }
}

/// As helm merges: mappings field by field, everything else whole; `null` takes a field away.
fn merge(into: &mut Value, from: Value) {
    match (into, from) {
        (Value::Object(into), Value::Object(from)) => {
            for (name, value) in from {
                match value {
                    Value::Null => {
                        into.remove(&name);
                    }
                    value => merge(into.entry(name).or_insert(Value::Null), value),
                }
            }
        }
        (into, from) => *into = from,
    }
}

fn checked(values: Value) -> Result<Values, SetError> {
    let checked = Values::deserialize(values).map_err(|e| invalid("values", &e))?;
    checked.check().map_err(|why| invalid("values", &why))?;
    Ok(checked)
}

pub(super) fn invalid(what: &str, why: &dyn std::fmt::Display) -> SetError {
    SetError::Invalid {
        what: what.to_owned(),
        why: why.to_string(),
    }
}
