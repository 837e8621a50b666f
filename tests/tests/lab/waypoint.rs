//! A waypoint as a process of its own: what becomes of the requests of a service, or for a pod, that names it.

use std::ops::RangeInclusive;

use anyhow::{Context, Result, bail, ensure};
use mesh_tests::lab::{Lab, capture::contains, node::sum_metric, suite};

use super::{
    handed,
    packets::{in_the_clear, tunnelled},
    tunnel::{SOON, until},
};

/// A client on n2 and two versions of a service, one on each node; nothing about waypoints.
pub const WORLD: &str = r#"
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
metadata: {name: v1, namespace: shop, labels: {app: rating, version: v1}}
spec: {nodeName: n1, serviceAccountName: rating, containers: [{name: c, image: 'rating-service:v1.0.0', ports: [{containerPort: 8080}]}]}
---
apiVersion: v1
kind: Pod
metadata: {name: v2, namespace: shop, labels: {app: rating, version: v2}}
spec: {nodeName: n2, serviceAccountName: rating, containers: [{name: c, image: 'rating-service:v2.0.0', ports: [{containerPort: 8080}]}]}
---
apiVersion: v1
kind: Service
metadata: {name: rating, namespace: shop}
spec: {selector: {app: rating}, ports: [{name: http, port: 8080}]}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: rating, namespace: shop}
spec:
  host: rating
  subsets: [{name: v1, labels: {version: v1}}, {name: v2, labels: {version: v2}}]
"#;

pub const WAYPOINT: &str = r#"
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: waypoint, namespace: shop}
spec:
  gatewayClassName: warren-waypoint
  listeners: [{name: mesh, port: 15008, protocol: HBONE}]
---
apiVersion: v1
kind: Service
metadata: {name: waypoint, namespace: shop}
spec: {selector: {gateway.networking.k8s.io/gateway-name: waypoint}, ports: [{name: hbone, port: 15008, appProtocol: hbone}]}
"#;

pub const WAYPOINT_POD: &str = r#"
apiVersion: v1
kind: Pod
metadata: {name: waypoint-1, namespace: shop, labels: {gateway.networking.k8s.io/gateway-name: waypoint}}
spec:
  nodeName: n1
  serviceAccountName: waypoint
  containers:
  - name: c
    image: warren/waypoint
    readinessProbe: {httpGet: {port: 15020, path: /readyz}, periodSeconds: 1}
"#;

/// The waypoint's pod.
pub const POD: &str = "shop/waypoint-1";
/// The client's identity.
const CLIENT: &str = "spiffe://cluster.local/ns/shop/sa/client";

/// It with a waypoint that somebody has made by hand.
pub async fn world() -> Result<Lab> {
    let lab = Lab::up(suite::spec()).await?;
    let world = WORLD.replace(
        "metadata: {name: rating, namespace: shop}\nspec: {selector",
        "metadata: {name: rating, namespace: shop, labels: {warren.dev/use-waypoint: waypoint}}\nspec: {selector",
    );
    lab.apply(&[&*world, WAYPOINT, WAYPOINT_POD].join("---\n"))
        .await?;
    lab.wait_ready(SOON).await?;
    until("the first answer through the waypoint", async || {
        let codes = ask(&lab, "/rate/[1-1]").await?;
        ensure!(codes.answers == 1, "{codes:?}");
        let lines = lab.log_lines(POD, &["request complete"]).await?;
        ensure!(!lines.is_empty(), "the waypoint saw no request");
        Ok(())
    })
    .await?;
    Ok(lab)
}

/// What came of some requests.
#[derive(Debug, Default)]
pub struct Asked {
    /// Answers of 200 with a rating.
    pub answers: u32,
    /// Those of them that are v1's.
    pub first: u32,
    /// Answers of 500.
    pub faults: u32,
    /// Answers of 503.
    pub unavailable: u32,
    /// All that was said.
    pub text: String,
}

