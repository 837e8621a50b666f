//! Services of every kind, and who may reach what is behind them.

use std::time::Duration;

use anyhow::{Result, ensure};
use mesh_tests::kube::Space;
use tokio::time::sleep;

use super::workloads::{ENROLLED, STRICT};

/// Addresses that nobody has: a cloud would give them to load balancers.
const BALANCER: &str = "10.99.0.200";
const GUARDED: &str = "10.99.0.201";

/// What a cloud's load balancer sends to a node reaches the pods under PERMISSIVE: on every node, or where the service
/// wants its clients' addresses, on those with a pod of it; that pod then sees the client's own. Of a service that
/// demands a waypoint it reaches them by that.
pub async fn load_balancers_lead_in_by_either_policy() -> Result<()> {
    Space::with("balanced", ENROLLED, async |space| {
        let nodes = space.cluster.nodes()?;
        for (name, address) in [("web", BALANCER), ("guarded", GUARDED)] {
            balanced(space, name, address).await?;
        }
        for (policy, reached) in [("Cluster", [true, true]), ("Local", [true, false])] {
            let patch = format!("{{\"spec\":{{\"externalTrafficPolicy\":\"{policy}\"}}}}");
            space
                .kubectl(&["patch", "service", "web", "-p", &patch])
                .await?;
            for (node, reached) in nodes.iter().zip(reached) {
                let what = format!("{policy} by {node}: {reached}");
                space
                    .cluster
                    .until(&what, 20, async || {
                        let got = through(space, node, BALANCER).await?;
                        ensure!((got == "200") == reached, "{got}");
                        Ok(())
                    })
                    .await?;
            }
        }
        // The last that got in came by `Local`, with its own address.
        space
            .cluster
            .until_logged(
                &nodes[0],
                &[
                    "direction=inbound",
                    "src.addr=10.99.0.1:",
                    "dst.workload=web-",
                    "dst.namespace=balanced",
                ],
            )
            .await?;
        for node in &nodes {
            let what = format!("{node} to lead in by the waypoint");
            let led = async || {
                let got = through(space, node, GUARDED).await?;
                ensure!(got == "200", "{got}");
                Ok(())
            };
            space.cluster.until(&what, 60, led).await?;
        }
        let handed = ["direction=handed", "dst.service=guarded.balanced.svc"];
        space.cluster.until_logged(&nodes[0], &handed).await?;
        let past = space.cluster.log(&nodes[0], "warren-node")?;
        let is_past = |l: &&String| {
            let words = [
                "direction=inbound",
                "path=plain",
                "dst.workload=guarded-",
                "policy=allow",
            ];
            words.iter().all(|w| l.contains(w))
        };
        let past: Vec<_> = past.iter().filter(is_past).collect();
        ensure!(past.is_empty(), "past the waypoint: {past:?}");
        Ok(())
    })
    .await
}

/// A server on the first node with a service that is reached by a balancer's address; `guarded` is one that demands a
/// waypoint.
async fn balanced(space: &Space, name: &str, address: &str) -> Result<()> {
    let node = &space.cluster.nodes()?[0];
    let selector = format!("spec:\n  selector: {{app: {name}}}");
    let typed = selector.replace(
        "spec:\n",
        "spec:\n  type: LoadBalancer\n  externalTrafficPolicy: Cluster\n",
    );
    let mut server = Space::server(name, node).replace(&selector, &typed);
    if name == "guarded" {
        let demands = "labels: {warren.dev/require-waypoint: 'true'}";
        let plain = format!("metadata: {{name: {name}}}\nspec:\n  type");
        server = server.replace(&plain, &plain.replace("}\n", &format!(", {demands}}}\n")));
        ensure!(server.contains(demands), "{server}");
    }
    space.apply(&server).await?;
    space.rolled_out(&format!("deployment/{name}")).await?;
    let ingress =
        format!("{{\"status\":{{\"loadBalancer\":{{\"ingress\":[{{\"ip\":\"{address}\"}}]}}}}}}");
    space
        .kubectl(&[
            "patch",
            "service",
            name,
            "--subresource=status",
            "--type=merge",
            "-p",
            &ingress,
        ])
        .await
        .map(drop)
}

/// Asks a balancer's address from outside, which a node leads in; what curl calls the status.
async fn through(space: &Space, node: &str, balancer: &str) -> Result<String> {
    let path = "jsonpath={.status.addresses[?(@.type==\"InternalIP\")].address}";
    let ip = space
        .cluster
        .kubectl(&["get", "node", node, "-o", path])
        .await?;
    let route = |verb| ["ip", "route", verb, balancer, "via", &ip];
    let said = space.cluster.outside(&route("replace")).await?;
    ensure!(said.ok, "{}", said.err);
    let url = format!("http://{balancer}/status/200");
    let curl = [
        "curl",
        "-s",
        "-m",
        "2",
        "-o",
        "/dev/null",
        "-w",
        "%{http_code}",
        &url,
    ];
    let got = space.cluster.outside(&curl).await?;
    space.cluster.outside(&route("del")).await?;
    Ok(got.out)
}

