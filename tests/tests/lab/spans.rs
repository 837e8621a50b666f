//! Spans of requests through a waypoint, as a collector in the mesh gets them: Istio's objects, unchanged.

use anyhow::{Context, Result, ensure};
use mesh_tests::lab::{Lab, node::sum_metric, suite};
use serde_json::Value;

use super::tunnel::{SOON, until};

const WORLD: &str = r#"
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {warren.dev/mesh: enabled}}
---
apiVersion: v1
kind: Namespace
metadata: {name: observability, labels: {warren.dev/mesh: enabled}}
---
apiVersion: v1
kind: Pod
metadata: {name: client, namespace: shop}
spec: {nodeName: n2, serviceAccountName: client, containers: [{name: c, image: idle}]}
---
apiVersion: v1
kind: Pod
metadata: {name: server, namespace: shop, labels: {app: server}}
spec: {nodeName: n2, serviceAccountName: server, containers: [{name: c, image: httpbin, ports: [{containerPort: 80}]}]}
---
apiVersion: v1
kind: Service
metadata: {name: server, namespace: shop, labels: {warren.dev/use-waypoint: waypoint}}
spec: {selector: {app: server}, ports: [{name: http, port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: otel-collector, namespace: observability}
spec: {selector: {app: otel}, ports: [{name: grpc-otlp, port: 4317}]}
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: strict, namespace: observability}
spec: {mtls: {mode: STRICT}}
---
apiVersion: warren.dev/v1alpha1
kind: MeshConfig
metadata: {name: mesh, namespace: warren-system}
spec:
  extensionProviders:
  - name: otel-tracing
    opentelemetry: {port: 4317, service: otel-collector.observability.svc.cluster.local}
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: waypoint, namespace: shop}
spec:
  gatewayClassName: warren-waypoint
  listeners: [{name: mesh, port: 15008, protocol: HBONE}]
"#;

const COLLECTOR: &str = r#"
apiVersion: v1
kind: Pod
metadata: {name: otel, namespace: observability, labels: {app: otel}}
spec: {nodeName: n2, containers: [{name: c, image: 'otel/opentelemetry-collector:0.100.0', ports: [{containerPort: 4317}]}]}
"#;

/// From Istio's documentation, but for the share.
fn telemetry(percent: u32) -> String {
    format!(
        "apiVersion: telemetry.istio.io/v1\nkind: Telemetry\nmetadata: {{name: otel-demo, namespace: shop}}\nspec:\n  \
         tracing:\n  - providers:\n    - name: otel-tracing\n    randomSamplingPercentage: {percent}\n"
    )
}

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const PARENT: &str = "b7ad6b7169203331";

/// Asks for the headers that the server sees.
async fn headers(lab: &Lab, path: &str, more: &[&str]) -> Result<Value> {
    let url = format!("http://server{path}");
    let mut words = vec!["curl", "-sS", "-m", "20"];
    more.iter().for_each(|header| words.extend(["-H", header]));
    words.push(&url);
    let ran = lab.exec("shop/client", &words).await?;
    let answer: Value = serde_json::from_str(&ran.out).with_context(|| format!("{ran:?}"))?;
    Ok(answer["headers"].clone())
}

/// What the collector got of a path.
async fn spans(lab: &Lab, path: &str) -> Result<Vec<Value>> {
    let path = format!("\"url.path\":{path:?}");
    let lines = lab.log_lines("observability/otel", &[&path]).await?;
    let read = lines.iter().map(|line| serde_json::from_str(line));
    read.collect::<Result<_, _>>()
        .context("a line of the collector's")
}

/// A trace goes on through the waypoint, whose span the collector gets through the mesh; one begins where the client sent
/// none and everything is sampled.
pub async fn a_waypoint_is_a_span_in_its_clients_trace() -> Result<()> {
    let lab = Lab::up(suite::spec()).await?;
    lab.apply(&[WORLD, COLLECTOR, &telemetry(0)].join("---\n"))
        .await?;
    lab.wait_ready(SOON).await?;
    let parent = format!("traceparent: 00-{TRACE}-{PARENT}-01");
    let went = std::cell::RefCell::new(Value::Null);
    until("a context that the waypoint has changed", async || {
        let seen = headers(&lab, "/anything/given", &[&parent]).await?;
        let context = seen["traceparent"].as_str().unwrap_or_default().to_owned();
        ensure!(context.starts_with(&format!("00-{TRACE}-")), "{seen}");
        ensure!(!context.contains(PARENT), "not yet ours: {seen}");
        went.replace(seen["traceparent"].clone());
        Ok(())
    })
    .await?;
    let went = went.into_inner();
    let ours = &went.as_str().context("text")?[36..52];
    until("the span of a given trace", async || {
        let all = spans(&lab, "/anything/given").await?;
        let span = all.iter().find(|s| s["span"] == ours);
        let span = span.with_context(|| format!("no span {ours} in {all:?}"))?;
        ensure!(span["trace"] == TRACE && span["parent"] == PARENT, "{span}");
        ensure!(
            span["name"] == "server.shop.svc.cluster.local:80/*",
            "{span}"
        );
        let said = &span["attributes"];
        ensure!(said["http.response.status_code"] == 200, "{span}");
        ensure!(said["warren.source.workload"] == "client", "{span}");
        ensure!(said["istio.canonical_service"] == "server", "{span}");
        println!("{span}");
        Ok(())
    })
    .await?;
    // Nobody has decided, and nothing is sampled.
    let seen = headers(&lab, "/anything/silent", &[]).await?;
    let context = seen["traceparent"].as_str().unwrap_or_default();
    ensure!(context.ends_with("-00"), "{seen}");
    lab.apply(&telemetry(100)).await?;
    until("a trace that begins at the waypoint", async || {
        let seen = headers(&lab, "/anything/sampled", &[]).await?;
        let context = seen["traceparent"].as_str().unwrap_or_default();
        ensure!(context.ends_with("-01"), "{seen}");
        let all = spans(&lab, "/anything/sampled").await?;
        let root = all.iter().find(|s| s["parent"] == "");
        let root = root.with_context(|| format!("no root in {all:?}"))?;
        ensure!(root["resource"]["k8s.namespace.name"] == "shop", "{root}");
        Ok(())
    })
    .await?;
    ensure!(
        spans(&lab, "/anything/silent").await?.is_empty(),
        "a span of what is not sampled"
    );
    let status = lab.status().await?;
    let pods = status
        .pods
        .iter()
        .map(|p| format!("{}/{}", p.namespace, p.name));
    let waypoint = pods
        .into_iter()
        .find(|name| name.starts_with("shop/waypoint"));
    let metrics = lab
        .waypoint_metrics(&waypoint.context("the waypoint's pod")?)
        .await?;
    let sent = sum_metric(&metrics, "warren_spans_total", &[("result", "exported")]);
    ensure!(sent >= 2.0, "{sent} spans counted:\n{metrics}");
    // The collector takes nothing that did not come through the mesh, so these did; a flow is logged when it ends.
    lab.delete(COLLECTOR).await?;
    let words = [
        "direction=inbound",
        "dst.workload=otel",
        "sa/waypoint",
        "mtls=true",
    ];
    println!(
        "the collector's node: {}",
        lab.until_logged("n2", &words).await?
    );
    Ok(())
}
