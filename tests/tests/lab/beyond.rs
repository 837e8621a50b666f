//! Routes that lead to services of other namespaces: past their waypoints, straight to their endpoints, as the waypoint's own.

use anyhow::{Context, Result, ensure};
use mesh_tests::lab::{Lab, suite};

use super::tunnel::{SOON, until};

/// A client, a service whose requests are sent elsewhere, and two services of another team.
const WORLD: &str = r#"
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {warren.dev/mesh: enabled}}
---
apiVersion: v1
kind: Namespace
metadata: {name: team, labels: {warren.dev/mesh: enabled}}
---
apiVersion: v1
kind: Pod
metadata: {name: client, namespace: shop}
spec: {nodeName: n1, serviceAccountName: client, containers: [{name: c, image: idle}]}
---
apiVersion: v1
kind: Pod
metadata: {name: here, namespace: shop, labels: {app: a}}
spec: {nodeName: n1, serviceAccountName: a, containers: [{name: c, image: 'httpbin:1', ports: [{containerPort: 80}]}]}
---
apiVersion: v1
kind: Pod
metadata: {name: there, namespace: team, labels: {app: b}}
spec: {nodeName: n2, serviceAccountName: b, containers: [{name: c, image: 'httpbin:1', ports: [{containerPort: 80}]}]}
---
apiVersion: v1
kind: Service
metadata: {name: a, namespace: shop}
spec: {selector: {app: a}, ports: [{name: http, port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: r, namespace: shop}
spec: {selector: {app: a}, ports: [{name: http, port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: b, namespace: team}
spec: {selector: {app: b}, ports: [{name: http, port: 80}]}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: a, namespace: shop}
spec: {hosts: [a], http: [{route: [{destination: {host: b.team.svc.cluster.local}}]}]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: r, namespace: shop}
spec:
  parentRefs: [{group: '', kind: Service, name: r}]
  rules: [{backendRefs: [{name: b, namespace: team, port: 80}]}]
---
apiVersion: gateway.networking.k8s.io/v1beta1
kind: ReferenceGrant
metadata: {name: shop, namespace: team}
spec:
  from: [{group: gateway.networking.k8s.io, kind: HTTPRoute, namespace: shop}]
  to: [{group: '', kind: Service}]
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: default, namespace: team}
spec: {mtls: {mode: STRICT}}
"#;

/// Rules of the other team for its own service, which bring it a waypoint.
const THEIRS: &str = "---\napiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: b, namespace: team}\n\
    spec: {hosts: [b], http: [{headers: {response: {set: {x-by: team}}}, route: [{destination: {host: b}}]}]}\n";

/// What the other team lets in.
fn allow(principal: &str) -> String {
    format!(
        "---\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: only, namespace: team}}\n\
         spec: {{action: ALLOW, rules: [{{from: [{{source: {{principals: [cluster.local/ns/{principal}]}}}}]}}]}}\n"
    )
}

/// Asks until this is answered.
async fn answers(lab: &Lab, host: &str, expect: &str) -> Result<()> {
    until(&format!("{host}: {expect}"), async || {
        let url = format!("http://{host}/");
        let ran = lab
            .exec("shop/client", &["curl", "-sSi", "-m", "5", &url])
            .await?;
        ensure!(ran.out.contains(expect), "{ran:?}");
        // Their rules are for who asks for their service.
        ensure!(
            !ran.out.contains("x-by") || host.starts_with("b."),
            "{ran:?}"
        );
        Ok(())
    })
    .await
}

/// A route of either API to another team's service is followed, with and without a waypoint of theirs, and their policies
/// mean the waypoint.
pub async fn routes_lead_to_other_teams_as_the_waypoints_own() -> Result<()> {
    let lab = Lab::up(suite::spec()).await?;
    lab.apply(WORLD).await?;
    lab.wait_ready(SOON).await?;
    for theirs in [false, true] {
        if theirs {
            lab.apply(THEIRS).await?;
            answers(&lab, "b.team", "x-by: team").await?;
        }
        for host in ["a", "r"] {
            answers(&lab, host, "hello from there ").await?;
        }
        lab.apply(&allow("shop/sa/client")).await?;
        for host in ["a", "r"] {
            answers(&lab, host, "RBAC: access denied").await?;
        }
        answers(&lab, "b.team", "hello from there ").await?;
        lab.apply(&allow("warren-system/sa/waypoint-shop")).await?;
        for host in ["a", "r"] {
            answers(&lab, host, "hello from there ").await?;
        }
        lab.delete(&allow("warren-system/sa/waypoint-shop")).await?;
        println!("with rules of theirs: {theirs}: followed, and let in by the waypoint's name");
    }
    let words = [
        "direction=inbound",
        "src.identity=spiffe://cluster.local/ns/warren-system/sa/waypoint-shop ",
    ];
    let lines = lab.node("n2").flows(&words).await?;
    let last = lines.last().context("no flow of the waypoint's own")?;
    ensure!(!last.contains("via="), "{last}");
    println!("the server's node: {last}");
    // The other team's waypoint saw who asked for `b`, and nobody else.
    let seen = lab
        .log_lines("warren-system/waypoint-team", &["request complete"])
        .await?;
    ensure!(
        !seen.is_empty() && seen.iter().all(|l| l.contains("authority=b.team")),
        "{seen:#?}"
    );
    Ok(())
}
