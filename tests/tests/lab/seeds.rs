//! What people already have, unchanged: the traffic objects of `seeds/`, each with what it promises.
//!
//! Invariant: whatever is drawn at random is held to bounds that it leaves once in a million runs.

use anyhow::{Context, Result, ensure};
use mesh_tests::lab::{Lab, node::sum_metric, suite};

use super::{
    load::load,
    tunnel::{SOON, until},
    waypoint::bounds,
};

/// Objects of the articles, word by word.
macro_rules! seed {
    ($name:literal) => {
        include_str!(concat!("seeds/", $name, ".yaml"))
    };
}

/// The waypoint's pod.
pub(super) const POD: &str = "default/waypoint-1";
pub(super) const CLIENT: &str = "default/client";

/// The namespace that the objects are made in, its waypoint and a client.
pub(super) const BASE: &str = r#"
apiVersion: v1
kind: Namespace
metadata: {name: default, labels: {warren.dev/mesh: enabled, warren.dev/use-waypoint: waypoint}}
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: waypoint}
spec:
  gatewayClassName: warren-waypoint
  listeners: [{name: mesh, port: 15008, protocol: HBONE}]
---
apiVersion: v1
kind: Service
metadata: {name: waypoint}
spec: {selector: {gateway.networking.k8s.io/gateway-name: waypoint}, ports: [{name: hbone, port: 15008, appProtocol: hbone}]}
---
apiVersion: v1
kind: Pod
metadata: {name: waypoint-1, labels: {gateway.networking.k8s.io/gateway-name: waypoint}}
spec:
  nodeName: n1
  serviceAccountName: waypoint
  containers:
  - name: c
    image: warren/waypoint
    readinessProbe: {httpGet: {port: 15020, path: /readyz}, periodSeconds: 1}
---
apiVersion: v1
kind: Pod
metadata: {name: client}
spec: {nodeName: n2, serviceAccountName: client, containers: [{name: c, image: idle}]}
"#;

/// A service with two versions, one on each node, in whose place the rating of the book stands. Pods carry the labels of
/// both ways in which the articles make subsets.
fn service(name: &str) -> String {
    let pod = |version: u32| {
        format!(
            "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}-v{version}, labels: {{app: {name}, version: v{version}, app.kubernetes.io/version: v{version}.0.0}}}}\n\
             spec: {{nodeName: n{version}, serviceAccountName: {name}, containers: [{{name: c, image: 'rating-service:v{version}.0.0', ports: [{{containerPort: 8080}}]}}]}}\n"
        )
    };
    format!(
        "---\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\n\
         spec: {{selector: {{app: {name}}}, ports: [{{name: http, port: 8080}}]}}\n{}{}",
        pod(1),
        pod(2)
    )
}

/// The second node in the zone of the first: with outliers the waypoint's own zone would come first, and the other
/// version be asked nothing.
const ONE_ZONE: &str = "---\napiVersion: v1\nkind: Node\nmetadata: {name: n2, labels: {topology.kubernetes.io/zone: zone-1}}\n";

/// Subsets by `version`, where an article's own are in another one.
fn subsets(name: &str) -> String {
    format!(
        "---\napiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {{name: {name}}}\n\
         spec: {{host: {name}, subsets: [{{name: v1, labels: {{version: v1}}}}, {{name: v2, labels: {{version: v2}}}}]}}\n"
    )
}

async fn world(rest: &[String]) -> Result<Lab> {
    let lab = Lab::up(suite::spec()).await?;
    lab.apply(&[BASE, &rest.concat()].concat()).await?;
    lab.wait_ready(SOON).await?;
    until("the waypoint", async || {
        let lines = lab.waypoint_metrics(POD).await?;
        ensure!(!lines.is_empty(), "it tells nothing");
        Ok(())
    })
    .await?;
    Ok(lab)
}

/// Statuses and bodies of requests on one connection, in curl's way of writing many.
#[derive(Debug, Default)]
struct Asked {
    ok: u32,
    failed: u32,
    /// Answers of a rating's first version.
    first: u32,
    seconds: f64,
    text: String,
}

