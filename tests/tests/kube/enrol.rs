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

/// A pod that forwards for others cannot be captured, and goes on without the mesh; one that begins to when it is captured
/// is refused, until that is over. An event at the pod says either, once.
pub async fn what_is_not_served_is_told_at_the_pod() -> Result<()> {
    Space::with("outside", "warren.dev/mesh: enabled", async |space| {
        let (cluster, nodes) = (&space.cluster, space.cluster.nodes()?);
        space.apply(&Space::server("web", &nodes[0])).await?;
        // Settings of a network are a privileged pod's to change.
        let client = |name: &str, node: &str| {
            let able = "name: shell, securityContext: {privileged: true},";
            Space::client(name, node).replace("name: shell,", able)
        };
        let aside = "labels: {warren.dev/mesh: disabled, ";
        let early = client("early", &nodes[0]).replace("labels: {", aside);
        space.apply(&early).await?;
        space.apply(&client("late", &nodes[1])).await?;
        space.rolled_out("deployment/web").await?;
        for name in ["early", "late"] {
            space.ready(name).await?;
            space.answers_outside(name, URL).await?;
            forward(space, name, true).await?;
        }
        space
            .kubectl(&["label", "pod", "early", "warren.dev/mesh-"])
            .await?;

        let permits = "warren.dev/allow-forwarded";
        let said = told(space, "early").await?;
        for words in ["cannot bring", "go on without the mesh", permits] {
            ensure!(said.contains(words), "no {words:?} in {said}");
        }
        ensure!(
            said.contains(&nodes[0]),
            "another node than its own: {said}"
        );
        space.get("early", URL).await?;
        let said = told(space, "late").await?;
        for words in ["cannot serve", "are refused", permits, &nodes[1]] {
            ensure!(said.contains(words), "no {words:?} in {said}");
        }
        ensure!(
            space.get("late", URL).await.is_err(),
            "a pod that forwards for others was served"
        );

        forward(space, "late", false).await?;
        let served = async || space.get("late", URL).await.map(drop);
        cluster.until("it to be served again", 20, served).await?;
        for name in ["early", "late"] {
            let events = not_captured(space, name).await?;
            ensure!(events.len() == 1, "{name}: {events:?}");
        }
        Ok(())
    })
    .await
}

/// Has a pod forward packets for others, or not.
async fn forward(space: &Space, pod: &str, on: bool) -> Result<()> {
    let script = format!(
        "echo {} > /proc/sys/net/ipv6/conf/all/forwarding",
        u8::from(on)
    );
    let said = space.exec(pod, &["sh", "-c", &script]).await?;
    ensure!(said.ok, "{pod}: {}{}", said.out, said.err);
    Ok(())
}

/// What is said at a pod that is not served.
async fn told(space: &Space, pod: &str) -> Result<String> {
    let what = format!("an event at {pod}");
    let look = async || {
        let events = not_captured(space, pod).await?;
        let first = events.first().and_then(|e| e["message"].as_str());
        let first = first.map(str::to_owned);
        first.ok_or_else(|| anyhow::anyhow!("there is none"))
    };
    space.cluster.until(&what, 40, look).await
}

/// Warnings that a pod is not captured.
async fn not_captured(space: &Space, pod: &str) -> Result<Vec<Value>> {
    let events = space.json(&["get", "events"]).await?;
    let all = events["items"].as_array().cloned().unwrap_or_default();
    let about = |e: &Value| e["involvedObject"]["name"] == pod && e["reason"] == "NotCaptured";
    Ok(all
        .into_iter()
        .filter(|e| about(e) && e["type"] == "Warning")
        .collect())
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
