//! When a cluster is itself again: a test that took something from it ends no earlier.
//!
//! Invariant: nothing is taken for well that was only written down before the outage: kubelets have renewed their
//! leases since, and a Deployment, a service and a name that are made now come about on every node.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::{SYSTEM, Space};

/// How long a watch may take to be there again: client-go's longest pause is 30 seconds, and some are behind others.
const PATIENCE: u64 = 120;
/// The cluster's DNS.
const DNS: &str = "10.96.0.10";
/// What is made to see whether everybody is back.
const FRESH: &str = "fresh";

impl Space {
    /// Waits until the cluster does again what tests expect of it: nodes, controllers, scheduler, the pods of the
    /// system, kube-proxy and DNS.
    pub async fn recovered(&self) -> Result<()> {
        let before = self.leases().await?;
        let cluster = &self.cluster;
        let renewed = cluster.until("kubelets to renew their leases", PATIENCE, async || {
            let now = self.leases().await?;
            let late: Vec<_> = before
                .iter()
                .filter(|&(n, at)| now.get(n) == Some(at))
                .collect();
            ensure!(late.is_empty(), "not renewed: {late:?}");
            Ok(())
        });
        renewed.await?;
        let well = cluster.until(
            "nodes and the system's pods to be ready",
            PATIENCE,
            async || {
                let nodes = cluster.json(&["get", "nodes"]).await?;
                let mut waits = not_ready(&nodes);
                for namespace in ["kube-system", SYSTEM] {
                    waits.extend(not_ready(
                        &cluster.json(&["-n", namespace, "get", "pods"]).await?,
                    ));
                }
                ensure!(waits.is_empty(), "not ready: {waits:?}");
                Ok(())
            },
        );
        well.await?;
        self.makes_something_new().await
    }

    /// When each node's kubelet last renewed its lease.
    async fn leases(&self) -> Result<BTreeMap<String, String>> {
        let leases = self
            .cluster
            .json(&["-n", "kube-node-lease", "get", "leases"])
            .await?;
        let all = leases["items"].as_array().into_iter().flatten();
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        Ok(all
            .map(|l| (text(&l["metadata"]["name"]), text(&l["spec"]["renewTime"])))
            .collect())
    }

    /// A Deployment that the scheduler places, with a service that every node leads to and a name for it.
    async fn makes_something_new(&self) -> Result<()> {
        let anywhere = Self::server(FRESH, "").replace("      nodeName: \n", "");
        self.apply(&anywhere).await?;
        let cluster = &self.cluster;
        let rolled = cluster.until("a new Deployment to roll out", PATIENCE, async || {
            let args = ["rollout", "status", "deployment/fresh", "--timeout=5s"];
            self.kubectl(&args).await.map(drop)
        });
        rolled.await?;
        let path = "jsonpath={.spec.clusterIP}";
        let address = self.kubectl(&["get", "service", FRESH, "-o", path]).await?;
        let (url, name) = (
            format!("http://{address}/status/200"),
            format!("{FRESH}.{}.svc.cluster.local", self.name),
        );
        for node in cluster.nodes()? {
            for command in [
                &["curl", "-sSf", "-m", "2", &url][..],
                &["busybox", "nslookup", &name, DNS],
            ] {
                let what = format!("{node} to be answered: {}", command.join(" "));
                let answered = cluster.until(&what, PATIENCE, async || {
                    let said = cluster.on_node(&node, command).await?;
                    ensure!(said.ok, "{}{}", said.out, said.err);
                    Ok(())
                });
                answered.await?;
            }
        }
        let gone = ["delete", "deployment,service", FRESH, "--wait=false"];
        self.kubectl(&gone)
            .await
            .map(drop)
            .context("removing what was new")
    }
}

/// The names of what is not ready among nodes or pods; what has ended or ends is not waited for.
fn not_ready(list: &Value) -> Vec<String> {
    let all = list["items"].as_array().into_iter().flatten();
    let waits = |object: &&Value| {
        let status = &object["status"];
        let over =
            status["phase"] == "Succeeded" || !object["metadata"]["deletionTimestamp"].is_null();
        let mut conditions = status["conditions"].as_array().into_iter().flatten();
        !over && !conditions.any(|c| c["type"] == "Ready" && c["status"] == "True")
    };
    all.filter(waits)
        .map(|o| {
            o["metadata"]["name"]
                .as_str()
                .unwrap_or_default()
                .to_owned()
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_runs_and_is_not_ready_is_waited_for() {
        let ready = |word: &str| json!({"conditions": [{"type": "Ready", "status": word}]});
        let list = json!({"items": [
            {"metadata": {"name": "well"}, "status": ready("True")},
            {"metadata": {"name": "lost"}, "status": ready("Unknown")},
            {"metadata": {"name": "new"}, "status": {}},
            {"metadata": {"name": "done"}, "status": {"phase": "Succeeded"}},
            {"metadata": {"name": "ending", "deletionTimestamp": "now"}, "status": ready("False")},
        ]});
        assert_eq!(not_ready(&list), ["lost", "new"]);
        assert_eq!(not_ready(&json!({})), Vec::<String>::new());
    }
}