async fn ask(lab: &Lab, url: &str) -> Result<Asked> {
    let words = [
        "curl",
        "-sS",
        "-m",
        "30",
        "-w",
        "\n%{http_code} %{time_total}\n",
        url,
    ];
    let ran = lab.exec(CLIENT, &words).await?;
    let mut asked = Asked::default();
    for line in ran.out.lines() {
        if line == "{\"rating\":1}" {
            asked.first += 1;
        } else if let Some((code, seconds)) = line.split_once(' ')
            && let (Ok(code), Ok(seconds)) = (code.parse::<u16>(), seconds.parse::<f64>())
        {
            match code {
                200 => asked.ok += 1,
                _ => asked.failed += 1,
            }
            asked.seconds = seconds;
        }
    }
    asked.text = format!("{} {}", ran.out, ran.err);
    asked.text.truncate(1000);
    Ok(asked)
}

/// Requests that the waypoint counted for a service, by what their labels are.
async fn counted(lab: &Lab, service: &str, labels: &[(&str, &str)]) -> Result<u64> {
    let metrics = lab.waypoint_metrics(POD).await?;
    let labels = [&[("destination_service_name", service)], labels].concat();
    Ok(sum_metric(&metrics, "istio_requests_total", &labels) as u64)
}

fn within(what: &str, hits: u64, of: u64, share: f64) -> Result<()> {
    let expected = bounds(u32::try_from(of)?, share);
    println!("{what}: {hits} of {of}, bounds {expected:?}");
    ensure!(
        expected.contains(&u32::try_from(hits)?),
        "{what}: {hits} of {of}; expected {expected:?}"
    );
    Ok(())
}

/// 75/25, 90/10 and, of gRPC, 80/20.
pub async fn shares_are_as_the_articles_say() -> Result<()> {
    let goods = seed!("goods-canary");
    let lab = world(&[
        service("rating"),
        service("myapp"),
        "---\n".to_owned(),
        goods.to_owned(),
    ])
    .await?;
    lab.apply(seed!("rating-subsets")).await?;
    lab.apply(seed!("rating-75-25")).await?;
    lab.apply(seed!("myapp")).await?;
    for (name, share) in [("rating", 0.75), ("myapp", 0.9)] {
        let url = |n: u32| format!("http://{name}:8080/rate/[1-{n}]");
        until("the split", async || {
            let asked = ask(&lab, &url(60)).await?;
            ensure!(
                asked.ok == 60 && (31..60).contains(&asked.first),
                "{asked:?}"
            );
            Ok(())
        })
        .await?;
        let asked = ask(&lab, &url(800)).await?;
        ensure!(asked.ok == 800, "{asked:?}");
        within(name, asked.first.into(), 800, share)?;
    }
    lab.apply(seed!("rating-all-v1")).await?;
    until("all to v1", async || {
        let asked = ask(&lab, "http://rating:8080/rate/[1-40]").await?;
        ensure!(asked.first == 40, "{asked:?}");
        Ok(())
    })
    .await?;
    // Each run makes five calls, on one connection of HTTP/2.
    let program = env!("CARGO_BIN_EXE_warren-sample");
    let many = format!(
        "for i in $(seq 80); do {program} ask grpc goods-service:8053 >/dev/null || exit 1; done"
    );
    let ran = lab.exec(CLIENT, &["sh", "-c", &many]).await?;
    ensure!(ran.code == 0, "{ran:?}");
    let lines = async |subset: &str| {
        let cluster = format!("upstream_cluster=outbound|8053|{subset}|goods-service");
        let lines = lab.log_lines(POD, &[&cluster, "protocol=HTTP/2"]).await?;
        anyhow::Ok(lines.len() as u64)
    };
    let (first, second) = (lines("v1").await?, lines("v2").await?);
    ensure!(
        first + second == 400,
        "{first} and {second} calls are logged"
    );
    within("goods-service", first, 400, 0.8)
}