/// Asks for a path, or for paths in curl's way of writing many, on one connection.
pub async fn ask(lab: &Lab, path: &str) -> Result<Asked> {
    let url = format!("http://rating:8080{path}");
    let words = ["curl", "-sS", "-m", "20", "-w", "\n%{http_code}\n", &url];
    let ran = lab.exec("shop/client", &words).await?;
    let mut asked = Asked::default();
    for line in ran.out.lines() {
        match line {
            "200" => asked.answers += 1,
            "500" => asked.faults += 1,
            "503" => asked.unavailable += 1,
            "{\"rating\":1}" => asked.first += 1,
            _ => {}
        }
    }
    asked.text = format!("{} {}", ran.out, ran.err);
    asked.text.truncate(2000);
    Ok(asked)
}

/// The bounds in which the number of hits of `n` tries at `share` is, but for one time in a million.
pub fn bounds(n: u32, share: f64) -> RangeInclusive<u32> {
    // As a logarithm: the first chances are less than a float can be.
    let (mut chance, mut below) = (f64::from(n) * (1.0 - share).ln(), 0.0);
    let (mut low, mut high) = (None, n);
    for k in 0..=n {
        below += chance.exp();
        if below > 5e-7 && low.is_none() {
            low = Some(k);
        }
        if 1.0 - below < 5e-7 {
            high = k;
            break;
        }
        chance += (f64::from(n - k) / f64::from(k + 1) * share / (1.0 - share)).ln();
    }
    low.unwrap_or(0)..=high
}

/// A virtual service of the rating with this in its only route.
fn route(rest: &str) -> String {
    format!(
        "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: rating, namespace: shop}}\n\
         spec:\n  hosts: [rating]\n  http:\n  - {}\n",
        rest.replace('\n', "\n    ")
    )
}

/// A route to both versions by weight.
pub fn weighted(first: u32) -> String {
    let second = 100 - first;
    route(&format!(
        "route:\n- {{destination: {{host: rating, subset: v1}}, weight: {first}}}\n\
         - {{destination: {{host: rating, subset: v2}}, weight: {second}}}"
    ))
}

/// The split is as configured, follows a change, is seen as the client's, and is never on the wire in the clear.
pub async fn requests_are_split_by_weight_and_seen_as_the_clients() -> Result<()> {
    let lab = world().await?;
    lab.apply(&weighted(100)).await?;
    until("the first route", async || {
        let asked = ask(&lab, "/rate/[1-40]").await?;
        ensure!(asked.first == 40, "{asked:?}");
        Ok(())
    })
    .await?;
    lab.apply(&weighted(80)).await?;
    until("the second route", async || {
        let asked = ask(&lab, "/rate/[1-40]").await?;
        ensure!(asked.answers == 40 && asked.first < 40, "{asked:?}");
        Ok(())
    })
    .await?;
    let wires = [lab.capture("n1")?, lab.capture("n2")?];
    let asked = ask(&lab, "/rate/[1-500]?marker-of-a-request").await?;
    ensure!(
        asked.answers == 500,
        "500 answers of 500 requests: {asked:?}"
    );
    let expected = bounds(500, 0.8);
    ensure!(
        expected.contains(&asked.first),
        "{} of 500 answers are v1's; expected {expected:?}",
        asked.first
    );
    println!("v1 gave {} of 500, bounds {expected:?}", asked.first);
    for wire in wires {
        let packets = wire.stop()?;
        ensure!(tunnelled(&packets) > 0, "no packet of a tunnel");
        for word in ["marker-of-a-request", "\"rating\":"] {
            ensure!(
                !contains(&packets, word.as_bytes()),
                "{word} crossed the wire in the clear"
            );
        }
        let clear = in_the_clear(&packets, &[]);
        ensure!(clear.is_empty(), "segments outside a tunnel: {clear:?}");
    }
    lab.apply(&weighted(0)).await?;
    until("the last route", async || {
        let asked = ask(&lab, "/rate/[1-40]").await?;
        ensure!(asked.answers == 40 && asked.first == 0, "{asked:?}");
        Ok(())
    })
    .await?;
    let of_client = format!("src.identity={CLIENT}");
    let lines = lab
        .log_lines(POD, &["request complete", &of_client, "response_code=200"])
        .await?;
    ensure!(
        lines.len() > 500,
        "{} lines of the waypoint with {of_client}",
        lines.len()
    );
    println!("the waypoint: {}", lines[lines.len() - 1]);
    let metrics = lab.waypoint_metrics(POD).await?;
    let labels = [("reporter", "waypoint"), ("response_code", "200")];
    let requests = sum_metric(&metrics, "istio_requests_total", &labels);
    ensure!(requests > 500.0, "{requests} requests counted:\n{metrics}");
    // A connection is logged when it ends, and the waypoint keeps its own for the next request.
    lab.delete(WAYPOINT_POD).await?;
    let line = lab
        .until_logged("n2", &["direction=inbound", CLIENT, "sa/waypoint"])
        .await?;
    println!("the server's node: {line}");
    Ok(())
}

