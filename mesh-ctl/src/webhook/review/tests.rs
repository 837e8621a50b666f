//! Each way a review can end.

use serde_json::json;

use super::*;
use crate::watch::Delta;

/// A view in which these objects were read.
fn view(objects: Vec<Value>) -> View {
    let mut view = View::default();
    let deltas = objects.into_iter().map(|value| match typed(value) {
        Typed::Object(object, unknown) => Delta::Applied {
            object,
            origin: Default::default(),
            unknown,
        },
        Typed::Bad(reference, broken) => Delta::Bad(reference.expect("has a name"), broken),
    });
    view.apply(deltas.collect());
    view.refresh();
    view
}

fn shop() -> View {
    view(vec![
        json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop", "labels": {"warren.dev/mesh": "enabled"}}}),
        json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web", "namespace": "shop"},
            "spec": {"clusterIP": "10.0.0.1", "ports": [{"port": 80}]}}),
        policy(json!({"action": "DENY", "rules": [{}]})),
    ])
}

fn policy(spec: Value) -> Value {
    json!({"apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy", "metadata": {"name": "p", "namespace": "shop"}, "spec": spec})
}

fn mesh(spec: Value) -> Value {
    json!({"apiVersion": "warren.dev/v1alpha1", "kind": "MeshConfig", "metadata": {"name": "mesh", "namespace": "warren-system"}, "spec": spec})
}

fn request(operation: &str, object: Value, old: Option<Value>) -> Request {
    let text = |field: &str| object[field].as_str().unwrap_or_default().to_owned();
    let group = text("apiVersion");
    Request {
        uid: "u".to_owned(),
        kind: GroupKind {
            group: group
                .split_once('/')
                .map_or("", |(group, _)| group)
                .to_owned(),
            kind: text("kind"),
        },
        operation: operation.to_owned(),
        old_object: old,
        object,
    }
}

fn create(object: Value) -> Verdict {
    review(&shop(), request("CREATE", object, None))
}

/// Allowed, with exactly these warnings.
fn allowed(verdict: &Verdict, warnings: &[&str]) {
    assert_eq!(verdict.refused, None);
    assert_eq!(verdict.warnings, warnings);
}

#[test]
fn our_own_kinds_are_refused_for_errors_only() {
    let refused = create(mesh(
        json!({"sameNode": "sideways", "clusterId": "a/b", "network": "n"}),
    ));
    assert_eq!(
        refused.refused.as_deref(),
        Some(
            "MeshConfig warren-system/mesh: spec.clusterId: must not contain '/'; spec.sameNode: \"sideways\" is none of auto, tunnel, direct; taken for auto"
        )
    );
    let unreadable = create(mesh(json!({"trustDomain": ["a"]}))).refused;
    let unreadable = unreadable.expect("is refused");
    assert!(unreadable.contains("spec.trustDomain"), "{unreadable}");
    allowed(&create(mesh(json!({"network": "n"}))), &[]);
    let unknown = create(mesh(json!({"newWork": "n"})));
    allowed(
        &unknown,
        &["spec.newWork: is not known to this version and not honoured"],
    );
}

