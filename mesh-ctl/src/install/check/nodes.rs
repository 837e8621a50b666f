//! Each node by itself: what its node proxy says of the kernel, the cgroups, the CNI plugin and the pods.
//!
//! Invariant: the node proxies are asked through the API server's proxy for their read-only port, which takes the right
//! to get `pods/proxy` in the installation's namespace and no other; one that does not answer is a finding.

use std::time::{Duration, SystemTime};

use anyhow::Context;
use hyper::Request;
use k8s_openapi::api::core::v1::Pod;
use kube::{Api, api::ListParams};
use serde_json::Value;
use tokio::time::{Instant, sleep, timeout};

use super::{
    Finding, Outcome,
    after::PATIENCE,
    before::{self, SKEWS},
    seconds,
};
use crate::install::{cluster::Cluster, node};

const CHECK: &str = "node";
/// The port of a node proxy's read-only server, unless its pod says otherwise, and by which variable it does.
const PORT: &str = "15020";
const PORT_TOLD: &str = "WARREN_METRICS_PORT";
/// What is wrong with a node may be a pod that has just begun, whose network comes within seconds: nodes are asked again
/// for so long before that counts.
const SETTLE: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_millis(500);

/// A line for each node that a node proxy runs on, in the order of their names.
pub(super) async fn look(cluster: &Cluster) -> Vec<Finding> {
    let pods: Api<Pod> = Api::namespaced(cluster.client.clone(), &cluster.namespace);
    let of = ListParams::default().labels(&format!("app.kubernetes.io/name={}", node::NAME));
    let listed = match pods.list(&of).await.context("listing the node proxies") {
        Ok(listed) => listed.items,
        Err(error) => return vec![Finding::unknown(CHECK, &error)],
    };
    let mut places: Vec<(String, String, String)> = listed.iter().filter_map(place).collect();
    places.sort();
    // Nodes have to agree with each other and the API server; what this machine's clock says is its own matter.
    let skew = before::skew(cluster).await.unwrap_or_default();
    let settled = Instant::now() + SETTLE;
    let mut found = Vec::new();
    for (node, pod, port) in places {
        let mut finding = one(cluster, &node, (&pod, &port), skew).await;
        while finding.outcome == Outcome::Failed && Instant::now() < settled {
            sleep(PAUSE).await;
            finding = one(cluster, &node, (&pod, &port), skew).await;
        }
        found.push(finding);
    }
    found
}

/// A node; `skew` is how many seconds this machine is ahead of the API server.
async fn one(cluster: &Cluster, node: &str, (pod, port): (&str, &str), skew: i64) -> Finding {
    let before = SystemTime::now();
    match status(cluster, pod, port).await {
        Ok(status) => {
            let took = before.elapsed().unwrap_or_default();
            judge(node, &status, seconds(before + took / 2) - skew)
        }
        Err(error) => Finding::warning(
            CHECK,
            format!("{node}: its node proxy, pod {pod}, could not be asked: {error:#}"),
            format!(
                "give whoever runs this the right to get pods/proxy in {0}, or look into `kubectl -n {0} logs {pod}`",
                cluster.namespace
            ),
        ),
    }
}

/// The node of a node proxy that runs and is to stay, its pod, and the port to ask.
fn place(pod: &Pod) -> Option<(String, String, String)> {
    let running = pod.status.as_ref()?.phase.as_deref() == Some("Running");
    if !running || pod.metadata.deletion_timestamp.is_some() {
        return None;
    }
    let spec = pod.spec.as_ref()?;
    let mut told = spec.containers.iter().flat_map(|c| c.env.iter().flatten());
    let port = told.find(|e| e.name == PORT_TOLD);
    let port = port.and_then(|e| e.value.clone());
    Some((
        spec.node_name.clone()?,
        pod.metadata.name.clone()?,
        port.unwrap_or_else(|| PORT.to_owned()),
    ))
}