/// A waypoint for workloads sees the requests for a pod's own address.
pub async fn requests_for_a_pod_itself_are_seen_by_its_waypoint() -> Result<()> {
    let lab = Lab::up(suite::spec()).await?;
    let world = WORLD.replace(
        "version: v1}}",
        "version: v1, warren.dev/use-waypoint: waypoint}}",
    );
    let gateway = WAYPOINT.replacen(
        "namespace: shop}",
        "namespace: shop, labels: {istio.io/waypoint-for: workload}}",
        1,
    );
    lab.apply(&[&*world, &gateway, WAYPOINT_POD].join("---\n"))
        .await?;
    lab.wait_ready(SOON).await?;
    let v1 = lab.status().await?.pod("shop/v1")?.ip;
    let url = format!("http://{v1}:8080/rate/1?itself");
    let of_client = format!("src.identity={CLIENT}");
    let words = [
        "request complete",
        "path=/rate/1?itself ",
        &of_client,
        "dst.workload=v1",
        "upstream_cluster=encap",
        "response_code=200",
    ];
    until("the first answer through the waypoint", async || {
        let words_of_curl = ["curl", "-sS", "-m", "20", &url];
        let ran = lab.exec("shop/client", &words_of_curl).await?;
        ensure!(ran.out.contains("\"rating\":1"), "{ran:?}");
        let lines = lab.log_lines(POD, &words).await?;
        let line = lines
            .first()
            .with_context(|| format!("no line has {words:?}"))?;
        ensure!(!line.contains("dst.service="), "{line}");
        println!("the waypoint: {line}");
        Ok(())
    })
    .await?;
    let metrics = lab.waypoint_metrics(POD).await?;
    let labels = [
        ("reporter", "waypoint"),
        ("response_code", "200"),
        ("source_principal", CLIENT),
        (
            "destination_principal",
            "spiffe://cluster.local/ns/shop/sa/rating",
        ),
    ];
    let requests = sum_metric(&metrics, "istio_requests_total", &labels);
    ensure!(requests >= 1.0, "{requests} requests counted:\n{metrics}");
    Ok(())
}

/// Faults come as often as asked, and retries go to whom was not asked before.
pub async fn faults_and_retries_of_a_waypoint() -> Result<()> {
    let lab = world().await?;
    lab.apply(&route(
        "fault: {abort: {percentage: {value: 5}, httpStatus: 500}}\nroute:\n- {destination: {host: rating}}",
    ))
    .await?;
    until("the first fault", async || {
        let asked = ask(&lab, "/rate/[1-100]").await?;
        ensure!(asked.faults > 0, "{asked:?}");
        Ok(())
    })
    .await?;
    let asked = ask(&lab, "/rate/[1-1000]").await?;
    let expected = bounds(1000, 0.05);
    println!("{} of 1000 aborted, bounds {expected:?}", asked.faults);
    ensure!(
        asked.answers + asked.faults == 1000 && expected.contains(&asked.faults),
        "expected {expected:?} faults: {asked:?}"
    );
    let faulty = lab
        .log_lines(POD, &["response_code=500", "response_flags=FI"])
        .await?;
    ensure!(!faulty.is_empty(), "no line says FI");
    // One of two servers refuses from now on.
    lab.apply(&route(
        "retries: {attempts: 0}\nroute:\n- {destination: {host: rating}}",
    ))
    .await?;
    let v2 = lab.status().await?.pod("shop/v2")?.ip.to_string();
    let misbehave = format!("http://{v2}:8080/rate/misbehave");
    let ran = lab
        .exec("shop/client", &["curl", "-sS", &misbehave])
        .await?;
    ensure!(ran.out.contains("503"), "{ran:?}");
    until("the end of the faults", async || {
        let asked = ask(&lab, "/rate/[1-40]").await?;
        ensure!(asked.faults == 0 && asked.unavailable > 0, "{asked:?}");
        Ok(())
    })
    .await?;
    lab.apply(&route(
        "retries: {attempts: 2, perTryTimeout: 5s, retryOn: 5xx}\nroute:\n- {destination: {host: rating}}",
    ))
    .await?;
    until("retries", async || {
        let asked = ask(&lab, "/rate/[1-200]").await?;
        ensure!(asked.answers == 200, "{asked:?}");
        Ok(())
    })
    .await
}

