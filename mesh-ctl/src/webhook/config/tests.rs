//! The configuration in an API server that loses it, and what it selects.

use std::{collections::BTreeMap, time::SystemTime};

use super::*;
use crate::{
    apiserver::ApiServer,
    ca::{Step, Usage},
    watch::Delta,
};

const PATH_OF_KIND: &str = "/apis/admissionregistration.k8s.io/v1";
const COLLECTION: &str = "/apis/admissionregistration.k8s.io/v1/validatingwebhookconfigurations";
const KEY: &str = "/warren-validator";

async fn until(what: &str, wanted: &dyn Fn() -> bool) {
    let wait = async {
        while !wanted() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(Duration::from_secs(60), wait).await.expect(what);
}

#[tokio::test]
async fn the_leader_writes_it_and_puts_it_right() {
    let (server, client) = ApiServer::start().await;
    server.serve(
        PATH_OF_KIND,
        "validatingwebhookconfigurations",
        "ValidatingWebhookConfiguration",
    );
    let dir = tempfile::tempdir().expect("a directory");
    let authority = Authority::open(dir.path(), None, "cluster.local".into());
    let authority = Arc::new(authority.expect("opens"));
    let view: Arc<RwLock<View>> = Arc::default();
    let (lead, leads) = watch::channel(false);
    let keeping = keep(
        client,
        "warren-system".to_owned(),
        authority.clone(),
        view.clone(),
        leads,
    );
    let keeping = tokio::spawn(keeping);
    let there = || server.object(COLLECTION, KEY);
    let writes = || {
        let asked = server.requests();
        asked.iter().filter(|r| r.starts_with("PATCH")).count()
    };
    let bundle = |roots: &str| {
        let wanted = json!(ByteString(roots.as_bytes().to_vec()));
        there().is_some_and(|found| found["webhooks"][0]["clientConfig"]["caBundle"] == wanted)
    };

    // It waits for the lead, and for the cluster to be read.
    let asked = || !server.requests().is_empty();
    let nothing = async |why: &str| {
        let asked = until("", &asked);
        let waited = timeout(Duration::from_millis(100), asked).await;
        assert!(waited.is_err(), "{why}: {:?}", server.requests());
    };
    lead.send_replace(true);
    nothing("nothing is known of the cluster yet").await;
    lead.send_replace(false);
    {
        let mut view = view.write().expect("nobody panics");
        view.apply(Vec::<Delta>::new());
        view.refresh();
    }
    nothing("it does not lead").await;
    lead.send_replace(true);
    let first = authority.roots();
    until("it is written", &|| bundle(&first)).await;
    let applied = server.requests();
    assert!(
        applied.iter().any(|r| r.starts_with("PATCH")
            && r.contains("fieldManager=warren-controller")
            && r.contains("force=true")),
        "{applied:?}"
    );

    // Filled in by the API server, or added by others: no reason to write.
    let mut found = there().expect("is there");
    found["webhooks"][0]["objectSelector"] = json!({});
    found["webhooks"].as_array_mut().expect("entries").push(json!({"name": "theirs.example.com", "sideEffects": "None", "admissionReviewVersions": ["v1"], "clientConfig": {}}));
    server.put(COLLECTION, found.clone());
    let before = server.requests().len();
    lead.send_replace(true);
    until("it looks again", &|| server.requests().len() > before).await;
    assert_eq!(writes(), 1);

    found["webhooks"][0]["failurePolicy"] = json!("Fail");
    server.put(COLLECTION, found);
    lead.send_replace(true);
    until("a change is put right", &|| {
        there().is_some_and(|found| found["webhooks"][0]["failurePolicy"] == "Ignore")
    })
    .await;

    server.delete(COLLECTION, KEY, false);
    lead.send_replace(true);
    until("it is there again", &|| bundle(&first)).await;

    let both = authority.rotate(
        Step::Prepare,
        None,
        false,
        &Usage::default(),
        SystemTime::now(),
        Duration::from_secs(60),
    );
    let both = both.expect("is taken");
    until("the new root is there before it signs", &|| bundle(&both)).await;
    assert_ne!(first, both);
    keeping.abort();
}

fn entries(honour: &HonourIstioLabels) -> Vec<Value> {
    let all = configuration("mesh", honour, "roots");
    all["webhooks"].as_array().expect("entries").clone()
}

#[test]
fn no_entry_can_hold_up_a_cluster() {
    for entry in entries(&HonourIstioLabels::default()) {
        assert_eq!(
            (&entry["failurePolicy"], &entry["sideEffects"]),
            (&json!("Ignore"), &json!("None"))
        );
        assert!(entry["timeoutSeconds"].as_u64() <= Some(3));
        for rule in entry["rules"].as_array().expect("rules") {
            let group = rule["apiGroups"][0].as_str().expect("a group");
            assert!(
                group == "warren.dev"
                    || group == "gateway.networking.k8s.io"
                    || group.ends_with(".istio.io"),
                "{group}"
            );
            let resources = rule["resources"].as_array().expect("resources");
            for resource in resources.iter().filter_map(Value::as_str) {
                assert!(!resource.contains(['*', '/']), "{group} {resource}");
            }
        }
        assert!(
            !selects(&entry, &[("kubernetes.io/metadata.name", "kube-system")]),
            "{entry}"
        );
    }
}

/// Whether an entry selects a namespace with these labels, as Kubernetes defines it.
fn selects(entry: &Value, labels: &[(&str, &str)]) -> bool {
    let labels: BTreeMap<_, _> = labels.iter().copied().collect();
    let expressions = entry["namespaceSelector"]["matchExpressions"].as_array();
    expressions.expect("expressions").iter().all(|one| {
        let value = labels.get(one["key"].as_str().expect("a key"));
        let values = one["values"].as_array().expect("values");
        let among = value.is_some_and(|value| values.iter().any(|v| v == value));
        among == (one["operator"] == "In")
    })
}

#[test]
fn each_enrolled_namespace_is_seen_by_one_entry() {
    let both = HonourIstioLabels::default();
    let neither = HonourIstioLabels {
        dataplane_mode: false,
        injection: false,
    };
    let check = |honour: &HonourIstioLabels, labels: &[(&str, &str)], expect: &[&str]| {
        let mut seen = Vec::new();
        for entry in entries(honour)
            .iter()
            .filter(|entry| selects(entry, labels))
        {
            let name = entry["name"].as_str().expect("a name");
            seen.extend(name.strip_suffix(SUFFIX).map(str::to_owned));
        }
        assert_eq!(seen, expect, "{labels:?}");
    };
    let (ours, ambient, injection) = (
        ("warren.dev/mesh", "enabled"),
        ("istio.io/dataplane-mode", "ambient"),
        ("istio-injection", "enabled"),
    );
    let (out, none) = (
        ("warren.dev/mesh", "disabled"),
        ("istio.io/dataplane-mode", "none"),
    );
    check(&both, &[], &["own"]);
    check(&both, &[ours], &["own", "mesh"]);
    check(&both, &[ambient], &["own", "ambient"]);
    check(&both, &[injection], &["own", "injection"]);
    check(&both, &[ours, ambient, injection], &["own", "mesh"]);
    check(&both, &[ambient, injection], &["own", "ambient"]);
    check(&both, &[out, ambient, injection], &["own"]);
    check(&both, &[none, injection], &["own"]);
    check(&neither, &[ambient, injection], &["own"]);
    check(&neither, &[ours], &["own", "mesh"]);
    // The controller's own namespace, by the name that every namespace has as a label.
    let home = ("kubernetes.io/metadata.name", "mesh");
    check(&both, &[ours, home], &["own"]);
}
