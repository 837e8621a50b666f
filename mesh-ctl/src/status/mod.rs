//! What is told to the authors of objects: the translation's statuses, what nodes refused and which pods they do not
//! serve, in one place.
//!
//! Invariant: what a node refuses at present is shown at the object that caused it.

pub mod cluster;
mod events;
mod outside;
mod routes;

use std::{
    collections::BTreeMap,
    fs,
    io::{self, Write},
    path::Path,
};

use mesh_api::delta::Outside;
use mesh_k8s::{Kind, ObjectRef, gateway::Gateway};
use mesh_model::name::NodeName;
use mesh_translate::{Condition, ConditionKind, Message, Origin, Severity, Status, warnings};
use serde::Serialize;

use crate::{provision::Troubles, watch::field_line};

/// At most this many nodes are named at one object.
const NODES_NAMED: usize = 8;

/// The statuses of all objects.
#[derive(Debug, Default)]
pub struct Statuses {
    translated: BTreeMap<ObjectRef, Status>,
    /// Whether anything was translated yet: what an earlier process left in the file holds no longer then.
    begun: bool,
    /// What each node refused, by the resource's name.
    refused: BTreeMap<String, BTreeMap<String, String>>,
    /// Why waypoints cannot be made as objects ask for them.
    not_made: Troubles,
    /// Which pods the nodes that are connected here do not serve, and why.
    outside: BTreeMap<ObjectRef, String>,
}

/// The file in which statuses are kept.
#[derive(Debug, Serialize)]
struct Kept<'a> {
    /// The version of this file's form.
    version: u32,
    statuses: &'a [Status],
}

/// What has changed among the things that are said aloud.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Told {
    /// Said for the first time.
    pub new: Vec<String>,
    /// Not to be said any more.
    pub settled: Vec<String>,
    /// Whether the statuses are others than before.
    pub changed: bool,
}

impl Statuses {
    /// Takes over what a translation said anew; `None` where nothing is to be said any more.
    pub fn translated(&mut self, statuses: BTreeMap<ObjectRef, Option<Status>>) -> Told {
        let begins = !std::mem::replace(&mut self.begun, true);
        let mut told = Told {
            changed: begins || !statuses.is_empty(),
            ..Told::default()
        };
        for (object, status) in statuses {
            let after: Vec<String> = status.iter().flat_map(warnings).collect();
            let before = match status {
                Some(status) => self.translated.insert(object, status),
                None => self.translated.remove(&object),
            };
            let before: Vec<String> = before.iter().flat_map(warnings).collect();
            let only = |a: &[String], b: &[String]| -> Vec<String> {
                a.iter().filter(|line| !b.contains(line)).cloned().collect()
            };
            told.new.extend(only(&after, &before));
            told.settled.extend(only(&before, &after));
        }
        told
    }

    /// What nodes refuse at present, all of it: node, the resource's name on the wire, and the reason. Says whether
    /// it is something new.
    pub fn refused<'r>(
        &mut self,
        refusals: impl IntoIterator<Item = (&'r str, &'r str, &'r str)>,
    ) -> bool {
        let mut refused: BTreeMap<String, BTreeMap<String, String>> = BTreeMap::new();
        for (node, name, reason) in refusals {
            refused
                .entry(name.to_owned())
                .or_default()
                .insert(node.to_owned(), reason.to_owned());
        }
        let new = refused != self.refused;
        self.refused = refused;
        new
    }

    /// Why waypoints cannot be made at present, by object; says whether it is something new.
    pub fn not_made(&mut self, troubles: Troubles) -> bool {
        let new = troubles != self.not_made;
        self.not_made = troubles;
        new
    }

    /// Which pods are not served at present, all of them that nodes tell here; says whether it is something new.
    pub fn outside<'o>(&mut self, pods: impl IntoIterator<Item = &'o (NodeName, Outside)>) -> bool {
        let told = pods.into_iter().map(|(node, pod)| outside::told(node, pod));
        let told = told.collect();
        let new = self.outside != told;
        self.outside = told;
        new
    }

    /// What only this replica hears: a node tells the one that it is connected to which pods it does not serve.
    pub fn heard(&self) -> Vec<Status> {
        let one = |(pod, text): (&ObjectRef, &String)| {
            let mut status = fresh(pod.clone());
            outside::say(&mut status, text);
            status
        };
        self.outside.iter().map(one).collect()
    }

    /// All statuses, ordered by object.
    pub fn all(&self) -> Vec<Status> {
        let mut all = self.translated.clone();
        for (object, trouble) in &self.not_made {
            if let Some(status) = all.get_mut(object) {
                miss(status, trouble);
            }
        }
        for (name, nodes) in &self.refused {
            let object = object_of(name);
            let status = all.entry(object.clone()).or_insert_with(|| fresh(object));
            refuse(status, name, nodes);
        }
        for (pod, text) in &self.outside {
            let status = all.entry(pod.clone()).or_insert_with(|| fresh(pod.clone()));
            outside::say(status, text);
        }
        all.into_values().collect()
    }

    /// Writes all statuses to a file, whole or not at all.
    pub fn write(&self, path: &Path) -> io::Result<()> {
        write(&self.all(), path)
    }
}

