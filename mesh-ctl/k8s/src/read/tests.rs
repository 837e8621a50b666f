//! Reading: every surprise has a path.

use serde_json::json;

use super::*;

fn check(value: Value, unknown: &[&str]) -> Object {
    let parsed = read(value).expect("the object reads");
    assert_eq!(parsed.unknown, unknown);
    parsed.object
}

fn fails(value: Value, expect: &str) {
    assert_eq!(
        read(value)
            .expect_err("the object does not read")
            .to_string(),
        expect
    );
}

#[test]
fn unknown_fields_are_named_and_known_ones_are_not() {
    let object = check(
        json!({"apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy", "metadata": {"name": "a", "labels": null},
            "spec": {"rules": [{"from": [{"source": {"principal": ["x"], "principals": ["y"]}}]}, {"form": []}]}}),
        &[
            "spec.rules[0].from[0].source.principal",
            "spec.rules[1].form",
        ],
    );
    assert_eq!(
        object.reference().to_string(),
        "AuthorizationPolicy default/a"
    );
    check(
        json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", "managedFields": [{"x": 1}], "creationTimestamp": null},
            "spec": {"volumes": [{"name": "v", "emptyDir": {}}], "contaners": [],
                "containers": [{"name": "c", "image": "i", "imagee": "j", "livenessProbe": {"httpGet": {"path": "/", "port": "http"}, "periodSeconds": 3}}]},
            "status": {"qosClass": "BestEffort"}}),
        &["spec.containers[0].imagee", "spec.contaners"],
    );
}

#[test]
fn wrong_types_name_the_object_and_the_field() {
    fails(
        json!({"apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy", "metadata": {"name": "a", "namespace": "shop"},
            "spec": {"rules": [{}, {"from": [{"source": {"ipBlocks": "10.0.0.0/8"}}]}]}}),
        "AuthorizationPolicy shop/a field spec.rules[1].from[0].source.ipBlocks: invalid type: string \"10.0.0.0/8\", expected a sequence",
    );
    fails(
        json!({"kind": "Pod", "metadata": {"name": "a"}}),
        "object field apiVersion: is missing",
    );
    fails(
        json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "../x"}}),
        "Namespace ../x field metadata.name: \"../x\" is not a name: use lower-case letters, digits, '-' and '.', at most 253",
    );
    fails(json!([1]), "object field apiVersion: is missing");
}

#[test]
fn kinds_without_a_type_keep_their_name() {
    let Object::Other(other) = check(
        json!({"apiVersion": "networking.istio.io/v1", "kind": "Sidecar", "metadata": {"name": "v"}, "spec": {"egress": []}}),
        &[],
    ) else {
        panic!("a Sidecar has no type")
    };
    assert!(other.is_mesh_api());
}

#[test]
fn unfamiliar_versions_are_told() {
    let parsed = read(json!({"apiVersion": "networking.istio.io/v2", "kind": "ServiceEntry", "metadata": {"name": "s"}}))
        .expect("reads");
    assert_eq!(
        parsed.unknown_version.as_deref(),
        Some("networking.istio.io/v2")
    );
}
