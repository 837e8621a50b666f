//! An installation: what runs, in which version, and whether the API server reaches its webhook.

use std::time::Duration;

use hyper::{Request, StatusCode};
use kube::client::Body;
use serde_json::{Value, json};
use tokio::time::timeout;

use super::Finding;
use crate::{
    install::{
        cluster::{Cluster, title},
        controller, crds, node,
        object::VERSION,
        rollout,
    },
    webhook,
};

/// How long whoever is asked through the API server's proxy may take.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);

pub(super) async fn look(cluster: &Cluster) -> Vec<Finding> {
    let mut found = vec![
        workload(cluster, "controller", "Deployment", controller::NAME).await,
        workload(cluster, "node proxies", "DaemonSet", node::NAME).await,
    ];
    found.push(definitions(cluster).await);
    found.push(reached(cluster).await);
    found
}

async fn workload(cluster: &Cluster, check: &'static str, kind: &str, component: &str) -> Finding {
    let object = json!({
        "apiVersion": "apps/v1", "kind": kind,
        "metadata": {"name": component, "namespace": cluster.namespace},
    });
    let found = match cluster.get(&object).await {
        Ok(Some(found)) => found,
        Ok(None) => {
            return Finding::failed(
                check,
                format!(
                    "there is no {} in namespace {}",
                    title(&object),
                    cluster.namespace
                ),
                "install by `mesh-ctl install`, or name the installation's namespace by -n",
            );
        }
        Err(error) => return Finding::unknown(check, &error),
    };
    let now = rollout::progress(&found);
    let version = found["metadata"]["labels"]["app.kubernetes.io/version"].as_str();
    let version = version.unwrap_or("unknown");
    let said = format!("version {version}, {} of {} ready", now.ready, now.wanted);
    if now.wanted == 0 {
        return Finding::failed(
            check,
            format!("{said}: there is to be none"),
            match kind {
                "Deployment" => format!(
                    "`kubectl -n {} scale deployment/{component} --replicas=1`",
                    cluster.namespace
                ),
                _ => format!(
                    "no node is one that {} wants: see its nodeSelector",
                    title(&object)
                ),
            },
        );
    }
    if !now.done {
        let waiting = rollout::waiting(cluster, component).await;
        let waiting = waiting.unwrap_or_default().join("; ");
        let of = format!("app.kubernetes.io/name={component}");
        return Finding::failed(
            check,
            format!("{said}: {waiting}"),
            format!(
                "`kubectl -n {} logs -l {of}`, and describe pods",
                cluster.namespace
            ),
        );
    }
    match version == VERSION {
        true => Finding::ok(check, said),
        false => Finding::warning(
            check,
            format!("{said}, and this is mesh-ctl {VERSION}"),
            "use the mesh-ctl of that version, or `mesh-ctl upgrade`",
        ),
    }
}

/// Whether the definitions of our own kinds are in force.
async fn definitions(cluster: &Cluster) -> Finding {
    const CHECK: &str = "definitions";
    let mut missing = Vec::new();
    for wanted in crds::own() {
        match cluster.get(&wanted).await {
            Ok(Some(found)) if established(&found) && serves(&found, &wanted) => {}
            Ok(_) => missing.push(title(&wanted)),
            Err(error) => return Finding::unknown(CHECK, &error),
        }
    }
    match missing.is_empty() {
        true => Finding::ok(CHECK, "all of our own kinds are served"),
        false => Finding::failed(
            CHECK,
            format!("absent, or not of this version: {}", missing.join(", ")),
            "`mesh-ctl crds | kubectl apply --server-side -f -`",
        ),
    }
}

fn established(definition: &Value) -> bool {
    let conditions = definition["status"]["conditions"].as_array();
    conditions
        .into_iter()
        .flatten()
        .any(|c| c["type"] == "Established" && c["status"] == "True")
}

/// Whether every version that is wanted is served.
fn serves(found: &Value, wanted: &Value) -> bool {
    let versions = |crd: &Value| -> Vec<String> {
        let all = crd["spec"]["versions"].as_array().into_iter().flatten();
        all.filter(|v| v["served"] == true)
            .filter_map(|v| v["name"].as_str().map(str::to_owned))
            .collect()
    };
    let there = versions(found);
    versions(wanted).iter().all(|v| there.contains(v))
}

/// The webhook lets everything pass while it cannot be reached, so that nobody would notice.
async fn reached(cluster: &Cluster) -> Finding {
    const CHECK: &str = "webhook";
    match cluster.get(&webhook::registration()).await {
        Ok(Some(_)) => {}
        Ok(None) => {
            return Finding::warning(
                CHECK,
                "is not registered: objects are judged only after they were written",
                "the leading controller registers it within seconds; its log says why it did not",
            );
        }
        Err(error) => return Finding::unknown(CHECK, &error),
    }
    // The API server's proxy takes the way that its calls to the webhook take.
    let path = format!(
        "/api/v1/namespaces/{}/services/https:{}:https-webhook/proxy/",
        cluster.namespace,
        controller::NAME
    );
    let asked = async {
        let request = Request::get(path).body(Body::empty())?;
        let answer = timeout(PATIENCE, cluster.client.send(request)).await;
        // The client asks again where the API server says that nobody is there.
        Ok(answer.map_or(Ok(StatusCode::GATEWAY_TIMEOUT), |a| a.map(|a| a.status()))?)
    };
    match asked.await {
        Ok(status) if status == 503 || status == 502 || status == 504 => Finding::warning(
            CHECK,
            format!("the API server cannot reach it ({status}); meanwhile everything is admitted"),
            "let the API server's addresses reach the controller's pods on TCP 15017: see NetworkPolicies and firewalls",
        ),
        Ok(status) if status == 403 => Finding::warning(
            CHECK,
            "is registered; whether it is reached cannot be looked at",
            "give whoever runs this the right to get services/proxy",
        ),
        Ok(_) => Finding::ok(CHECK, "is registered, and the API server reaches it"),
        Err(error) => Finding::unknown(CHECK, &error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_definition_serves_when_all_its_versions_are_there() {
        let crd = |versions: &[(&str, bool)]| {
            let all: Vec<Value> = versions
                .iter()
                .map(|(name, served)| json!({"name": name, "served": served}))
                .collect();
            json!({"spec": {"versions": all}})
        };
        let wanted = crd(&[("v1", true), ("v1beta1", false)]);
        assert!(serves(&crd(&[("v1", true), ("v2", true)]), &wanted));
        assert!(!serves(&crd(&[("v1", false)]), &wanted));
        assert!(!serves(&crd(&[]), &wanted));
    }
}
