//! The demo of requests: the book and its rating, and the bookstore, through a waypoint each.
//!
//! Invariant: each step shows the command that a user would type, and holds only when the answers are as it says.

use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::{BOOKINFO, Demo, bars::Bars};

const BOOKS: &str = include_str!("../../../deploy/samples/books.yaml");
const SOON: Duration = Duration::from_secs(15);
/// Requests on one connection, after which bars are drawn anew.
const BATCH: u32 = 20;

/// A namespace's waypoint and a client in it.
fn around(namespace: &str) -> String {
    r#"
apiVersion: v1
kind: Namespace
metadata: {name: NAMESPACE, labels: {warren.dev/mesh: enabled, warren.dev/use-waypoint: waypoint}}
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: waypoint, namespace: NAMESPACE}
spec:
  gatewayClassName: warren-waypoint
  listeners: [{name: mesh, port: 15008, protocol: HBONE}]
---
apiVersion: v1
kind: Service
metadata: {name: waypoint, namespace: NAMESPACE}
spec:
  selector: {gateway.networking.k8s.io/gateway-name: waypoint}
  ports: [{name: hbone, port: 15008, appProtocol: hbone}]
---
apiVersion: v1
kind: Pod
metadata: {name: waypoint, namespace: NAMESPACE, labels: {gateway.networking.k8s.io/gateway-name: waypoint}}
spec:
  nodeName: n1
  serviceAccountName: waypoint
  containers: [{name: waypoint, image: warren/waypoint, readinessProbe: {httpGet: {port: 15020, path: /readyz}, periodSeconds: 1}}]
---
apiVersion: v1
kind: Pod
metadata: {name: client, namespace: NAMESPACE}
spec: {nodeName: n2, serviceAccountName: client, containers: [{name: c, image: idle}]}
"#
    .replace("NAMESPACE", namespace)
}

/// The second node in the zone of the first, so that a version is left out for its failures and not for its place.
const ONE_ZONE: &str = "apiVersion: v1\nkind: Node\nmetadata: {name: n2, labels: {topology.kubernetes.io/zone: zone-1}}\n";
const SUBSETS: &str = "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: rating, namespace: books}\nspec:\n  host: rating\n  subsets:\n  - {name: v1, labels: {version: v1}}\n  - {name: v2, labels: {version: v2}}\n";
const BREAKER: &str = "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: rating, namespace: books}\nspec:\n  host: rating\n  subsets:\n  - {name: v1, labels: {version: v1}}\n  - {name: v2, labels: {version: v2}}\n  trafficPolicy:\n    outlierDetection: {consecutive5xxErrors: 1, baseEjectionTime: 3m, maxEjectionPercent: 100}\n";
const REVIEWS: &str = "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: reviews, namespace: bookinfo}\nspec:\n  host: reviews\n  subsets:\n  - {name: v1, labels: {version: v1}}\n  - {name: v2, labels: {version: v2}}\n  - {name: v3, labels: {version: v3}}\n";

/// A virtual service of a host in a namespace with these rules.
fn rules(host: &str, namespace: &str, rules: &str) -> String {
    format!(
        "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: {host}, namespace: {namespace}}}\nspec:\n  hosts: [{host}]\n  http:\n{rules}\n"
    )
}

fn rating(rest: &str) -> String {
    rules("rating", "books", rest)
}

fn weighted(v1: u32) -> String {
    let v2 = 100 - v1;
    rating(&format!(
        "  - route:\n    - {{destination: {{host: rating, subset: v1}}, weight: {v1}}}\n    - {{destination: {{host: rating, subset: v2}}, weight: {v2}}}"
    ))
}

fn both(retries: &str) -> String {
    rating(&format!(
        "  - route: [{{destination: {{host: rating}}}}]\n    retries: {retries}"
    ))
}

/// Who a rating's or a review's answer is from.
fn rating_version(line: &str) -> Option<&'static str> {
    match line {
        "{\"rating\":1}" => Some("v1"),
        _ if line.starts_with("{\"rating\":") => Some("v2"),
        "503" => Some("503"),
        _ => None,
    }
}

fn review_version(line: &str) -> Option<&'static str> {
    match line {
        _ if !line.contains("\"reviews\"") => (line == "503").then_some("503"),
        _ if line.contains("\"black\"") => Some("v2"),
        _ if line.contains("\"red\"") => Some("v3"),
        _ => Some("v1"),
    }
}

impl Demo {
    /// All steps about requests.
    pub(super) async fn requests(&mut self) -> Result<()> {
        self.start().await.context("starting the bookstores")?;
        self.step("Shares: three of four ratings are v1's", shares)
            .await?;
        self.step("A misbehaving version, and retries that hide it", retries)
            .await?;
        self.step(
            "A circuit breaker leaves it out after its first 5xx",
            breaker,
        )
        .await?;
        self.step(
            "Jason sees the new reviews, everybody else the old ones",
            by_header,
        )
        .await?;
        self.step("A canary: half of the reviews move to v3", canary)
            .await?;
        self.step(
            "Faults put in on purpose, and how each shows in the log",
            faults,
        )
        .await
    }