async fn status(cluster: &Cluster, pod: &str, port: &str) -> anyhow::Result<Value> {
    let path = format!(
        "/api/v1/namespaces/{}/pods/{pod}:{port}/proxy/status",
        cluster.namespace
    );
    let request = Request::get(path).body(Vec::new())?;
    let answer = timeout(PATIENCE, cluster.client.request_text(request)).await;
    let text = answer.context("no answer in time")??;
    serde_json::from_str(&text).context("its answer is no JSON: is it of this version?")
}

/// What is wrong with a node's clock, compared with the API server's, `ours`, and with its certificates.
fn judge_time(certificates: &Value, ours: i64) -> Vec<(String, &'static str)> {
    let mut bad = Vec::new();
    let theirs = certificates["now"].as_i64();
    match theirs.map(|theirs| theirs.saturating_sub(ours)) {
        Some(ahead) if ahead.abs() > SKEWS[1] => bad.push((
            match ahead > 0 {
                true => format!("its clock is {ahead} seconds ahead of the API server's"),
                false => format!("its clock is {} seconds behind the API server's", -ahead),
            },
            "set the clocks by NTP; certificates and tokens are refused by clocks that differ",
        )),
        _ => {}
    }
    let (wanted, lacking) = (&certificates["wanted"], &certificates["lacking"]);
    if lacking.as_i64().is_some_and(|n| n > 0) {
        bad.push((
            format!("{lacking} of {wanted} identities have no valid certificate"),
            "the node proxy's log says for which, and why",
        ));
    }
    bad
}