/// Writes statuses to a file, whole or not at all.
pub fn write(all: &[Status], path: &Path) -> io::Result<()> {
    let kept = Kept {
        version: 1,
        statuses: all,
    };
    replace(&kept, path)
}

/// Writes something to a file as JSON, whole or not at all.
pub(crate) fn replace(what: &impl Serialize, path: &Path) -> io::Result<()> {
    let text = serde_json::to_vec_pretty(what)?;
    let folder = path.parent().unwrap_or_else(|| Path::new("."));
    let aside = folder.join(format!(
        ".{}.new",
        path.file_name().unwrap_or_default().to_string_lossy()
    ));
    let mut file = fs::File::create(&aside)?;
    file.write_all(&text)?;
    file.write_all(b"\n")?;
    file.sync_data()?;
    fs::rename(&aside, path)
}

fn fresh(object: ObjectRef) -> Status {
    let accepted = Condition {
        kind: ConditionKind::Accepted,
        status: true,
        reason: "Accepted".to_owned(),
        message: String::new(),
    };
    Status {
        object,
        origin: Origin::default(),
        conditions: vec![accepted],
        messages: Vec::new(),
        parents: Vec::new(),
        addresses: Vec::new(),
        listeners: Vec::new(),
    }
}

/// Says at an object that its waypoint is not as it is wanted: at a Gateway as a condition, as its parameters may be
/// wrong, elsewhere beside what is said anyway.
fn miss(status: &mut Status, trouble: &str) {
    if *status.object.kind == *Gateway::KIND {
        let accepted = ConditionKind::Accepted;
        status.conditions.retain(|c| c.kind != accepted);
        let condition = Condition {
            kind: accepted,
            status: false,
            reason: "InvalidParameters".to_owned(),
            message: trouble.to_owned(),
        };
        status.conditions.insert(0, condition);
    }
    status.messages.push(Message {
        severity: Severity::Error,
        field: String::new(),
        text: trouble.to_owned(),
    });
}

fn refuse(status: &mut Status, name: &str, nodes: &BTreeMap<String, String>) {
    let text = format!("refused by {} nodes: {name}", nodes.len());
    status
        .conditions
        .retain(|condition| condition.kind != ConditionKind::Programmed);
    status.conditions.push(Condition {
        kind: ConditionKind::Programmed,
        status: false,
        reason: "RefusedByNode".to_owned(),
        message: text,
    });
    for (node, reason) in nodes.iter().take(NODES_NAMED) {
        status.messages.push(Message {
            severity: Severity::Error,
            field: String::new(),
            text: format!("node {node} refused {name}: {reason}"),
        });
    }
}

/// The object behind a resource's name on the wire: a workload's uid, `namespace/host` or `namespace/name`, each
/// perhaps below `workload/`, `service/` or `policy/`.
pub fn object_of(name: &str) -> ObjectRef {
    let (class, rest) = match name.split_once('/') {
        Some((class @ ("workload" | "service" | "policy"), rest)) => (class, rest),
        _ => ("", name),
    };
    let parts: Vec<&str> = rest.split('/').collect();
    match (class, parts.as_slice()) {
        ("" | "workload", [_cluster, _group, kind, namespace, name, ..]) => {
            ObjectRef::new(kind, namespace, name)
        }
        ("service", [namespace, host]) => service(namespace, host),
        ("", [namespace, host]) if host.contains(".svc.") => service(namespace, host),
        ("" | "policy", [namespace, name]) => {
            ObjectRef::new("AuthorizationPolicy", namespace, name)
        }
        _ if name == "mesh" => ObjectRef::new("MeshConfig", "", "mesh"),
        _ => ObjectRef::new("Resource", "", name),
    }
}

fn service(namespace: &str, host: &str) -> ObjectRef {
    match host.split_once('.') {
        Some((short, rest)) if rest.starts_with(&format!("{namespace}.svc.")) => {
            ObjectRef::new("Service", namespace, short)
        }
        _ => ObjectRef::new("ServiceEntry", namespace, host),
    }
}

/// Replaces the line at which an object begins by the line of the field that a message is about.
pub fn line_of(status: &Status, message: &Message) -> Origin {
    let mut origin = status.origin.clone();
    if !origin.file.is_empty() && origin.line > 0 && !message.field.is_empty() {
        origin.line = field_line(&origin, &message.field);
    }
    origin
}

#[cfg(test)]
mod tests;
