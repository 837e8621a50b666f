//! Statuses on the objects of a cluster: conditions `Accepted` and `Programmed`, and Events, written by the leader. Only
//! what one replica alone hears, of pods that are not served, becomes an Event by that replica.
//!
//! Invariants: one write at a time, and none where nothing differs; conditions of others stay; what could not be
//! written is tried again later and holds nobody up. Kinds of our own and of Istio and gateways that are ours have
//! conditions of ours, routes of the Gateway API what is said of each parent. Events wait for both.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    net::IpAddr,
    time::Duration,
};

use k8s_openapi::jiff::Timestamp;
use kube::{
    Api, Client,
    api::{DynamicObject, Patch, PatchParams},
    core::ApiResource,
};
use mesh_k8s::{
    Kind, KindInfo, ObjectRef,
    gateway::{Gateway, GatewayClass},
    kind_of,
};
use mesh_translate::{ConditionKind, ListenerStatus, Status};
use serde_json::{Value, json};
use tokio::{
    sync::watch,
    time::{Instant, interval, sleep, timeout},
};
use tracing::{debug, info, warn};

use super::{
    Statuses,
    events::{Events, note},
    routes,
};
use crate::{FIELD_MANAGER, watch::find};

/// At least this lies between two writes.
const PACE: Duration = Duration::from_millis(20);
/// How long the API server may take for one object.
pub(super) const DEADLINE: Duration = Duration::from_secs(5);
/// How often it is tried again what could not be written.
const AGAIN: Duration = Duration::from_secs(30);
/// So many details go into a condition's message.
const DETAILS: usize = 8;

/// Writes what is said whenever it changes, as replica `me`. Never ends while something is said.
pub async fn keep(
    client: Client,
    me: String,
    mut said: watch::Receiver<Statuses>,
    leads: watch::Receiver<bool>,
) {
    let mut writer = Writer::new(client, me);
    let (mut ticks, mut leading, mut led) = (interval(AGAIN), leads.clone(), false);
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            changed = said.changed() => if changed.is_err() { return },
            changed = leading.changed() => if changed.is_err() { return },
        }
        let now = *leads.borrow();
        if std::mem::replace(&mut led, now) != now {
            // Another writes meanwhile: what we wrote may not be there when we lead again.
            writer.written.clear();
            writer.events.clear();
        }
        if led {
            let all = said.borrow_and_update().all();
            writer.write_all(all, &leads).await;
        } else {
            let heard = said.borrow_and_update().heard();
            writer.line_up(&heard);
        }
        while *leads.borrow() == led && writer.events.any_waiting() {
            writer.events.write_next(&mut writer.resources).await;
            sleep(PACE).await;
            if said.has_changed().unwrap_or(true) {
                break;
            }
        }
    }
}

/// The kinds that were looked up in the cluster.
pub(super) struct Resources {
    client: Client,
    /// By group and kind.
    found: HashMap<(&'static str, &'static str), ApiResource>,
}

impl Resources {
    pub(super) fn new(client: Client) -> Self {
        Self {
            client,
            found: HashMap::new(),
        }
    }

    /// The objects of a kind in a namespace; in none when that is empty.
    pub(super) async fn api(
        &mut self,
        kind: &'static KindInfo,
        namespace: &str,
    ) -> Result<(Api<DynamicObject>, ApiResource), String> {
        let key = (kind.group, kind.kind);
        if !self.found.contains_key(&key) {
            let found = find(&self.client, kind).await.map_err(|e| e.to_string())?;
            self.found.insert(key, found);
        }
        let (client, resource) = (self.client.clone(), &self.found[&key]);
        let api = match namespace {
            "" => Api::all_with(client, resource),
            namespace => Api::namespaced_with(client, namespace, resource),
        };
        Ok((api, resource.clone()))
    }
}

/// What is written to an object, by field of its status.
type Said = BTreeMap<&'static str, Value>;

/// What a status says: of a route's parents, of everybody else as conditions; of a gateway also where it is reached.
fn said(status: &Status) -> Said {
    if routes::is_route(&status.object.kind) {
        return Said::from([("parents", routes::parents(status))]);
    }
    let mut said = Said::from([("conditions", conditions(status))]);
    if *status.object.kind == *Gateway::KIND {
        said.insert("addresses", addresses(status));
        said.insert("listeners", listeners(status));
    }
    said
}

struct Writer {
    resources: Resources,
    /// What each object has by us.
    written: BTreeMap<ObjectRef, Said>,
    events: Events,
}

impl Writer {
    fn new(client: Client, me: String) -> Self {
        Self {
            resources: Resources::new(client.clone()),
            written: BTreeMap::new(),
            events: Events::new(client, me),
        }
    }

