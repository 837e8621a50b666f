//! Connections that carry no requests: where routes of the Gateway API send them, and when destinations end them.

use std::collections::BTreeMap;

use anyhow::{Result, ensure};
use mesh_tests::lab::{Lab, suite};

use super::{
    tunnel::{SOON, until},
    waypoint::bounds,
};

/// A client on n2, two servers that are told apart by what they say, and a service of its own for each.
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
metadata: {name: v1, namespace: shop, labels: {app: db, version: v1}}
spec: {nodeName: n1, serviceAccountName: db, containers: [{name: c, image: 'rating-service:v1.0.0', ports: [{containerPort: 8080}]}]}
---
apiVersion: v1
kind: Pod
metadata: {name: v2, namespace: shop, labels: {app: db, version: v2}}
spec: {nodeName: n2, serviceAccountName: db, containers: [{name: c, image: 'rating-service:v2.0.0', ports: [{containerPort: 8080}]}]}
---
apiVersion: v1
kind: Service
metadata: {name: db, namespace: shop}
spec: {selector: {app: db}, ports: [{name: tcp, port: 5432, targetPort: 8080}, {name: tls, port: 443, targetPort: 8080}]}
---
apiVersion: v1
kind: Service
metadata: {name: db-v1, namespace: shop}
spec: {selector: {app: db, version: v1}, ports: [{name: tcp, port: 5432, targetPort: 8080}]}
---
apiVersion: v1
kind: Service
metadata: {name: db-v2, namespace: shop}
spec: {selector: {app: db, version: v2}, ports: [{name: tcp, port: 5432, targetPort: 8080}]}
"#;

/// A quarter of the connections goes to v2; of those that ask for a name, each where its name says.
const ROUTES: &str = r#"
apiVersion: gateway.networking.k8s.io/v1alpha2
kind: TCPRoute
metadata: {name: db, namespace: shop}
spec:
  parentRefs: [{group: "", kind: Service, name: db, sectionName: tcp}]
  rules: [{backendRefs: [{name: db-v1, port: 5432, weight: 75}, {name: db-v2, port: 5432, weight: 25}]}]
---
apiVersion: gateway.networking.k8s.io/v1alpha3
kind: TLSRoute
metadata: {name: one, namespace: shop}
spec:
  parentRefs: [{group: "", kind: Service, name: db, port: 443}]
  hostnames: [one.example]
  rules: [{backendRefs: [{name: db-v1, port: 5432}]}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: TLSRoute
metadata: {name: two, namespace: shop}
spec:
  parentRefs: [{group: "", kind: Service, name: db, port: 443}]
  hostnames: ["*.two.example"]
  rules: [{backendRefs: [{name: db-v2, port: 5432}]}]
"#;

/// The waypoint that the namespace gets.
const MADE: &str = "warren-system/waypoint-shop";

/// How many of so many connections, one for each request, were answered by v1 and by anybody.
async fn split(lab: &Lab, n: u32) -> Result<(u32, u32)> {
    let url = format!("http://db:5432/rate/[1-{n}]");
    let close = "connection: close";
    let words = ["curl", "-sS", "-m", "50", "-H", close, "-w", "\n", &url];
    let ran = lab.exec("shop/client", &words).await?;
    let of = |text: &str| u32::try_from(ran.out.lines().filter(|l| l.contains(text)).count());
    Ok((of("{\"rating\":1}")?, of("\"rating\"")?))
}

/// TCPRoute and TLSRoute on a service: a waypoint appears, weights are kept, names lead where they say.
pub async fn connections_are_routed_by_weight_and_by_name() -> Result<()> {
    let lab = Lab::up(suite::spec()).await?;
    lab.apply(WORLD).await?;
    lab.wait_ready(SOON).await?;
    lab.apply(ROUTES).await?;
    let through = async |words: &[&str]| {
        let lines = lab.log_lines(MADE, words).await.unwrap_or_default();
        anyhow::Ok(lines.len())
    };
    until("connections through the waypoint", async || {
        let (_, all) = split(&lab, 4).await?;
        let lines = through(&["direction=through", "connection complete"]).await?;
        ensure!(all == 4 && lines >= 4, "{all} answers, {lines} lines");
        Ok(())
    })
    .await?;
    let (first, all) = split(&lab, 400).await?;
    let expected = bounds(400, 0.75);
    println!("v1 took {first} of {all} connections, bounds {expected:?}");
    ensure!(
        all == 400 && expected.contains(&first),
        "{first} of {all} connections went to v1; expected {expected:?}"
    );
    // The servers speak no TLS: that a hello came to the right one is what the waypoint tells.
    let status = lab.status().await?;
    let vip = status.cluster_ip("db")?;
    let mut seen = BTreeMap::new();
    for (name, expect) in [
        ("one.example", "dst.workload=v1"),
        ("deep.in.two.example", "dst.workload=v2"),
        ("other.example", "reason=no_endpoints"),
    ] {
        let resolve = format!("{name}:443:{vip}");
        let url = format!("https://{name}/");
        let words = ["curl", "-sSk", "-m", "5", "--resolve", &resolve, &url];
        // A hello is longer than what was asked before, of which the last lines may still be written.
        let hellos = async || {
            let words = ["direction=through", expect];
            let lines = lab.log_lines(MADE, &words).await?;
            let sent = |l: &String| {
                let (_, after) = l.split_once("bytes_sent=")?;
                after.split(' ').next()?.parse::<u64>().ok()
            };
            let refused = expect.starts_with("reason");
            let mine = |l: &&String| refused || sent(l).is_some_and(|bytes| bytes > 200);
            anyhow::Ok(lines.iter().filter(mine).count())
        };
        let before = hellos().await?;
        for _ in 0..5 {
            lab.exec("shop/client", &words).await?;
        }
        until("lines of the waypoint", async || {
            let lines = hellos().await?;
            ensure!(lines >= before + 5, "{name}: {lines} lines with {expect}");
            seen.insert(name, lines - before);
            Ok(())
        })
        .await?;
    }
    println!("by name: {seen:?}");
    ensure!(seen.values().all(|lines| *lines == 5), "{seen:?}");
    Ok(())
}

/// What node proxies keep to.
const BOUNDED: &str = r#"
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: db, namespace: shop}
spec:
  host: db
  trafficPolicy: {connectionPool: {tcp: {maxConnections: 2, idleTimeout: 2s}}}
