//! Two controllers, as the profile for clusters of more than one node has them.

use anyhow::{Context, Result, ensure};
use mesh_tests::kube::{SYSTEM, Said, Space};
use serde_json::json;

use super::workloads::{ENROLLED, STRICT};

const URL: &str = "http://web/status/200";
const NAMED: &str = "app.kubernetes.io/name=warren-controller";
/// What makes one controller two that may not both be evicted.
const TWO: [&str; 2] = [
    "--set",
    "controller.replicas=2,controller.disruptionBudget=true",
];
/// Nobody is let in to the server `closed`.
const NOBODY: &str = "apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: nobody}
spec: {selector: {matchLabels: {app: closed}}}
";

/// Has two controllers run. They stay for tests that come later; installing with the profile `minimal` takes one away.
pub async fn two_controllers(space: &Space) -> Result<()> {
    space.cluster.upgrade(&TWO).await
}

/// The replica that leads.
async fn leader(space: &Space) -> Result<String> {
    let lease = [
        "-n",
        SYSTEM,
        "get",
        "lease",
        "warren-controller",
        "-o",
        "jsonpath={.spec.holderIdentity}",
    ];
    space.cluster.kubectl(&lease).await
}

/// Asks that a pod go, as somebody does who empties a node.
async fn evict(space: &Space, pod: &str) -> Result<Said> {
    let path = format!("/api/v1/namespaces/{SYSTEM}/pods/{pod}/eviction");
    let eviction = json!({
        "apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": pod, "namespace": SYSTEM},
    });
    let create = ["create", "--raw", &path, "-f", "-"];
    space
        .cluster
        .kubectl_with(&create, &eviction.to_string())
        .await
}

/// The controllers live on both nodes. The one that leads is evicted, and the other is not while it is alone: it leads,
/// what is written then takes effect, and no request fails.
pub async fn an_evicted_leader_is_followed_and_no_request_fails() -> Result<()> {
    Space::with("evicted", ENROLLED, async |space| {
        let (cluster, nodes) = (&space.cluster, space.cluster.nodes()?);
        two_controllers(space).await?;
        space.apply(STRICT).await?;
        for server in ["web", "closed"] {
            space.apply(&Space::server(server, &nodes[0])).await?;
        }
        let closed = "http://closed/status/200";
        for (asker, node, url) in [("here", 0, URL), ("there", 1, URL), ("barred", 1, closed)] {
            space.apply(&Space::asker(asker, &nodes[node], url)).await?;
        }
        for asker in ["here", "there", "barred"] {
            space.is_answered(asker).await?;
        }
        let before = [space.tally("here")?, space.tally("there")?];
        let pods = cluster
            .json(&["-n", SYSTEM, "get", "pods", "-l", NAMED])
            .await?;
        let pods = pods["items"].as_array().context("no list")?;
        let places: Vec<_> = pods.iter().map(|p| &p["spec"]["nodeName"]).collect();
        ensure!(
            places.len() == 2 && places[0] != places[1],
            "they run on {places:?}"
        );
        let first = leader(space).await?;
        let names: Vec<&str> = pods
            .iter()
            .filter_map(|p| p["metadata"]["name"].as_str())
            .collect();
        let is_first = |name: &&&str| first.contains(**name);
        let evicted = names
            .iter()
            .find(is_first)
            .with_context(|| format!("{first} is none of {names:?}"))?;
        let other = names.iter().find(|n| *n != evicted).context("another")?;

        let said = evict(space, evicted).await?;
        ensure!(said.ok, "{}", said.err);
        let said = evict(space, other).await?;
        ensure!(
            !said.ok && said.err.contains("disruption budget"),
            "{}{}",
            said.out,
            said.err
        );
        let followed = async || {
            let now = leader(space).await?;
            ensure!(now != first && !now.is_empty(), "{now:?} leads");
            Ok(now)
        };
        let now = cluster.until("another leader", 30, followed).await?;
        println!("{first} was evicted, and {now} leads");
        space.apply(NOBODY).await?;
        let at = space.tally("barred")?;
        let refused = async || {
            let seen = space.tally("barred")?.since(&at);
            let last = seen.failed.len() >= 20;
            ensure!(last, "{seen}");
            Ok(())
        };
        cluster.until("barred to be refused", 20, refused).await?;
        let written = async || {
            let policy = space
                .json(&["get", "authorizationpolicy", "nobody"])
                .await?;
            let conditions = policy["status"]["conditions"]
                .as_array()
                .context("no status")?;
            let programmed = conditions
                .iter()
                .any(|c| c["type"] == "Programmed" && c["status"] == "True");
            ensure!(programmed, "{}", policy["status"]);
            Ok(())
        };
        cluster
            .until("the new leader to write a status", 20, written)
            .await?;
        let rollout = [
            "-n",
            SYSTEM,
            "rollout",
            "status",
            "deployment/warren-controller",
            "--timeout=60s",
        ];
        cluster.kubectl(&rollout).await?;
        for (asker, before) in ["here", "there"].iter().zip(&before) {
            let seen = space.tally(asker)?.since(before);
            println!("while the leader was evicted, {asker}: {seen}");
            seen.flawless(100)?;
        }
        Ok(())
    })
    .await
}