    async fn start(&self) -> Result<()> {
        self.lab.apply(ONE_ZONE).await?;
        say!("$ lab apply -f deploy/samples/books.yaml -f deploy/samples/bookinfo.yaml");
        self.lab.apply(BOOKS).await?;
        self.lab.apply(BOOKINFO).await?;
        say!(
            "$ lab apply -f - # a waypoint and a client for each: Gateway of class warren-waypoint"
        );
        for namespace in ["books", "bookinfo"] {
            self.lab.apply(&around(namespace)).await?;
        }
        self.lab.apply(SUBSETS).await?;
        self.lab.apply(REVIEWS).await?;
        let status = self.lab.wait_ready(Duration::from_secs(40)).await?;
        say!(
            "   {} pods are ready on {}",
            status.pods.len(),
            status.nodes.join(" and ")
        );
        Ok(())
    }

    /// Asks so often, drawing who answers.
    async fn bars(
        &self,
        who: &str,
        url: &str,
        more: &[&str],
        times: u32,
        version: fn(&str) -> Option<&'static str>,
    ) -> Result<Bars> {
        let quoted = |word: &&str| match word.contains(' ') {
            true => format!("'{word}'"),
            false => (*word).to_owned(),
        };
        let shown = more.iter().map(quoted).collect::<Vec<_>>().join(" ");
        let many = format!("{url}?[1-{BATCH}]");
        let words = [
            &["curl", "-s", "-m", "30", "-w", "\n%{http_code}\n"],
            more,
            &[&many],
        ]
        .concat();
        say!("$ lab exec {who} -- curl -s {} '{url}?[1-{times}]'", shown);
        let mut bars = Bars::new();
        while bars.total() < times {
            let ran = self.lab.exec(who, &words).await?;
            let before = bars.total();
            for name in ran.out.lines().filter_map(version) {
                bars.add(name);
            }
            ensure!(bars.total() > before, "nobody answered: {ran:?}");
            bars.draw()?;
        }
        Ok(bars)
    }

    /// Waits until the answers are as a change wants them, without showing it.
    async fn settled(
        &self,
        (who, url): (&str, &str),
        more: &[&str],
        version: fn(&str) -> Option<&'static str>,
        good: impl Fn(&Bars) -> bool,
    ) -> Result<()> {
        let many = format!("{url}?[1-{BATCH}]");
        let words = [
            &["curl", "-s", "-m", "30", "-w", "\n%{http_code}\n"],
            more,
            &[&many],
        ]
        .concat();
        self.until(SOON, async || {
            let ran = self.lab.exec(who, &words).await?;
            let mut bars = Bars::new();
            ran.out
                .lines()
                .filter_map(version)
                .for_each(|v| bars.add(v));
            ensure!(bars.total() == BATCH && good(&bars), "{bars:?}");
            Ok(())
        })
        .await
        .map(drop)
    }

    async fn ratings_settled(&self, good: impl Fn(&Bars) -> bool) -> Result<()> {
        self.settled((BOOKS_CLIENT, RATING), &[], rating_version, good)
            .await
    }

    async fn rated(&self, times: u32) -> Result<Bars> {
        self.bars(BOOKS_CLIENT, RATING, &[], times, rating_version)
            .await
    }
}

const BOOKS_CLIENT: &str = "books/client";
const RATING: &str = "http://rating:8080/rate/1";
const REVIEW: &str = "http://reviews:9080/reviews/0";
const READER: &str = "bookinfo/client";

async fn shares(demo: &Demo) -> Result<()> {
    demo.apply("VirtualService rating: 75 to v1, 25 to v2", &weighted(75))
        .await?;
    let mixed = |b: &Bars| b.get("v1") > b.get("v2") && b.get("v2") > 0;
    demo.ratings_settled(mixed).await?;
    let bars = demo.rated(400).await?;
    let v1 = bars.get("v1");
    bars.end()?;
    // 300 of 400 are expected; outside lies less than one in a million.
    ensure!((256..=340).contains(&v1), "{v1} of 400 were v1's");
    Ok(())
}

/// Tells the second version of the rating to fail, or to stop failing.
async fn tell(demo: &Demo, how: &str) -> Result<()> {
    let status = demo.lab.status().await?;
    let pod = status
        .pods
        .iter()
        .find(|p| p.name.contains("rating-service-v2"));
    let ip = pod.context("no pod of rating v2")?.ip;
    let url = format!("http://{ip}:8080/rate/{how}");
    demo.exec(BOOKS_CLIENT, &["curl", "-s", &url])
        .await
        .map(drop)
}