    /// Lines up Events of what only this replica hears.
    fn line_up(&mut self, heard: &[Status]) {
        let there: HashSet<&ObjectRef> = heard.iter().map(|status| &status.object).collect();
        self.events.retain(|object| there.contains(object));
        for status in heard {
            self.events
                .say(&status.object, note(status), Instant::now());
        }
    }

    async fn write_all(&mut self, all: Vec<Status>, leads: &watch::Receiver<bool>) {
        let (mut wrote, mut failed) = (0, None);
        let there: HashSet<&ObjectRef> = all.iter().map(|status| &status.object).collect();
        let left: Vec<ObjectRef> = self
            .written
            .keys()
            .filter(|object| !there.contains(object) && routes::is_route(&object.kind))
            .cloned()
            .collect();
        self.written.retain(|object, _| there.contains(object));
        // A route that has none of our parents any more keeps nothing of ours.
        let nothing = Said::from([("parents", json!([]))]);
        for object in left {
            let Some(kind) = ours(&object.kind) else {
                continue;
            };
            let removed = timeout(DEADLINE, self.write(kind, &object, &nothing)).await;
            if let Err(error) = removed.unwrap_or_else(|_| Err("no answer in time".to_owned())) {
                debug!(%object, error, "a route's former status could not be removed");
            }
        }
        self.events.retain(|object| there.contains(object));
        for status in &all {
            let note = note(status);
            let kind = ours(&status.object.kind).filter(|_| !status.conditions.is_empty());
            let Some(kind) = kind else {
                self.events.say(&status.object, note, Instant::now());
                continue;
            };
            let wanted = said(status);
            if self.written.get(&status.object) == Some(&wanted) {
                self.events.say(&status.object, note, Instant::now());
                continue;
            }
            if !*leads.borrow() {
                return;
            }
            // A route of which nothing could be read has no parents to say it at.
            let says_anything = wanted.iter().any(|(_, said)| *said != json!([]));
            match timeout(DEADLINE, self.write(kind, &status.object, &wanted)).await {
                Ok(Ok(new)) => {
                    wrote += usize::from(new);
                    self.written.insert(status.object.clone(), wanted);
                    if !new && says_anything {
                        self.events.was_said(&status.object, note.as_ref());
                    }
                    self.events.say(&status.object, note, Instant::now());
                }
                Ok(Err(error)) => failed = Some((status.object.to_string(), error)),
                Err(_) => {
                    failed = Some((status.object.to_string(), "no answer in time".to_owned()))
                }
            }
            sleep(PACE).await;
        }
        if let Some((object, error)) = failed {
            warn!(%object, %error, "a status could not be written; it is tried again");
        }
        if wrote > 0 {
            debug!(wrote, "statuses were written");
        }
    }

    /// Writes what differs from what is there; whether anything did.
    async fn write(
        &mut self,
        kind: &'static KindInfo,
        object: &ObjectRef,
        wanted: &Said,
    ) -> Result<bool, String> {
        let (api, _) = self.resources.api(kind, &object.namespace).await?;
        let failed = |error: kube::Error| error.to_string();
        let Some(there) = api.get_opt(&object.name).await.map_err(failed)? else {
            return Ok(false);
        };
        let (generation, now) = (there.metadata.generation, Timestamp::now());
        let none = json!([]);
        let changed: serde_json::Map<String, Value> = wanted
            .iter()
            .filter_map(|(field, wanted)| {
                let before = &there.data["status"][field];
                let after = match *field {
                    "conditions" => merged(before, wanted, generation, now),
                    "parents" => routes::merged(before, wanted, generation, now),
                    "listeners" => renewed(before, wanted, generation, now),
                    _ => wanted.clone(),
                };
                let before = if before.is_null() { &none } else { before };
                (*before != after).then(|| ((*field).to_owned(), after))
            })
            .collect();
        if changed.is_empty() {
            return Ok(false);
        }
        let params = PatchParams {
            field_manager: Some(FIELD_MANAGER.to_owned()),
            ..PatchParams::default()
        };
        let patch = json!({"metadata": {"resourceVersion": there.metadata.resource_version}, "status": changed});
        match api
            .patch_status(&object.name, &params, &Patch::Merge(patch))
            .await
        {
            Ok(_) => info!(%object, "its status was written"),
            // It went meanwhile.
            Err(kube::Error::Api(status)) if status.code == 404 => return Ok(false),
            Err(error) => return Err(error.to_string()),
        }
        Ok(true)
    }
}

