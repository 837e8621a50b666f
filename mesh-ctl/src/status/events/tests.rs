//! What becomes an Event, and how few of them there are.

use mesh_translate::{Condition, Message, Origin};
use serde_json::Value;

use super::*;
use crate::apiserver::ApiServer;

const EVENTS: &str = "/apis/events.k8s.io/v1/events";
const POLICIES: &str = "/apis/security.istio.io/v1/authorizationpolicies";

fn condition(kind: ConditionKind, status: bool, reason: &str, message: &str) -> Condition {
    Condition {
        kind,
        status,
        reason: reason.to_owned(),
        message: message.to_owned(),
    }
}

fn status(kind: &str, programmed: &Condition, messages: &[(Severity, &str)]) -> Status {
    Status {
        object: ObjectRef::new(kind, "shop", "it"),
        origin: Origin::default(),
        conditions: vec![
            condition(ConditionKind::Accepted, true, "Accepted", ""),
            programmed.clone(),
        ],
        messages: messages
            .iter()
            .map(|(severity, text)| Message {
                severity: *severity,
                field: "spec.x".to_owned(),
                text: (*text).to_owned(),
            })
            .collect(),
        parents: Vec::new(),
        addresses: Vec::new(),
        listeners: Vec::new(),
    }
}

fn wholly() -> Condition {
    condition(ConditionKind::Programmed, true, "Programmed", "")
}

fn said(warning: bool, reason: &str, text: &str) -> Option<Note> {
    Some(Note {
        warning,
        reason: reason.to_owned(),
        text: text.to_owned(),
    })
}

#[test]
fn what_is_wrong_is_said_by_field_and_what_is_well_in_a_word() {
    let policy = "AuthorizationPolicy";
    let check = |status: &Status, expect| assert_eq!(note(status), expect);
    check(
        &status(policy, &wholly(), &[(Severity::Info, "fine")]),
        said(false, "Programmed", "is in force"),
    );
    let not = condition(
        ConditionKind::Programmed,
        false,
        "Conflicted",
        "another is older",
    );
    check(
        &status(policy, &not, &[]),
        said(true, "Conflicted", "another is older"),
    );
    let partly = condition(
        ConditionKind::Programmed,
        true,
        "PartlyProgrammed",
        "except",
    );
    let unsupported = [
        (Severity::Warning, "not honoured"),
        (Severity::Info, "fine"),
    ];
    check(
        &status(policy, &partly, &unsupported),
        said(
            true,
            "PartlyProgrammed",
            "spec.x: not honoured; spec.x: fine",
        ),
    );
    let mut invalid = status(policy, &not, &[(Severity::Error, "is wrong")]);
    invalid.conditions[0] = condition(
        ConditionKind::Accepted,
        false,
        "Invalid",
        "spec.x: is wrong",
    );
    check(&invalid, said(true, "Invalid", "spec.x: is wrong"));
    check(
        &status("Pod", &wholly(), &[(Severity::Warning, "not enrolled")]),
        said(true, "NotHonoured", "spec.x: not enrolled"),
    );
    check(&status("Pod", &wholly(), &[(Severity::Info, "fine")]), None);
    assert_eq!(cut("ää".repeat(400), 1024).len(), 1023);
}

struct World {
    server: ApiServer,
    client: Client,
    events: Events,
    resources: Resources,
}

impl World {
    async fn new() -> Self {
        let (server, client) = ApiServer::with_events().await;
        let object = |kind: &str| json!({"kind": kind, "apiVersion": "x", "metadata": {"name": "it", "namespace": "shop", "uid": "u-1"}});
        server.put(POLICIES, object("AuthorizationPolicy"));
        server.put("/api/v1/pods", object("Pod"));
        Self {
            events: Events::new(client.clone(), "me".to_owned()),
            resources: Resources::new(client.clone()),
            server,
            client,
        }
    }

    async fn write_all(&mut self) {
        while self.events.any_waiting() {
            self.events.write_next(&mut self.resources).await;
        }
    }

    fn say(&mut self, kind: &str, text: &str, now: Instant) {
        let note = said(true, "NotHonoured", text);
        self.events
            .say(&ObjectRef::new(kind, "shop", "it"), note, now);
    }

