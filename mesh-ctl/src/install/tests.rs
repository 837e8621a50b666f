//! Objects of an installation as an API server reads them, under one setting after another.

use std::{collections::BTreeSet, fs, path::Path};

use k8s_openapi::api::{
    apps::v1::DaemonSet,
    rbac::v1::{ClusterRole, Role},
};
use serde_json::Value;

use super::*;

fn set(written: &[&str]) -> Result<Values, SetError> {
    let mut all = Vec::new();
    for one in written {
        all.extend(Assignment::parse(one, false)?);
    }
    values(Profile::Default, &[], all)
}

fn rendered(written: &[&str]) -> Vec<Value> {
    objects(&set(written).expect("values"), NAMESPACE)
}

fn find<'a>(objects: &'a [Value], kind: &str, name: &str) -> &'a Value {
    objects
        .iter()
        .find(|o| o["kind"] == kind && o["metadata"]["name"] == name)
        .unwrap_or_else(|| panic!("no {kind} {name}"))
}

fn typed<T: serde::de::DeserializeOwned>(objects: &[Value], kind: &str, name: &str) -> T {
    serde_json::from_value(find(objects, kind, name).clone()).expect("has the type's fields")
}

fn environment(written: &[&str]) -> Vec<(String, String)> {
    let set: DaemonSet = typed(&rendered(written), "DaemonSet", "warren-node");
    let pod = set.spec.expect("a spec").template.spec.expect("a pod");
    let env = pod.containers[0].env.clone().unwrap_or_default();
    env.into_iter()
        .filter_map(|e| Some((e.name, e.value?)))
        .collect()
}

#[test]
fn every_object_has_a_name_of_its_own() {
    for profile in Profile::ALL {
        let objects = objects(&values(profile, &[], Vec::new()).expect("values"), "mesh");
        let names: BTreeSet<_> = objects
            .iter()
            .map(|o| format!("{} {}", o["kind"], o["metadata"]["name"]))
            .collect();
        assert_eq!(names.len(), objects.len(), "{names:?}");
        for object in &objects {
            let namespace = &object["metadata"]["namespace"];
            assert!(namespace.is_null() || namespace == "mesh", "{object}");
        }
    }
}

#[test]
fn the_profiles_differ_in_replicas() {
    let replicas = |profile| {
        values(profile, &[], Vec::new())
            .expect("values")
            .controller
            .replicas
    };
    assert_eq!(replicas(Profile::Minimal), 1);
    assert_eq!(replicas(Profile::Default), 2);
    assert_eq!(replicas(Profile::Demo), 1);
}