/// The kind that an object's name means, when conditions of ours belong on its objects, or what we say of a route's parents.
pub(super) fn ours(kind: &str) -> Option<&'static KindInfo> {
    let groups = [
        "security.istio.io",
        "networking.istio.io",
        "extensions.istio.io",
        "telemetry.istio.io",
        "warren.dev",
    ];
    let known = kind_of(kind)?;
    let gateway = [Gateway::KIND, GatewayClass::KIND].contains(&known.kind);
    let whose = groups.contains(&known.group) || gateway && known.group == Gateway::GROUP;
    (whose || routes::is_route(kind)).then_some(known)
}

/// Where a gateway is reached, as its status has it.
fn addresses(status: &Status) -> Value {
    let one = |address: &String| {
        let kind = match address.parse::<IpAddr>() {
            Ok(_) => "IPAddress",
            Err(_) => "Hostname",
        };
        json!({"type": kind, "value": address})
    };
    status.addresses.iter().map(one).collect()
}

/// What a status says of listeners, without times. Routes are attached to services, so that none has any.
fn listeners(status: &Status) -> Value {
    let one = |said: &ListenerStatus| {
        let conditions = said.conditions.iter();
        let conditions: Vec<Value> = conditions.map(|c| condition(c, "")).collect();
        json!({"name": said.name, "supportedKinds": [], "attachedRoutes": 0, "conditions": conditions})
    };
    status.listeners.iter().map(one).collect()
}

/// Listeners as they are wanted, each condition with the time since which it holds. They are ours alone.
fn renewed(before: &Value, wanted: &Value, generation: Option<i64>, now: Timestamp) -> Value {
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let before = list(before);
    let mut after = list(wanted);
    for said in &mut after {
        let known = before.iter().find(|one| one["name"] == said["name"]);
        let mut known = known.map_or_else(Vec::new, |one| list(&one["conditions"]));
        let wanted = list(&said["conditions"]);
        known.retain(|c| wanted.iter().any(|w| w["type"] == c["type"]));
        said["conditions"] = merged(&known.into(), &said["conditions"], generation, now);
    }
    after.into()
}

/// What a status says by field, in one text.
pub(super) fn details(status: &Status) -> String {
    let details: Vec<String> = status
        .messages
        .iter()
        .take(DETAILS)
        .map(|message| match message.field.as_str() {
            "" => message.text.clone(),
            field => format!("{field}: {}", message.text),
        })
        .collect();
    let mut text = details.join("; ");
    let more = status.messages.len().saturating_sub(DETAILS);
    if more > 0 {
        text.push_str(&format!("; and {more} more"));
    }
    text
}

/// The conditions of a status, without times.
fn conditions(status: &Status) -> Value {
    let details = details(status);
    status
        .conditions
        .iter()
        .map(|one| condition(one, &details))
        .collect()
}

/// A condition without times; the details go where it is told whether the object is in force.
pub(super) fn condition(condition: &mesh_translate::Condition, details: &str) -> Value {
    let mut message = condition.message.clone();
    if condition.kind == ConditionKind::Programmed && !details.is_empty() {
        let sep = if message.is_empty() { "" } else { ": " };
        message = format!("{message}{sep}{details}");
    }
    json!({
        "type": format!("{:?}", condition.kind),
        "status": if condition.status { "True" } else { "False" },
        "reason": condition.reason,
        "message": message,
    })
}

/// What is there, with our conditions in place of their former selves. A transition's time changes only with the status.
pub(super) fn merged(
    before: &Value,
    wanted: &Value,
    generation: Option<i64>,
    now: Timestamp,
) -> Value {
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let before = list(before);
    let mut after = before.clone();
    for mut condition in list(wanted) {
        let same = |other: &Value| other["type"] == condition["type"];
        let place = before.iter().position(same);
        let old = place.map_or(&Value::Null, |place| &before[place]);
        condition["lastTransitionTime"] = match old["status"] == condition["status"] {
            true => old["lastTransitionTime"].clone(),
            false => now.to_string().into(),
        };
        // Istio's conditions have no such field where they are older; the API server drops it there.
        if let Some(generation) =
            generation.filter(|_| old.get("observedGeneration").is_some() || old.is_null())
        {
            condition["observedGeneration"] = generation.into();
        }
        match place {
            Some(place) => after[place] = condition,
            None => after.push(condition),
        }
    }
    after.into()
}

#[cfg(test)]
mod tests {
    use mesh_translate::{Condition, Message, Origin, Severity};

    use super::*;
    use crate::apiserver::ApiServer;

    const POLICIES: &str = "/apis/security.istio.io/v1/authorizationpolicies";