/// A whole request has 10 s, a try 2 s, and there are three more of them for what Istio tries again by itself.
pub async fn tries_and_time_are_bounded_as_the_articles_say() -> Result<()> {
    let slow = service("ratings").replace(
        "'rating-service:v1.0.0',",
        "'httpbin:1', env: [{name: PORT, value: '8080'}],",
    );
    let lab = world(&[slow, subsets("ratings"), service("rating")]).await?;
    lab.apply(seed!("ratings-timeout-retries")).await?;
    until("the route", async || {
        let asked = ask(&lab, "http://ratings:8080/status/200").await?;
        let lines = lab
            .log_lines(POD, &["route_name=VirtualService/default/ratings"])
            .await?;
        ensure!(asked.ok == 1 && !lines.is_empty(), "{asked:?}");
        Ok(())
    })
    .await?;
    let asked = ask(&lab, "http://ratings:8080/status/503").await?;
    ensure!(asked.failed == 1, "{asked:?}");
    let line = lab
        .log_lines(
            POD,
            &["path=/status/503", "attempts=4", "response_flags=URX"],
        )
        .await?;
    println!("{}", line.last().context("no line of four tries")?);
    // A try that is silent for 2 s is over. Silence is none of what is tried again where nothing says so.
    let asked = ask(&lab, "http://ratings:8080/delay/5").await?;
    ensure!(
        asked.failed == 1 && (2.0..4.0).contains(&asked.seconds),
        "{asked:?}"
    );
    let line = lab
        .log_lines(
            POD,
            &[
                "path=/delay/5",
                "response_code=504",
                "response_flags=UT",
                "attempts=1",
            ],
        )
        .await?;
    println!("{}", line.last().context("no line of the silent try")?);
    // The same object with what it is tried again for: four tries of 2 s are within the 10 s.
    let silent = seed!("ratings-timeout-retries").replace(
        "perTryTimeout: 2s}",
        "perTryTimeout: 2s, retryOn: gateway-error}",
    );
    lab.apply(&silent).await?;
    until("four tries", async || {
        let asked = ask(&lab, "http://ratings:8080/delay/6").await?;
        ensure!(
            asked.failed == 1 && (8.0..10.0).contains(&asked.seconds),
            "{asked:?}"
        );
        Ok(())
    })
    .await?;
    // And the 10 s end what has more tries.
    lab.apply(&silent.replace("attempts: 3", "attempts: 30"))
        .await?;
    until("ten seconds", async || {
        let asked = ask(&lab, "http://ratings:8080/delay/7").await?;
        ensure!(
            asked.failed == 1 && (10.0..12.0).contains(&asked.seconds),
            "{asked:?}"
        );
        Ok(())
    })
    .await?;
    // retryOn: 5xx, with a server that misbehaves.
    lab.apply(seed!("rating-retry")).await?;
    misbehave(&lab, "rating-v2").await?;
    until("retries", async || {
        let asked = ask(&lab, "http://rating:8080/rate/[1-100]").await?;
        ensure!(asked.ok == 100 && asked.first == 100, "{asked:?}");
        Ok(())
    })
    .await?;
    let lines = lab
        .log_lines(POD, &["path=/rate/", "attempts=2", "response_code=200"])
        .await?;
    ensure!(!lines.is_empty(), "no request was tried again");
    Ok(())
}

async fn misbehave(lab: &Lab, pod: &str) -> Result<()> {
    let ip = lab
        .status()
        .await?
        .pod(&format!("default/{pod}"))?
        .ip
        .to_string();
    let url = format!("http://{ip}:8080/rate/misbehave");
    let ran = lab.exec(CLIENT, &["curl", "-sS", &url]).await?;
    ensure!(ran.out.contains("503"), "{ran:?}");
    Ok(())
}