#[test]
fn assignments_are_read_as_helm_reads_them() {
    let check = |written: &str, text: bool, expect: &str| {
        let values = Assignment::parse(written, text)
            .map(|all| {
                let mut into = Value::Null;
                for one in all {
                    one.apply(&mut into)?;
                }
                Ok(into)
            })
            .and_then(|done| done);
        let shown = match values {
            Ok(value) => value.to_string(),
            Err(error) => error.to_string(),
        };
        assert_eq!(shown, expect, "{written}");
    };
    check("a.b=1,a.c=x", false, r#"{"a":{"b":1,"c":"x"}}"#);
    check(
        "a=true,b=null,c=007,d=1.5",
        false,
        r#"{"a":true,"b":null,"c":"007","d":"1.5"}"#,
    );
    check("a=true", true, r#"{"a":"true"}"#);
    check(r"a\.b.c=1\,2", false, r#"{"a.b":{"c":"1,2"}}"#);
    check("a={x,2}", false, r#"{"a":["x",2]}"#);
    check("a={}", false, r#"{"a":[]}"#);
    check("a=b=c", false, r#"{"a":"b=c"}"#);
    check("a=", false, r#"{"a":""}"#);
    check(
        "a=1,a.b=2",
        false,
        r#""a.b": a is a value and holds no others"#,
    );
    for wrong in ["a", "=1", "a..b=1", "a={x"] {
        let error = Assignment::parse(wrong, false).expect_err(wrong);
        assert_eq!(error, SetError::NoAssignment(wrong.to_owned()));
    }
}

#[test]
fn what_cannot_be_set_is_named() {
    let check = |written: &str, expect: &str| {
        let error = set(&[written]).expect_err(written).to_string();
        assert!(error.contains(expect), "{written}: {error}");
    };
    check("node.drian=1", "unknown field `drian`");
    check("node.drain=long", "invalid type: string \"long\"");
    check(
        "node.tc=xdp",
        "node.tc is \"xdp\", and is one of auto, tcx, clsact",
    );
    check("controller.replicas=0", "between 1 and 16");
    check("controller.leafTtl=1w", "leafTtl is \"1w\"");
    check("trustDomain=a/b", "trustDomain is \"a/b\"");
    check("cni.binDir=bin", "cni.binDir is \"bin\"");
    check("log=1", "invalid type");
}

#[test]
fn files_come_between_profile_and_assignments() {
    let file = |text: &str| ("a file".to_owned(), text.to_owned());
    let files = [
        file("node: {drain: 7, tc: tcx}\n"),
        file("node:\n  drain: 8\n"),
    ];
    let set = Assignment::parse("node.drain=9", false).expect("an assignment");
    let check = |values: Values, drain: u32| {
        assert_eq!(values.node.drain, drain);
        assert_eq!(values.node.tc, "tcx");
        assert!(!values.node.access_log, "the profile counts too");
    };
    check(
        values(Profile::Minimal, &files, Vec::new()).expect("values"),
        8,
    );
    check(values(Profile::Minimal, &files, set).expect("values"), 9);
    let error = values(Profile::Minimal, &[file("- 1\n")], Vec::new()).expect_err("no mapping");
    assert_eq!(error.to_string(), "a file: it is no mapping");
}

#[test]
fn the_node_proxy_is_not_privileged_unless_asked() {
    let security = |written: &[&str]| {
        let set: DaemonSet = typed(&rendered(written), "DaemonSet", "warren-node");
        let pod = set.spec.expect("a spec").template.spec.expect("a pod");
        pod.containers[0].security_context.clone().expect("one")
    };
    let usual = security(&[]);
    assert_eq!(usual.privileged, None);
    assert_eq!(usual.read_only_root_filesystem, Some(true));
    let capabilities = usual.capabilities.expect("some");
    assert_eq!(capabilities.drop.expect("some"), ["ALL"]);
    assert!(!capabilities.add.expect("some").contains(&"ALL".to_owned()));
    let asked = security(&["node.privileged=true"]);
    assert_eq!(asked.privileged, Some(true));
    assert_eq!(
        asked.allow_privilege_escalation, None,
        "the API refuses both"
    );
}

#[test]
fn a_node_proxy_outlives_its_drain_and_shares_the_node() {
    let set: DaemonSet = typed(&rendered(&["node.drain=90"]), "DaemonSet", "warren-node");
    let spec = set.spec.expect("a spec");
    let rolling = spec
        .update_strategy
        .and_then(|s| s.rolling_update)
        .expect("rolls");
    let shown = serde_json::to_value(rolling).expect("JSON");
    assert_eq!(shown, json!({"maxSurge": 1, "maxUnavailable": 0}));
    let pod = spec.template.spec.expect("a pod");
    assert!(pod.termination_grace_period_seconds > Some(90));
    assert_eq!(pod.dns_policy.as_deref(), Some("ClusterFirstWithHostNet"));
    for container in &pod.containers {
        assert_eq!(
            container.ports, None,
            "a declared port would hinder a surge"
        );
    }
    let mounted: BTreeSet<_> = pod.containers[0]
        .volume_mounts
        .iter()
        .flatten()
        .map(|m| m.name.clone())
        .collect();
    let volumes = pod.volumes.into_iter().flatten().map(|v| v.name).collect();
    assert_eq!(mounted, volumes);
}

#[test]
fn settings_of_the_node_proxy_follow_the_values() {
    let usual = environment(&[]);
    let has = |all: &[(String, String)], name: &str, value: &str| {
        all.contains(&(name.to_owned(), value.to_owned()))
    };
    assert!(has(
        &usual,
        "WARREN_CONTROLLER",
        "https://warren-controller.warren-system.svc:15012"
    ));
    assert!(has(&usual, "WARREN_CNI", "on"));
    assert!(!usual.iter().any(|(name, _)| name == "WARREN_PODS_CGROUP"));
    let other = environment(&[
        "cni.enabled=false",
        "node.podsCgroup=/sys/fs/cgroup/pods",
        "node.env.WARREN_CONNECT_TIMEOUT=5s",
        "node.accessLog=false",
    ]);
    assert!(has(&other, "WARREN_CNI", "off"));
    assert!(!other.iter().any(|(name, _)| name == "WARREN_CNI_BIN_DIR"));
    assert!(has(&other, "WARREN_PODS_CGROUP", "/sys/fs/cgroup/pods"));
    assert!(has(&other, "WARREN_CONNECT_TIMEOUT", "5s"));
    assert!(has(&other, "WARREN_ACCESS_LOG", "off"));
}

#[test]
fn no_account_may_read_secrets_or_change_what_users_wrote() {
    let all = rendered(&[]);
    let cluster: ClusterRole = typed(&all, "ClusterRole", "warren-controller");
    for rule in cluster.rules.expect("rules") {
        let resources = rule.resources.unwrap_or_default();
        assert!(!resources.iter().any(|r| r == "secrets" || r == "*"));
        let changes = rule
            .verbs
            .iter()
            .any(|v| v == "update" || v == "delete" || v == "patch");
        let harmless = resources
            .iter()
            .all(|r| r.ends_with("/status") || r == "events")
            || rule.resource_names.is_some();
        assert!(!changes || harmless, "{resources:?} {:?}", rule.verbs);
    }
    // What waypoints consist of is made, never read or listed; of ConfigMaps one is read that a Gateway names.
    let waypoints: ClusterRole = typed(&all, "ClusterRole", "warren-waypoints");
    for rule in waypoints.rules.expect("rules") {
        let resources = rule.resources.unwrap_or_default();
        match resources.as_slice() {
            [one] if one == "configmaps" => assert_eq!(rule.verbs, ["get"]),
            all => {
                assert!(
                    !all.iter()
                        .any(|r| r == "secrets" || r == "*" || r == "pods")
                );
                assert_eq!(rule.verbs, ["create", "patch", "delete"]);
            }
        }
    }
    let role: Role = typed(&all, "Role", "warren-controller");
    for rule in role.rules.expect("rules") {
        assert!(rule.resource_names.is_some() || rule.verbs == ["create"]);
    }
    assert!(
        !all.iter()
            .any(|o| o["kind"] == "ClusterRoleBinding" && o["metadata"]["name"] == "warren-node")
    );
}

#[test]
fn nodes_may_be_changed_only_for_the_taints_sake() {
    let change_nodes = |written: &[&str]| {
        let role: ClusterRole = typed(&rendered(written), "ClusterRole", "warren-controller");
        let rules = role.rules.expect("rules").into_iter();
        let of_nodes = rules.filter(|r| r.resources.iter().flatten().any(|r| r == "nodes"));
        let verbs: BTreeSet<String> = of_nodes.flat_map(|r| r.verbs).collect();
        verbs.into_iter().collect::<Vec<_>>().join(" ")
    };
    assert_eq!(change_nodes(&[]), "get list watch");
    assert_eq!(change_nodes(&["taint=true"]), "get list patch watch");
}

/// What keeps the mesh up when nodes go, and others out of it, in the installation that everybody gets: it is asserted
/// here, because the chart is only compared with this.
#[test]
fn the_default_installation_withstands_what_it_is_meant_to() {
    let all = rendered(&[]);
    let (deployment, nodes) = (
        find(&all, "Deployment", "warren-controller"),
        find(&all, "DaemonSet", "warren-node"),
    );
    let budget = &find(&all, "PodDisruptionBudget", "warren-controller")["spec"];
    let labels = &deployment["spec"]["template"]["metadata"]["labels"];
    assert_eq!(budget["maxUnavailable"], 1);
    let selected = budget["selector"]["matchLabels"].as_object().expect("some");
    assert!(!selected.is_empty());
    for (key, value) in selected {
        assert_eq!(labels[key], *value, "{key} of what may be missing");
    }
    assert_eq!(deployment["spec"]["replicas"], 2);
    let rolling = |workload: &Value, how: &str| {
        let how = &workload["spec"][how];
        assert_eq!(how["type"], "RollingUpdate");
        assert_eq!(how["rollingUpdate"]["maxUnavailable"], 0);
        assert_eq!(how["rollingUpdate"]["maxSurge"], 1);
    };
    rolling(deployment, "strategy");
    rolling(nodes, "updateStrategy");
    let pods = [deployment, nodes].map(|workload| &workload["spec"]["template"]["spec"]);
    let apart = "/affinity/podAntiAffinity/preferredDuringSchedulingIgnoredDuringExecution/0";
    let apart = &pods[0].pointer(apart).expect("replicas keep apart")["podAffinityTerm"];
    assert_eq!(apart["topologyKey"], "kubernetes.io/hostname");
    for (key, value) in apart["labelSelector"]["matchLabels"]
        .as_object()
        .expect("some")
    {
        assert_eq!(labels[key], *value, "{key} of who keeps apart");
    }
    let classes = pods.map(|pod| pod["priorityClassName"].as_str().unwrap_or_default());
    assert_eq!(classes, ["system-cluster-critical", "system-node-critical"]);
    // Every node has one, whatever its taints.
    assert_eq!(
        pods[1]["tolerations"],
        serde_json::json!([{"operator": "Exists"}])
    );
    for pod in pods {
        let whole = &pod["securityContext"];
        assert_eq!(whole["seccompProfile"]["type"], "RuntimeDefault");
        assert_eq!(pod["enableServiceLinks"], false);
        for container in pod["containers"].as_array().expect("some") {
            let security = &container["securityContext"];
            assert_eq!(security["allowPrivilegeEscalation"], false);
            assert_eq!(security["readOnlyRootFilesystem"], true);
            assert_eq!(security["capabilities"]["drop"], serde_json::json!(["ALL"]));
            assert!(container["readinessProbe"].is_object());
            for resource in ["cpu", "memory"] {
                let asked = &container["resources"]["requests"][resource];
                assert!(asked.as_str().is_some_and(|q| !q.is_empty()), "{container}");
            }
            // Out of memory is one pod's end and not the node's.
            assert!(container["resources"]["limits"]["memory"].is_string());
        }
    }
    assert_eq!(pods[0]["securityContext"]["runAsNonRoot"], true);
    let controller = &pods[0]["containers"][0];
    assert!(controller["livenessProbe"].is_object());
    assert!(
        controller["securityContext"]["capabilities"]
            .get("add")
            .is_none()
    );
    let added = &pods[1]["containers"][0]["securityContext"]["capabilities"]["add"];
    let wanted = ["BPF", "NET_ADMIN", "PERFMON", "SYS_ADMIN", "SYS_PTRACE"];
    assert_eq!(*added, serde_json::json!(wanted));
}

/// Every kind that the controller lists is one that it may list.
#[test]
fn every_kind_that_is_read_may_be_read() {
    let cluster: ClusterRole = typed(&rendered(&[]), "ClusterRole", "warren-controller");
    let rules = cluster.rules.expect("rules");
    for kind in mesh_k8s::KINDS.iter().chain(mesh_k8s::UNHONOURED) {
        let readable = rules.iter().any(|rule| {
            let of_group = rule.api_groups.iter().flatten().any(|g| g == kind.group);
            let plural = rule.resources.iter().flatten().any(|r| {
                let stem = kind.kind.to_ascii_lowercase();
                let forms = [format!("{stem}s"), format!("{stem}es")];
                forms.contains(r) || *r == format!("{}ies", stem.trim_end_matches('y'))
            });
            of_group
                && plural
                && ["get", "list", "watch"]
                    .iter()
                    .all(|v| rule.verbs.iter().any(|w| w == v))
        });
        assert!(readable, "{} {}", kind.group, kind.kind);
    }
}

/// `BLESS=1` writes the files that the chart has from types.
#[test]
fn the_charts_generated_files_are_current() {
    let chart = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/chart");
    let documents = |objects: Vec<Value>| -> String {
        objects
            .iter()
            .map(|o| {
                format!(
                    "---\n{}\n",
                    serde_saphyr::to_string(o).expect("YAML").trim_end()
                )
            })
            .collect()
    };
    let schema = schemars::generate::SchemaSettings::draft07()
        .with(|s| s.inline_subschemas = true)
        .into_generator()
        .into_root_schema_for::<Values>();
    let schema = format!("{}\n", serde_json::to_string_pretty(&schema).expect("JSON"));
    for (name, made) in [
        ("files/warren-crds.yaml", documents(crds::own())),
        ("files/istio-crds.yaml", documents(crds::istio())),
        ("values.schema.json", schema),
    ] {
        let file = chart.join(name);
        if std::env::var_os("BLESS").is_some() {
            fs::create_dir_all(file.parent().expect("has one")).expect("a directory");
            fs::write(&file, &made).expect("written");
        }
        let committed = fs::read_to_string(&file).unwrap_or_default();
        assert_eq!(
            committed, made,
            "{name}: run this test with BLESS=1 and commit the file"
        );
    }
}