    fn status(programmed: bool) -> Status {
        let condition = |kind, status| Condition {
            kind,
            status,
            reason: "Because".to_owned(),
            message: String::new(),
        };
        Status {
            object: ObjectRef::new("AuthorizationPolicy", "shop", "allow"),
            origin: Origin::default(),
            conditions: vec![
                condition(ConditionKind::Accepted, true),
                condition(ConditionKind::Programmed, programmed),
            ],
            messages: vec![Message {
                severity: Severity::Warning,
                field: "spec.rules[0].when".to_owned(),
                text: "is not honoured".to_owned(),
            }],
            parents: Vec::new(),
            addresses: Vec::new(),
            listeners: Vec::new(),
        }
    }

    #[test]
    fn kinds_of_one_name_are_told_apart_by_their_groups() {
        let group = |name: &str| ours(name).map(|kind| kind.group);
        assert_eq!(group("Gateway"), Some("gateway.networking.k8s.io"));
        assert_eq!(
            group("Gateway.networking.istio.io"),
            Some("networking.istio.io")
        );
        assert_eq!(group("RequestAuthentication"), Some("security.istio.io"));
        assert_eq!(group("WasmPlugin"), Some("extensions.istio.io"));
        assert_eq!(group("Telemetry"), Some("telemetry.istio.io"));
        assert_eq!(group("HTTPRoute"), Some("gateway.networking.k8s.io"));
        assert_eq!(
            (group("Pod"), group("ReferenceGrant"), group("Odd")),
            (None, None, None)
        );
    }

    #[test]
    fn times_of_listeners_move_with_their_conditions() {
        let said = |status| {
            let condition = Condition {
                kind: ConditionKind::Programmed,
                status,
                reason: "Because".to_owned(),
                message: String::new(),
            };
            let mut all = super::super::fresh(ObjectRef::new("Gateway", "shop", "wp"));
            all.listeners = vec![ListenerStatus {
                name: "mesh".to_owned(),
                conditions: vec![condition],
            }];
            listeners(&all)
        };
        let at = |seconds| Timestamp::from_second(seconds).expect("a time");
        let gone = json!([{"name": "former", "conditions": [{"type": "Programmed"}]}]);
        let first = renewed(&gone, &said(false), Some(1), at(1));
        assert_eq!(first.as_array().map(Vec::len), Some(1));
        assert_eq!(first[0]["attachedRoutes"], 0);
        let same = renewed(&first, &said(false), Some(1), at(2));
        assert_eq!(same, first);
        let other = renewed(&first, &said(true), Some(2), at(3));
        let (old, new) = (&first[0]["conditions"][0], &other[0]["conditions"][0]);
        assert_eq!(
            (&new["status"], &new["observedGeneration"]),
            (&json!("True"), &json!(2))
        );
        assert_ne!(old["lastTransitionTime"], new["lastTransitionTime"]);
    }

    #[tokio::test]
    async fn conditions_are_written_where_they_differ_and_others_stay() {
        let (server, client) = ApiServer::start().await;
        server.serve(
            "/apis/security.istio.io/v1",
            "authorizationpolicies",
            "AuthorizationPolicy",
        );
        let theirs = json!({"type": "Reconciled", "status": "True"});
        server.put(
            POLICIES,
            json!({"apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy",
                "metadata": {"name": "allow", "namespace": "shop", "generation": 3}, "status": {"conditions": [theirs]}}),
        );
        let mut writer = Writer::new(client, "me".to_owned());
        let (_lead, leads) = watch::channel(true);
        let patches = || {
            server
                .requests()
                .iter()
                .filter(|r| r.starts_with("PATCH"))
                .count()
        };
        let there = || {
            server.object(POLICIES, "shop/allow").expect("is there")["status"]["conditions"].clone()
        };
        writer.write_all(vec![status(true)], &leads).await;
        let first = there();
        assert_eq!((&first[0], patches()), (&theirs, 1));
        assert_eq!(first[2]["message"], "spec.rules[0].when: is not honoured");
        assert_eq!(
            (&first[2]["status"], &first[2]["observedGeneration"]),
            (&json!("True"), &json!(3))
        );
        assert!(
            server
                .requests()
                .iter()
                .any(|r| r.contains("allow/status?") && r.contains(FIELD_MANAGER))
        );
        // Nothing new, also for a leader that remembers nothing.
        writer.write_all(vec![status(true)], &leads).await;
        writer.written.clear();
        writer.write_all(vec![status(true)], &leads).await;
        assert_eq!(patches(), 1);
        writer.write_all(vec![status(false)], &leads).await;
        let second = there();
        assert_eq!((patches(), &second[2]["status"]), (2, &json!("False")));
        assert_eq!(first[1], second[1], "what stayed keeps its time");
    }
}
