//! No way around a guarding waypoint: every way into a pod that demands one, other than through it, is refused by name.

use anyhow::{Result, ensure};
use mesh_tests::lab::{Lab, suite};

use super::tunnel::{SOON, until};

/// A service that demands its waypoint, and a headless one over the same pod; clients within the mesh and outside it.
const WORLD: &str = r#"
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {warren.dev/mesh: enabled}}
---
apiVersion: v1
kind: Pod
metadata: {name: client, namespace: shop}
spec: {nodeName: n2, serviceAccountName: client, containers: [{name: c, image: idle}]}
---
apiVersion: v1
kind: Pod
metadata: {name: neighbour, namespace: shop}
spec: {nodeName: n1, serviceAccountName: client, containers: [{name: c, image: idle}]}
---
apiVersion: v1
kind: Pod
metadata: {name: outside, namespace: shop, labels: {warren.dev/mesh: disabled}}
spec: {nodeName: n2, containers: [{name: c, image: idle}]}
---
apiVersion: v1
kind: Pod
metadata: {name: web, namespace: shop, labels: {app: web}}
spec:
  nodeName: n1
  serviceAccountName: web
  hostname: web
  subdomain: web-each
  containers:
  - {name: a, image: 'rating-service:v1.0.0', ports: [{containerPort: 8080}]}
  - {name: b, image: 'rating-service:v1.0.0', env: [{name: PORT, value: '9090'}]}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop, labels: {warren.dev/require-waypoint: "true"}}
spec: {selector: {app: web}, ports: [{name: http, port: 8080, nodePort: 30080}], type: NodePort}
---
apiVersion: v1
kind: Service
metadata: {name: web-each, namespace: shop}
spec: {clusterIP: None, selector: {app: web}, ports: [{name: http, port: 8080}]}
"#;

/// Whether a pod was answered by a URL.
async fn answered(lab: &Lab, pod: &str, url: &str) -> Result<bool> {
    let ran = lab.exec(pod, &["curl", "-sS", "-m", "10", url]).await?;
    Ok(ran.out.contains("rating"))
}

/// Each way in is refused, and the server's node says why.
pub async fn every_way_past_a_waypoint_that_is_demanded_is_refused() -> Result<()> {
    let lab = Lab::up(suite::spec()).await?;
    lab.apply(WORLD).await?;
    lab.wait_ready(SOON).await?;
    until("service through the waypoint", async || {
        let good = answered(&lab, "shop/client", "http://web:8080/rate/1").await?;
        ensure!(good, "no answer");
        Ok(())
    })
    .await?;
    let status = lab.status().await?;
    let web = status.pod("shop/web")?.clone();
    let services = status.services.iter();
    let service = services
        .filter(|s| s.namespace == "shop" && s.name == "web")
        .flat_map(|s| &s.cluster_ips)
        .next()
        .cloned()
        .unwrap_or_default();
    let (ip, ip6) = (web.ip, web.ip6);
    let ways = [
        ("its address", "client", format!("http://{ip}:8080/rate/1")),
        (
            "its other address",
            "client",
            format!("http://[{ip6}]:8080/rate/1"),
        ),
        (
            "its address, on one node",
            "neighbour",
            format!("http://{ip}:8080/rate/1"),
        ),
        (
            "a headless name",
            "client",
            "http://web-each:8080/rate/1".to_owned(),
        ),
        (
            "its own name",
            "client",
            "http://web.web-each:8080/rate/1".to_owned(),
        ),
        (
            "a port of no service",
            "client",
            format!("http://{ip}:9090/rate/1"),
        ),
        (
            "in the clear, its address",
            "outside",
            format!("http://{ip}:8080/rate/1"),
        ),
        (
            "in the clear, its service",
            "outside",
            format!("http://{service}:8080/rate/1"),
        ),
        (
            "in the clear, a port of no service",
            "outside",
            format!("http://{ip}:9090/rate/1"),
        ),
    ];
    for (way, pod, url) in &ways {
        let pod = format!("shop/{pod}");
        ensure!(
            !answered(&lab, &pod, url).await?,
            "{way} leads in: {pod} {url}"
        );
    }
    let port = web_node_port(&lab).await?;
    ensure!(!port, "a node's port leads in");
    let count = async |node: &str, words: [&str; 2]| {
        let lines = lab.node(node).access_log().await?;
        let fits = |l: &&String| words.iter().all(|w| l.contains(w));
        anyhow::Ok(lines.iter().filter(fits).count())
    };
    let mut refused = 0;
    until("refusals by name", async || {
        refused = count("n1", ["direction=inbound", "reason=waypoint_required"]).await?;
        // A client's node remembers for a moment what was refused, and refuses the next of the kind itself.
        let again = ["connect() was refused", "reason=peer_denied"];
        let remembered = count("n1", again).await? + count("n2", again).await?;
        ensure!(
            refused >= 6 && refused + remembered >= ways.len(),
            "{refused} refusals are named and {remembered} remembered, for {} ways",
            ways.len()
        );
        Ok(())
    })
    .await?;
    println!("{} ways in, {refused} refusals by name", ways.len() + 1);
    let good = answered(&lab, "shop/client", "http://web:8080/rate/1").await?;
    ensure!(good, "the waypoint serves no longer");
    Ok(())
}

/// The server's node by its NodePort, from a pod outside the mesh.
async fn web_node_port(lab: &Lab) -> Result<bool> {
    let node = mesh_tests::lab::net::NodeIndex(1).ip();
    answered(lab, "shop/outside", &format!("http://{node}:30080/rate/1")).await
}
