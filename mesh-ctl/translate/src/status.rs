//! What is told to the author of an object: conditions, and messages by field.

use std::collections::BTreeMap;

use mesh_k8s::{
    Kind, ObjectRef,
    gateway::{Gateway, GatewayClass, ParentReference},
};
use serde::Serialize;

use crate::view::Origin;

/// What is to be said about one object.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Status {
    /// The object.
    pub object: ObjectRef,
    /// Where it was read.
    pub origin: Origin,
    /// Whether it was understood, and whether it is in force; none for gateways of others.
    pub conditions: Vec<Condition>,
    /// Details by field.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub messages: Vec<Message>,
    /// What is to be said of each parent, where the object is a route of the Gateway API.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub parents: Vec<ParentStatus>,
    /// Where a gateway is reached: IP addresses and host names.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub addresses: Vec<String>,
    /// What is to be said of each listener, where the object is a gateway of ours.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub listeners: Vec<ListenerStatus>,
}

/// What becomes of a listener of a gateway, as the Gateway API's ListenerStatus has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ListenerStatus {
    /// Its name.
    pub name: String,
    /// Whether it is one that a waypoint has, and whether it is in force.
    pub conditions: Vec<Condition>,
}

/// What becomes of a route at one of its parents, as the Gateway API's RouteParentStatus has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ParentStatus {
    /// The parent, as the route refers to it.
    pub parent: ParentReference,
    /// Whether it was attached, whether its backends were found, and whether it is in force.
    pub conditions: Vec<Condition>,
}

impl Status {
    /// The gravest of its messages.
    pub fn severity(&self) -> Option<Severity> {
        self.messages.iter().map(|message| message.severity).max()
    }
}

/// What a condition is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub enum ConditionKind {
    /// The object was understood.
    Accepted,
    /// Everything that a route refers to was found.
    ResolvedRefs,
    /// Some rules of a route could not be understood, and refuse.
    PartiallyInvalid,
    /// What it asks for is in force.
    Programmed,
    /// Objects of the class are understood in the version of the Gateway API that is there.
    SupportedVersion,
}

/// A condition, as Kubernetes' statuses have them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Condition {
    /// What it is about.
    #[serde(rename = "type")]
    pub kind: ConditionKind,
    /// Whether it holds.
    pub status: bool,
    /// One word that programs may compare.
    pub reason: String,
    /// A sentence for people; empty when there is nothing to add.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub message: String,
}

impl Condition {
    /// One that holds, with nothing to add.
    pub(crate) fn yes(kind: ConditionKind, reason: &str) -> Self {
        Self {
            kind,
            status: true,
            reason: reason.to_owned(),
            message: String::new(),
        }
    }

    /// One that does not hold, and why.
    pub(crate) fn no(kind: ConditionKind, reason: &str, message: &str) -> Self {
        Self {
            kind,
            status: false,
            reason: reason.to_owned(),
            message: message.to_owned(),
        }
    }
}

/// How grave a message is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Good to know.
    Info,
    /// Something is not honoured.
    Warning,
    /// Something could not be understood.
    Error,
}

/// A detail about one field.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Message {
    /// How grave it is.
    pub severity: Severity,
    /// The field's path; empty when the whole object is meant.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub field: String,
    /// What is said.
    pub text: String,
}

/// How far an object is in force.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum InForce {
    /// Wholly.
    Wholly,
    /// Wholly, and how.
    By(String),
    /// Except for what its messages name.
    Partly,
    /// Not: a reason in one word and a sentence.
    Not(&'static str, String),
}

#[derive(Debug)]
struct Report {
    origin: Origin,
    in_force: InForce,
    messages: Vec<Message>,
    parents: Vec<ParentStatus>,
    addresses: Vec<String>,
    listeners: Vec<ListenerStatus>,
    always: bool,
}

/// Gathers what is to be said while objects are translated.
#[derive(Debug, Default)]
pub(crate) struct Reports {
    by_object: BTreeMap<ObjectRef, Report>,
}