    fn all(&self) -> Vec<Value> {
        self.server.all(EVENTS)
    }
}

#[tokio::test]
async fn an_event_names_its_object_and_its_series_goes_on() {
    let mut world = World::new().await;
    let now = Instant::now();
    world.say("Pod", "spec.hostNetwork: not enrolled", now);
    world.say("Pod", "spec.hostNetwork: not enrolled", now);
    world.write_all().await;
    let [event] = &world.all()[..] else {
        panic!("one event: {:?}", world.all());
    };
    assert_eq!(event["regarding"]["uid"], "u-1");
    assert_eq!(
        (
            &event["regarding"]["kind"],
            &event["regarding"]["apiVersion"]
        ),
        (&json!("Pod"), &json!("v1"))
    );
    assert_eq!(
        (&event["type"], &event["reason"], &event["note"]),
        (
            &json!("Warning"),
            &json!("NotHonoured"),
            &json!("spec.hostNetwork: not enrolled")
        )
    );
    assert_eq!(event["metadata"]["namespace"], "shop");
    assert!(event["series"].is_null(), "{event}");
    // It settles, and happens again.
    world
        .events
        .say(&ObjectRef::new("Pod", "shop", "it"), None, now);
    world.say("Pod", "spec.hostNetwork: not enrolled", now);
    world.write_all().await;
    let [event] = &world.all()[..] else {
        panic!("one event: {:?}", world.all());
    };
    assert_eq!(event["series"]["count"], 2);

    // Another leader knows nothing of it and adds nothing.
    world.events = Events::new(world.client.clone(), "other".to_owned());
    world.say("Pod", "spec.hostNetwork: not enrolled", now);
    world.write_all().await;
    assert_eq!(world.all()[0]["series"]["count"], 2);
    // What its conditions say already is not said again, what is new is.
    let policy = ObjectRef::new("AuthorizationPolicy", "shop", "it");
    let programmed = said(false, "Programmed", "is in force");
    world.events.was_said(&policy, programmed.as_ref());
    world.events.say(&policy, programmed, now);
    assert!(!world.events.any_waiting());
    world.say("AuthorizationPolicy", "spec.x: no", now);
    world.write_all().await;
    assert_eq!(world.all().len(), 2);
}

#[tokio::test]
async fn an_object_that_flaps_is_told_of_now_and_then() {
    let mut world = World::new().await;
    let now = Instant::now();
    for round in 0..40 {
        world.say("Pod", &format!("spec.x: {round}"), now);
    }
    world.write_all().await;
    assert_eq!(world.all().len(), PER_OBJECT.0);
    // What holds then is said when there is room again.
    world.say("Pod", "spec.x: 39", now + PER_OBJECT.1);
    world.write_all().await;
    assert!(
        world
            .all()
            .iter()
            .any(|event| event["note"] == "spec.x: 39")
    );
}

#[tokio::test]
async fn many_objects_wait_for_their_turn_and_what_fails_is_said_later() {
    let mut world = World::new().await;
    let now = Instant::now();
    let names: Vec<String> = (0..WAITING + 50).map(|i| format!("p{i}")).collect();
    let line_up = |events: &mut Events| {
        for name in &names {
            let note = said(true, "NotHonoured", "no");
            events.say(&ObjectRef::new("Pod", "shop", name), note, now);
        }
        events.waiting.len()
    };
    assert_eq!(line_up(&mut world.events), WAITING);
    // None of these pods is there: nothing is to be written.
    world.write_all().await;
    assert_eq!(world.all().len(), 0);
    assert_eq!(line_up(&mut world.events), 50);
    world.events.retain(|_| false);
    assert!(!world.events.any_waiting());

    let create = "POST /apis/events.k8s.io/v1/namespaces/shop/events";
    world.server.answers(create, |_| {
        (403, crate::apiserver::status(403, "Forbidden"))
    });
    world.say("Pod", "no", now);
    world.write_all().await;
    assert_eq!(world.all().len(), 0);
    world.server.forget(create);
    world.say("Pod", "no", now);
    world.write_all().await;
    assert_eq!(world.all().len(), 1);
}
