//! Refusals reach their objects, and pods are told why they are not served.

use mesh_api::delta::Outcome;
use serde_json::{Value, json};
use tokio::{sync::watch, time::timeout};

use super::*;
use crate::apiserver::ApiServer;

#[test]
fn names_on_the_wire_lead_to_objects() {
    let check = |name: &str, expect: &str| assert_eq!(object_of(name).to_string(), expect);
    check("Kubernetes//Pod/shop/web-1", "Pod shop/web-1");
    check("workload/Kubernetes//Pod/shop/web-1", "Pod shop/web-1");
    check(
        "Kubernetes/networking.istio.io/ServiceEntry/shop/db/10.0.0.1",
        "ServiceEntry shop/db",
    );
    check("shop/web.shop.svc.cluster.local", "Service shop/web");
    check(
        "service/shop/api.example.com",
        "ServiceEntry shop/api.example.com",
    );
    check("policy/shop/deny", "AuthorizationPolicy shop/deny");
    check("shop/deny", "AuthorizationPolicy shop/deny");
    check("mesh", "MeshConfig mesh");
}

#[test]
fn a_refusal_is_shown_while_it_lasts() {
    let mut statuses = Statuses::default();
    statuses.refused([
        ("n1", "shop/deny", "rule 3 is empty"),
        ("n2", "shop/deny", "rule 3 is empty"),
    ]);
    let all = statuses.all();
    assert_eq!(all.len(), 1);
    assert_eq!(all[0].object.to_string(), "AuthorizationPolicy shop/deny");
    assert_eq!(all[0].conditions[1].reason, "RefusedByNode");
    assert_eq!(
        all[0].messages[1].text,
        "node n2 refused shop/deny: rule 3 is empty"
    );
    statuses.refused([("n2", "shop/deny", "rule 3 is empty")]);
    assert_eq!(statuses.all()[0].messages.len(), 1);
    statuses.refused([]);
    assert!(statuses.all().is_empty());
}

fn outside(name: &str, reason: &str, outcome: Outcome) -> (NodeName, Outside) {
    let outside = Outside {
        uid: format!("Kubernetes//Pod/shop/{name}").as_str().into(),
        reason: reason.to_owned(),
        outcome,
    };
    ("n1".into(), outside)
}

#[test]
fn a_pod_is_told_why_it_is_not_served_and_what_to_do() {
    let text = |outcome| {
        let mut statuses = Statuses::default();
        assert!(statuses.outside(&[outside("web", "it forwards", outcome)]));
        assert!(!statuses.outside(&[outside("web", "it forwards", outcome)]));
        let all = statuses.all();
        assert_eq!((all.len(), &all), (1, &statuses.heard()));
        assert_eq!(all[0].object.to_string(), "Pod shop/web");
        let note = events::note(&all[0]).expect("something is said");
        assert_eq!((note.warning, note.reason.as_str()), (true, "NotCaptured"));
        assert!(statuses.outside(&[]));
        assert!(statuses.all().is_empty() && statuses.heard().is_empty());
        note.text
    };
    let cannot = "node n1 cannot bring pod shop/web into the mesh: it forwards";
    let left = text(Outcome::LeftAlone);
    let told = left.strip_prefix(cannot).expect("what happened");
    assert!(told.contains("go on without the mesh") && told.contains("warren.dev/mesh=disabled"));
    let tried = text(Outcome::TriedAgain);
    let told = tried.strip_prefix(cannot).expect("what happened");
    assert!(told.contains("go on without the mesh until it succeeds"));
    let refused = text(Outcome::Refused);
    assert!(refused.contains("n1 cannot serve pod shop/web") && refused.contains("are refused"));
    assert_eq!(text(Outcome::Unknown), cannot);
}

#[test]
fn what_is_said_of_a_pod_anyway_stays() {
    let pod = ObjectRef::new("Pod", "shop", "web");
    let odd = Message {
        severity: Severity::Error,
        field: "metadata.labels".to_owned(),
        text: "is odd".to_owned(),
    };
    let status = Status {
        messages: vec![odd],
        ..fresh(pod.clone())
    };
    let mut statuses = Statuses::default();
    statuses.translated([(pod, Some(status))].into());
    statuses.outside(&[outside("web", "no", Outcome::Unknown)]);
    let texts = |all: &[Status]| -> Vec<String> {
        let messages = all.iter().flat_map(|s| &s.messages);
        messages.map(|m| m.text.clone()).collect()
    };
    let cannot = "node n1 cannot bring pod shop/web into the mesh: no";
    assert_eq!(texts(&statuses.all()), ["is odd", cannot]);
    assert_eq!(texts(&statuses.heard()), [cannot]);
    statuses.outside(&[]);
    assert_eq!(texts(&statuses.all()), ["is odd"]);
}

