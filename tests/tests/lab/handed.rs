//! Who is outside the mesh reaches a guarded service by way of its waypoint, which treats it as nobody and returns it to
//! the pod where it arrived; who is not the pod's node cannot pretend to bring it.

use anyhow::{Context, Result, ensure};
use mesh_tests::lab::{Lab, net::NodeIndex, node::sum_metric, suite};

use super::{
    hbone::{Root, Tunnel, leaf},
    tunnel::{SOON, until},
    waypoint,
};

/// The waypoint that is made for the namespace.
const MADE: &str = "warren-system/waypoint-shop";

/// Two pods behind a service that demands its waypoint, and behind others that have none; a rule that refuses a path.
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
metadata: {name: outside, namespace: shop, labels: {warren.dev/mesh: disabled}}
spec: {nodeName: n2, containers: [{name: c, image: idle}]}
---
apiVersion: v1
kind: Pod
metadata: {name: stranger, namespace: shop, labels: {warren.dev/mesh: disabled}}
spec: {nodeName: n1, containers: [{name: c, image: idle}]}
---
apiVersion: v1
kind: Pod
metadata: {name: web-1, namespace: shop, labels: {app: web}}
spec:
  nodeName: n1
  serviceAccountName: web
  containers:
  - {name: a, image: 'rating-service:v1.0.0', ports: [{containerPort: 8080}]}
  - {name: b, image: 'rating-service:v1.0.0', env: [{name: PORT, value: '9090'}]}
---
apiVersion: v1
kind: Pod
metadata: {name: web-2, namespace: shop, labels: {app: web}}
spec:
  nodeName: n2
  serviceAccountName: web
  containers:
  - {name: a, image: 'rating-service:v1.0.0', ports: [{containerPort: 8080}]}
  - {name: b, image: 'rating-service:v1.0.0', env: [{name: PORT, value: '9090'}]}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop, labels: {warren.dev/require-waypoint: "true"}}
spec:
  type: LoadBalancer
  externalTrafficPolicy: Cluster
  selector: {app: web}
  ports: [{name: http, port: 8080, nodePort: 30080}, {name: tcp-rates, port: 9090, nodePort: 30090}]
status: {loadBalancer: {ingress: [{ip: 192.0.2.1}]}}
---
apiVersion: v1
kind: Service
metadata: {name: web-local, namespace: shop}
spec:
  type: LoadBalancer
  externalTrafficPolicy: Local
  selector: {app: web}
  ports: [{name: http, port: 8080, nodePort: 30081}]
status: {loadBalancer: {ingress: [{ip: 192.0.2.2}]}}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: web, namespace: shop}
spec:
  hosts: [web]
  http:
  - name: never
    match: [{uri: {prefix: /deny}}]
    directResponse: {status: 403, body: {string: never}}
  - name: rest
    route: [{destination: {host: web}}]
"#;

/// The status that a URL is answered with; 0 when there is no answer.
pub(super) async fn status(lab: &Lab, pod: &str, url: &str) -> Result<u16> {
    let words = [
        "curl",
        "-s",
        "-o",
        "/dev/null",
        "-m",
        "10",
        "-w",
        "%{http_code}",
        url,
    ];
    let ran = lab.exec(pod, &words).await?;
    ran.out.trim().parse().with_context(|| format!("{ran:?}"))
}

async fn answers(lab: &Lab, pod: &str, url: &str, expect: u16) -> Result<()> {
    until("an answer", async || {
        let got = status(lab, pod, url).await?;
        ensure!(got == expect, "{pod} gets {got} from {url}");
        Ok(())
    })
    .await
}

async fn world(lab: &Lab) -> Result<()> {
    lab.apply(WORLD).await?;
    lab.wait_ready(SOON).await?;
    answers(lab, "shop/client", "http://web:8080/rate/1", 200).await?;
    answers(lab, "shop/client", "http://web:8080/deny", 403).await
}

