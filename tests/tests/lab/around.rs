//! No way around a guarding waypoint: every way into a pod that demands one, other than through it, is refused by name.
//! Who is outside the mesh and dials what can be for one service only is led through it (`handed.rs`).

use anyhow::{Context, Result, ensure};
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
    let service = status.cluster_ip("web")?;
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
    // In the clear nobody says what it is for: what can be for the service only goes through its waypoint as well.
    let node = mesh_tests::lab::net::NodeIndex(1).ip();
    for host in [
        format!("{ip}:8080"),
        format!("{service}:8080"),
        format!("{node}:30080"),
    ] {
        let url = format!("http://{host}/rate/1?by={host}");
        ensure!(answered(&lab, "shop/outside", &url).await?, "{url}");
        let asked = format!("?by={host}");
        until("the waypoint's line", async || {
            let words = ["request complete", "response_code=200", &asked];
            let lines = lab.log_lines("warren-system/waypoint-shop", &words).await?;
            ensure!(lines.len() == 1, "{lines:?} for {host}");
            Ok(())
        })
        .await?;
    }
    let count = async |node: &str, words: [&str; 2]| {
        let lines = lab.node(node).flows(&words).await?;
        anyhow::Ok(lines.len())
    };
    let mut refused = 0;
    until("refusals by name", async || {
        refused = count("n1", ["direction=inbound", "reason=waypoint_required"]).await?;
        // A client's node remembers for a moment what was refused, and refuses the next of the kind itself.
        let again = ["connect() was refused", "reason=peer_denied"];
        let remembered = count("n1", again).await? + count("n2", again).await?;
        ensure!(
            refused >= 3 && refused + remembered >= ways.len(),
            "{refused} refusals are named and {remembered} remembered, for {} ways",
            ways.len()
        );
        Ok(())
    })
    .await?;
    println!("{} ways in, {refused} refusals by name", ways.len());
    let good = answered(&lab, "shop/client", "http://web:8080/rate/1").await?;
    ensure!(good, "the waypoint serves no longer");
    Ok(())
}

/// Services of type LoadBalancer over the guarded pod, and over one that nobody guards.
const BALANCED: &str = r#"
apiVersion: v1
kind: Pod
metadata: {name: open, namespace: shop, labels: {app: open}}
spec: {nodeName: n1, serviceAccountName: web, containers: [{name: a, image: 'rating-service:v1.0.0', ports: [{containerPort: 8080}]}]}
---
apiVersion: v1
kind: Service
metadata: {name: web-any, namespace: shop}
spec: {type: LoadBalancer, externalTrafficPolicy: Cluster, selector: {app: web}, ports: [{name: http, port: 8080}]}
status: {loadBalancer: {ingress: [{ip: 192.0.2.1}]}}
---
apiVersion: v1
kind: Service
metadata: {name: web-local, namespace: shop}
spec: {type: LoadBalancer, externalTrafficPolicy: Local, selector: {app: web}, ports: [{name: http, port: 8080}]}
status: {loadBalancer: {ingress: [{ip: 192.0.2.2}]}}
---
apiVersion: v1
kind: Service
metadata: {name: open-any, namespace: shop}
spec: {type: LoadBalancer, externalTrafficPolicy: Cluster, selector: {app: open}, ports: [{name: http, port: 8080}]}
status: {loadBalancer: {ingress: [{ip: 192.0.2.3}]}}
---
apiVersion: v1
kind: Service
metadata: {name: open-local, namespace: shop}
spec: {type: LoadBalancer, externalTrafficPolicy: Local, selector: {app: open}, ports: [{name: http, port: 8080}]}
status: {loadBalancer: {ingress: [{ip: 192.0.2.4}]}}
"#;

/// From outside the cluster, by a load balancer that hands on to either node, with the client's address or the node's.
pub async fn load_balancers_lead_past_no_waypoint() -> Result<()> {
    let lab = Lab::up(suite::spec()).await?;
    lab.apply(&[WORLD, BALANCED].join("---\n")).await?;
    lab.wait_ready(SOON).await?;
    let mut through = 0;
    let mut refused = 0;
    for (node, addresses) in [(1, [1, 2, 3, 4]), (2, [1, 2, 3, 4])] {
        let node_ip = mesh_tests::lab::net::NodeIndex(node).ip().to_string();
        let route = ["ip", "route", "replace", "192.0.2.0/24", "via", &node_ip];
        let set = lab.exec("fabric", &route).await?;
        ensure!(set.code == 0, "{set:?}");
        for last in addresses {
            let url = format!("http://192.0.2.{last}:8080/rate/1");
            // A node without a pod of the service takes nothing for it when clients keep their addresses.
            let expect = [1, 3].contains(&last) || node == 1;
            if expect {
                until("an answer", async || {
                    ensure!(answered(&lab, "fabric", &url).await?, "no answer by {url}");
                    Ok(())
                })
                .await?;
                through += 1;
            } else {
                ensure!(
                    !answered(&lab, "fabric", &url).await?,
                    "{url} by n{node} leads in"
                );
                refused += 1;
            }
        }
    }
    until("requests at the waypoint", async || {
        let words = ["request complete", "response_code=200"];
        let lines = lab.log_lines("warren-system/waypoint-shop", &words).await?;
        // From the client's own address by n1, and from that of a node by each.
        let from = |who: &str| {
            let src = format!("src.addr={who}:");
            lines.iter().filter(|l| l.contains(&src)).count()
        };
        let seen = [from("172.30.0.1"), from("172.30.0.11"), from("172.30.0.12")];
        ensure!(lines.len() >= 3 && seen[0] >= 1, "{seen:?} in {lines:#?}");
        Ok(())
    })
    .await?;
    println!("{through} ways in led through the waypoint or to the open pod, {refused} nowhere");
    Ok(())
}