/// `siege -r 10 -c 4`: forty requests of four users. Gives how many their servers failed.
///
/// The rule lets three wait for a connection: a fourth that comes while none is open yet is refused by the waypoint,
/// as the rule says, and says so in a header.
async fn siege(lab: &Lab) -> Result<u32> {
    let one = "curl -sS -m 20 -o /dev/null -w '%{http_code}%header{x-envoy-overloaded}\\n' 'http://rating:8080/rate/[1-10]'";
    let users = format!("for user in 1 2 3 4; do {one} & done; wait");
    let ran = lab.exec(CLIENT, &["sh", "-c", &users]).await?;
    let codes = |code: &str| ran.out.lines().filter(|l| *l == code).count();
    let (ok, failed, overflown) = (codes("200"), codes("503"), codes("503true"));
    ensure!(ok + failed + overflown == 40, "{ran:?}");
    if overflown > 0 {
        println!("{overflown} of 40 found three waiting for a connection");
    }
    Ok(u32::try_from(failed)?)
}

/// Without the breaker a misbehaving version goes on failing requests; with it, it is left out after its first 5xx.
pub async fn a_circuit_breaker_leaves_out_who_misbehaves() -> Result<()> {
    let lab = world(&[ONE_ZONE.to_owned(), service("rating"), service("reviews")]).await?;
    lab.apply(seed!("rating-subsets")).await?;
    lab.apply("apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: rating}\nspec: {hosts: [rating], http: [{route: [{destination: {host: rating}}], retries: {attempts: 0}}]}\n").await?;
    misbehave(&lab, "rating-v2").await?;
    let mut before = 0;
    until("failures without a breaker", async || {
        before = siege(&lab).await?;
        ensure!(before > 5, "{before} of 40 failed");
        Ok(())
    })
    .await?;
    lab.apply(seed!("rating-circuit-breaker")).await?;
    until("the breaker", async || {
        let failed = siege(&lab).await?;
        ensure!(failed == 0, "{failed} of 40 failed");
        Ok(())
    })
    .await?;
    // From its first 5xx on nothing more came from it.
    let lines = lab
        .log_lines(POD, &["dst.workload=rating-v2", "response_code=503"])
        .await?;
    let after = siege(&lab).await?;
    let again = lab
        .log_lines(POD, &["dst.workload=rating-v2", "response_code=503"])
        .await?;
    ensure!(
        after == 0 && again.len() == lines.len(),
        "{after} failed, {} lines",
        again.len()
    );
    println!("without a breaker {before} of 40 failed, with it none");
    // Its three minutes cannot be waited for here: the same object with 5 s instead.
    let ip = lab.status().await?.pod("default/rating-v2")?.ip.to_string();
    let url = format!("http://{ip}:8080/rate/behave");
    lab.exec(CLIENT, &["curl", "-sS", &url]).await?;
    let asked = ask(&lab, "http://rating:8080/rate/[1-40]").await?;
    ensure!(asked.first == 40, "an ejected endpoint answered: {asked:?}");
    lab.apply("apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: reviews}\nspec: {hosts: [reviews], http: [{route: [{destination: {host: reviews}}], retries: {attempts: 0}}]}\n").await?;
    let short = seed!("rating-circuit-breaker")
        .replace("baseEjectionTime: 3m", "baseEjectionTime: 5s")
        .replace("name: rating}", "name: reviews}")
        .replace("host: rating", "host: reviews");
    lab.apply(&short).await?;
    misbehave(&lab, "reviews-v2").await?;
    until("an ejection", async || {
        let asked = ask(&lab, "http://reviews:8080/rate/[1-20]").await?;
        ensure!(asked.failed == 0 && asked.first == 20, "{asked:?}");
        Ok(())
    })
    .await?;
    let ip = lab
        .status()
        .await?
        .pod("default/reviews-v2")?
        .ip
        .to_string();
    let url = format!("http://{ip}:8080/rate/behave");
    lab.exec(CLIENT, &["curl", "-sS", &url]).await?;
    until("its return", async || {
        let asked = ask(&lab, "http://reviews:8080/rate/[1-20]").await?;
        ensure!(asked.ok == 20 && asked.first < 20, "{asked:?}");
        Ok(())
    })
    .await?;
    // A bound of connections that is not reached changes nothing.
    let mine = subsets("reviews");
    lab.apply(&mine).await?;
    lab.apply(seed!("reviews-circuit-breaker")).await?;
    until("service within bounds", async || {
        let asked = ask(&lab, "http://reviews:8080/rate/[1-20]").await?;
        ensure!(asked.ok == 20, "{asked:?}");
        Ok(())
    })
    .await
}

