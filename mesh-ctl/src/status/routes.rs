//! What is said of a route's parents, in the shape that the Gateway API gives to statuses of routes.
//!
//! Invariants: what other controllers say of parents stays as it is; of ours, only what is said now is left.
//! Source: Gateway API v1, RouteParentStatus.

use k8s_openapi::jiff::Timestamp;
use mesh_k8s::{
    Kind,
    gateway::{GrpcRoute, HttpRoute, ParentReference, TcpRoute, TlsRoute},
};
use mesh_translate::{CONTROLLER, ParentStatus, Status};
use serde_json::{Value, json};

use super::cluster;

/// Whether objects of a kind have their status by parent.
pub(super) fn is_route(kind: &str) -> bool {
    let routes = [
        HttpRoute::KIND,
        GrpcRoute::KIND,
        TcpRoute::KIND,
        TlsRoute::KIND,
    ];
    routes.contains(&kind)
}

/// What a status says of parents, without times.
pub(super) fn parents(status: &Status) -> Value {
    let details = cluster::details(status);
    let one = |said: &ParentStatus| {
        let conditions = said.conditions.iter();
        let conditions: Vec<Value> = conditions
            .map(|c| cluster::condition(c, &details))
            .collect();
        json!({
            "parentRef": reference(&said.parent),
            "controllerName": CONTROLLER,
            "conditions": conditions,
        })
    };
    status.parents.iter().map(one).collect()
}

/// A reference as the route has it: what it leaves out stays out.
fn reference(parent: &ParentReference) -> Value {
    let mut made = json!({"name": parent.name});
    for (key, value) in [("group", &parent.group), ("kind", &parent.kind)] {
        if let Some(value) = value {
            made[key] = value.as_str().into();
        }
    }
    let texts = [
        ("namespace", &parent.namespace),
        ("sectionName", &parent.section_name),
    ];
    for (key, value) in texts {
        if !value.is_empty() {
            made[key] = value.as_str().into();
        }
    }
    if let Some(port) = parent.port {
        made["port"] = port.into();
    }
    made
}

/// What others say, then what we say, each condition with the time since which it holds.
pub(super) fn merged(
    before: &Value,
    wanted: &Value,
    generation: Option<i64>,
    now: Timestamp,
) -> Value {
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let before = list(before);
    let (old, mut after): (Vec<Value>, Vec<Value>) = before
        .into_iter()
        .partition(|entry| entry["controllerName"] == CONTROLLER);
    for mut said in list(wanted) {
        let same = |entry: &&Value| entry["parentRef"] == said["parentRef"];
        let mut known = old
            .iter()
            .find(same)
            .map_or_else(|| json!([]), |entry| entry["conditions"].clone());
        // A condition that is not said any more goes.
        let wanted = list(&said["conditions"]);
        if let Some(known) = known.as_array_mut() {
            known.retain(|c| wanted.iter().any(|w| w["type"] == c["type"]));
        }
        said["conditions"] = cluster::merged(&known, &said["conditions"], generation, now);
        after.push(said);
    }
    after.into()
}

#[cfg(test)]
mod tests {
    use mesh_k8s::ObjectRef;
    use mesh_translate::{Condition, ConditionKind, Origin};

    use super::*;

    fn said(accepted: bool) -> Status {
        let condition = |kind, status| Condition {
            kind,
            status,
            reason: "Because".to_owned(),
            message: String::new(),
        };
        Status {
            object: ObjectRef::new(HttpRoute::KIND, "shop", "web"),
            origin: Origin::default(),
            conditions: Vec::new(),
            messages: Vec::new(),
            addresses: Vec::new(),
            listeners: Vec::new(),
            parents: vec![ParentStatus {
                parent: ParentReference {
                    group: Some(String::new()),
                    kind: Some("Service".to_owned()),
                    name: "web".to_owned(),
                    port: Some(80),
                    ..ParentReference::default()
                },
                conditions: vec![
                    condition(ConditionKind::Accepted, accepted),
                    condition(ConditionKind::ResolvedRefs, true),
                ],
            }],
        }
    }

    #[test]
    fn others_stay_and_times_move_with_the_status_only() {
        let at = |seconds| Timestamp::from_second(seconds).expect("a time");
        let theirs = json!({"parentRef": {"name": "edge"}, "controllerName": "another.example/gateway", "conditions": []});
        let gone = json!({"parentRef": {"name": "former"}, "controllerName": CONTROLLER, "conditions": []});
        let before = json!([gone, theirs]);
        let first = merged(&before, &parents(&said(true)), Some(1), at(1));
        assert_eq!(first.as_array().map(Vec::len), Some(2));
        assert_eq!(first[0], theirs);
        let reference = json!({"group": "", "kind": "Service", "name": "web", "port": 80});
        assert_eq!(first[1]["parentRef"], reference);
        assert_eq!(first[1]["conditions"][0]["observedGeneration"], 1);
        let same = merged(&first, &parents(&said(true)), Some(1), at(2));
        assert_eq!(same, first);
        let other = merged(&first, &parents(&said(false)), Some(2), at(3));
        let conditions = &other[1]["conditions"];
        assert_eq!(conditions[0]["status"], "False");
        assert_ne!(
            conditions[0]["lastTransitionTime"],
            first[1]["conditions"][0]["lastTransitionTime"]
        );
        assert_eq!(
            conditions[1]["lastTransitionTime"],
            first[1]["conditions"][1]["lastTransitionTime"]
        );
        assert_eq!(merged(&other, &json!([]), Some(2), at(4)), json!([theirs]));
    }
}
