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
