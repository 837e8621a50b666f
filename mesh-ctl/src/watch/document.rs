//! The text of a file as documents, and a document as objects.
//!
//! Invariant: documents are told apart by their separator lines alone, so that one with a broken syntax does not
//! take the others of its file with it.

use std::{
    hash::{DefaultHasher, Hash, Hasher},
    path::Path,
    sync::Arc,
};

use mesh_k8s::{Object, ObjectRef};
use mesh_translate::{Broken, Origin};

use super::{
    node::Node,
    typed::{Typed, typed},
};

/// A document of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Document<'t> {
    /// The line of the file at which its text begins, counted from 1.
    pub(super) line: u32,
    pub(super) text: &'t str,
}

impl Document<'_> {
    /// A fingerprint of its text.
    pub(super) fn digest(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        self.text.hash(&mut hasher);
        hasher.finish()
    }
}

/// What a document holds. Lines are relative to the document, so that it may move within its file.
#[derive(Clone, Debug)]
pub(super) enum Found {
    /// An object.
    Object {
        object: Object,
        unknown: Arc<[String]>,
        line: u32,
    },
    /// An object that cannot be read; its name when it can be told.
    Bad {
        object: Option<ObjectRef>,
        broken: Broken,
        syntax: bool,
    },
}

impl Found {
    /// The object's name, when it can be told.
    pub(super) fn reference(&self) -> Option<ObjectRef> {
        match self {
            Self::Object { object, .. } => Some(object.reference()),
            Self::Bad { object, .. } => object.clone(),
        }
    }

    /// Its line within the document.
    pub(super) fn line(&self) -> u32 {
        match self {
            Self::Object { line, .. } => *line,
            Self::Bad { broken, .. } => broken.origin.line,
        }
    }
}

/// Splits a file at its separator lines (`---`, and `...` as an end).
pub(super) fn split(text: &str) -> Vec<Document<'_>> {
    let mut documents = Vec::new();
    let (mut start, mut first_line, mut at) = (0, 1, 0);
    for (number, line) in text.split_inclusive('\n').enumerate() {
        let marker = line
            .strip_prefix("---")
            .or_else(|| line.strip_prefix("..."));
        if marker.is_some_and(|rest| rest.is_empty() || rest.starts_with([' ', '\t', '\r', '\n'])) {
            documents.push(Document {
                line: first_line,
                text: &text[start..at],
            });
            // What follows `---` on its line belongs to the document; `...` ends one, and so does `--- # note`.
            let inline = line
                .strip_prefix("---")
                .map(str::trim)
                .is_some_and(|rest| !rest.is_empty() && !rest.starts_with('#'));
            start = if inline { at + 3 } else { at + line.len() };
            first_line = number as u32 + if inline { 1 } else { 2 };
        }
        at += line.len();
    }
    documents.push(Document {
        line: first_line,
        text: &text[start..],
    });
    let said = |document: &Document<'_>| {
        document
            .text
            .lines()
            .map(str::trim)
            .any(|line| !line.is_empty() && !line.starts_with(['#', '%']))
    };
    documents.retain(said);
    documents
}

/// Reads a document. A list holds many objects, an empty document none.
pub(super) fn read(text: &str) -> Vec<Found> {
    let node: Node = match serde_saphyr::from_str_with_options(text, options()) {
        Ok(node) => node,
        Err(error) => return vec![syntax(text, &error)],
    };
    if node.is_null() {
        return Vec::new();
    }
    let kind = node.field("kind").map(Node::value);
    let list = kind
        .as_ref()
        .and_then(|kind| kind.as_str())
        .and_then(|kind| kind.strip_suffix("List"));
    match (list, node.field("items").and_then(Node::items)) {
        (Some(kind), Some(items)) => items
            .iter()
            .map(|item| object(item, Some((kind, &node))))
            .collect(),
        _ => vec![object(&node, None)],
    }
}

