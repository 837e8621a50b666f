//! What is published of a state: encoded once, scoped by node, projected for foreign data planes.

use std::sync::Arc;

use mesh_api::{
    delta::{Outcome, Rejection},
    resource::Kind,
};
use mesh_model::{
    mesh::{
        Action, Change, Enrolment, MeshConfig, MtlsMode, Policy, PolicyScope, SameNode, Validity,
        Workload, WorkloadExtra,
        workload::{Canonical, Locality, TunnelProtocol},
    },
    name::PolicyName,
};

use super::{refusals::Refusals, store::Objects, *};

fn workload(name: &str, node: &str) -> Change {
    Change::Workload(Workload {
        uid: format!("Kubernetes//Pod/shop/{name}").as_str().into(),
        name: name.into(),
        namespace: "shop".into(),
        identity: "spiffe://cluster.local/ns/shop/sa/web"
            .parse()
            .expect("is one"),
        network: "".into(),
        addresses: ["10.0.0.1".parse().expect("is one")].into(),
        hostname: None,
        node: node.into(),
        cluster: "Kubernetes".into(),
        protocol: TunnelProtocol::Hbone,
        host_network: false,
        healthy: true,
        locality: Locality::default(),
        canonical: Canonical {
            workload_type: "pod".into(),
            ..Canonical::default()
        },
        services: Box::default(),
        policies: Box::default(),
        waypoint: None,
        capacity: 1,
    })
}

fn extra(name: &str, mtls: MtlsMode) -> Change {
    let extra = WorkloadExtra {
        enrolment: Enrolment::Enrolled,
        mtls,
        mtls_ports: Box::default(),
        probe_ports: Box::default(),
        cut_existing: false,
        allow_forwarded: false,
        guarded: false,
        features: Box::default(),
        pod_uid: None,
        groups: Box::default(),
    };
    Change::WorkloadExtra(
        format!("Kubernetes//Pod/shop/{name}").as_str().into(),
        extra,
    )
}

fn policy(name: &str, action: Action, validity: Validity) -> Change {
    Change::Policy(Policy {
        name: PolicyName {
            namespace: "shop".into(),
            name: name.into(),
        },
        scope: PolicyScope::Namespace,
        action,
        rules: Box::default(),
        dry_run: false,
        validity,
    })
}

fn config() -> Change {
    Change::Config(MeshConfig {
        trust_domain: "cluster.local".into(),
        root_namespace: "warren-system".into(),
        cluster_domain: "cluster.local".into(),
        registry_only: false,
        same_node: SameNode::Auto,
        enrolled_namespaces: Box::new([]),
        tunnel_blockers: Box::new([]),
        tracing: Box::new([]),
    })
}

const COMPANION: &str = "workload/Kubernetes//Pod/shop/web";
const ADDRESS: &str = "Kubernetes//Pod/shop/web";

fn scope(view: &View) -> Option<String> {
    let companion = view.get(Kind::Companion, COMPANION).expect("is published");
    companion.node.as_deref().map(str::to_owned)
}

#[test]
fn what_did_not_change_is_not_encoded_again() {
    let mut objects = Objects::default();
    let state = || {
        vec![
            config(),
            workload("web", "n1"),
            extra("web", MtlsMode::Strict),
            policy("p", Action::Allow, Validity::Valid),
        ]
    };
    let first = objects.replace(state());
    assert!(
        objects.replace(state()).same(&first),
        "the same state made another view"
    );
    let second = objects.replace(vec![
        config(),
        workload("web", "n1"),
        extra("web", MtlsMode::Permissive),
    ]);
    assert!(
        second.get(Kind::Authorization, "shop/p").is_none(),
        "what is not in the state stays published"
    );
    let (a, b) = (
        first.get(Kind::Address, ADDRESS),
        second.get(Kind::Address, ADDRESS),
    );
    assert!(
        a.zip(b).is_some_and(|(a, b)| Arc::ptr_eq(a, b)),
        "an unchanged workload was encoded again"
    );
    assert_ne!(
        first.get(Kind::Companion, COMPANION),
        second.get(Kind::Companion, COMPANION)
    );
    let gone = objects.apply(vec![Change::RemoveWorkload(ADDRESS.into())]);
    assert!(
        gone.get(Kind::Address, ADDRESS).is_none()
            && gone.get(Kind::Companion, COMPANION).is_none()
    );
}