async fn retries(demo: &Demo) -> Result<()> {
    tell(demo, "misbehave").await?;
    demo.apply(
        "VirtualService rating: both versions, no retries",
        &both("{attempts: 0}"),
    )
    .await?;
    demo.ratings_settled(|b| b.get("503") > 0).await?;
    let bars = demo.rated(100).await?;
    let failed = bars.get("503");
    bars.end()?;
    ensure!(failed > 0, "nothing failed without retries");
    demo.apply(
        "VirtualService rating: retries: {attempts: 2, perTryTimeout: 5s, retryOn: 5xx}",
        &both("{attempts: 2, perTryTimeout: 5s, retryOn: 5xx}"),
    )
    .await?;
    demo.ratings_settled(|b| b.get("503") == 0).await?;
    let bars = demo.rated(100).await?;
    let failed = bars.get("503");
    bars.end()?;
    ensure!(failed == 0, "{failed} of 100 failed with retries");
    line(demo, "books/waypoint", &["attempts=2", "response_code=200"]).await
}

async fn breaker(demo: &Demo) -> Result<()> {
    demo.apply(
        "VirtualService rating: no retries again",
        &both("{attempts: 0}"),
    )
    .await?;
    demo.ratings_settled(|b| b.get("503") > 0).await?;
    demo.apply(
        "DestinationRule rating: outlierDetection: {consecutive5xxErrors: 1, baseEjectionTime: 3m}",
        BREAKER,
    )
    .await?;
    demo.ratings_settled(|b| b.get("v1") == BATCH).await?;
    let bars = demo.rated(100).await?;
    let (v1, failed) = (bars.get("v1"), bars.get("503"));
    bars.end()?;
    ensure!(
        (v1, failed) == (100, 0),
        "{v1} of 100 by v1, {failed} failed"
    );
    tell(demo, "behave").await
}

async fn by_header(demo: &Demo) -> Result<()> {
    let by_user = rules(
        "reviews",
        "bookinfo",
        "  - match: [{headers: {end-user: {exact: jason}}}]\n    route: [{destination: {host: reviews, subset: v2}}]\n  - route: [{destination: {host: reviews, subset: v1}}]",
    );
    demo.apply(
        "VirtualService reviews: end-user jason to v2, others to v1",
        &by_user,
    )
    .await?;
    let all = |name: &'static str| move |b: &Bars| b.get(name) == BATCH;
    let jason = ["-H", "end-user: jason"];
    demo.settled((READER, REVIEW), &jason, review_version, all("v2"))
        .await?;
    for (more, expect) in [(&[][..], "v1"), (&jason[..], "v2")] {
        let bars = demo.bars(READER, REVIEW, more, 60, review_version).await?;
        let (got, of) = (bars.get(expect), bars.total());
        bars.end()?;
        ensure!(got == of, "{got} of {of} by {expect}");
    }
    Ok(())
}

async fn canary(demo: &Demo) -> Result<()> {
    let half = rules(
        "reviews",
        "bookinfo",
        "  - route:\n    - {destination: {host: reviews, subset: v1}, weight: 50}\n    - {destination: {host: reviews, subset: v3}, weight: 50}",
    );
    demo.apply("VirtualService reviews: 50 to v1, 50 to v3", &half)
        .await?;
    let mixed = |b: &Bars| b.get("v1") > 0 && b.get("v3") > 0;
    demo.settled((READER, REVIEW), &[], review_version, mixed)
        .await?;
    let bars = demo.bars(READER, REVIEW, &[], 200, review_version).await?;
    let (v1, v3) = (bars.get("v1"), bars.get("v3"));
    bars.end()?;
    // 100 of 200 are expected; outside lies less than one in a million.
    ensure!(
        v1 + v3 == 200 && (65..=135).contains(&v3),
        "{v1} by v1, {v3} by v3"
    );
    Ok(())
}

async fn faults(demo: &Demo) -> Result<()> {
    let faulty = rating(
        "  - fault:\n      delay: {percentage: {value: 10}, fixedDelay: 500ms}\n      abort: {percentage: {value: 20}, httpStatus: 503}\n    route: [{destination: {host: rating, subset: v1}}]",
    );
    demo.apply(
        "VirtualService rating: 10 % delayed by 500 ms, 20 % aborted with 503",
        &faulty,
    )
    .await?;
    demo.ratings_settled(|b| b.get("503") > 0).await?;
    let bars = demo.rated(200).await?;
    let failed = bars.get("503");
    bars.end()?;
    // 40 of 200 are expected; outside lies less than one in a million.
    ensure!((15..=70).contains(&failed), "{failed} of 200 aborted");
    line(demo, "books/waypoint", &["response_flags=FI"]).await?;
    line(demo, "books/waypoint", &["response_flags=DI"]).await
}

/// The last line of a waypoint's log that holds all of these, from the request on.
async fn line(demo: &Demo, pod: &str, words: &[&str]) -> Result<()> {
    say!(
        "$ lab logs {pod} | grep {} | tail -1",
        words.join(" | grep ")
    );
    let lines = demo.lab.log_lines(pod, words).await?;
    let last = lines
        .last()
        .with_context(|| format!("no line of {pod} holds {words:?}"))?;
    // Who asked whom fills a screen by itself.
    let request = last.find("method=").unwrap_or_default();
    say!(
        "   … {}",
        last[request..].chars().take(400).collect::<String>()
    );
    Ok(())
}
