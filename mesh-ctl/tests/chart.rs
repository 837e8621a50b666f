//! The Helm chart against `mesh-ctl manifest`, through the real helm: the same objects for the same values.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use mesh_ctl::install::{self, Assignment, Profile};
use serde_json::Value;

/// A release that the chart allows; helm knows no cluster here.
const KUBERNETES: &str = "1.34.0";

/// Where `cargo xtask test` built helm; `None`, aloud, without it.
fn helm() -> Option<PathBuf> {
    let told = std::env::var_os("WARREN_HELM").map(PathBuf::from);
    if told.is_none() {
        eprintln!(
            "skipped: WARREN_HELM names no helm 3; `cargo xtask test` builds one where Go is installed"
        );
    }
    told
}

fn chart() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/chart")
}

fn template(helm: &Path, profile: Profile, namespace: &str, set: &[&str]) -> Output {
    let chart = chart();
    let mut command = Command::new(helm);
    command
        .args(["template", "warren"])
        .arg(&chart)
        .args(["--namespace", namespace, "--kube-version", KUBERNETES, "-f"])
        .arg(chart.join(format!("profiles/{}.yaml", profile.name())));
    for one in set {
        command.args(["--set", one]);
    }
    command.output().expect("helm starts")
}

/// Objects by kind and name.
fn by_name(objects: impl IntoIterator<Item = Value>) -> BTreeMap<String, Value> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    objects
        .into_iter()
        .map(|o| {
            let key = format!("{} {}", text(&o["kind"]), text(&o["metadata"]["name"]));
            (key, o)
        })
        .collect()
}

/// Where two values differ first.
fn difference(path: &str, ours: &Value, charts: &Value) -> Option<String> {
    match (ours, charts) {
        (Value::Object(a), Value::Object(b)) => {
            let names: std::collections::BTreeSet<&String> = a.keys().chain(b.keys()).collect();
            names.into_iter().find_map(|name| {
                let of = |map: &serde_json::Map<String, Value>| {
                    map.get(name).cloned().unwrap_or(Value::Null)
                };
                difference(&format!("{path}.{name}"), &of(a), &of(b))
            })
        }
        (Value::Array(a), Value::Array(b)) if a.len() == b.len() => a
            .iter()
            .zip(b)
            .enumerate()
            .find_map(|(i, (a, b))| difference(&format!("{path}[{i}]"), a, b)),
        _ if ours == charts => None,
        _ => Some(format!("{path}: mesh-ctl has {ours}, the chart {charts}")),
    }
}

fn check(helm: &Path, profile: Profile, namespace: &str, set: &[&str]) {
    let assignments = set
        .iter()
        .flat_map(|one| Assignment::parse(one, false).expect("an assignment"))
        .collect();
    let values = install::values(profile, &[], assignments).expect("values");
    let mut ours = by_name(install::objects(&values, namespace));
    // helm puts a release into a namespace that is there.
    ours.remove(&format!("Namespace {namespace}"))
        .expect("mesh-ctl makes the namespace");
    let out = template(helm, profile, namespace, set);
    let why = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success(), "{set:?}: {why}");
    let text = String::from_utf8(out.stdout).expect("UTF-8");
    let documents: Vec<Value> =
        serde_saphyr::from_multiple(&text).expect("helm writes YAML documents");
    let charts = by_name(documents.into_iter().filter(Value::is_object));
    assert_eq!(
        ours.keys().collect::<Vec<_>>(),
        charts.keys().collect::<Vec<_>>(),
        "{profile:?} {set:?}"
    );
    for (name, object) in &ours {
        if let Some(found) = difference(name, object, &charts[name]) {
            panic!("{profile:?} {set:?}: {found}");
        }
    }
}

#[test]
fn the_chart_renders_the_same_objects() {
    let Some(helm) = helm() else { return };
    for profile in Profile::ALL {
        check(&helm, profile, install::NAMESPACE, &[]);
        check(&helm, profile, "mesh", &["image.tag=dev"]);
    }
    for set in [
        &["node.privileged=true", "node.drain=90", "node.maxSurge=25%"][..],
        &["cni.enabled=false", "crds.install=false"],
        &["taint=true"],
        &[
            "cni.binDir=/home/kubernetes/bin",
            "cni.confDir=/etc/kubernetes/cni",
            "cni.failOpen=true",
        ],
        &["crds.istio=false", "controller.disruptionBudget=false"],
        &["image.repository=registry.example.com/mesh,image.pullSecrets={one,two}"],
        &[
            "node.podsCgroup=/sys/fs/cgroup/pods",
            "node.kubeletCgroup=/sys/fs/cgroup/kubelet",
            "node.tc=clsact",
        ],
        &[
            "node.env.WARREN_CONNECT_TIMEOUT=5s,node.env.WARREN_CLUSTER_ID=east",
            r"node.nodeSelector.example\.com/mesh=here",
        ],
        &[
            "controller.priorityClass=,node.priorityClass=",
            "controller.replicas=3,controller.leafTtl=90m",
            "controller.nodeSelector.disk=ssd",
        ],
        &[
            r"log.level=info\,mesh_node=debug",
            "log.format=json",
            "trustDomain=example.org",
        ],
        &["node.metricsPort=9000", "node.resources.limits.memory=2Gi"],
    ] {
        check(&helm, Profile::Default, install::NAMESPACE, set);
    }
}

#[test]
fn the_chart_refuses_what_mesh_ctl_refuses() {
    let Some(helm) = helm() else { return };
    for wrong in [
        "node.drian=1",
        "node.drain=long",
        "node.tc=xdp",
        "controller.replicas=0",
        "controller.leafTtl=1w",
        "trustDomain=a/b",
        "cni.binDir=bin",
        "image.pullPolicy=Sometimes",
    ] {
        let assignments = Assignment::parse(wrong, false).expect("an assignment");
        assert!(
            install::values(Profile::Default, &[], assignments).is_err(),
            "{wrong}"
        );
        let out = template(&helm, Profile::Default, install::NAMESPACE, &[wrong]);
        assert!(!out.status.success(), "{wrong} was rendered");
    }
}

#[test]
fn helm_finds_nothing_wrong_with_the_chart() {
    let Some(helm) = helm() else { return };
    for profile in Profile::ALL {
        let out = Command::new(&helm)
            .arg("lint")
            .arg("--strict")
            .arg(chart())
            .args(["--kube-version", KUBERNETES, "-f"])
            .arg(chart().join(format!("profiles/{}.yaml", profile.name())))
            .output()
            .expect("helm starts");
        let said = String::from_utf8_lossy(&out.stdout);
        assert!(out.status.success(), "{profile:?}: {said}");
    }
}
