//! The Gateway API's routes of connections and its classes, and spans of requests, as a cluster shows them.

use anyhow::{Context, Result, ensure};
use mesh_tests::kube::{SAMPLES, Space};
use serde_json::Value;

use super::{
    waypoint::{RULES, ask, ratings},
    workloads::ENROLLED,
};

/// A kind of the Gateway API's as far as it is needed here: users bring the Gateway API's own definitions.
fn defined(kind: &str, scope: &str, version: &str) -> String {
    let small = kind.to_lowercase();
    let plural = match small.ends_with('s') {
        true => format!("{small}es"),
        false => format!("{small}s"),
    };
    format!(
        "apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata:
  name: {plural}.gateway.networking.k8s.io
  annotations: {{api-approved.kubernetes.io: 'https://github.com/kubernetes-sigs/gateway-api'}}
spec:
  group: gateway.networking.k8s.io
  names: {{kind: {kind}, listKind: {kind}List, plural: {plural}, singular: {small}}}
  scope: {scope}
  versions:
  - name: {version}
    served: true
    storage: true
    subresources: {{status: {{}}}}
    schema:
      openAPIV3Schema: {{type: object, x-kubernetes-preserve-unknown-fields: true}}
---
"
    )
}

const CLASS: &str = "apiVersion: gateway.networking.k8s.io/v1
kind: GatewayClass
metadata: {name: warren-waypoint}
spec: {controllerName: warren.dev/waypoint}
";

/// Connections to `db` go to the second version, and those that ask by TLS for one name nowhere that there is.
const ROUTES: &str = "apiVersion: v1
kind: Service
metadata: {name: db}
spec: {selector: {app: rating}, ports: [{name: tcp-db, port: 5432, targetPort: 8080}, {name: tls-db, port: 443, targetPort: 8080}]}
---
apiVersion: v1
kind: Service
metadata: {name: db-v2}
spec: {selector: {version: v2}, ports: [{name: tcp-db, port: 5432, targetPort: 8080}]}
---
apiVersion: gateway.networking.k8s.io/v1alpha2
kind: TCPRoute
metadata: {name: second}
spec:
  parentRefs: [{group: '', kind: Service, name: db, port: 5432}]
  rules: [{backendRefs: [{name: db-v2, port: 5432}]}]
---
apiVersion: gateway.networking.k8s.io/v1alpha3
kind: TLSRoute
metadata: {name: named}
spec:
  parentRefs: [{group: '', kind: Service, name: db, port: 443}]
  hostnames: [one.example]
  rules: [{backendRefs: [{name: nobody, port: 5432}]}]
";

/// Have text where a list is to be: Istio's definitions and those above let everything pass.
const MALFORMED: &str = "apiVersion: gateway.networking.k8s.io/v1alpha2
kind: TCPRoute
metadata: {name: malformed}
spec:
  parentRefs: [{group: '', kind: Service, name: db, port: 5432}]
  rules: all
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: malformed}
spec: {hosts: [rating], http: all}
";

/// A collector and who is to tell it: every request of the namespace leaves a span.
fn spans(node: &str) -> String {
    format!(
        "apiVersion: v1
kind: Service
metadata: {{name: otel}}
spec: {{selector: {{app: otel}}, ports: [{{name: grpc-otlp, port: 4317}}]}}
---
apiVersion: v1
kind: Pod
metadata: {{name: otel, labels: {{app: otel}}}}
spec:
  nodeName: {node}
  terminationGracePeriodSeconds: 0
  containers:
  - {{name: otel, image: '{SAMPLES}', args: [collector], readinessProbe: {{tcpSocket: {{port: 4317}}, periodSeconds: 1}}}}
---
apiVersion: warren.dev/v1alpha1
kind: MeshConfig
metadata: {{name: mesh}}
spec:
  extensionProviders:
  - {{name: otel, opentelemetry: {{port: 4317, service: otel.routes.svc.cluster.local}}}}
---
apiVersion: telemetry.istio.io/v1
kind: Telemetry
metadata: {{name: all}}
spec: {{tracing: [{{providers: [{{name: otel}}], randomSamplingPercentage: 100}}]}}
"
    )
}

/// The status of a route's condition for its only parent, and who says so.
async fn condition(space: &Space, kind: &str, name: &str, condition: &str) -> Result<String> {
    let route = space.json(&["get", kind, name]).await?;
    let parent = route
        .pointer("/status/parents/0")
        .with_context(|| format!("{kind} {name} has no status"))?;
    ensure!(
        parent["controllerName"] == "warren.dev/waypoint",
        "{parent}"
    );
    let all = parent["conditions"].as_array().context("no conditions")?;
    let found = all.iter().find(|c| c["type"] == condition);
    let found = found.with_context(|| format!("no {condition} in {parent}"))?;
    Ok(format!("{} {}", found["status"], found["reason"]).replace('"', ""))
}

