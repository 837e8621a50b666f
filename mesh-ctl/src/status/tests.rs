//! Refusals reach their objects.

use super::*;

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
