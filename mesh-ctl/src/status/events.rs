//! Kubernetes Events about objects: what `kubectl describe` shows their authors.
//!
//! Invariants: the same thing said of the same object is one Event, whose name follows from both, so that a new leader
//! adds nothing to what the one before said; when it happens again the Event's series goes on. Few are said of one
//! object in a time and few wait at once; what has no place is said later if it still holds then.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    time::Duration,
};

use k8s_openapi::{
    api::{
        core::v1::ObjectReference,
        events::v1::{Event, EventSeries},
    },
    apimachinery::pkg::apis::meta::v1::MicroTime,
    jiff::Timestamp,
};
use kube::{
    Api, Client,
    api::{ObjectMeta, Patch, PatchParams, PostParams},
};
use mesh_k8s::{ObjectRef, kind_of};
use mesh_translate::{ConditionKind, Severity, Status};
use serde_json::json;
use sha2::{Digest, Sha256};
use tokio::time::{Instant, timeout};
use tracing::{debug, warn};

use super::{
    cluster::{DEADLINE, Resources, details, ours},
    outside::NOT_CAPTURED,
};
use crate::FIELD_MANAGER;

/// So many Events are said of one object in a time.
const PER_OBJECT: (usize, Duration) = (5, Duration::from_secs(600));
/// So many wait to be written.
const WAITING: usize = 256;
/// The API's limit on the length of a note, in bytes.
const NOTE: usize = 1024;
/// The API's limit on the length of a name, less what is added to the object's name.
const NAME: usize = 253 - 17;
/// Who says it.
const REPORTING: &str = "warren.dev/controller";

/// What is said of an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Note {
    pub(super) warning: bool,
    pub(super) reason: String,
    pub(super) text: String,
}

/// What is to be said of an object; `None` when there is nothing.
pub(super) fn note(status: &Status) -> Option<Note> {
    let condition = |kind| status.conditions.iter().find(|c| c.kind == kind);
    let refused = [ConditionKind::Accepted, ConditionKind::Programmed]
        .into_iter()
        .filter_map(condition)
        .find(|condition| !condition.status);
    let grave = status.severity() >= Some(Severity::Warning);
    let has_conditions = ours(&status.object.kind).is_some();
    let (warning, reason, text) = match (refused, grave) {
        (Some(refused), _) => {
            let (message, details) = (refused.message.as_str(), details(status));
            let text = match (message, details.as_str()) {
                (message, "") => message.to_owned(),
                (message, all) if all.contains(message) => details,
                (message, all) => format!("{message}: {all}"),
            };
            // To wait for what is on its way is nothing to be warned of.
            (refused.reason != "Pending", refused.reason.as_str(), text)
        }
        (None, true) if has_conditions => (true, "PartlyProgrammed", details(status)),
        (None, true) => (true, "NotHonoured", details(status)),
        (None, false) if has_conditions => {
            let how = condition(ConditionKind::Programmed).map(|c| c.message.as_str());
            let text = match how {
                None | Some("") => "is in force".to_owned(),
                Some(how) => format!("is in force: {how}"),
            };
            (false, "Programmed", text)
        }
        (None, false) => return None,
    };
    Some(Note {
        warning,
        reason: reason.to_owned(),
        text: cut(text, NOTE),
    })
}

/// At most so many bytes of a text.
fn cut(mut text: String, most: usize) -> String {
    if text.len() > most {
        let end = (0..=most - 3).rev().find(|end| text.is_char_boundary(*end));
        text.truncate(end.unwrap_or_default());
        text.push_str("...");
    }
    text
}

/// What was said, and what waits.
pub(super) struct Events {
    client: Client,
    /// This replica.
    me: String,
    spoken: BTreeMap<ObjectRef, Spoken>,
    waiting: VecDeque<(ObjectRef, Note)>,
    /// Whether the last one could not be written.
    failing: bool,
}

/// What was said of one object.
#[derive(Default)]
struct Spoken {
    /// What holds, as far as it was said.
    last: Option<Note>,
    times: VecDeque<Instant>,
    /// How often each Event was written, by its name.
    counts: HashMap<String, i32>,
}

impl Events {
    /// Events that replica `me` writes.
    pub(super) fn new(client: Client, me: String) -> Self {
        Self {
            client,
            me,
            spoken: BTreeMap::new(),
            waiting: VecDeque::new(),
            failing: false,
        }
    }

    /// Forgets everything, because another leads.
    pub(super) fn clear(&mut self) {
        self.spoken.clear();
        self.waiting.clear();
    }

    /// Forgets the objects of which this does not hold.
    pub(super) fn retain(&mut self, keep: impl Fn(&ObjectRef) -> bool) {
        self.spoken.retain(|object, _| keep(object));
        self.waiting.retain(|(object, _)| keep(object));
    }

    /// Takes something for said, unless more is known: the object's conditions say it already.
    pub(super) fn was_said(&mut self, object: &ObjectRef, note: Option<&Note>) {
        if let (Some(note), false) = (note, self.spoken.contains_key(object)) {
            let spoken = Spoken {
                last: Some(note.clone()),
                ..Spoken::default()
            };
            self.spoken.insert(object.clone(), spoken);
        }
    }