impl Reports {
    fn report(&mut self, object: &ObjectRef, origin: &Origin) -> &mut Report {
        self.by_object
            .entry(object.clone())
            .or_insert_with(|| Report {
                origin: origin.clone(),
                in_force: InForce::Wholly,
                messages: Vec::new(),
                parents: Vec::new(),
                addresses: Vec::new(),
                listeners: Vec::new(),
                always: false,
            })
    }

    /// Says something about a field of an object.
    pub(crate) fn say(
        &mut self,
        object: &ObjectRef,
        origin: &Origin,
        severity: Severity,
        field: impl Into<String>,
        text: impl Into<String>,
    ) {
        let message = Message {
            severity,
            field: field.into(),
            text: text.into(),
        };
        self.report(object, origin).messages.push(message);
    }

    /// Says several things at once.
    pub(crate) fn say_all(&mut self, object: &ObjectRef, origin: &Origin, messages: Vec<Message>) {
        if !messages.is_empty() {
            self.report(object, origin).messages.extend(messages);
        }
    }

    /// Sets how far an object is in force, and gives it a status even when there is nothing to say.
    pub(crate) fn in_force(&mut self, object: &ObjectRef, origin: &Origin, in_force: InForce) {
        let report = self.report(object, origin);
        report.always = true;
        if report.in_force == InForce::Wholly || matches!(in_force, InForce::Not(..)) {
            report.in_force = in_force;
        }
    }

    /// What becomes of a route at its parents.
    pub(crate) fn parents(
        &mut self,
        object: &ObjectRef,
        origin: &Origin,
        parents: Vec<ParentStatus>,
    ) {
        self.report(object, origin).parents = parents;
    }

    /// What becomes of a gateway's listeners.
    pub(crate) fn listeners(
        &mut self,
        object: &ObjectRef,
        origin: &Origin,
        listeners: Vec<ListenerStatus>,
    ) {
        self.report(object, origin).listeners = listeners;
    }

    /// Says where a gateway is reached.
    pub(crate) fn reached_at(
        &mut self,
        object: &ObjectRef,
        origin: &Origin,
        addresses: Vec<String>,
    ) {
        self.report(object, origin).addresses = addresses;
    }

    /// The statuses, ordered by object.
    pub(crate) fn finish(self) -> Vec<Status> {
        self.by_object
            .into_iter()
            .filter(|(_, report)| report.always || !report.messages.is_empty())
            .map(|(object, report)| report.into_status(object))
            .collect()
    }
}

impl Report {
    fn into_status(mut self, object: ObjectRef) -> Status {
        self.messages
            .sort_by(|a, b| b.severity.cmp(&a.severity).then_with(|| a.cmp(b)));
        self.messages.dedup();
        let error = self
            .messages
            .iter()
            .find(|message| message.severity == Severity::Error);
        let accepted = match error {
            None => Condition::yes(ConditionKind::Accepted, "Accepted"),
            Some(error) => {
                let text = match error.field.as_str() {
                    "" => error.text.clone(),
                    field => format!("{field}: {}", error.text),
                };
                Condition::no(ConditionKind::Accepted, "Invalid", &text)
            }
        };
        // Of a class nothing is put into force; whatever version its gateways are read in, what is not known in it is
        // named at each.
        let is_class = *object.kind == *GatewayClass::KIND;
        let supported = || Condition::yes(ConditionKind::SupportedVersion, "SupportedVersion");
        let programmed = match self.in_force {
            InForce::Wholly => Condition::yes(ConditionKind::Programmed, "Programmed"),
            InForce::By(message) => Condition {
                message,
                ..Condition::yes(ConditionKind::Programmed, "Programmed")
            },
            InForce::Partly => Condition {
                message: "in force except for what the messages name".to_owned(),
                ..Condition::yes(ConditionKind::Programmed, "PartlyProgrammed")
            },
            InForce::Not(reason, text) => Condition::no(ConditionKind::Programmed, reason, &text),
        };
        // Gateways of others are theirs to judge, whatever there is to say of them.
        let theirs = *object.kind == *Gateway::KIND && !self.always;
        Status {
            object,
            origin: self.origin,
            conditions: match theirs {
                true => Vec::new(),
                false if is_class => vec![accepted, supported()],
                false => vec![accepted, programmed],
            },
            messages: self.messages,
            parents: self.parents,
            addresses: self.addresses,
            listeners: self.listeners,
        }
    }
}