/// One pod behind two services, each of which demands a waypoint of its own.
const TWICE: &str = r#"
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
metadata: {name: outside, namespace: shop, labels: {warren.dev/mesh: disabled}}
spec: {nodeName: n2, containers: [{name: c, image: idle}]}
---
apiVersion: v1
kind: Pod
metadata: {name: web, namespace: shop, labels: {app: web}}
spec: {nodeName: n1, serviceAccountName: web, containers: [{name: a, image: 'rating-service:v1.0.0', ports: [{containerPort: 8080}]}]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: wp-a, namespace: shop}
spec: {gatewayClassName: warren-waypoint, listeners: [{name: mesh, port: 15008, protocol: HBONE}]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: wp-b, namespace: shop}
spec: {gatewayClassName: warren-waypoint, listeners: [{name: mesh, port: 15008, protocol: HBONE}]}
---
apiVersion: v1
kind: Service
metadata: {name: one, namespace: shop, labels: {warren.dev/use-waypoint: wp-a, warren.dev/require-waypoint: "true"}}
spec: {selector: {app: web}, ports: [{name: http, port: 8080}]}
---
apiVersion: v1
kind: Service
metadata: {name: two, namespace: shop, labels: {warren.dev/use-waypoint: wp-b, warren.dev/require-waypoint: "true"}}
spec: {selector: {app: web}, ports: [{name: http, port: 8080}]}
---
apiVersion: v1
kind: Service
metadata: {name: free, namespace: shop}
spec: {selector: {app: web}, ports: [{name: http, port: 8080}]}
"#;

/// Each service goes through its own waypoint; what goes through none, also by a service that names none, is refused.
pub async fn a_pod_of_two_services_is_behind_both_waypoints() -> Result<()> {
    let lab = Lab::up(suite::spec()).await?;
    lab.apply(TWICE).await?;
    lab.wait_ready(SOON).await?;
    for service in ["one", "two"] {
        until("service through its waypoint", async || {
            let url = format!("http://{service}:8080/rate/1");
            let good = answered(&lab, "shop/client", &url).await?;
            ensure!(good, "no answer by {service}");
            Ok(())
        })
        .await?;
    }
    let ip = lab.status().await?.pod("shop/web")?.ip;
    for (pod, host) in [
        ("client", ip.to_string()),
        ("client", "free".to_owned()),
        ("outside", ip.to_string()),
    ] {
        let url = format!("http://{host}:8080/rate/1");
        let pod = format!("shop/{pod}");
        ensure!(!answered(&lab, &pod, &url).await?, "{pod} gets in by {url}");
    }
    for (waypoint, service) in [("wp-a", "one"), ("wp-b", "two")] {
        let pod = format!("shop/{waypoint}");
        let host = format!("dst.service={service}.shop.svc.cluster.local");
        until("the line of its own waypoint", async || {
            let own = lab.log_lines(&pod, &["request complete", &host]).await?;
            ensure!(!own.is_empty(), "{waypoint} did not see {service}");
            Ok(())
        })
        .await?;
        let all = lab.log_lines(&pod, &["request complete"]).await?;
        let own = all.iter().filter(|line| line.contains(&host)).count();
        ensure!(
            own == all.len(),
            "{waypoint} saw others' requests: {all:#?}"
        );
        println!("{waypoint}: {own} requests, all for {service}");
    }
    until("refusals by name", async || {
        let lines = lab.node("n1").access_log().await?;
        let named = lines.iter().filter(|l| l.contains("waypoint_required"));
        ensure!(named.count() >= 2, "{lines:#?}");
        Ok(())
    })
    .await
}

/// The client's node hears nothing while its destination comes to be guarded: what it sends straight there is refused there.
pub async fn a_node_that_has_not_heard_of_a_waypoint_leads_past_none() -> Result<()> {
    let lab = Lab::up(suite::spec()).await?;
    let label = ", labels: {warren.dev/require-waypoint: \"true\"}";
    lab.apply(&WORLD.replace(label, "")).await?;
    lab.wait_ready(SOON).await?;
    let url = "http://web:8080/rate/1";
    until("service without a waypoint", async || {
        ensure!(answered(&lab, "shop/client", url).await?, "no answer");
        Ok(())
    })
    .await?;
    // Names are resolved by what is on the fabric as well.
    let by_vip = format!(
        "http://{}:8080/rate/1",
        lab.status().await?.cluster_ip("web")?
    );
    let deaf = async |how: &str| {
        // What the controller sends to the node is lost; the nodes' own wire is another.
        let words = ["ip", "route", how, "blackhole", "172.30.0.12/32"];
        let set = lab.exec("fabric", &words).await?;
        ensure!(set.code == 0, "{set:?}");
        Ok(())
    };
    deaf("add").await?;
    ensure!(
        answered(&lab, "shop/client", &by_vip).await?,
        "a node that hears nothing serves no more"
    );
    lab.apply(WORLD).await?;
    until("a refusal at the server's node", async || {
        let good = answered(&lab, "shop/client", &by_vip).await?;
        ensure!(!good, "the pod answers");
        Ok(())
    })
    .await?;
    for _ in 0..5 {
        ensure!(
            !answered(&lab, "shop/client", &by_vip).await?,
            "a node that has not heard of the waypoint leads past it"
        );
    }
    let words = ["direction=inbound", "sa/client", "reason=waypoint_required"];
    let lines = lab.node("n1").flows(&words).await?;
    let refused = lines.last().context("no refusal by name")?;
    println!("the server's node: {refused}");
    deaf("del").await?;
    until("service through the waypoint", async || {
        ensure!(answered(&lab, "shop/client", &by_vip).await?, "no answer");
        Ok(())
    })
    .await
}
