//! What people already have, unchanged: the traffic objects of `seeds/`, each with what it promises.
//!
//! Invariants: whatever is drawn at random is held to bounds that it leaves once in a million runs; nobody asks for a
//! waypoint, it appears because the objects need one.

use anyhow::{Context, Result, ensure};
use mesh_tests::lab::{Lab, suite};

use super::{
    tunnel::{SOON, until},
    waypoint::bounds,
};

pub use breaker::a_circuit_breaker_leaves_out_who_misbehaves;
pub use faults::faults_and_copies_are_as_many_as_the_articles_say;

/// Objects of the articles, word by word.
macro_rules! seed {
    ($name:literal) => {
        include_str!(concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/tests/lab/seeds/",
            $name,
            ".yaml"
        ))
    };
}

mod breaker;
mod faults;

/// The waypoint that the namespace gets once an object needs one.
const POD: &str = "warren-system/waypoint-default";
const CLIENT: &str = "default/client";

/// The namespace that the objects are made in, and a client; nothing about waypoints.
const BASE: &str = r#"
apiVersion: v1
kind: Namespace
metadata: {name: default, labels: {warren.dev/mesh: enabled}}
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

/// The lab with these, none of which needs a waypoint.
async fn world(rest: &[String]) -> Result<Lab> {
    let lab = Lab::up(suite::spec()).await?;
    lab.apply(&[BASE, &rest.concat()].concat()).await?;
    lab.wait_ready(SOON).await?;
    ensure!(
        lab.status().await?.pod(POD).is_err(),
        "there is a waypoint that nothing needs"
    );
    Ok(lab)
}

/// What log lines of requests that took the only route of a service have.
fn route(service: &str) -> String {
    format!("route_name=VirtualService/default/{service}#0 ")
}

/// Waits until requests for a service take its route, at a waypoint that has appeared by itself.
async fn routed(lab: &Lab, service: &str) -> Result<()> {
    let route = route(service);
    let url = format!("http://{service}:8080/rate/[1-4]");
    until(&format!("the route of {service}"), async || {
        let seen = lab.log_lines(POD, &[&route]).await?.len();
        let asked = ask(lab, &url).await?;
        let lines = lab.log_lines(POD, &[&route]).await?.len();
        ensure!(lines >= seen + 4, "{} of 4: {asked:?}", lines - seen);
        Ok(())
    })
    .await
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
    let lab = world(&[service("rating"), service("myapp")]).await?;
    for object in [
        seed!("rating-subsets"),
        seed!("rating-75-25"),
        seed!("myapp"),
        seed!("goods-canary"),
    ] {
        lab.apply(object).await?;
    }
    lab.wait_ready(SOON).await?;
    routed(&lab, "rating").await?;
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
    for (object, first) in [(seed!("rating-all-v1"), 40), (seed!("rating-all-v2"), 0)] {
        lab.apply(object).await?;
        until("all to one version", async || {
            let asked = ask(&lab, "http://rating:8080/rate/[1-40]").await?;
            ensure!(asked.ok == 40 && asked.first == first, "{asked:?}");
            Ok(())
        })
        .await?;
        let asked = ask(&lab, "http://rating:8080/rate/[1-200]").await?;
        ensure!(asked.ok == 200 && asked.first == first * 5, "{asked:?}");
    }
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
    routed(&lab, "ratings").await?;
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