/// By each way from outside: the rules of requests hold, and the answer is that of the pod where it arrived.
pub async fn who_is_outside_reaches_a_guarded_service_through_its_waypoint() -> Result<()> {
    let lab = Lab::up(suite::spec()).await?;
    world(&lab).await?;
    let known = lab.status().await?;
    let (one, two) = (
        known.pod("shop/web-1")?.clone(),
        known.pod("shop/web-2")?.clone(),
    );
    let vip = known.cluster_ip("web")?;
    let outside = known.pod("shop/outside")?.ip.to_string();
    let nodes = [1, 2].map(|n| NodeIndex(n).ip());
    let ways = [
        ("its address", format!("{}:8080", one.ip)),
        ("its other address", format!("[{}]:8080", one.ip6)),
        ("its address, on one node", format!("{}:8080", two.ip)),
        ("its service", format!("{vip}:8080")),
        ("a node's port", format!("{}:30080", nodes[0])),
        ("another node's port", format!("{}:30080", nodes[1])),
        (
            "a node's port for its own pods",
            format!("{}:30081", nodes[0]),
        ),
        (
            "another's port for its own pods",
            format!("{}:30081", nodes[1]),
        ),
    ];
    for (way, host) in &ways {
        for (path, expect) in [("/rate/1", 200), ("/deny/1", 403)] {
            let url = format!("http://{host}{path}");
            let got = status(&lab, "shop/outside", &url).await?;
            ensure!(got == expect, "{way}: {url} is answered {got}");
        }
    }
    // By a load balancer: the client's address survives where its service asks for that.
    for (node, last) in [(1, 1), (2, 1), (1, 2), (2, 2)] {
        let ip = NodeIndex(node).ip().to_string();
        let route = ["ip", "route", "replace", "192.0.2.0/24", "via", &ip];
        let set = lab.exec("fabric", &route).await?;
        ensure!(set.code == 0, "{set:?}");
        for (path, expect) in [("/rate/1?balanced", 200), ("/deny?balanced", 403)] {
            let url = format!("http://192.0.2.{last}:8080{path}");
            let got = status(&lab, "fabric", &url).await?;
            ensure!(got == expect, "{url} by n{node} is answered {got}");
        }
    }
    let lines = lab
        .log_lines(MADE, &["request complete", "?balanced"])
        .await?;
    let from = |who: &str| {
        let src = format!("src.addr={who}:");
        lines.iter().filter(|l| l.contains(&src)).count()
    };
    let kept = from("172.30.0.1");
    let hidden = from("172.30.0.11") + from("172.30.0.12");
    ensure!(
        lines.len() == 8 && kept >= 4,
        "{kept} and {hidden} of {lines:#?}"
    );
    println!(
        "{} ways in, {} by load balancers, {kept} with the client's address",
        ways.len(),
        lines.len()
    );
    // What arrives at one pod is answered by it, though there are two.
    for (pod, name) in [(&one, "web-1"), (&two, "web-2")] {
        for _ in 0..8 {
            let url = format!("http://{}:8080/rate/1?back-to={name}", pod.ip);
            ensure!(status(&lab, "shop/outside", &url).await? == 200, "{url}");
        }
        let asked = format!("back-to={name}");
        let lines = lab.log_lines(MADE, &["request complete", &asked]).await?;
        let own = format!("dst.workload={name} ");
        let who = format!("src.addr={outside}:");
        let node = format!("via=spiffe://cluster.local/warren/node/{}", pod.node);
        let good = |l: &&String| [&own, &who, &node].iter().all(|w| l.contains(*w));
        let back = lines.iter().filter(good).count();
        ensure!(
            back == 8 && lines.len() == 8,
            "{back} of 8 went back to {name}: {lines:#?}"
        );
        ensure!(
            lines.iter().all(|l| !l.contains("src.identity")),
            "{lines:#?}"
        );
        println!("the waypoint: {}", lines[0]);
    }
    // Bytes that nobody looks at go the same way.
    let opaque = format!("http://{}:9090/rate/1", one.ip);
    ensure!(
        status(&lab, "shop/outside", &opaque).await? == 200,
        "{opaque}"
    );
    until("the lines of a connection of bytes", async || {
        let who = format!("src.addr={outside}:");
        let words = [
            "connection complete",
            "direction=through",
            "dst.workload=web-1",
            &who,
        ];
        let lines = lab.log_lines(MADE, &words).await?;
        ensure!(!lines.is_empty(), "the waypoint has no line with {words:?}");
        let words = [
            "direction=handed",
            "dst.service=web.shop.svc.cluster.local",
            ":9090",
            &who,
        ];
        let handed = lab.node("n1").flows(&words).await?;
        let line = handed.last().context("the node has no such line")?;
        ensure!(line.contains("path=plain mtls=none policy=allow"), "{line}");
        println!("the server's node: {line}");
        Ok(())
    })
    .await?;
    seen(&lab).await
}