/// 0.1 % and 10 % are delayed by 5 s, 5 % are aborted, and each request is copied.
pub async fn faults_and_copies_are_as_many_as_the_articles_say() -> Result<()> {
    let lab = world(&[
        service("ratings"),
        subsets("ratings"),
        service("myapp"),
        service("httpbin"),
        subsets("httpbin"),
    ])
    .await?;
    for object in [
        seed!("ratings-delay"),
        seed!("myapp-faults"),
        seed!("httpbin-mirror"),
    ] {
        lab.apply(object).await?;
    }
    until("the copies", async || {
        let before = served(&lab, "httpbin-v2")?;
        let asked = ask(&lab, "http://httpbin:8080/rate/[1-10]").await?;
        ensure!(asked.first == 10, "{asked:?}");
        until("ten of them", async || {
            let copies = served(&lab, "httpbin-v2")? - before;
            ensure!(copies == 10, "{copies} copies of 10 requests");
            Ok(())
        })
        .await
    })
    .await?;
    let (first, second) = (served(&lab, "httpbin-v1")?, served(&lab, "httpbin-v2")?);
    let asked = ask(&lab, "http://httpbin:8080/rate/[1-300]").await?;
    ensure!(asked.first == 300, "{asked:?}");
    until("all copies", async || {
        let (one, two) = (
            served(&lab, "httpbin-v1")? - first,
            served(&lab, "httpbin-v2")? - second,
        );
        ensure!((one, two) == (300, 300), "{one} requests, {two} copies");
        Ok(())
    })
    .await?;
    println!("300 requests, 300 copies");
    for (name, seconds, connections) in [("ratings", "25", "24"), ("myapp", "25", "64")] {
        until("the faults", async || {
            let route = format!("route_name=VirtualService/default/{name}");
            ask(&lab, &format!("http://{name}:8080/rate/1")).await?;
            ensure!(
                !lab.log_lines(POD, &[&route]).await?.is_empty(),
                "no line with {route}"
            );
            Ok(())
        })
        .await?;
        let begun = flags(&lab, name).await?;
        let to = format!("{name}:8080");
        let words = [
            "--seconds",
            seconds,
            "http",
            &to,
            "--path",
            "/rate/1",
            "--connections",
            connections,
        ];
        let report = load(&lab, CLIENT, &words).await?;
        println!("{name}: {report}");
        // What was under way when the load ended is reported when its delay is over.
        tokio::time::sleep(std::time::Duration::from_secs(6)).await;
        let ended = flags(&lab, name).await?;
        let [all, delayed, aborted] = [0, 1, 2].map(|i| ended[i] - begun[i]);
        match name {
            "ratings" => within("delayed 0.1 %", delayed, all, 0.001)?,
            _ => {
                within("delayed 10 %", delayed, all, 0.1)?;
                within("aborted 5 %", aborted, all, 0.05)?;
            }
        }
    }
    Ok(())
}

/// All requests to a service, those that were delayed and those that were aborted.
async fn flags(lab: &Lab, service: &str) -> Result<[u64; 3]> {
    let mut all = [counted(lab, service, &[]).await?, 0, 0];
    for (flags, delayed, aborted) in [("DI", 1, 0), ("DI,FI", 1, 1), ("FI", 0, 1), ("DI,DC", 1, 0)]
    {
        let n = counted(lab, service, &[("response_flags", flags)]).await?;
        all[1] += n * delayed;
        all[2] += n * aborted;
    }
    Ok(all)
}

/// How many requests a pod has seen.
fn served(lab: &Lab, pod: &str) -> Result<usize> {
    let text = std::fs::read_to_string(lab.place.log(&format!("default/{pod}")))?;
    Ok(text.matches("Request ").count())
}