/// The line of a field of the document that begins at `origin`; the origin's own line when it cannot be told.
pub fn field_line(origin: &Origin, field: &str) -> u32 {
    let Ok(text) = std::fs::read_to_string(Path::new(&*origin.file)) else {
        return origin.line;
    };
    let holds = |document: &Document<'_>| document.line <= origin.line;
    let Some(document) = split(&text).into_iter().rfind(holds) else {
        return origin.line;
    };
    let Ok(node) = serde_saphyr::from_str_with_options::<Node>(document.text, options()) else {
        return origin.line;
    };
    let within = origin.line - document.line + 1;
    let item = node
        .field("items")
        .and_then(Node::items)
        .and_then(|items| items.iter().find(|item| item.line == within));
    item.unwrap_or(&node).line_of(field) + document.line - 1
}

/// Large lists are fine; documents that grow while they are read (aliases) keep the parser's own limits.
fn options() -> serde_saphyr::Options {
    serde_saphyr::options! {
        strict_booleans: true,
        budget: serde_saphyr::budget! {
            max_events: 50_000_000,
            max_nodes: 25_000_000,
            max_total_scalar_bytes: 512 << 20,
        },
    }
}

fn object(node: &Node, list: Option<(&str, &Node)>) -> Found {
    let mut value = node.value();
    // Items of a typed list leave out what the list says for all of them.
    if let (Some((kind, list)), Some(fields)) = (list, value.as_object_mut())
        && !kind.is_empty()
    {
        fields.entry("kind").or_insert_with(|| kind.into());
        if let Some(version) = list.field("apiVersion") {
            fields
                .entry("apiVersion")
                .or_insert_with(|| version.value());
        }
    }
    match typed(value) {
        Typed::Object(object, unknown) => Found::Object {
            object,
            unknown,
            line: node.line,
        },
        Typed::Bad(object, mut broken) => {
            broken.origin.line = node.line_of(&broken.field);
            Found::Bad {
                object,
                broken,
                syntax: false,
            }
        }
    }
}

fn syntax(text: &str, error: &serde_saphyr::Error) -> Found {
    let plain = error.without_snippet();
    let line = plain
        .location()
        .map_or(1, |location| u32::try_from(location.line()).unwrap_or(1));
    // The parser's own text repeats the place, counted from the document's beginning.
    let message = plain.to_string();
    let message = message
        .split(" at line ")
        .next()
        .unwrap_or(&message)
        .lines()
        .next()
        .unwrap_or_default()
        .to_owned();
    let broken = Broken {
        origin: Origin {
            file: "".into(),
            line,
        },
        field: String::new(),
        message: format!("is not valid YAML: {message}"),
        selector: None,
    };
    Found::Bad {
        object: guess(text),
        broken,
        syntax: true,
    }
}

/// The name of the object that a broken document seems to hold.
fn guess(text: &str) -> Option<ObjectRef> {
    let top = |key: &str| {
        text.lines()
            .find_map(|line| line.strip_prefix(key)?.strip_prefix(':'))
    };
    let clean = |text: &str| text.trim().trim_matches(['"', '\'']).to_owned();
    let (version, kind) = (clean(top("apiVersion")?), clean(top("kind")?));
    let inline = top("metadata")?.trim();
    let meta: Vec<&str> = if inline.is_empty() {
        let below = text
            .lines()
            .skip_while(|line| !line.starts_with("metadata:"))
            .skip(1);
        below
            .take_while(|line| line.starts_with([' ', '#']) || line.is_empty())
            .collect()
    } else {
        inline.trim_start_matches('{').split([',', '}']).collect()
    };
    let field = |key: &str| {
        meta.iter()
            .find_map(|line| line.trim().strip_prefix(key)?.strip_prefix(':'))
            .map(clean)
    };
    let name = field("name").filter(|name| !name.is_empty())?;
    let namespace = field("namespace").unwrap_or_default();
    let value = serde_json::json!({"apiVersion": version, "kind": kind, "metadata": {"name": name, "namespace": namespace}});
    mesh_k8s::reference(&value)
}