/// Allows the client, by its own principal, and nobody else.
const ALLOW: &str = r#"
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: allow, namespace: shop}
spec:
  selector: {matchLabels: {app: rating}}
  rules: [{from: [{source: {principals: [cluster.local/ns/shop/sa/client]}}]}]
"#;

/// The server's policy means the client, not the waypoint; without the waypoint there is no way.
pub async fn policies_mean_the_client_and_nothing_goes_around_a_waypoint() -> Result<()> {
    let lab = world().await?;
    lab.apply(&ALLOW.replace("sa/client", "sa/friend")).await?;
    until("a refusal", async || {
        let asked = ask(&lab, "/rate/[1-4]").await?;
        ensure!(asked.answers == 0, "{asked:?}");
        Ok(())
    })
    .await?;
    // Which version was asked is left to chance, and each is on a node of its own.
    until("a refusal in a server's node's log", async || {
        let words = ["direction=inbound", CLIENT, "reason=policy_not_allowed"];
        for node in ["n1", "n2"] {
            if let Some(line) = lab.node(node).flows(&words).await?.first() {
                println!("the server's node: {line}");
                return Ok(());
            }
        }
        bail!("no line has {words:?}")
    })
    .await?;
    // The waypoint itself may be allowed: it is not who asks.
    lab.apply(&ALLOW.replace("sa/client", "sa/waypoint"))
        .await?;
    let said = ask(&lab, "/rate/[1-4]").await?;
    ensure!(said.answers == 0, "{said:?}");
    lab.apply(ALLOW).await?;
    until("service for the client", async || {
        let asked = ask(&lab, "/rate/[1-20]").await?;
        ensure!(asked.answers == 20, "{asked:?}");
        Ok(())
    })
    .await?;
    let before = served(&lab)?;
    lab.delete(WAYPOINT_POD).await?;
    until("the end of the waypoint", async || {
        let there = lab.status().await?.pod(POD).is_ok();
        ensure!(!there, "the waypoint's pod is there");
        Ok(())
    })
    .await?;
    refused_by_its_node(&lab).await?;
    ensure!(served(&lab)? == before, "a server was reached");
    // It comes back, and so does service.
    lab.apply(WAYPOINT_POD).await?;
    until("service with a new waypoint", async || {
        let asked = ask(&lab, "/rate/[1-20]").await?;
        ensure!(asked.answers == 20, "{asked:?}");
        Ok(())
    })
    .await
}

/// The client is answered nothing, and its node says each time that nobody is there who could take it.
async fn refused_by_its_node(lab: &Lab) -> Result<()> {
    let of_service = "dst.service=rating.shop.svc.cluster.local ";
    let why = [
        "connection refused direction=outbound",
        "reason=waypoint_gone ",
    ];
    let refused = async |times: usize| {
        let lines = async || lab.node("n2").flows(&[of_service]).await;
        let before = lines().await?.len();
        for _ in 0..times {
            let asked = ask(lab, "/rate/[1-1]").await?;
            ensure!(asked.answers == 0, "somebody answered: {asked:?}");
        }
        let mut new = Vec::new();
        until("a line of each refusal", async || {
            new = lines().await?.split_off(before);
            ensure!(new.len() >= times, "{new:#?}");
            Ok(())
        })
        .await?;
        let fits = |line: &String| why.iter().all(|w| line.contains(w));
        ensure!(new.iter().all(fits), "{new:#?} for {why:?}");
        anyhow::Ok(new)
    };
    // The node learns a moment later than the lab; until then it finds the tunnel broken.
    until("refusals for this reason only", async || {
        refused(2).await.map(drop)
    })
    .await?;
    let lines = refused(5).await?;
    println!("the client's node: {}", lines[0]);
    Ok(())
}