/// What metrics say of who came from outside.
async fn seen(lab: &Lab) -> Result<()> {
    let metrics = lab.waypoint_metrics(MADE).await?;
    for code in ["200", "403"] {
        let labels = [
            ("reporter", "waypoint"),
            ("source_principal", "unknown"),
            ("destination_service_name", "web"),
            ("response_code", code),
        ];
        let counted = sum_metric(&metrics, "istio_requests_total", &labels);
        ensure!(
            counted >= 8.0,
            "{counted} requests answered {code}:\n{metrics}"
        );
    }
    let node = lab.node("n1");
    for (reporter, mtls) in [("source", "unknown"), ("destination", "mutual_tls")] {
        let labels = [
            ("reporter", reporter),
            ("source_principal", "unknown"),
            ("destination_workload", "web-1"),
            ("connection_security_policy", mtls),
        ];
        let counted = node
            .metric("istio_tcp_connections_opened_total", &labels)
            .await?;
        ensure!(counted >= 1.0, "{counted} connections by {labels:?}");
    }
    Ok(())
}

fn policy(action: &str, source: &str) -> String {
    format!(
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: p, namespace: shop}}\n\
         spec:\n  selector: {{matchLabels: {{app: web}}}}\n  action: {action}\n  rules: [{{from: [{{source: {{{source}}}}}]}}]\n"
    )
}

const STRICT: &str = r#"
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: default, namespace: shop}
spec: {mtls: {mode: STRICT}}
"#;

/// Of who is outside policies know the address and nothing else, and STRICT lets nobody in.
pub async fn policies_mean_who_is_outside_and_strict_refuses() -> Result<()> {
    let lab = Lab::up(suite::spec()).await?;
    world(&lab).await?;
    let known = lab.status().await?;
    let url = format!("http://{}:8080/rate/1", known.pod("shop/web-1")?.ip);
    let outside = known.pod("shop/outside")?.ip.to_string();
    let (a, b) = ("shop/outside", "shop/stranger");
    let check = async |what: &str, yaml: &str, expect: [u16; 3], reason: &str| {
        lab.apply(yaml).await?;
        let ways = [
            (a, url.as_str()),
            (b, url.as_str()),
            ("shop/client", "http://web:8080/rate/1"),
        ];
        until(what, async || {
            for ((pod, url), expect) in ways.iter().zip(expect) {
                let got = status(&lab, pod, url).await?;
                ensure!(got == expect, "{what}: {pod} gets {got}, not {expect}");
            }
            Ok(())
        })
        .await?;
        let named = format!("reason={reason}");
        let line = lab
            .until_logged(
                "n1",
                &[
                    "direction=inbound",
                    "path=plain",
                    "dst.workload=web-1",
                    &named,
                ],
            )
            .await?;
        println!("{what}: {line}");
        lab.delete(yaml).await?;
        until("service for all", async || {
            for (pod, url) in ways {
                let got = status(&lab, pod, url).await?;
                ensure!(got == 200, "after {what} {pod} gets {got}");
            }
            Ok(())
        })
        .await
    };
    answers(&lab, a, &url, 200).await?;
    let client = "principals: [cluster.local/ns/shop/sa/client]";
    let denied = policy("DENY", &format!("ipBlocks: [{outside}]"));
    check(
        "an address is denied",
        &denied,
        [0, 200, 200],
        "policy_denied",
    )
    .await?;
    let allowed = policy("ALLOW", client);
    check(
        "only a principal is allowed",
        &allowed,
        [0, 0, 200],
        "policy_not_allowed",
    )
    .await?;
    let others = policy("DENY", "notPrincipals: [cluster.local/ns/shop/sa/client]");
    check(
        "all but a principal are denied",
        &others,
        [0, 0, 200],
        "policy_denied",
    )
    .await?;
    check("STRICT", STRICT, [0, 0, 200], "mtls_required").await
}

