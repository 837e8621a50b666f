//! Tests of services' addresses, slices, rules and names.

use super::*;
use crate::lab::manifest::{Document, Source};

fn service(spec: &str) -> Object {
    let text = format!("apiVersion: v1\nkind: Service\nmetadata: {{name: web}}\nspec: {spec}\n");
    let docs = Source {
        path: "t".into(),
        text,
    }
    .documents("default");
    match docs.into_iter().next() {
        Some(Document::Object(o)) => *o,
        other => panic!("{other:?}"),
    }
}

fn pod(n: u8, ready: bool, port: u16) -> Backend {
    Backend {
        key: Key::core("Pod", "default", &format!("p{n}")),
        uid: format!("u{n}"),
        labels: BTreeMap::from([("app".to_owned(), "web".to_owned())]),
        ips: (
            Ipv4Addr::new(10, 244, 1, n),
            Ipv6Addr::new(0xfd00, 0x244, 1, 0, 0, 0, 0, n.into()),
        ),
        node: format!("n{n}"),
        zone: String::new(),
        ready,
        terminating: false,
        ports: BTreeMap::from([("http".to_owned(), port)]),
        hostname: Some((format!("h{n}"), "web".to_owned())),
    }
}

#[test]
fn addresses_are_kept_and_never_given_twice() {
    let mut all = Allocator::default();
    let asked = service("{clusterIP: 10.96.7.7}");
    assert_eq!(
        all.addresses(&asked),
        Ok(Some((
            [10, 96, 7, 7].into(),
            Some(v6_of([10, 96, 7, 7].into()))
        )))
    );
    let mut other = service("{clusterIP: 10.96.7.7}");
    other.key.name = "other".into();
    assert!(
        all.addresses(&other)
            .expect_err("taken")
            .contains("already belongs to service/web")
    );
    other = service("{ipFamilyPolicy: SingleStack}");
    other.key.name = "other".into();
    let first = all.addresses(&other);
    assert_eq!(first, Ok(Some(([10, 96, 1, 1].into(), None))));
    assert_eq!(all.addresses(&other), first);
    assert_eq!(all.addresses(&service("{clusterIP: None}")), Ok(None));
    assert!(
        all.addresses(&service("{clusterIP: 192.168.0.1}"))
            .expect_err("outside")
            .contains("10.96.0.0/16")
    );
}

#[test]
fn slices_group_by_resolved_port_and_tell_readiness() {
    let web = service("{selector: {app: web}, ports: [{name: h, port: 80, targetPort: http}]}");
    let made = slices(&web, &[pod(1, true, 8080), pod(2, false, 9090)]);
    let names: Vec<&str> = made.iter().map(|(k, _)| k.name.as_str()).collect();
    assert_eq!(names, ["web-ipv4", "web-ipv6", "web-ipv4-1", "web-ipv6-1"]);
    assert_eq!(made[0].1["ports"][0]["port"], 8080);
    assert_eq!(
        made[2].1["endpoints"][0]["conditions"],
        json!({"ready": false, "serving": false, "terminating": false})
    );
    assert_eq!(
        slices(&web, &[])[0].1["endpoints"],
        json!([]),
        "no pods: an empty slice, not none"
    );
}

#[test]
fn rules_translate_reject_and_stay_local() {
    let web = service(
        "{selector: {app: web}, internalTrafficPolicy: Local, ports: [{port: 80, targetPort: http}]}",
    );
    let ips = Some((Ipv4Addr::new(10, 96, 1, 1), None));
    let pods = [pod(1, true, 8080), pod(2, true, 8080)];
    let on = |node: &str| nft_rules(&[(&web, ips)], &pods, node);
    assert!(on("n1").contains("ip daddr 10.96.1.1 tcp dport 80 dnat ip to numgen random mod 1 map { 0 : 10.244.1.1 . 8080 }"), "{}", on("n1"));
    assert!(
        on("n3").contains("ip daddr 10.96.1.1 tcp dport 80 reject"),
        "{}",
        on("n3")
    );
}

#[test]
fn headless_names_are_the_ready_pods() {
    let web = service("{clusterIP: None, selector: {app: web}}");
    let all = names(&[(&web, None)], &[pod(1, true, 1), pod(2, false, 1)]);
    assert_eq!(
        all["web.default.svc.cluster.local"].v4,
        [Ipv4Addr::new(10, 244, 1, 1)]
    );
    assert_eq!(
        all["h1.web.default.svc.cluster.local"].v4,
        [Ipv4Addr::new(10, 244, 1, 1)]
    );
    assert!(!all.contains_key("h2.web.default.svc.cluster.local"));
}