/// How many requests the servers have seen.
fn served(lab: &Lab) -> Result<usize> {
    let of = |pod: &str| std::fs::read_to_string(lab.place.log(pod));
    let all = [of("shop/v1")?, of("shop/v2")?].concat();
    Ok(all.matches("Request ").count())
}

/// Another client, on the waypoint's node.
const FRIEND: &str = r#"
apiVersion: v1
kind: Pod
metadata: {name: friend, namespace: shop}
spec: {nodeName: n1, serviceAccountName: friend, containers: [{name: c, image: idle}]}
"#;

/// Also by their addresses policies mean the clients behind a waypoint, and never the waypoint; what is said of addresses
/// that only a proxy for requests can tell lets nobody in.
pub async fn policies_by_address_mean_the_clients_behind_a_waypoint() -> Result<()> {
    let lab = world().await?;
    lab.apply(FRIEND).await?;
    lab.wait_ready(SOON).await?;
    let status = lab.status().await?;
    let ip = |pod: &str| -> Result<String> { Ok(format!("[{}]", status.pod(pod)?.ip)) };
    let (client, friend, waypoint) = (ip("shop/client")?, ip("shop/friend")?, ip(POD)?);
    let range = format!("[{}/24]", client.trim_matches(['[', ']']));
    let principal = "principals: [cluster.local/ns/shop/sa/client]";
    let both = |ip: &str| format!("ipBlocks: {ip}, {principal}");
    // By IPv4, which is what the policies speak of.
    let url = format!("http://{}:8080/rate/1", status.cluster_ip("rating")?);
    let (yes, no) = (200, 403);
    // Each expects something else than the one before it.
    let rows = [
        ("ALLOW", format!("ipBlocks: {client}"), (yes, no)),
        ("DENY", format!("ipBlocks: {client}"), (no, yes)),
        ("ALLOW", format!("ipBlocks: {waypoint}"), (no, no)),
        ("ALLOW", format!("ipBlocks: {range}"), (yes, no)),
        ("ALLOW", format!("notIpBlocks: {client}"), (no, yes)),
        ("ALLOW", principal.to_owned(), (yes, no)),
        ("DENY", principal.to_owned(), (no, yes)),
        ("ALLOW", both(&client), (yes, no)),
        ("ALLOW", both(&friend), (no, no)),
        ("DENY", format!("ipBlocks: {waypoint}"), (yes, yes)),
        ("ALLOW", format!("remoteIpBlocks: {client}"), (no, no)),
    ];
    for (action, source, (of_client, of_friend)) in rows {
        let policy = format!(
            "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: p, namespace: shop}}\n\
             spec: {{selector: {{matchLabels: {{app: rating}}}}, action: {action}, rules: [{{from: [{{source: {{{source}}}}}]}}]}}\n"
        );
        lab.apply(&policy).await?;
        // Twice, for there are two servers.
        until(&format!("{action} {source}"), async || {
            for _ in 0..2 {
                for (pod, expect) in [("shop/client", of_client), ("shop/friend", of_friend)] {
                    let got = handed::status(&lab, pod, &url).await?;
                    ensure!(got == expect, "{pod} is answered {got}, not {expect}");
                }
            }
            Ok(())
        })
        .await?;
    }
    for who in ["client", "friend"] {
        let identity = format!("src.identity=spiffe://cluster.local/ns/shop/sa/{who} ");
        let words = ["request complete", "response_code=403", &identity];
        let lines = lab.log_lines(POD, &words).await?;
        println!(
            "the waypoint: {}",
            lines
                .last()
                .with_context(|| format!("no line with {words:?}"))?
        );
    }
    Ok(())
}