/// What a node proxy's status comes to, at the time `ours` by the API server's clock, in seconds since 1970.
fn judge(node: &str, status: &Value, ours: i64) -> Finding {
    let count = |value: &Value| value.as_i64().unwrap_or_default();
    let (pods, interfaces, cni) = (&status["pods"], &status["interfaces"], &status["cni"]);
    let open = interfaces["open"].as_array().map_or(0, Vec::len);
    let mut bad: Vec<(String, &str)> = Vec::new();
    if status["btf"] != true {
        bad.push((
            "no BTF".into(),
            "the kernel has to be built with CONFIG_DEBUG_INFO_BTF",
        ));
    }
    if let Some(waits) = status["waits"].as_str() {
        bad.push((
            format!("not ready: {waits}"),
            "the node proxy's log says more",
        ));
    }
    if open > 0 || !interfaces["failure"].is_null() {
        let failure = interfaces["failure"]
            .as_str()
            .unwrap_or("another program is before ours");
        bad.push((
            format!("{open} interfaces are not guarded: {failure}"),
            "another network program took the place of Warren's: see the node proxy's log",
        ));
    }
    if let Some(state) = cni["state"].as_str().filter(|s| *s != "chained") {
        let why = cni["reason"].as_str().unwrap_or("not in its place yet");
        bad.push((
            format!("the CNI plugin is {state}: {why}"),
            "set cni.confDir and cni.binDir to the runtime's directories",
        ));
    }
    let (missing, barred) = (count(&status["podsMissing"]), count(&status["podsBarred"]));
    if missing > 0 {
        bad.push((
            format!("{missing} pods are not captured, because their networks were not found"),
            "events at the pods and the node proxy's log say why",
        ));
    }
    if barred > 0 {
        bad.push((
            format!("{barred} captured pods are refused, because they carry traffic of others"),
            "events at the pods and the node proxy's log name them",
        ));
    }
    bad.extend(judge_time(&status["certificates"], ours));
    let certificates = match status["certificates"]["firstExpiry"].as_i64() {
        Some(end) => format!(
            ", certificates good for {} minutes",
            (end - ours).max(0) / 60
        ),
        None => String::new(),
    };
    let said = format!(
        "{node}: {}, pods below {}, {} captured, {} out, {} refused, {} interfaces guarded, CNI plugin {}{certificates}",
        if status["btf"] == true {
            "BTF"
        } else {
            "no BTF"
        },
        status["podsCgroup"].as_str().unwrap_or("an unknown cgroup"),
        count(&pods["captured"]),
        count(&pods["out"]),
        count(&pods["refused"]),
        count(&interfaces["watched"]),
        match (cni["state"].as_str(), cni["confDir"].as_str()) {
            (Some("chained"), Some(dir)) => format!("in {dir}"),
            (Some(state), _) => state.to_owned(),
            (None, _) => "off".to_owned(),
        },
    );
    if bad.is_empty() {
        return match status["kubelet"]["missing"].as_str() {
            None => Finding::ok(CHECK, said),
            Some(why) => Finding::warning(
                CHECK,
                format!("{said}; kubelet was not found: {why}"),
                "its probes are refused under STRICT: set node.kubeletCgroup",
            ),
        };
    }
    let (what, hints): (Vec<String>, Vec<&str>) = bad.into_iter().unzip();
    Finding::failed(
        CHECK,
        format!("{said}; {}", what.join("; ")),
        hints.join("; "),
    )
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::Outcome;
    use super::*;

    #[test]
    fn a_node_is_well_when_everything_on_it_is() {
        let well = json!({
            "btf": true, "podsCgroup": "/sys/fs/cgroup/kubepods", "waits": null,
            "pods": {"captured": 3, "out": 2, "refused": 0}, "podsMissing": 0, "podsBarred": 0,
            "interfaces": {"watched": 5, "open": [], "failure": null, "direct": true},
            "kubelet": {"pid": 1}, "cni": {"state": "chained", "confDir": "/etc/cni/net.d"},
            "certificates": {"now": 1000, "wanted": 3, "lacking": 0, "firstExpiry": 4600},
        });
        let check = |change: fn(&mut Value), outcome: Outcome, words: &str| {
            let mut status = well.clone();
            change(&mut status);
            let found = judge("n1", &status, 1010);
            assert_eq!(found.outcome, outcome, "{}", found.said);
            assert!(
                found.said.starts_with("n1: ") && found.said.contains(words),
                "{}",
                found.said
            );
            assert_eq!(found.hint.is_empty(), outcome == Outcome::Ok);
        };
        check(
            |_| {},
            Outcome::Ok,
            "3 captured, 2 out, 0 refused, 5 interfaces guarded, CNI plugin in /etc/cni/net.d, certificates good for 59 minutes",
        );
        check(
            |s| s["certificates"]["now"] = 900.into(),
            Outcome::Failed,
            "110 seconds behind",
        );
        check(
            |s| s["certificates"]["now"] = 1100.into(),
            Outcome::Failed,
            "90 seconds ahead",
        );
        check(
            |s| s["certificates"]["lacking"] = 2.into(),
            Outcome::Failed,
            "2 of 3 identities have no valid certificate",
        );
        check(|s| s["cni"] = Value::Null, Outcome::Ok, "CNI plugin off");
        check(|s| s["btf"] = false.into(), Outcome::Failed, "no BTF");
        check(
            |s| s["waits"] = "configuration waits for the controller".into(),
            Outcome::Failed,
            "waits for the controller",
        );
        check(
            |s| s["interfaces"]["open"] = json!(["veth1"]),
            Outcome::Failed,
            "1 interfaces are not guarded",
        );
        check(
            |s| s["cni"] = json!({"state": "waiting", "reason": "no configuration"}),
            Outcome::Failed,
            "waiting: no configuration",
        );
        check(
            |s| s["podsMissing"] = 2.into(),
            Outcome::Failed,
            "2 pods are not captured",
        );
        check(
            |s| s["kubelet"] = json!({"missing": "nobody listens"}),
            Outcome::Warning,
            "nobody listens",
        );
        // Whoever answers something else is of another version.
        check(|s| *s = json!({}), Outcome::Failed, "no BTF");
    }
}
