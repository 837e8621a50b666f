//! The articles' rules for traffic in a cluster, word by word: who applies them needs nothing else.

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};
use mesh_tests::kube::{SAMPLES, SYSTEM, Space};
use serde_json::Value;

use super::{
    waypoint::{ask, programmed},
    workloads::ENROLLED,
};

/// Objects of the articles.
macro_rules! seed {
    ($name:literal) => {
        include_str!(concat!("../lab/seeds/", $name, ".yaml"))
    };
}

/// What the articles' rules are about.
const SERVICES: [&str; 5] = ["rating", "ratings", "reviews", "httpbin", "myapp"];

/// Subsets that an article has and does not show.
const SUBSETS: &str = "apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: NAME}
spec:
  host: NAME
  subsets:
  - {name: v1, labels: {version: v1}}
  - {name: v2, labels: {version: v2}}
";

/// Who asks for a subset of `reviews`; without, its bound is one on nothing.
const REVIEWS: &str = "apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: reviews}
spec: {hosts: [reviews], http: [{route: [{destination: {host: reviews, subset: v1}}]}]}
";

/// Two versions, one on each node, that stand for every service.
fn servers(nodes: &[String]) -> String {
    let version = |number: usize| {
        format!(
            "apiVersion: v1
kind: Pod
metadata: {{name: v{number}, labels: {{app: all, version: v{number}, app.kubernetes.io/version: v{number}.0.0}}}}
spec:
  nodeName: {}
  terminationGracePeriodSeconds: 1
  containers:
  - name: rating
    image: {SAMPLES}
    args: [rating, --port, '8080', --version, v{number}]
    readinessProbe: {{tcpSocket: {{port: 8080}}, periodSeconds: 1}}
",
            nodes[number - 1]
        )
    };
    let service = |name: &str| {
        format!(
            "apiVersion: v1
kind: Service
metadata: {{name: {name}}}
spec: {{selector: {{app: all}}, ports: [{{name: http, port: 8080}}]}}
"
        )
    };
    let mut all: Vec<String> = SERVICES.into_iter().map(service).collect();
    all.extend([version(1), version(2)]);
    all.join("---\n")
}

/// What stands for the images of the article on gRPC, which are not here; its Deployments get none of them to run.
fn goods(nodes: &[String]) -> String {
    let version = |number: usize| {
        format!(
            "apiVersion: v1
kind: Pod
metadata: {{name: goods-v{number}, labels: {{app: goods-service, version: v{number}}}}}
spec:
  nodeName: {}
  terminationGracePeriodSeconds: 1
  containers:
  - name: goods
    image: {SAMPLES}
    args: [grpc-echo, --port, '8053', --version, v{number}]
    readinessProbe: {{tcpSocket: {{port: 8053}}, periodSeconds: 1}}
",
            nodes[number - 1]
        )
    };
    [version(1), version(2)].join("---\n")
}

/// A rule of the namespace is in force by the waypoint that came for it, by itself.
async fn in_force(space: &Space, kind: &str, name: &str) -> Result<()> {
    let message = programmed(space, kind, name).await?;
    let waypoint = format!("waypoint {SYSTEM}/waypoint-{}", space.name);
    ensure!(message.contains(&waypoint), "{kind} {name}: {message}");
    Ok(())
}