/// While there is no waypoint there is no way in, and with the next one there is again.
pub async fn a_waypoint_that_is_gone_leaves_no_way_in_for_who_is_outside() -> Result<()> {
    let lab = Lab::up(suite::spec()).await?;
    let require = "labels: {warren.dev/require-waypoint: \"true\"}";
    let both = "labels: {warren.dev/require-waypoint: \"true\", warren.dev/use-waypoint: waypoint}";
    let world = WORLD.replace(require, both);
    lab.apply(&[&*world, waypoint::WAYPOINT, waypoint::WAYPOINT_POD].join("---\n"))
        .await?;
    lab.wait_ready(SOON).await?;
    let url = format!(
        "http://{}:8080/rate/1",
        lab.status().await?.pod("shop/web-1")?.ip
    );
    answers(&lab, "shop/outside", &url, 200).await?;
    answers(&lab, "shop/outside", &url.replace("/rate", "/deny"), 403).await?;
    lab.delete(waypoint::WAYPOINT_POD).await?;
    until("the end of the waypoint", async || {
        let there = lab.status().await?.pod(waypoint::POD).is_ok();
        ensure!(!there, "the waypoint's pod is there");
        Ok(())
    })
    .await?;
    let served = || -> Result<usize> {
        let log = std::fs::read_to_string(lab.place.log("shop/web-1"))?;
        Ok(log.matches("Request ").count())
    };
    let before = served()?;
    for _ in 0..5 {
        let got = status(&lab, "shop/outside", &url).await?;
        ensure!(got == 0, "somebody answers {got}");
    }
    ensure!(served()? == before, "the server was reached");
    let line = lab
        .until_logged("n1", &["direction=handed", "dst.workload=web-1", "reason="])
        .await?;
    println!("the server's node: {line}");
    lab.apply(waypoint::WAYPOINT_POD).await?;
    answers(&lab, "shop/outside", &url, 200).await
}

/// With certificates of the mesh's own root: only the node of the pod is believed, and only about that pod.
pub async fn a_connection_is_handed_over_by_the_pods_own_node_only() -> Result<()> {
    let root = Root::new()?;
    let lab = Lab::up(root.spec()).await?;
    world(&lab).await?;
    let known = lab.status().await?;
    let waypoint = (known.pod(MADE)?.ip, 15008).into();
    let vip = format!("{}:8080", known.cluster_ip("web")?);
    let at =
        |pod: &str, port: u16| -> Result<String> { Ok(format!("{}:{port}", known.pod(pod)?.ip)) };
    let from = lab.place.netns_path("n2");
    let (one, two) = (at("shop/web-1", 8080)?, at("shop/web-2", 8080)?);
    let node = |name: &str| format!("spiffe://cluster.local/warren/node/{name}");
    let pod = |name: &str| format!("spiffe://cluster.local/ns/shop/sa/{name}");
    let client = "for=\"192.0.2.7:4711\"";
    let rows = [
        ("a pod", pod("client"), Some(one.clone()), 401),
        ("the pod itself", pod("web"), Some(one.clone()), 401),
        ("another node", node("n2"), Some(one.clone()), 401),
        (
            "a node that there is not",
            node("n9"),
            Some(one.clone()),
            401,
        ),
        ("its node for another's pod", node("n1"), Some(two), 401),
        (
            "its node for another port",
            node("n1"),
            Some(at("shop/web-1", 8081)?),
            401,
        ),
        (
            "its node for a pod of no service",
            node("n1"),
            Some(at("shop/stranger", 8080)?),
            401,
        ),
        ("its node, not saying where", node("n1"), None, 400),
        // That the others can fail.
        ("its node", node("n1"), Some(one.clone()), 200),
    ];
    for (who, uri, arrived, expect) in rows {
        let shown = root.signs(leaf(&[&uri])?)?;
        let mut tunnel = Tunnel::open(&from, waypoint, Some(&shown)).await?;
        let mut headers = vec![("forwarded", client.to_owned())];
        headers.extend(arrived.map(|at| ("x-warren-return-to", at)));
        let got = tunnel.ask_with(&vip, &headers, b"").await?;
        ensure!(got == expect, "{who} is answered {got}, not {expect}");
    }
    let lines = lab
        .log_lines(MADE, &["connection refused", "reason=not_its_node"])
        .await?;
    ensure!(lines.len() >= 7, "{lines:#?}");
    println!("the waypoint: {}", lines[0]);
    // To a pod a node is nobody at all.
    let shown = root.signs(leaf(&[&node("n1")])?)?;
    let to = one.replace(":8080", ":15008").parse()?;
    let asked = async {
        let mut tunnel = Tunnel::open(&from, to, Some(&shown)).await?;
        let headers = [("x-warren-return-to", one.clone())];
        tunnel.ask_with(&one, &headers, b"").await
    };
    let got = asked.await;
    ensure!(got.is_err(), "a pod answers a node: {got:?}");
    Ok(())
}
