//! Objects that lead in circles: whatever points at what, a request passes one waypoint, once, and is answered.

use anyhow::{Context, Result, ensure};
use mesh_tests::lab::{Lab, suite};

use super::tunnel::{SOON, until};

/// A client on n2, and two servers that say which one they are.
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
metadata: {name: at-a, namespace: shop, labels: {app: a}}
spec: {nodeName: n1, serviceAccountName: a, containers: [{name: c, image: 'httpbin:1', ports: [{containerPort: 80}]}]}
---
apiVersion: v1
kind: Pod
metadata: {name: at-b, namespace: shop, labels: {app: b}}
spec: {nodeName: n2, serviceAccountName: b, containers: [{name: c, image: 'httpbin:1', ports: [{containerPort: 80}]}]}
"#;

/// The waypoints' names.
const WAYPOINTS: [&str; 2] = ["one", "two"];

/// A waypoint on a node.
fn waypoint(name: &str, node: &str) -> String {
    format!(
        r#"---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {{name: {name}, namespace: shop}}
spec:
  gatewayClassName: warren-waypoint
  listeners: [{{name: mesh, port: 15008, protocol: HBONE}}]
---
apiVersion: v1
kind: Pod
metadata: {{name: {name}, namespace: shop, labels: {{gateway.networking.k8s.io/gateway-name: {name}}}}}
spec:
  nodeName: {node}
  serviceAccountName: {name}
  containers:
  - name: c
    image: warren/waypoint
    readinessProbe: {{httpGet: {{port: 15020, path: /readyz}}, periodSeconds: 1}}
"#
    )
}

/// A service that goes through a waypoint, as its label says.
fn service(name: &str, through: &str, rest: &str) -> String {
    format!(
        "---\napiVersion: v1\nkind: Service\n\
         metadata: {{name: {name}, namespace: shop, labels: {{warren.dev/use-waypoint: {through}}}}}\nspec: {{{rest}}}\n"
    )
}

/// What both services and both waypoints go through.
fn choices([a, b]: [&str; 2], [one, two]: [&str; 2]) -> String {
    let app = |name: &str, through: &str| {
        let rest = format!("selector: {{app: {name}}}, ports: [{{name: http, port: 80}}]");
        service(name, through, &rest)
    };
    let gateway = |name: &str, through: &str| {
        let rest = format!(
            "selector: {{gateway.networking.k8s.io/gateway-name: {name}}}, ports: [{{name: hbone, port: 15008, appProtocol: hbone}}]"
        );
        service(name, through, &rest)
    };
    [
        app("a", a),
        app("b", b),
        gateway("one", one),
        gateway("two", two),
    ]
    .concat()
}

/// Routes from one host to another.
fn route(from: &str, to: &str) -> String {
    format!(
        "---\napiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: {from}, namespace: shop}}\n\
         spec: {{hosts: [{from}], http: [{{route: [{{destination: {{host: {to}}}}}]}}]}}\n"
    )
}

/// Asks a host and expects an answer of this server, by way of this waypoint only, in one pass.
async fn passes(lab: &Lab, round: usize, host: &str, server: &str, through: &str) -> Result<()> {
    let path = format!("/?round-{round}-{host}");
    let url = format!("http://{host}{path}");
    let mut asked = 0;
    // Until what was applied has come everywhere; only the last request is looked at.
    let mut mark = String::new();
    until("the answer", async || {
        asked += 1;
        mark = format!("{path}-{asked}");
        let ran = lab
            .exec(
                "shop/client",
                &["curl", "-sS", "-m", "5", &format!("{url}-{asked}")],
            )
            .await?;
        let answer = format!("hello from {server} ");
        ensure!(ran.out.starts_with(&answer), "{url}: {ran:?}");
        let lines = lines(lab, through, &mark).await?;
        ensure!(
            !lines.is_empty(),
            "waypoint {through} has no line of {mark}"
        );
        Ok(())
    })
    .await?;
    let mut all = Vec::new();
    for waypoint in WAYPOINTS {
        all.extend(lines(lab, waypoint, &mark).await?);
    }
    ensure!(all.len() == 1 && all[0].contains("attempts=1"), "{all:#?}");
    Ok(())
}

async fn lines(lab: &Lab, waypoint: &str, mark: &str) -> Result<Vec<String>> {
    let path = format!("path={mark} ");
    let words = ["request complete", &path];
    lab.log_lines(&format!("shop/{waypoint}"), &words).await
}

/// Waypoints that go through themselves and each other, services through each other's waypoints, routes to whom routes back.
pub async fn whatever_points_at_what_a_request_passes_once() -> Result<()> {
    let lab = Lab::up(suite::spec()).await?;
    let straight = ["one", "two"];
    let crossed = ["two", "one"];
    let own = choices(straight, straight);
    let world = [WORLD, &waypoint("one", "n1"), &waypoint("two", "n2"), &own];
    lab.apply(&world.concat()).await?;
    lab.wait_ready(SOON).await?;
    // What the services go through, what the waypoints do, and whether routes lead there and back.
    let rows = [
        ("waypoints through themselves", straight, straight, false),
        ("waypoints through each other", straight, crossed, false),
        ("services through each other's", crossed, crossed, false),
        ("routes at one waypoint", ["one", "one"], straight, true),
        ("routes at two waypoints", straight, crossed, true),
    ];
    for (round, (what, services, waypoints, routed)) in rows.into_iter().enumerate() {
        lab.apply(&choices(services, waypoints)).await?;
        if routed {
            lab.apply(&[route("a", "b"), route("b", "a")].concat())
                .await?;
        }
        for (host, other, through) in [("a", "b", services[0]), ("b", "a", services[1])] {
            let server = if routed { other } else { host };
            passes(&lab, round, host, &format!("at-{server}"), through)
                .await
                .with_context(|| what.to_owned())?;
        }
        println!("{what}: both hosts are answered in one pass");
    }
    Ok(())
}