const PODS: &str = "/api/v1/pods";
const EVENTS: &str = "/apis/events.k8s.io/v1/events";
const POLICIES: &str = "/apis/security.istio.io/v1/authorizationpolicies";

/// The Events in a server once these are as many.
async fn events_of(server: &ApiServer, count: usize) -> Vec<Value> {
    let look = async {
        while server.all(EVENTS).len() < count {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    };
    let in_time = timeout(std::time::Duration::from_secs(20), look).await;
    let all = server.all(EVENTS);
    assert!(in_time.is_ok(), "there are {all:?}");
    all
}

/// Nodes are connected to any replica: each says what its nodes tell it, and once, whoever leads.
#[tokio::test]
async fn the_replica_that_hears_of_a_pod_writes_its_event() {
    let (server, client) = ApiServer::with_events().await;
    let object = |name: &str| json!({"kind": "x", "apiVersion": "x", "metadata": {"name": name, "namespace": "shop", "uid": name}});
    server.put(PODS, object("web"));
    server.put(PODS, object("db"));
    server.put(POLICIES, object("deny"));
    let mut statuses = Statuses::default();
    statuses.refused([("n1", "shop/deny", "rule 3 is empty")]);
    statuses.outside(&[outside("web", "it forwards", Outcome::LeftAlone)]);
    let (said, hears) = watch::channel(statuses);
    let (leads, leading) = watch::channel(false);
    let keeping = tokio::spawn(cluster::keep(client, "me".to_owned(), hears, leading));

    let events = events_of(&server, 1).await;
    assert_eq!(events[0]["regarding"]["name"], "web");
    let field = |name: &str| events[0][name].as_str().unwrap_or_default().to_owned();
    assert_eq!(
        [field("type"), field("reason"), field("action")],
        ["Warning", "NotCaptured", "Capture"]
    );
    assert!(field("note").contains("n1 cannot bring pod shop/web"));

    // It is not said again when something else is, nor when it was over and nothing is new.
    let tell = |pods: &[(NodeName, Outside)]| said.send_if_modified(|s| s.outside(pods));
    let web = || outside("web", "it forwards", Outcome::LeftAlone);
    tell(&[web(), outside("db", "no", Outcome::Refused)]);
    events_of(&server, 2).await;
    tell(&[]);
    tell(&[web()]);
    // Who leads says all that it knows, and what it said of pods is there already.
    leads.send_replace(true);
    let events = events_of(&server, 3).await;
    let about = |name: &str| {
        let of = events.iter().filter(|e| e["regarding"]["name"] == name);
        of.count()
    };
    assert_eq!([about("web"), about("db"), about("deny")], [1, 1, 1]);
    let wrote = |path: &str| {
        let requests = server.requests().into_iter();
        requests.filter(|r| r.starts_with(path)).count()
    };
    let status = "PATCH /apis/security.istio.io/v1/namespaces/shop/authorizationpolicies/deny";
    assert_eq!(wrote(status), 1, "only the leader writes conditions");
    keeping.abort();
}

#[test]
fn the_file_is_written_whole() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("status.json");
    let mut statuses = Statuses::default();
    statuses.refused([("n1", "shop/deny", "no")]);
    statuses.write(&path).expect("written");
    let read: serde_json::Value =
        serde_json::from_slice(&fs::read(&path).expect("read")).expect("JSON");
    assert_eq!(read["statuses"][0]["object"]["name"], "deny");
    assert_eq!(fs::read_dir(folder.path()).expect("listed").count(), 1);
}

#[test]
fn what_is_new_and_what_is_settled_is_told_once() {
    let object = ObjectRef::new("Service", "shop", "web");
    let message = |text: &str| Message {
        severity: Severity::Warning,
        field: "spec".to_owned(),
        text: text.to_owned(),
    };
    let status = |texts: &[&str]| Status {
        messages: texts.iter().map(|text| message(text)).collect(),
        ..fresh(object.clone())
    };
    let mut statuses = Statuses::default();
    let nothing = statuses.translated(BTreeMap::new());
    assert!(
        nothing.changed,
        "the file of an earlier process must be replaced"
    );
    assert!(!statuses.translated(BTreeMap::new()).changed);
    let told = statuses.translated([(object.clone(), Some(status(&["a", "b"])))].into());
    assert_eq!((told.new.len(), told.settled.len()), (2, 0));
    let told = statuses.translated([(object.clone(), Some(status(&["b", "c"])))].into());
    assert_eq!(told.new, ["cluster: Service shop/web: spec: c"]);
    assert_eq!(told.settled, ["cluster: Service shop/web: spec: a"]);
    let told = statuses.translated([(object.clone(), None)].into());
    assert_eq!((told.new.len(), told.settled.len()), (0, 2));
    assert!(statuses.all().is_empty());
}