    /// Lines up what holds now of an object, when it is something else than was said last.
    pub(super) fn say(&mut self, object: &ObjectRef, note: Option<Note>, now: Instant) {
        let Some(note) = note else {
            if let Some(spoken) = self.spoken.get_mut(object) {
                spoken.last = None;
            }
            return;
        };
        if kind_of(&object.kind).is_none() {
            return;
        }
        let spoken = self.spoken.entry(object.clone()).or_default();
        let full = self.waiting.len() >= WAITING;
        if full || spoken.last.as_ref() == Some(&note) {
            return;
        }
        while let Some(first) = spoken.times.front()
            && now.duration_since(*first) >= PER_OBJECT.1
        {
            spoken.times.pop_front();
        }
        if spoken.times.len() >= PER_OBJECT.0 {
            return;
        }
        spoken.times.push_back(now);
        spoken.last = Some(note.clone());
        self.waiting.push_back((object.clone(), note));
    }

    /// Whether something waits to be written.
    pub(super) fn any_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Writes the next one.
    pub(super) async fn write_next(&mut self, resources: &mut Resources) {
        let Some((object, note)) = self.waiting.pop_front() else {
            return;
        };
        let written = timeout(DEADLINE, self.write(resources, &object, &note)).await;
        let written = written.unwrap_or_else(|_| Err("no answer in time".to_owned()));
        match written {
            Ok(()) => self.failing = false,
            Err(error) => {
                if !std::mem::replace(&mut self.failing, true) {
                    warn!(%object, error, "an Event could not be written; the ClusterRole of warren-controller has to allow create and patch on events of events.k8s.io");
                }
                // It is said again, within the bounds of the object.
                if let Some(spoken) = self.spoken.get_mut(&object) {
                    spoken.last = None;
                }
            }
        }
    }

    async fn write(
        &mut self,
        resources: &mut Resources,
        object: &ObjectRef,
        note: &Note,
    ) -> Result<(), String> {
        let failed = |error: kube::Error| error.to_string();
        let Some(kind) = kind_of(&object.kind) else {
            return Ok(());
        };
        let (api, resource) = resources.api(kind, &object.namespace).await?;
        let Some(there) = api.get_metadata_opt(&object.name).await.map_err(failed)? else {
            return Ok(());
        };
        let regarding = ObjectReference {
            api_version: Some(resource.api_version),
            kind: Some(resource.kind),
            name: Some(object.name.to_string()),
            namespace: there.metadata.namespace,
            resource_version: there.metadata.resource_version,
            uid: there.metadata.uid,
            ..ObjectReference::default()
        };
        let name = name_of(object, regarding.uid.as_deref().unwrap_or_default(), note);
        // What has no namespace is spoken of in `default`: the API wants it so.
        let namespace = regarding.namespace.as_deref().unwrap_or("default");
        let events: Api<Event> = Api::namespaced(self.client.clone(), namespace);
        let counts = &mut self.spoken.entry(object.clone()).or_default().counts;
        let now = MicroTime(Timestamp::now());
        if let Some(count) = counts.get(&name).map(|count| count.saturating_add(1)) {
            let series = EventSeries {
                count,
                last_observed_time: now.clone(),
            };
            let params = PatchParams {
                field_manager: Some(FIELD_MANAGER.to_owned()),
                ..PatchParams::default()
            };
            let patch = Patch::Merge(json!({"series": series}));
            match events.patch(&name, &params, &patch).await {
                Ok(_) => {
                    counts.insert(name, count);
                    return Ok(());
                }
                // Events go after an hour.
                Err(kube::Error::Api(status)) if status.code == 404 => {}
                Err(error) => return Err(failed(error)),
            }
        }
        let event = Event {
            metadata: ObjectMeta {
                name: Some(name.clone()),
                namespace: Some(namespace.to_owned()),
                ..ObjectMeta::default()
            },
            type_: Some(if note.warning { "Warning" } else { "Normal" }.to_owned()),
            action: Some(action(note).to_owned()),
            reason: Some(note.reason.clone()),
            note: Some(note.text.clone()),
            event_time: Some(now),
            regarding: Some(regarding),
            reporting_controller: Some(REPORTING.to_owned()),
            reporting_instance: Some(self.me.clone()),
            ..Event::default()
        };
        let params = PostParams {
            field_manager: Some(FIELD_MANAGER.to_owned()),
            ..PostParams::default()
        };
        match events.create(&params, &event).await {
            Ok(_) => debug!(%object, reason = note.reason, "an Event was written"),
            // Another leader has said the same.
            Err(kube::Error::Api(status)) if status.code == 409 => {}
            Err(error) => return Err(failed(error)),
        }
        if counts.len() >= PER_OBJECT.0 {
            counts.clear();
        }
        counts.insert(name, 1);
        Ok(())
    }
}

/// What was being done.
fn action(note: &Note) -> &'static str {
    match note.reason.as_str() {
        NOT_CAPTURED => "Capture",
        _ => "Translate",
    }
}

/// The name of an Event: the object's, and what is said of which object.
fn name_of(object: &ObjectRef, uid: &str, note: &Note) -> String {
    let mut hash = Sha256::new();
    for part in [&*object.kind, uid, &note.reason, &note.text] {
        hash.update(part.as_bytes());
        hash.update([0]);
    }
    let hash = hash.finalize();
    let hash: String = hash
        .iter()
        .take(8)
        .map(|byte| format!("{byte:02x}"))
        .collect();
    let name: String = object.name.chars().take(NAME).collect();
    format!("{}.{hash}", name.trim_end_matches(['.', '-']))
}

#[cfg(test)]
mod tests;