#[test]
fn a_companion_goes_only_where_it_is_needed() {
    let mut objects = Objects::default();
    let at = |node| vec![workload("web", node), extra("web", MtlsMode::Strict)];
    assert_eq!(scope(&objects.replace(at("n1"))).as_deref(), Some("n1"));
    assert_eq!(
        scope(&objects.replace(at("n2"))).as_deref(),
        Some("n2"),
        "a pod that moved left its companion behind"
    );
    assert_eq!(
        scope(&objects.apply(vec![workload("web", "n3")])).as_deref(),
        Some("n3")
    );
    assert_eq!(
        scope(&objects.apply(vec![extra("web", MtlsMode::Disable)])),
        None,
        "clients elsewhere have to know of DISABLE"
    );
    assert_eq!(
        scope(&objects.apply(vec![extra("web", MtlsMode::Strict)])).as_deref(),
        Some("n3")
    );
}

#[test]
fn the_roots_stay_when_the_state_is_replaced() {
    let mut objects = Objects::default();
    objects.set_roots(&["one".to_owned()]);
    let view = objects.replace(vec![config()]);
    assert!(
        view.get(Kind::Companion, "roots").is_some() && view.get(Kind::Companion, "mesh").is_some()
    );
}

#[test]
fn foreign_data_planes_get_no_companions_and_nothing_weaker() {
    let mut objects = Objects::default();
    let view = objects.replace(vec![
        config(),
        workload("web", "n1"),
        extra("web", MtlsMode::Strict),
        policy("audit", Action::Audit, Validity::Valid),
        policy("bad", Action::Allow, Validity::Invalid("spec.rules".into())),
    ]);
    let foreign = foreign::view(&view);
    assert_eq!(foreign.len(Kind::Companion), 0);
    assert!(foreign.get(Kind::Authorization, "shop/audit").is_none());
    let read = |kind: Kind, name: &str| {
        let resource = foreign
            .get(kind, name)
            .unwrap_or_else(|| panic!("{name} is missing"));
        mesh_api::convert::decode(kind.url(), name, &resource.body)
            .expect("can be read")
            .remove(0)
    };
    match read(Kind::Authorization, "shop/bad") {
        Change::Policy(p) => assert!(
            p.action == Action::Deny && p.rules.len() == 1 && p.validity == Validity::Valid,
            "{p:?}"
        ),
        other => panic!("{other:?}"),
    }
    let strict = "warren-system/istio_converted_static_strict";
    match read(Kind::Address, ADDRESS) {
        Change::Workload(w) => assert_eq!(
            w.policies
                .iter()
                .map(ToString::to_string)
                .collect::<Vec<_>>(),
            [strict]
        ),
        other => panic!("{other:?}"),
    }
    assert!(
        matches!(read(Kind::Authorization, strict), Change::Policy(p) if p.action == Action::Deny)
    );
}

#[test]
fn a_refusal_lasts_until_its_resource_changes() {
    let mut objects = Objects::default();
    let view = objects.replace(vec![policy("p", Action::Allow, Validity::Valid)]);
    let refusals = Refusals::default();
    let no = |name: &str| Rejection {
        name: name.into(),
        message: "no".into(),
    };
    refusals.add(
        &view,
        Kind::Authorization,
        &"n1".into(),
        vec![no("shop/p"), no("shop/gone")],
    );
    let current = refusals.current(&view);
    assert_eq!(current.len(), 1);
    assert_eq!(
        (
            &*current[0].name,
            current[0].node.as_str(),
            &*current[0].message
        ),
        ("shop/p", "n1", "no")
    );
    let changed = objects.replace(vec![policy("p", Action::Deny, Validity::Valid)]);
    assert!(refusals.current(&changed).is_empty());
}

fn outside(name: &str, reason: &str) -> Outside {
    Outside {
        uid: format!("Kubernetes//Pod/shop/{name}").as_str().into(),
        reason: reason.to_owned(),
        outcome: Outcome::LeftAlone,
    }
}

/// What nodes tell, as `node pod: reason`.
fn told(handle: &Handle) -> Vec<String> {
    let short = |(node, pod): (NodeName, Outside)| {
        let name = pod.uid.as_str().rsplit('/').next().unwrap_or_default();
        format!("{node} {name}: {}", pod.reason)
    };
    handle.outside().into_iter().map(short).collect()
}