/// The objects of the articles that are for clients of the mesh are programmed as they are, and do what they say.
pub async fn the_articles_rules_hold_in_a_cluster() -> Result<()> {
    Space::with("seeds", ENROLLED, async |space| {
        let nodes = space.cluster.nodes()?;
        space.apply(&servers(&nodes)).await?;
        space.apply(&goods(&nodes)).await?;
        space.apply(&Space::client("client", &nodes[1])).await?;
        for pod in ["v1", "v2", "client"] {
            space.ready(pod).await?;
        }
        space.apply(seed!("rating-subsets")).await?;
        // Out of 500; bounds that are missed once in a million times.
        for (what, rule, bounds) in [
            ("75/25", seed!("rating-75-25"), 328..=422),
            ("all to v1", seed!("rating-all-v1"), 500..=500),
            ("all to v2", seed!("rating-all-v2"), 0..=0),
        ] {
            space.apply(rule).await?;
            in_force(space, "virtualservice", "rating").await?;
            let (likely, count) = ((bounds.start() + bounds.end()) / 20, 50);
            space
                .cluster
                .until(what, 60, async || {
                    let (all, first) = ask(space, count).await?;
                    let near = first.abs_diff(likely) <= 15 && (likely > 0) == (first > 0);
                    let none_else = likely != 50 || first == 50;
                    ensure!(all == 50 && near && none_else, "{first} of {all}");
                    Ok(())
                })
                .await?;
            let (all, first) = ask(space, 500).await?;
            ensure!(
                all == 500 && bounds.contains(&first),
                "{what}: v1 gave {first} of {all}, and {bounds:?} were to be"
            );
            println!("{what}: v1 gave {first} of {all}");
        }
        // The second version fails every request: tries go to the other one, then it is left out.
        space.apply(seed!("rating-retry")).await?;
        in_force(space, "virtualservice", "rating").await?;
        let ip = space.json(&["get", "pod", "v2"]).await?["status"]["podIP"].clone();
        let url = format!(
            "http://{}:8080/rate/misbehave",
            ip.as_str().unwrap_or_default()
        );
        space.exec("client", &["curl", "-s", &url]).await?;
        space
            .cluster
            .until("retries", 60, async || {
                let (all, first) = ask(space, 40).await?;
                ensure!(all == 40 && first == 40, "{first} of {all}");
                Ok(())
            })
            .await?;
        space.apply(seed!("rating-circuit-breaker")).await?;
        in_force(space, "destinationrule", "rating").await?;
        space.apply(&SUBSETS.replace("NAME", "ratings")).await?;
        space.apply(&SUBSETS.replace("NAME", "httpbin")).await?;
        space.apply(REVIEWS).await?;
        for (kind, name, rule) in [
            (
                "virtualservice",
                "ratings",
                seed!("ratings-timeout-retries"),
            ),
            ("virtualservice", "ratings", seed!("ratings-delay")),
            ("virtualservice", "httpbin", seed!("httpbin-mirror")),
            ("virtualservice", "myapp", seed!("myapp")),
            ("virtualservice", "myapp", seed!("myapp-faults")),
            (
                "destinationrule",
                "reviews",
                seed!("reviews-circuit-breaker"),
            ),
        ] {
            space.apply(rule).await?;
            in_force(space, kind, name).await?;
            let url = format!("http://{name}:8080/rate/1");
            let words = [
                "curl",
                "-s",
                "-m",
                "20",
                "-o",
                "/dev/null",
                "-w",
                "%{http_code}",
                &url,
            ];
            let said = space.exec("client", &words).await?;
            // One of them fails one request in twenty, as it is to.
            let fine = said.out == "200" || name == "myapp" && said.out == "500";
            ensure!(fine, "{name}: {} {}", said.out, said.err);
        }
        grpc_goes_to_both(space).await
    })
    .await
}

/// Calls of every kind are carried to the one version and to the other.
async fn grpc_goes_to_both(space: &Space) -> Result<()> {
    space.apply(seed!("goods-canary")).await?;
    for kind in ["virtualservice", "destinationrule"] {
        in_force(space, kind, "goods-service").await?;
    }
    for pod in ["goods-v1", "goods-v2"] {
        space.ready(pod).await?;
    }
    let ask = ["/warren-sample", "ask", "grpc", "goods-service:8053"];
    let mut seen = BTreeSet::new();
    let both = async || {
        let said = space.exec("v1", &ask).await?;
        let answer: Value = serde_json::from_str(&said.out).with_context(|| said.err)?;
        seen.insert(answer["version"].to_string());
        ensure!(seen.len() == 2, "{seen:?} answered");
        Ok(())
    };
    let what = "answers of both versions";
    space.cluster.until(what, 60, both).await
}
