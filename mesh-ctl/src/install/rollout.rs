//! Waiting until what was applied runs.
//!
//! Invariants: progress is told when it changes and never otherwise; when time is over, every pod that is not ready is
//! named with what it waits for. The webhook is waited for as well, and what it lacks is the check's to say: an
//! installation does not fail for something that everything works without.

use std::time::{Duration, Instant};

use anyhow::Context;
use k8s_openapi::api::core::v1::Pod;
use kube::{Api, api::ListParams};
use serde_json::{Value, json};
use tokio::time::sleep;

use super::cluster::{Cluster, title};
use super::{controller, node};
use crate::webhook;

/// How often is looked.
const LOOK: Duration = Duration::from_millis(500);
/// How long a leader may take to be elected and to register the webhook.
const REGISTERED: Duration = Duration::from_secs(30);

/// How far a workload is: how many of how many, and whether these are the ones that were asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Those of the newest version that are ready.
    pub ready: i64,
    /// How many there will be.
    pub wanted: i64,
    /// Nothing is left to do.
    pub done: bool,
}

/// Reads a Deployment's or DaemonSet's status.
pub fn progress(object: &Value) -> Progress {
    let number = |value: &Value| value.as_i64().unwrap_or_default();
    let status = &object["status"];
    let seen = number(&status["observedGeneration"]) >= number(&object["metadata"]["generation"]);
    let (wanted, updated, ready, old) = match object["kind"].as_str() {
        Some("DaemonSet") => (
            number(&status["desiredNumberScheduled"]),
            number(&status["updatedNumberScheduled"]),
            number(&status["numberAvailable"]),
            number(&status["numberUnavailable"]),
        ),
        _ => {
            let updated = number(&status["updatedReplicas"]);
            (
                object["spec"]["replicas"].as_i64().unwrap_or(1),
                updated,
                number(&status["availableReplicas"]),
                number(&status["replicas"]) - updated,
            )
        }
    };
    let ready = ready.min(updated);
    Progress {
        ready,
        wanted,
        done: seen && updated >= wanted && ready >= wanted && old <= 0,
    }
}

/// Waits for controller and node proxies; `say` hears of every step.
pub async fn wait(
    cluster: &Cluster,
    limit: Duration,
    mut say: impl FnMut(&str),
) -> anyhow::Result<()> {
    let begun = Instant::now();
    for (kind, name) in [("Deployment", controller::NAME), ("DaemonSet", node::NAME)] {
        let object = json!({
            "apiVersion": "apps/v1", "kind": kind,
            "metadata": {"name": name, "namespace": cluster.namespace},
        });
        let mut last = None;
        loop {
            let found = cluster.get(&object).await?;
            let found = found.with_context(|| format!("{} is gone", title(&object)))?;
            let now = progress(&found);
            if last != Some(now) {
                say(&format!(
                    "{}: {} of {} ready",
                    title(&object),
                    now.ready,
                    now.wanted
                ));
                last = Some(now);
            }
            if now.done {
                break;
            }
            if begun.elapsed() > limit {
                let waiting = waiting(cluster, name).await?;
                anyhow::bail!(
                    "{} is not ready after {} seconds: {}",
                    title(&object),
                    limit.as_secs(),
                    waiting.join("; ")
                );
            }
            sleep(LOOK).await;
        }
    }
    let left = limit.saturating_sub(begun.elapsed()).min(REGISTERED);
    registered(cluster, left, say).await;
    Ok(())
}

/// Waits until the webhook is registered, for at most `limit`. Whoever may not look waits for nothing.
async fn registered(cluster: &Cluster, limit: Duration, mut say: impl FnMut(&str)) {
    let begun = Instant::now();
    let object = webhook::registration();
    while let Ok(found) = cluster.get(&object).await {
        if found.is_some() {
            say(&format!("{}: registered", title(&object)));
        }
        if found.is_some() || begun.elapsed() > limit {
            return;
        }
        sleep(LOOK).await;
    }
}

/// The pods of a component that are not ready, and what they wait for.
pub async fn waiting(cluster: &Cluster, component: &str) -> anyhow::Result<Vec<String>> {
    let pods: Api<Pod> = Api::namespaced(cluster.client.clone(), &cluster.namespace);
    let of = ListParams::default().labels(&format!("app.kubernetes.io/name={component}"));
    let listed = pods.list(&of).await.context("listing pods")?;
    Ok(listed.items.iter().filter_map(why_not_ready).collect())
}