/// A service that is a name for another leads there, over the mesh.
pub async fn external_names_lead_to_the_service_they_name() -> Result<()> {
    Space::with("alias", ENROLLED, async |space| {
        let nodes = space.cluster.nodes()?;
        space.apply(STRICT).await?;
        space.apply(&Space::server("web", &nodes[0])).await?;
        space.apply("apiVersion: v1\nkind: Service\nmetadata: {name: other}\nspec: {type: ExternalName, externalName: web.alias.svc.cluster.local}\n").await?;
        space.apply(&Space::client("client", &nodes[1])).await?;
        space.rolled_out("deployment/web").await?;
        space.ready("client").await?;
        space.cluster.until("an answer by the other name", 10, async || space.get("client", "http://other/status/200").await).await?;
        let words = ["src.namespace=alias", "dst.service=web.alias.svc.cluster.local", "mtls=true"];
        space.cluster.until_logged(&nodes[1], &words).await.map(drop)
    })
    .await
}

/// A pod of a service that ends gets no new request while others are ready, and answers those that it has; the last one
/// is asked until it has ended.
pub async fn a_terminating_endpoint_loses_no_request() -> Result<()> {
    Space::with("ending", ENROLLED, async |space| {
        let nodes = space.cluster.nodes()?;
        space.apply(STRICT).await?;
        let server = Space::server("web", &nodes[0])
            .replace(
                "spec:\n  selector: {matchLabels",
                "spec:\n  replicas: 3\n  selector: {matchLabels",
            )
            .replace(
                "terminationGracePeriodSeconds: 1",
                "terminationGracePeriodSeconds: 10",
            )
            .replace(
                "        image:",
                "        lifecycle: {preStop: {sleep: {seconds: 3}}}\n        image:",
            );
        space.apply(&server).await?;
        space.rolled_out("deployment/web").await?;
        for node in &nodes {
            space
                .apply(&Space::asker(node, node, "http://web/status/200"))
                .await?;
            space.is_answered(node).await?;
        }
        let before = [space.tally(&nodes[0])?, space.tally(&nodes[1])?];
        for _ in 0..2 {
            space
                .kubectl(&["rollout", "restart", "deployment/web"])
                .await?;
            space.rolled_out("deployment/web").await?;
        }
        for (node, before) in nodes.iter().zip(&before) {
            let seen = space.tally(node)?.since(before);
            println!("two rollouts of a service, {node}: {seen}");
            seen.flawless(50)?;
        }

        let scale = async |replicas: &str| {
            let told = ["scale", "deployment/web", "--replicas", replicas];
            space.kubectl(&told).await
        };
        scale("1").await?;
        let one = async || {
            let pods = space.json(&["get", "pods", "-l", "app=web"]).await?;
            let left = pods["items"].as_array().map_or(0, Vec::len);
            ensure!(left == 1, "{left} pods of web");
            Ok(())
        };
        space.cluster.until("only one pod of web", 30, one).await?;
        scale("0").await?;
        let ends = "--for=jsonpath={.metadata.deletionTimestamp}";
        space
            .kubectl(&["wait", "pod", "-l", "app=web", ends, "--timeout=5s"])
            .await?;
        let before = [space.tally(&nodes[0])?, space.tally(&nodes[1])?];
        // It is ready for three seconds more.
        sleep(Duration::from_secs(2)).await;
        for (node, before) in nodes.iter().zip(&before) {
            let seen = space.tally(node)?.since(before);
            println!("while the last endpoint ends, {node}: {seen}");
            seen.flawless(10)?;
        }
        Ok(())
    })
    .await
}

/// Two pods of one service account are one to a policy, and a pod of another account is not.
pub async fn pods_that_share_an_account_share_what_it_may() -> Result<()> {
    Space::with("accounts", ENROLLED, async |space| {
        let nodes = space.cluster.nodes()?;
        space.apply(STRICT).await?;
        space
            .apply("apiVersion: v1\nkind: ServiceAccount\nmetadata: {name: shared}\n")
            .await?;
        space
            .apply(
                "apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: shared-only}
spec:
  rules:
  - from: [{source: {principals: [cluster.local/ns/accounts/sa/shared]}}]
",
            )
            .await?;
        space.apply(&Space::server("web", &nodes[0])).await?;
        space.rolled_out("deployment/web").await?;
        let shares = |name: &str, node: &str| {
            Space::client(name, node).replace("spec:\n", "spec:\n  serviceAccountName: shared\n")
        };
        space.apply(&shares("one", &nodes[0])).await?;
        space.apply(&shares("other", &nodes[1])).await?;
        space.apply(&Space::client("stranger", &nodes[1])).await?;
        let url = "http://web/status/200";
        for pod in ["one", "other", "stranger"] {
            space.ready(pod).await?;
        }
        for pod in ["one", "other"] {
            space
                .cluster
                .until(&format!("{pod} to be let in"), 10, async || {
                    space.get(pod, url).await
                })
                .await?;
        }
        ensure!(
            space.get("stranger", url).await.is_err(),
            "another account was let in"
        );
        Ok(())
    })
    .await
}