#[test]
fn a_bad_object_of_ours_can_be_relabelled_and_deleted() {
    let bad = mesh(json!({"sameNode": "sideways"}));
    let mut finalizer = bad.clone();
    finalizer["metadata"]["finalizers"] = json!(["a/b"]);
    let update =
        |object: Value, old: &Value| review(&shop(), request("UPDATE", object, Some(old.clone())));
    allowed(
        &update(bad.clone(), &finalizer),
        &["spec.sameNode: \"sideways\" is none of auto, tunnel, direct; taken for auto"],
    );
    assert!(update(bad.clone(), &mesh(json!({}))).refused.is_some());
    let mut going = bad.clone();
    going["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
    allowed(&update(going, &mesh(json!({}))), &[]);
    let mut delete = request("DELETE", Value::Null, Some(bad));
    delete.kind.group = OWN_GROUP.to_owned();
    allowed(&review(&shop(), delete), &[]);
}

#[test]
fn kinds_of_istio_are_allowed_and_what_is_not_honoured_is_said() {
    allowed(
        &create(policy(
            json!({"rules": [{"from": [{"source": {"namespaces": ["shop"]}}]}]}),
        )),
        &[],
    );
    let mistyped = create(policy(json!({"selektor": {}, "rules": [{}]})));
    allowed(
        &mistyped,
        &[
            "spec.selektor: is not a field that this version knows",
            "not in force: refuses every connection to what it governs: spec.selektor: is not a field that this version knows",
        ],
    );
    let waypoint = json!({"targetRefs": [{"kind": "Gateway", "name": "g", "group": "gateway.networking.k8s.io"}], "rules": [{}]});
    allowed(
        &create(policy(waypoint)),
        &[
            "spec.targetRefs[0]: not enforced: a Gateway is governed by its own proxy, which this version does not provide",
            "not in force: nothing here enforces it",
        ],
    );
    let routes = json!({"apiVersion": "networking.istio.io/v1", "kind": "VirtualService", "metadata": {"name": "v", "namespace": "shop"}, "spec": {}});
    allowed(
        &create(routes),
        &["not in force: has no hosts, and no other virtual service delegates to it"],
    );
    let sidecar = json!({"apiVersion": "networking.istio.io/v1", "kind": "Sidecar", "metadata": {"name": "s", "namespace": "shop"}, "spec": {}});
    allowed(
        &create(sidecar),
        &[
            "kind: clients reach every service that is exported to them; outboundTrafficPolicy: REGISTRY_ONLY in MeshConfig keeps ...",
            "not in force: Sidecar is not honoured by this version",
        ],
    );
    let tokens = json!({"apiVersion": "security.istio.io/v1", "kind": "RequestAuthentication", "metadata": {"name": "jwt", "namespace": "shop"}, "spec": {}});
    allowed(
        &create(tokens),
        &[
            "kind: requests are NOT checked for tokens: a wrong or expired one is let in as if there were none; an AuthorizationPo...",
            "not in force: RequestAuthentication is not honoured by this version",
        ],
    );
}

#[test]
fn what_cannot_be_read_is_allowed_with_what_it_will_do() {
    let mut unreadable = policy(json!({"rules": "all"}));
    unreadable["metadata"]["name"] = json!("other");
    let verdict = create(unreadable);
    assert_eq!(verdict.refused, None);
    assert!(
        verdict.warnings[0].starts_with("spec.rules: "),
        "{verdict:?}"
    );
    assert_eq!(
        verdict.warnings[1],
        "not in force: refuses every connection to what it seems to govern"
    );
    // Of this one a good version is known.
    let verdict = create(policy(json!({"rules": "all"})));
    assert_eq!(
        verdict.warnings[1],
        "not in force: the last version that could be read stays in force"
    );
}

#[test]
fn an_object_is_seen_beside_all_others() {
    let target = |name: &str| {
        let spec =
            json!({"targetRefs": [{"kind": "Service", "name": name, "group": ""}], "rules": [{}]});
        create(policy(spec)).warnings.concat()
    };
    assert_eq!(
        target("nothing"),
        "spec.targetRefs[0]: Service shop/nothing is not known"
    );
    assert!(
        target("web").starts_with("spec.targetRefs[0]: governs a Service, which needs a waypoint")
    );
}

#[test]
fn before_the_cluster_was_read_nothing_is_refused() {
    let bad = mesh(json!({"sameNode": "sideways"}));
    let verdict = review(&View::default(), request("CREATE", bad, None));
    assert_eq!(verdict.refused, None);
    assert!(
        verdict.warnings[0].starts_with("not checked"),
        "{verdict:?}"
    );
}

#[test]
fn warnings_are_short_plain_and_few() {
    let long = short(&"ä\n".repeat(200));
    assert_eq!(long.chars().count(), WARNING);
    assert!(long.starts_with("ä ä") && long.ends_with("..."), "{long}");
    assert_eq!(short("as it is"), "as it is");
    let fields: serde_json::Map<String, Value> =
        (0..20).map(|i| (format!("f{i}"), json!(1))).collect();
    let verdict = create(mesh(Value::Object(fields)));
    assert_eq!(verdict.warnings.len(), WARNINGS + 1);
    assert_eq!(
        verdict.warnings[WARNINGS],
        "and 12 more: see the object's status"
    );
}