/// What a pod waits for; `None`: it is ready, or on its way out.
pub fn why_not_ready(pod: &Pod) -> Option<String> {
    let name = pod.metadata.name.as_deref().unwrap_or_default();
    let status = pod.status.clone().unwrap_or_default();
    let conditions = status.conditions.unwrap_or_default();
    let ready = conditions.iter().find(|c| c.type_ == "Ready");
    if pod.metadata.deletion_timestamp.is_some() || ready.is_some_and(|c| c.status == "True") {
        return None;
    }
    let node = pod.spec.as_ref().and_then(|s| s.node_name.as_deref());
    let place = node.map_or_else(String::new, |node| format!(" on node {node}"));
    let container = status.container_statuses.unwrap_or_default();
    let waits = container.iter().find_map(|c| {
        let state = c.state.as_ref()?;
        if let Some(waiting) = &state.waiting {
            let last = c.last_state.as_ref().and_then(|s| s.terminated.as_ref());
            let ended =
                last.map_or_else(String::new, |t| format!(", it ended with {}", t.exit_code));
            let message = waiting.message.as_deref().unwrap_or_default();
            let reason = waiting.reason.as_deref().unwrap_or("waiting");
            return Some(format!("{reason}{ended} {message}").trim_end().to_owned());
        }
        state.running.as_ref().map(|_| {
            "it runs and says that it is not ready: see its log by `kubectl logs`".to_owned()
        })
    });
    let scheduled = conditions
        .iter()
        .find(|c| c.type_ == "PodScheduled" && c.status == "False")
        .and_then(|c| c.message.clone());
    let why = waits.or(scheduled).or(status.message);
    Some(format!(
        "pod {name}{place}: {}",
        why.unwrap_or_else(|| "it has not started".to_owned())
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rollout_is_done_when_the_newest_are_ready_and_the_others_gone() {
        let check = |object: Value, ready: i64, wanted: i64, done: bool| {
            assert_eq!(
                progress(&object),
                Progress {
                    ready,
                    wanted,
                    done
                },
                "{object}"
            );
        };
        let set = |generation: i64, updated: i64, available: i64| {
            json!({"kind": "DaemonSet", "metadata": {"generation": 2}, "status": {
                "observedGeneration": generation, "desiredNumberScheduled": 2,
                "updatedNumberScheduled": updated, "numberAvailable": available,
                "numberUnavailable": 2 - available,
            }})
        };
        check(set(2, 2, 2), 2, 2, true);
        // The status is still about the version before.
        check(set(1, 2, 2), 2, 2, false);
        check(set(2, 1, 2), 1, 2, false);
        check(set(2, 2, 1), 1, 2, false);
        let deployment = |replicas: i64, updated: i64, available: i64| {
            json!({"kind": "Deployment", "metadata": {"generation": 1}, "spec": {"replicas": 2}, "status": {
                "observedGeneration": 1, "replicas": replicas, "updatedReplicas": updated,
                "availableReplicas": available,
            }})
        };
        check(deployment(2, 2, 2), 2, 2, true);
        check(deployment(3, 2, 2), 2, 2, false);
        check(deployment(2, 0, 2), 0, 2, false);
        check(
            json!({"kind": "Deployment", "metadata": {"generation": 1}, "spec": {}}),
            0,
            1,
            false,
        );
    }

    #[test]
    fn a_pod_that_is_not_ready_says_why() {
        let check = |pod: Value, expect: Option<&str>| {
            let pod: Pod = serde_json::from_value(pod).expect("a pod");
            assert_eq!(why_not_ready(&pod).as_deref(), expect);
        };
        let pod = |status: Value| json!({"metadata": {"name": "a"}, "spec": {"containers": [], "nodeName": "n1"}, "status": status});
        check(
            pod(json!({"conditions": [{"type": "Ready", "status": "True"}]})),
            None,
        );
        check(
            pod(json!({"containerStatuses": [{
                "name": "node", "ready": false, "restartCount": 0, "image": "", "imageID": "",
                "state": {"waiting": {"reason": "ErrImagePull", "message": "not found"}},
            }]})),
            Some("pod a on node n1: ErrImagePull not found"),
        );
        check(
            pod(
                json!({"conditions": [{"type": "PodScheduled", "status": "False", "message": "no node fits"}]}),
            ),
            Some("pod a on node n1: no node fits"),
        );
        check(pod(json!({})), Some("pod a on node n1: it has not started"));
    }
}