/// An object that cannot be read says so, as a condition and as an event, with the field.
async fn told_as_malformed(space: &Space) -> Result<()> {
    let object = space.json(&["get", "virtualservice", "malformed"]).await?;
    let conditions = object["status"]["conditions"].as_array();
    let accepted = conditions
        .context("no conditions")?
        .iter()
        .find(|c| c["type"] == "Accepted")
        .context("no condition Accepted")?;
    let message = accepted["message"].as_str().unwrap_or_default();
    ensure!(
        accepted["status"] == "False" && message.contains("spec.http"),
        "{accepted}"
    );
    let of = "involvedObject.kind=VirtualService,involvedObject.name=malformed";
    let events = space
        .kubectl(&["get", "events", "--field-selector", of])
        .await?;
    ensure!(
        events.contains("Invalid") && events.contains("spec.http"),
        "{events}"
    );
    // Of a route that cannot be read nobody knows the parents, at which its status would be.
    let of = "involvedObject.kind=TCPRoute,involvedObject.name=malformed";
    let events = space
        .kubectl(&["get", "events", "--field-selector", of])
        .await?;
    ensure!(events.contains("spec."), "{events}");
    Ok(())
}

/// A class is accepted, a TCPRoute leads where it says, a TLSRoute whose backend is not there says so, one that cannot be
/// read holds up no other, and requests leave spans at a collector in the mesh.
pub async fn routes_of_connections_classes_and_spans_are_honoured() -> Result<()> {
    Space::with("routes", ENROLLED, async |space| {
        let (cluster, nodes) = (&space.cluster, space.cluster.nodes()?);
        let kinds = [
            defined("GatewayClass", "Cluster", "v1"),
            defined("TCPRoute", "Namespaced", "v1alpha2"),
            defined("TLSRoute", "Namespaced", "v1alpha3"),
        ];
        cluster.apply(&kinds.concat()).await?;
        for kind in ["gatewayclasses", "tcproutes", "tlsroutes"] {
            let crd = format!("crd/{kind}.gateway.networking.k8s.io");
            cluster
                .kubectl(&["wait", "--for=condition=Established", &crd, "--timeout=20s"])
                .await?;
        }
        cluster.apply(CLASS).await?;
        space.apply(&ratings(&nodes)).await?;
        space.apply(&Space::client("client", &nodes[1])).await?;
        // Before the others: what comes after it is taken all the same.
        space.apply(MALFORMED).await?;
        space.apply(ROUTES).await?;
        for pod in ["v1", "v2", "client"] {
            space.ready(pod).await?;
        }
        let accepted = async || {
            let class = cluster
                .json(&["get", "gatewayclass", "warren-waypoint"])
                .await?;
            let all = class["status"]["conditions"]
                .as_array()
                .context("no conditions")?;
            ensure!(
                all.iter()
                    .any(|c| c["type"] == "Accepted" && c["status"] == "True"),
                "{all:?}"
            );
            Ok(())
        };
        // Definitions that appear are looked for now and then.
        cluster
            .until("the class to be accepted", 60, accepted)
            .await?;
        for (kind, name, resolved) in [
            ("tcproute", "second", "True ResolvedRefs"),
            ("tlsroute", "named", "False BackendNotFound"),
        ] {
            let told = async || {
                let got = condition(space, kind, name, "Accepted").await?;
                ensure!(got == "True Accepted", "Accepted: {got}");
                let got = condition(space, kind, name, "ResolvedRefs").await?;
                ensure!(got == resolved, "ResolvedRefs: {got}");
                Ok(())
            };
            cluster
                .until(&format!("the status of {kind} {name}"), 60, told)
                .await?;
        }
        cluster
            .until("what is said of a malformed object", 20, async || {
                told_as_malformed(space).await
            })
            .await?;
        let led = async || {
            let url = "http://db:5432/rate/[1-20]";
            let curl = ["curl", "-s", "-m", "20", "-H", "connection: close", url];
            let said = space.exec("client", &curl).await?;
            let (all, first) = (
                said.out.matches("\"rating\":").count(),
                said.out.matches("\"rating\":1}").count(),
            );
            ensure!(
                all == 20 && first == 0,
                "{first} of {all} came to the first version"
            );
            Ok(())
        };
        cluster
            .until("connections to be led to the second version", 60, led)
            .await?;

        space.apply(&spans(&nodes[0])).await?;
        space.apply(RULES).await?;
        space.ready("otel").await?;
        let left = async || {
            ask(space, 5).await?;
            let lines = cluster.log_of(&space.name, "otel")?;
            let read = lines
                .iter()
                .filter_map(|(_, l)| serde_json::from_str::<Value>(l).ok());
            let ours = |s: &Value| {
                s["name"] == "rating.routes.svc.cluster.local:8080/*"
                    && s["attributes"]["warren.source.workload"] == "client"
            };
            let mut spans = read.filter(ours);
            spans
                .next()
                .with_context(|| format!("no span of {} lines", lines.len()))
        };
        let span = cluster.until("a span", 60, left).await?;
        println!("{span}");
        ensure!(
            span["attributes"]["http.response.status_code"] == 200,
            "{span}"
        );
        Ok(())
    })
    .await
}
