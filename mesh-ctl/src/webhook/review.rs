//! Decides about one object that somebody is about to write.
//!
//! Invariants: only kinds of our own are ever refused, and only for what the translation calls an error; everybody
//! else's are allowed, with warnings. What is being deleted, or keeps its spec, is never refused: a controller that
//! takes a finalizer off a bad object must get through.

use std::sync::Arc;

use mesh_k8s::{ObjectRef, reference};
use mesh_translate::{Broken, ConditionKind, Message, Severity, Status};
use serde::{Deserialize, Deserializer};
use serde_json::Value;

use crate::{
    view::View,
    watch::{Typed, typed},
};

/// The group of the kinds that are refused when they are wrong.
pub(super) const OWN_GROUP: &str = "warren.dev";
/// What the API recommends as the length of one warning, in characters.
const WARNING: usize = 120;
/// So many warnings are given; what else there is is in the object's status.
const WARNINGS: usize = 8;

/// The part of an AdmissionReview's request that is looked at.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Request {
    /// What the answer is told apart by.
    pub uid: String,
    /// What kind of object it is.
    pub kind: GroupKind,
    /// `CREATE`, `UPDATE` or something else.
    pub operation: String,
    /// The object as it is to be.
    pub object: Value,
    /// The object as it is.
    #[serde(deserialize_with = "null_as_none")]
    pub old_object: Option<Value>,
}

/// A kind and its group.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct GroupKind {
    /// The group; empty for the core group.
    pub group: String,
    /// The kind.
    pub kind: String,
}

fn null_as_none<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Value>, D::Error> {
    let value = Value::deserialize(deserializer)?;
    Ok((!value.is_null()).then_some(value))
}

/// What is answered.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    /// Why the object is refused; `None` when it is allowed.
    pub refused: Option<String>,
    /// What the author is told, each at most 120 characters.
    pub warnings: Vec<String>,
}

/// Decides, as if the object were there beside everything that is known.
pub fn review(view: &View, request: Request) -> Verdict {
    let Request {
        uid: _,
        kind,
        operation,
        object,
        old_object,
    } = request;
    let written = matches!(operation.as_str(), "CREATE" | "UPDATE") && object.is_object();
    if !written || object.pointer("/metadata/deletionTimestamp").is_some() {
        return Verdict::default();
    }
    if !view.is_complete() {
        let text = "not checked: the mesh's controller has not read the cluster yet";
        return Verdict {
            refused: None,
            warnings: vec![text.to_owned()],
        };
    }
    let same_spec = old_object.is_some_and(|old| old.get("spec") == object.get("spec"));
    let Some(status) = status(view, object) else {
        return Verdict::default();
    };
    let errors = status
        .messages
        .iter()
        .filter(|m| m.severity == Severity::Error);
    let errors: Vec<String> = errors.map(line).collect();
    if kind.group == OWN_GROUP && !errors.is_empty() && !same_spec {
        return Verdict {
            refused: Some(format!("{}: {}", status.object, errors.join("; "))),
            warnings: Vec::new(),
        };
    }
    Verdict {
        refused: None,
        warnings: warnings(&status),
    }
}

/// What the translation says about the object.
fn status(view: &View, value: Value) -> Option<Status> {
    let named = reference(&value);
    match typed(value) {
        Typed::Object(object, unknown) => {
            let reference = object.reference();
            view.would_say(&reference, |cluster| {
                cluster.apply(object.clone(), Default::default(), Arc::clone(&unknown));
            })
        }
        Typed::Bad(reference, broken) => {
            // An object that does not even have a name is the API server's to refuse.
            let reference = reference.or(named)?;
            bad(view, &reference, &broken)
        }
    }
}

fn bad(view: &View, reference: &ObjectRef, broken: &Broken) -> Option<Status> {
    view.would_say(reference, |cluster| {
        cluster.set_broken(reference.clone(), broken.clone());
    })
}

/// What is said aloud of a status, the gravest first.
fn warnings(status: &Status) -> Vec<String> {
    let not_programmed = status
        .conditions
        .iter()
        .find(|c| c.kind == ConditionKind::Programmed && !c.status && !c.message.is_empty());
    let not_programmed = not_programmed
        .filter(|condition| !status.messages.iter().any(|m| m.text == condition.message))
        .map(|condition| format!("not in force: {}", condition.message));
    let grave = status
        .messages
        .iter()
        .filter(|message| message.severity >= Severity::Warning)
        .map(line);
    let mut all: Vec<String> = grave
        .chain(not_programmed)
        .map(|text| short(&text))
        .collect();
    all.dedup();
    if all.len() > WARNINGS {
        let more = all.len() - WARNINGS;
        all.truncate(WARNINGS);
        all.push(format!("and {more} more: see the object's status"));
    }
    all
}

fn line(message: &Message) -> String {
    match message.field.as_str() {
        "" => message.text.clone(),
        field => format!("{field}: {}", message.text),
    }
}

/// The API server drops warnings with control characters, and may cut long ones.
fn short(text: &str) -> String {
    let plain = |c: char| if c.is_control() { ' ' } else { c };
    let text = text.chars().map(plain);
    if text.clone().count() <= WARNING {
        return text.collect();
    }
    let mut cut: String = text.take(WARNING - 3).collect();
    cut.push_str("...");
    cut
}

#[cfg(test)]
mod tests;
