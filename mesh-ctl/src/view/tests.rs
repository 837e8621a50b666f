//! Only what changed goes out; what is bad leaves the last good version in force.

use std::time::Instant;

use mesh_translate::{dump, translate};

use super::*;
use crate::watch::Folder;

struct Cluster {
    folder: Folder,
    view: View,
}

impl Cluster {
    fn new() -> Self {
        Self {
            folder: Folder::default(),
            view: View::default(),
        }
    }

    /// The names of the resources that a file's new text changes.
    fn write(&mut self, file: &str, text: Option<&str>) -> Vec<String> {
        let deltas = self.folder.update(file, text);
        self.view.apply(deltas);
        let changes = self
            .view
            .refresh()
            .map(|refresh| refresh.changes)
            .unwrap_or_default();
        changes.iter().map(name).collect()
    }
}

/// The kind and name of a change, as dumps have them.
fn name(change: &Change) -> String {
    let what = [
        "workload",
        "workloadExtra",
        "service",
        "serviceExtra",
        "policy",
        "mesh",
        "removeWorkload",
        "removeWorkloadExtra",
        "removeService",
        "removeServiceExtra",
        "removePolicy",
    ];
    let dump = dump::change(change);
    let found = what
        .iter()
        .find_map(|what| Some(format!("{what} {}", dump.get(*what)?.as_str()?)));
    found.unwrap_or_else(|| "complete".to_owned())
}

fn pod(name: &str, ip: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: shop, labels: {{app: {name}}}}}\n\
         spec: {{nodeName: n1, containers: [{{name: c}}]}}\nstatus: {{phase: Running, podIPs: [{{ip: {ip}}}]}}\n---\n"
    )
}

fn policy(block: &str) -> String {
    format!(
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: p, namespace: shop}}\n\
         spec: {{selector: {{matchLabels: {{app: a}}}}, rules: [{{from: [{{source: {{ipBlocks: {block}}}}}]}}]}}\n"
    )
}

#[test]
fn nothing_is_complete_before_the_first_batch() {
    let mut view = View::default();
    assert!(
        view.refresh().is_none(),
        "an empty mesh was published before anything was read"
    );
    view.apply(Vec::new());
    let names: Vec<_> = view
        .refresh()
        .expect("an empty folder is a state too")
        .changes
        .iter()
        .map(name)
        .collect();
    assert_eq!(names, ["mesh cluster.local", "complete"]);
}

#[test]
fn only_what_changed_goes_out() {
    let mut cluster = Cluster::new();
    let first = cluster.write(
        "pods",
        Some(&(pod("a", "10.0.0.1") + &pod("b", "10.0.0.2"))),
    );
    let [a, b] = ["Kubernetes//Pod/shop/a", "Kubernetes//Pod/shop/b"];
    let expect = |lines: &[String]| lines.to_vec();
    assert_eq!(
        first,
        [
            "mesh cluster.local",
            &format!("workload {a}"),
            &format!("workloadExtra {a}"),
            &format!("workload {b}"),
            &format!("workloadExtra {b}"),
            "complete"
        ]
    );
    assert_eq!(cluster.write("note", Some("# nothing\n")), expect(&[]));
    // The policy, and the workload that it selects.
    assert_eq!(
        cluster.write("policy", Some(&policy("[10.0.0.0/8]"))),
        ["policy shop/p", &format!("workload {a}")]
    );
    // Written anew with the same content: nothing.
    assert_eq!(
        cluster.write(
            "policy",
            Some(&format!("# moved\n{}", policy("[10.0.0.0/8]")))
        ),
        expect(&[])
    );
    assert_eq!(
        cluster.write("pods", Some(&pod("a", "10.0.0.1"))),
        [format!("removeWorkload {b}")]
    );
    // A namespace that is enrolled changes its pods, and the list of such namespaces.
    let namespace = "apiVersion: v1\nkind: Namespace\nmetadata: {name: shop, labels: {warren.dev/mesh: enabled}}\n";
    assert_eq!(
        cluster.write("ns", Some(namespace)),
        [
            "mesh cluster.local",
            &format!("workload {a}"),
            &format!("workloadExtra {a}")
        ]
    );
    assert_eq!(
        cluster.write("policy", None),
        [format!("workload {a}"), "removePolicy shop/p".to_owned()]
    );
}