#[test]
fn a_node_is_heard_of_its_own_pods_while_its_newest_stream_lasts() {
    let (handle, _, _) = publisher(Arc::default());
    let place = |node: &str| vec![config(), workload("web", node), workload("db", "n2")];
    handle.replace(place("n1"));
    let (n1, n2): (NodeName, NodeName) = ("n1".into(), "n2".into());
    let news = handle.watch_outside();
    let none: [&str; 0] = [];

    let list = || {
        vec![
            outside("web", "a"),
            outside("db", "a lie"),
            outside("who", "?"),
        ]
    };
    let first = handle.enter(&n1, true);
    first.tell(&n1, list());
    assert_eq!(told(&handle), ["n1 web: a"]);
    assert!(news.has_changed().expect("goes on"));
    // Each message is the whole list, and nothing new wakes nobody.
    let mut news = handle.watch_outside();
    first.tell(&n1, list());
    assert!(!news.has_changed().expect("goes on"));
    first.tell(&n1, vec![outside("web", "b")]);
    assert!(news.has_changed().expect("goes on"));
    assert_eq!(told(&handle), ["n1 web: b"]);

    // It comes back before its former stream is missed.
    let second = handle.enter(&n1, true);
    assert_eq!(told(&handle), ["n1 web: b"], "it has not spoken yet");
    second.tell(&n1, vec![outside("web", "c")]);
    first.tell(&n1, vec![outside("web", "late")]);
    drop(first);
    assert_eq!(told(&handle), ["n1 web: c"]);

    // A pod of the same name elsewhere is another node's to speak of.
    let other = handle.enter(&n2, true);
    other.tell(&n2, vec![outside("web", "mine soon"), outside("db", "d")]);
    assert_eq!(told(&handle), ["n2 db: d", "n1 web: c"]);
    handle.replace(place("n2"));
    assert_eq!(told(&handle), ["n2 db: d", "n2 web: mine soon"]);
    handle.apply(vec![Change::RemoveWorkload(ADDRESS.into())]);
    assert_eq!(told(&handle), ["n2 db: d"]);
    news.mark_unchanged();
    drop(other);
    assert!(news.has_changed().expect("goes on"));
    assert_eq!(told(&handle), none);
    drop(second);
}

#[test]
fn what_nodes_tell_is_bounded() {
    let outside_mesh = outside::OutsideMesh::default();
    let here = |_: &WorkloadUid| Some("n1".into());
    let many = |from: usize| (from..from + 6_000).map(|n| outside(&format!("p{n}"), "no"));
    let count = || outside_mesh.current(here).len();
    outside_mesh.tell(1, &"n1".into(), many(0).collect(), here);
    assert_eq!(count(), 6_000);
    outside_mesh.tell(2, &"n2".into(), many(6_000).collect(), here);
    let of_both: usize = ["n1", "n2"]
        .iter()
        .map(|node| outside_mesh.current(|_| Some((*node).into())).len())
        .sum();
    assert_eq!(of_both, 10_000);
    // What one tells again has its former place.
    outside_mesh.tell(1, &"n1".into(), many(0).collect(), here);
    assert_eq!(count(), 6_000);
    outside_mesh.end(1);
    outside_mesh.end(2);
    assert_eq!(count(), 0);
}

#[test]
fn that_a_node_speaks_of_others_pods_is_said_once_a_stream() {
    let outside_mesh = outside::OutsideMesh::default();
    let place = |uid: &WorkloadUid| match uid.as_str().ends_with("/db") {
        true => Some("n2".into()),
        false => None,
    };
    let tell = |stream, pods| outside_mesh.tell(stream, &"n1".into(), pods, place);
    // One that is not known yet may be on its way.
    assert_eq!(tell(1, vec![outside("new", "no")]), None);
    let db = outside("db", "no");
    assert_eq!(tell(1, vec![db.clone()]), Some(db.uid.clone()));
    assert_eq!(tell(1, vec![db.clone()]), None);
    assert_eq!(tell(2, vec![db.clone()]), Some(db.uid));
}

#[tokio::test]
async fn the_first_change_is_published_at_once_and_the_next_ones_together() {
    let (handle, _, task) = publisher(Arc::default());
    tokio::spawn(task);
    let mut published = handle.inner.published.subscribe();
    let start = Instant::now();
    handle.replace(vec![config()]);
    published.changed().await.expect("goes on");
    assert!(published.borrow_and_update().whole);
    for i in 0..100 {
        handle.apply(vec![policy(
            &format!("p{i}"),
            Action::Allow,
            Validity::Valid,
        )]);
    }
    published.changed().await.expect("goes on");
    assert!(start.elapsed() >= DEBOUNCE, "{:?}", start.elapsed());
    assert_eq!(
        published.borrow_and_update().view.len(Kind::Authorization),
        100,
        "changes were not taken together"
    );
}
