//! Into the mesh and out of it by a label, while everything runs.

use anyhow::{Result, ensure};
use mesh_tests::kube::Space;
use serde_json::Value;

const URL: &str = "http://web/status/200";

pub async fn running_pods_talk_mtls_once_their_namespace_is_labelled() -> Result<()> {
    Space::with("enrol", "", async |space| {
        let nodes = space.cluster.nodes()?;
        space.apply(&Space::server("web", &nodes[0])).await?;
        space.apply(&Space::client("client", &nodes[1])).await?;
        space.rolled_out("deployment/web").await?;
        space.ready("client").await?;
        space.answers_outside("client", URL).await?;
        let before = identities(space).await?;

        space
            .cluster
            .kubectl(&["label", "namespace", "enrol", "warren.dev/mesh=enabled"])
            .await?;
        let encrypted = space
            .cluster
            .until("a request over a tunnel", 20, async || {
                space.get("client", URL).await?;
                let lines = space.cluster.log(&nodes[1], "warren-node")?;
                let found = lines
                    .iter()
                    .rfind(|l| l.contains("src.workload=client") && l.contains("path=hbone"));
                found
                    .cloned()
                    .ok_or_else(|| anyhow::anyhow!("no tunnelled flow was logged"))
            })
            .await?;
        for word in [
            "src.identity=spiffe://cluster.local/ns/enrol/sa/default",
            "mtls=true",
            "dst.service=web.enrol.svc.cluster.local",
        ] {
            ensure!(encrypted.contains(word), "no {word} in {encrypted}");
        }
        let after = identities(space).await?;
        ensure!(
            before == after,
            "pods were restarted: {before:?}, then {after:?}"
        );

        space
            .cluster
            .kubectl(&["label", "namespace", "enrol", "warren.dev/mesh-"])
            .await?;
        space
            .cluster
            .until("the pods to be out again", 20, async || {
                let count = |lines: Vec<String>| {
                    lines
                        .iter()
                        .filter(|l| l.contains("src.workload=client"))
                        .count()
                };
                let then = count(space.cluster.log(&nodes[1], "warren-node")?);
                space.get("client", URL).await?;
                tokio::time::sleep(std::time::Duration::from_millis(300)).await;
                let now = count(space.cluster.log(&nodes[1], "warren-node")?);
                ensure!(then == now, "flows are still captured");
                Ok(())
            })
            .await
    })
    .await
}

/// Each pod's uid and how often its containers were started again.
async fn identities(space: &Space) -> Result<Vec<(Value, Value)>> {
    let pods = space.json(&["get", "pods"]).await?;
    let items = pods["items"].as_array().cloned().unwrap_or_default();
    Ok(items
        .iter()
        .map(|p| {
            let restarts = p["status"]["containerStatuses"][0]["restartCount"].clone();
            (p["metadata"]["uid"].clone(), restarts)
        })
        .collect())
}