"#;

/// Says nothing on a connection and waits for its end; the seconds until then.
const SILENT: &str = r#"
import socket, sys, time
s = socket.create_connection((sys.argv[1], 5432), 5)
s.settimeout(20)
began = time.time()
try:
    end = s.recv(1)
    print("closed" if end == b"" else "said", round(time.time() - began, 1))
except OSError as e:
    print("failed", e)
"#;

/// Without any waypoint, on one node and between two, connections are as many and as long as a destination says.
pub async fn a_node_proxy_keeps_to_what_is_said_of_connections() -> Result<()> {
    let lab = Lab::up(suite::spec()).await?;
    lab.apply(WORLD).await?;
    lab.wait_ready(SOON).await?;
    until("an answer", async || {
        let (_, all) = split(&lab, 4).await?;
        ensure!(all == 4, "{all} of 4");
        Ok(())
    })
    .await?;
    lab.apply(BOUNDED).await?;
    let status = lab.status().await?;
    let vip = status.cluster_ip("db")?;
    let silent = async || {
        let ran = lab
            .exec("shop/client", &["python3", "-c", SILENT, vip])
            .await?;
        anyhow::Ok(ran.out)
    };
    let log = async |words: &[&str]| {
        let lines = lab.node("n2").flows(words).await?;
        anyhow::Ok(lines.len())
    };
    // Also where both are on one node, which the kernel would else join directly: v2 takes about half of them.
    let mut ends = Vec::new();
    until("the first end", async || {
        let said = silent().await?;
        ensure!(said.starts_with("closed"), "{said}");
        Ok(())
    })
    .await?;
    for _ in 0..6 {
        ends.push(silent().await?.trim().to_owned());
    }
    println!("silent connections: {ends:?}");
    for end in &ends {
        let seconds: f64 = end.strip_prefix("closed ").unwrap_or("0").parse()?;
        ensure!((1.8..6.0).contains(&seconds), "{ends:?}");
    }
    let idle = log(&["direction=outbound", "reason=idle_timeout"]).await?;
    ensure!(idle >= 7, "{idle} lines say idle_timeout");
    let (one, two, three) = tokio::join!(silent(), silent(), silent());
    let all = [one?, two?, three?];
    let closed = all.iter().filter(|s| s.starts_with("closed 2")).count();
    println!("three at once: {all:?}");
    ensure!(closed <= 2, "more connections than may be: {all:?}");
    until("a refusal by name", async || {
        let refused = log(&["direction=outbound", "reason=overloaded"]).await?;
        ensure!(refused >= 1, "no line says overloaded");
        Ok(())
    })
    .await
}