#[test]
fn the_last_good_version_stays_in_force() {
    let mut cluster = Cluster::new();
    cluster.write("policy", Some(&policy("[10.0.0.0/8]")));
    assert_eq!(
        cluster.write("policy", Some(&policy("10.0.0.0/8"))),
        Vec::<String>::new()
    );
    let statuses = translate(cluster.view.cluster()).statuses;
    let said = &statuses[0].conditions;
    assert_eq!(
        (said[0].status, said[1].reason.as_str()),
        (false, "LastGoodVersion"),
        "{statuses:?}"
    );
    assert_eq!(
        cluster.write("policy", Some(&policy("[10.0.0.0/9]"))),
        ["policy shop/p"]
    );
    // One that was never good refuses.
    let mut cluster = Cluster::new();
    let deltas = cluster.folder.update("policy", Some(&policy("10.0.0.0/8")));
    cluster.view.apply(deltas);
    let refresh = cluster.view.refresh().expect("a refresh");
    let refused = refresh.changes.iter().any(|change| {
        matches!(change, Change::Policy(policy) if policy.validity != mesh_model::mesh::Validity::Valid)
    });
    assert!(refused, "an unreadable policy must refuse what it governs");
}

/// Not a limit but a measurement, with a bound that only a quadratic step would break.
#[test]
fn ten_thousand_pods_translate_in_time() {
    let mut text = String::new();
    let mut slices = String::new();
    for i in 0..10_000 {
        let (service, ip) = (
            i / 10,
            format!("10.{}.{}.{}", 1 + i / 62_500, i / 250 % 250, 1 + i % 250),
        );
        text.push_str(
            &pod(&format!("p{i}"), &ip).replace("app: p", &format!("svc: s{service}, app: p")),
        );
        if i % 10 == 0 {
            slices.push_str(&format!(
                "apiVersion: v1\nkind: Service\nmetadata: {{name: s{service}, namespace: shop}}\nspec: {{clusterIP: 172.16.{}.{}, ports: [{{port: 80}}]}}\n---\n",
                service / 250, 1 + service % 250
            ));
            slices.push_str(&format!("apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: s{service}-1, namespace: shop, labels: {{kubernetes.io/service-name: s{service}}}}}\naddressType: IPv4\nports: [{{port: 8080}}]\nendpoints:\n"));
        }
        slices.push_str(&format!(
            "- {{addresses: [{ip}], targetRef: {{kind: Pod, name: p{i}, namespace: shop}}}}\n"
        ));
        if i % 10 == 9 {
            slices.push_str("---\n");
        }
    }
    for i in 0..1_000 {
        slices.push_str(
            &policy("[10.0.0.0/8]")
                .replace("name: p", &format!("name: p{i}"))
                .replace("app: a", &format!("app: p{i}")),
        );
        slices.push_str("---\n");
    }
    let mut cluster = Cluster::new();
    let start = Instant::now();
    let deltas = cluster.folder.update("pods", Some(&text));
    let read = start.elapsed();
    cluster.view.apply(deltas);
    let deltas = cluster.folder.update("services", Some(&slices));
    cluster.view.apply(deltas);
    let first = cluster.view.refresh().expect("the first refresh");
    assert_eq!(first.changes.len(), 1 + 2 * 1_000 + 1_000 + 2 * 10_000 + 1);
    let start = Instant::now();
    let deltas = cluster
        .folder
        .update("one", Some(&pod("extra", "10.99.0.1")));
    cluster.view.apply(deltas);
    let second = cluster.view.refresh().expect("a refresh");
    assert_eq!(second.changes.len(), 2);
    let start_edit = Instant::now();
    let edited = text.replacen("10.1.0.1}", "10.98.0.1}", 1);
    let deltas = cluster.folder.update("pods", Some(&edited));
    let reread = start_edit.elapsed();
    cluster.view.apply(deltas);
    println!(
        "10,000 pods, 1,000 services, 1,000 policies: read pods {read:?}, first refresh {:?}, one more pod {:?} (translate and compare {:?}), a 10,000-pod file read again for one change {reread:?}",
        first.took,
        start.elapsed(),
        second.took
    );
    assert!(
        second.translated < 10 && second.took.as_secs() < 1,
        "one more pod translated {} objects in {:?}",
        second.translated,
        second.took
    );
}
