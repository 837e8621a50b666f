//! What is said of a route's destinations: which of their endpoints take requests (who does not answer is given up in time,
//! near places come first, shares of places are kept, who is busy gets less), and with which headers.
//!
//! Invariant: whatever is drawn at random is held to bounds that it leaves once in a million runs.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail, ensure};
use mesh_tests::lab::{Lab, node::sum_metric, suite, supervisor::Spec};
use serde_json::Value;

use super::{
    load::flawless,
    protocols::{BASE, CLIENT, POD},
    tunnel::{SOON, until},
    waypoint::bounds,
};

/// A service of this name for whatever has its label.
fn service(name: &str, selector: &str) -> String {
    format!(
        "---\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\n\
         spec: {{selector: {{{selector}}}, ports: [{{name: http, port: 80}}]}}\n"
    )
}

/// A pod that runs something, with labels beside `app: web`.
fn pod(name: &str, node: &str, labels: &str, container: &str) -> String {
    format!(
        "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, labels: {{app: web{labels}}}}}\n\
         spec: {{nodeName: {node}, serviceAccountName: web, containers: [{{name: c, {container}}}]}}\n"
    )
}

/// A server that says which one it is.
const NAMED: &str = "image: 'httpbin:1', ports: [{containerPort: 80}]";

/// How a host's endpoints are used.
fn rule(host: &str, policy: &str) -> String {
    format!(
        "---\napiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {{name: {host}}}\n\
         spec: {{host: {host}, trafficPolicy: {{{policy}}}}}\n"
    )
}

/// A route to a host with these retries.
fn retries(host: &str, retries: &str) -> String {
    format!(
        "---\napiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: {host}}}\n\
         spec: {{hosts: [{host}], http: [{{route: [{{destination: {{host: {host}}}}}], retries: {{{retries}}}}}]}}\n"
    )
}

/// What came of requests on one connection.
#[derive(Debug, Default)]
struct Asked {
    /// How many each server answered well.
    by: BTreeMap<String, u32>,
    /// Statuses, in their order; 0 where there was no answer.
    statuses: Vec<u16>,
    /// How long each took.
    seconds: Vec<f64>,
}

impl Asked {
    fn of(&self, server: &str) -> u32 {
        self.by.get(server).copied().unwrap_or_default()
    }
}

/// Asks for a URL, or for URLs in curl's way of writing many.
async fn ask(lab: &Lab, url: &str) -> Result<Asked> {
    let told = "\n%{http_code} %{time_total}\n";
    let words = ["curl", "-s", "-m", "3", "-w", told, url];
    let ran = lab.exec(CLIENT, &words).await?;
    let mut asked = Asked::default();
    for line in ran.out.lines() {
        if let Some(server) = line.strip_prefix("hello from ") {
            let server = server.split(' ').next().unwrap_or_default();
            *asked.by.entry(server.to_owned()).or_default() += 1;
        } else if let Some((status, seconds)) = line.split_once(' ')
            && let (Ok(status), Ok(seconds)) = (status.parse(), seconds.parse())
        {
            asked.statuses.push(status);
            asked.seconds.push(seconds);
        }
    }
    Ok(asked)
}

/// Lets a pod hear nothing of others' packets: what they ask of it is neither answered nor refused.
async fn deafen(lab: &Lab, who: &str, others: &[&str]) -> Result<()> {
    let status = lab.status().await?;
    for other in others {
        let other = status.pod(other)?;
        for to in [other.ip.to_string(), other.ip6.to_string()] {
            let words = ["ip", "route", "add", "blackhole", &to];
            let ran = lab.exec(who, &words).await?;
            ensure!(ran.code == 0, "{ran:?}");
        }
    }
    Ok(())
}

/// A try has the 300 ms of the rule and not the 10 s that are usual, at the waypoint and at a node proxy without one;
/// whoever retries is served by the other endpoint.
pub async fn an_endpoint_that_answers_no_connect_is_given_up_in_its_rules_time() -> Result<()> {
    let lab = Lab::up(suite::spec()).await?;
    let bytes = service("bytes", "part: deaf")
        .replace(
            "{name: bytes}",
            "{name: bytes, labels: {warren.dev/use-waypoint: none}}",
        )
        .replace("{name: http,", "{name: tcp,");
    let in_time = "connectionPool: {tcp: {connectTimeout: 300ms}}";
    let in_turn = format!("{in_time}, loadBalancer: {{simple: ROUND_ROBIN}}");
    let world = [
        BASE.to_owned(),
        pod("web-1", "n1", "", NAMED),
        pod("web-2", "n1", ", part: deaf", NAMED),
        service("web", "app: web"),
        service("once", "part: deaf"),
        service("usual", "part: deaf"),
        bytes,
        rule("web", &in_turn),
        ["once", "usual", "bytes"]
            .map(|host| rule(host, in_time))
            .concat(),
        retries("web", "attempts: 2, retryOn: connect-failure"),
        retries("once", "attempts: 0"),
    ];
    lab.apply(&world.concat()).await?;
    lab.wait_ready(SOON).await?;
    deafen(&lab, "default/web-2", &[POD, CLIENT]).await?;
    until("the rule", async || {
        let asked = ask(&lab, "http://web/?begin").await?;
        let by_rule = ["route_name=VirtualService/default/web"];
        let lines = lab.log_lines(POD, &by_rule).await?;
        ensure!(asked.statuses == [200] && !lines.is_empty(), "{asked:?}");
        Ok(())
    })
    .await?;
    // Ten times what it may take is still less than what is usual.
    for (host, tries, flags) in [("once", 1, "UF"), ("usual", 3, "URX,UF")] {
        let asked = ask(&lab, &format!("http://{host}/?alone")).await?;
        let least = 0.3 * f64::from(tries);
        ensure!(
            asked.statuses == [503] && (least..3.0).contains(&asked.seconds[0]),
            "{host}: {asked:?}"
        );
        let (of_host, tries) = (format!("|{host}."), format!("attempts={tries}"));
        let flags = format!("response_flags={flags} ");
        let words = [
            "path=/?alone ",
            &of_host,
            "response_code=503 ",
            &tries,
            &flags,
        ];
        let lines = lab.log_lines(POD, &words).await?;
        ensure!(lines.len() == 1, "{} lines with {words:?}", lines.len());
        println!("{:.3} s: {}", asked.seconds[0], lines[0]);
    }
    // In turn, so that at least every second one begins with whom nobody hears.
    let asked = ask(&lab, "http://web/?both-[1-6]").await?;
    let second = ["path=/?both-", "attempts=2", "dst.workload=web-1 "];
    let second = lab.log_lines(POD, &second).await?.len();
    println!(
        "{second} of 6 went to the other endpoint: {:?}",
        asked.seconds
    );
    ensure!(asked.of("web-1") == 6, "{asked:?}");
    let waited = asked
        .seconds
        .iter()
        .filter(|s| (0.3..3.0).contains(*s))
        .count();
    ensure!(
        second >= 3 && waited == second,
        "{second} went on: {asked:?}"
    );
    // Of bytes nothing is answered; the client is reset.
    let asked = ask(&lab, "http://bytes/").await?;
    ensure!(
        asked.statuses == [0] && (0.3..3.0).contains(&asked.seconds[0]),
        "{asked:?}"
    );
    let words = [
        "direction=outbound",
        "reason=connect_timeout",
        "dst.service=bytes.",
    ];
    println!("{}", lab.until_logged("n2", &words).await?);
    Ok(())
}

/// A lab whose three nodes are in regions of their own, the waypoint's and one server in `eu`, and who asks once.
async fn places(policy: &str) -> Result<Lab> {
    let spec = Spec {
        nodes: 3,
        ..suite::spec()
    };
    let lab = Lab::up(spec).await?;
    let node = |(name, region): (&str, &str)| {
        format!(
            "---\napiVersion: v1\nkind: Node\nmetadata: {{name: {name}, labels: {{topology.kubernetes.io/region: {region}, topology.kubernetes.io/zone: {region}-1}}}}\n"
        )
    };
    let nodes = [("n1", "eu"), ("n2", "us"), ("n3", "ap")];
    let servers = nodes.map(|(node, region)| pod(region, node, "", NAMED));
    let world = [
        BASE,
        &nodes.map(node).concat(),
        &servers.concat(),
        &service("web", "app: web"),
        &retries("web", "attempts: 0"),
        &rule("web", policy),
    ];
    lab.apply(&world.concat()).await?;
    lab.wait_ready(SOON).await?;
    Ok(lab)
}

/// Waits until these servers take all requests, and each some.
async fn taken(lab: &Lab, what: &str, by: &[&str]) -> Result<()> {
    until(what, async || {
        let asked = ask(lab, "http://web/?[1-40]").await?;
        let theirs: u32 = by.iter().map(|server| asked.of(server)).sum();
        let each = by.iter().all(|server| asked.of(server) > 0);
        ensure!(theirs == 40 && each, "{asked:?}");
        Ok(())
    })
    .await
    .with_context(|| format!("{what}: to {by:?}"))
}

/// Lets whoever is next fail once, for which it is left out.
async fn fail_once(lab: &Lab) -> Result<()> {
    let asked = ask(lab, "http://web/status/503").await?;
    ensure!(asked.statuses == [503], "{asked:?}");
    Ok(())
}

/// Who fails once is left out for longer than the test runs.
const OUTLIERS: &str = "outlierDetection: {consecutive5xxErrors: 1, interval: 1s, baseEjectionTime: 60s, maxEjectionPercent: 100}";

/// The own region comes first, then the one that it fails over to, then the other: as endpoints are left out, and as they
/// go.
pub async fn places_come_in_the_order_of_their_rule() -> Result<()> {
    // Whoever asks a server just as it goes is not to wait for it.
    const NEXT: &str = "connectionPool: {tcp: {connectTimeout: 300ms}}, loadBalancer: {localityLbSetting: {failover: [{from: eu, to: ap}]}}";
    let lab = places(&format!("{OUTLIERS}, {NEXT}")).await?;
    taken(&lab, "the own region", &["eu"]).await?;
    fail_once(&lab).await?;
    taken(&lab, "the region that was named", &["ap"]).await?;
    fail_once(&lab).await?;
    taken(&lab, "the last one", &["us"]).await?;
    // Who was left out is so no more where nobody is to be left out.
    let anywhere = "loadBalancer: {localityLbSetting: {enabled: false}}";
    lab.apply(&rule("web", anywhere)).await?;
    taken(&lab, "all of them", &["eu", "us", "ap"]).await?;
    // Outliers alone bring the own place first, and after it whoever is left.
    lab.apply(&rule("web", OUTLIERS)).await?;
    taken(&lab, "the own region, unasked", &["eu"]).await?;
    fail_once(&lab).await?;
    taken(&lab, "both others", &["us", "ap"]).await?;
    lab.apply(&rule("web", NEXT)).await?;
    taken(&lab, "the own region again", &["eu"]).await?;
    lab.delete(&pod("eu", "n1", "", NAMED)).await?;
    taken(&lab, "the region that was named, for ours is gone", &["ap"]).await?;
    lab.delete(&pod("ap", "n3", "", NAMED)).await?;
    taken(&lab, "the last one, for the others are gone", &["us"]).await
}

/// A place of which half is left out keeps 70 of 100 requests, and the next ones get the rest.
pub async fn a_place_spills_over_while_half_of_it_is_left_out() -> Result<()> {
    let lab = places(OUTLIERS).await?;
    lab.apply(&pod("eu-2", "n1", "", NAMED)).await?;
    taken(&lab, "the own region", &["eu", "eu-2"]).await?;
    fail_once(&lab).await?;
    let asked = ask(&lab, "http://web/?[1-600]").await?;
    let near = [asked.of("eu"), asked.of("eu-2")];
    let far = asked.of("us") + asked.of("ap");
    let expected = bounds(600, 0.7);
    println!("eu took {near:?} of 600, bounds {expected:?}");
    let kept = near.iter().sum::<u32>();
    ensure!(
        near.contains(&0) && kept + far == 600 && expected.contains(&kept),
        "expected {expected:?} of 600: {:?}",
        asked.by
    );
    Ok(())
}

/// Of two zones that are named each gets its share, and the third nothing.
pub async fn places_get_the_shares_of_their_rule() -> Result<()> {
    let shares = r#"loadBalancer: {localityLbSetting: {distribute: [{from: "eu/*", to: {"eu/eu-1/*": 80, "ap/ap-1/*": 20}}]}}"#;
    let lab = places(shares).await?;
    taken(&lab, "both zones", &["eu", "ap"]).await?;
    let asked = ask(&lab, "http://web/?[1-600]").await?;
    let (near, far) = (asked.of("eu"), asked.of("ap"));
    let expected = bounds(600, 0.8);
    println!("eu took {near} of 600, bounds {expected:?}");
    ensure!(
        near + far == 600 && expected.contains(&near),
        "expected {expected:?} of 600: {:?}",
        asked.by
    );
    Ok(())
}

/// Answers after so many seconds.
const SLOW: &str = r#"
import sys, time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
class Answer(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        time.sleep(float(sys.argv[1]))
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()
    def log_message(self, *_):
        pass
ThreadingHTTPServer(("", 80), Answer).serve_forever()
"#;

/// One that is slow among three that are not.
const SERVERS: [&str; 4] = ["slow", "fast-1", "fast-2", "fast-3"];

/// How many requests each of them has answered.
async fn counted(lab: &Lab) -> Result<[u32; 4]> {
    let metrics = lab.waypoint_metrics(POD).await?;
    Ok(SERVERS.map(|server| {
        let labels = [("destination_workload", server), ("response_code", "200")];
        sum_metric(&metrics, "istio_requests_total", &labels) as u32
    }))
}

/// How many each answered of what eight clients asked, each as soon as it was answered.
async fn eight_clients(lab: &Lab, seconds: &str) -> Result<[u32; 4]> {
    let before = counted(lab).await?;
    let words = ["--seconds", seconds, "http", "web:80", "--connections", "8"];
    let report = flawless(lab, CLIENT, &words).await?;
    let mut taken = [0; 4];
    until("the waypoint's counts", async || {
        let now = counted(lab).await?;
        taken = std::array::from_fn(|at| now[at] - before[at]);
        let all: u32 = taken.iter().sum();
        ensure!(report["ok"] == all, "{taken:?} of {report}");
        Ok(())
    })
    .await?;
    Ok(taken)
}

/// In turn the slow one gets as many as the others; by who is less busy it gets what nobody else was drawn for.
pub async fn who_is_busy_gets_less_unless_all_take_turns() -> Result<()> {
    let lab = Lab::up(suite::spec()).await?;
    let program = serde_json::to_string(SLOW)?;
    let server = |name: &str| {
        let seconds = if name == "slow" { "0.1" } else { "0" };
        let node = if name == "fast-3" { "n2" } else { "n1" };
        let container = format!(
            "image: python, command: [python3, -c, {program}, '{seconds}'], readinessProbe: {{tcpSocket: {{port: 80}}, periodSeconds: 1}}"
        );
        pod(name, node, "", &container)
    };
    let by = |simple: &str| rule("web", &format!("loadBalancer: {{simple: {simple}}}"));
    let world = [
        BASE,
        &SERVERS.map(server).concat(),
        &service("web", "app: web"),
        &by("ROUND_ROBIN"),
    ];
    lab.apply(&world.concat()).await?;
    lab.wait_ready(SOON).await?;
    until("turns", async || {
        let before = counted(&lab).await?;
        let asked = ask(&lab, "http://web/?[1-16]").await?;
        let now = counted(&lab).await?;
        let each = (0..4).all(|at| now[at] - before[at] == 4);
        ensure!(each, "{before:?} and {now:?} after {asked:?}");
        Ok(())
    })
    .await?;
    let turns = eight_clients(&lab, "2").await?;
    println!("in turn: {SERVERS:?} took {turns:?}");
    let (least, most) = (turns.iter().min(), turns.iter().max());
    let apart = most.context("four")? - least.context("four")?;
    ensure!(apart <= 1 && turns[0] > 20, "{turns:?}");
    lab.apply(&by("LEAST_REQUEST")).await?;
    until("no turns", async || {
        let before = counted(&lab).await?;
        ask(&lab, "http://web/?[1-32]").await?;
        let now = counted(&lab).await?;
        let each = (0..4).all(|at| now[at] - before[at] == 8);
        ensure!(!each, "still in turn");
        Ok(())
    })
    .await?;
    let taken = eight_clients(&lab, "2").await?;
    let all: u32 = taken.iter().sum();
    // Two of four are drawn, perhaps the same twice, and the less busy of them is taken. So the slow one gets one in 16 at
    // least, when it is drawn twice, whoever is busy. It gets more only while it has no more under way than the other that
    // is drawn: of eight clients about half are waiting for it, and about one for each of the others, so that this is rare.
    // For all of it one in 16 more is allowed; turns would give it four in 16.
    let (least, most) = (
        *bounds(all, 1.0 / 16.0).start(),
        *bounds(all, 2.0 / 16.0).end(),
    );
    println!("by who is less busy: {SERVERS:?} took {taken:?}, bounds {least}..={most}");
    ensure!(
        (least..=most).contains(&taken[0]) && most < all / 4 && all > 400,
        "the slow one took {} of {all}, expected {least}..={most}: {taken:?}",
        taken[0]
    );
    Ok(())
}

/// Two destinations, each with headers of its own, and some for both.
const DRESSED: &str = "
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: web}
spec:
  hosts: [web]
  http:
  - headers: {request: {add: {x-for: all}}, response: {add: {x-by: all}}}
    route:
    - destination: {host: web, subset: v1}
      weight: 60
      headers:
        request: {set: {x-only: first}, remove: [x-secret]}
        response: {set: {x-own: first}, remove: [content-type]}
    - destination: {host: web, subset: v2}
      weight: 40
      headers:
        request: {add: {x-only: second}}
        response: {set: {x-own: second}}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: web}
spec:
  host: web
  subsets: [{name: v1, labels: {version: v1}}, {name: v2, labels: {version: v2}}]
";

/// Each answer has the headers of the destination that gave it, and each server has seen those that are meant for it.
pub async fn headers_of_a_destination_are_those_of_its_requests_only() -> Result<()> {
    const ASKED: u32 = 300;
    let lab = Lab::up(suite::spec()).await?;
    let world = [
        BASE,
        &pod("v1", "n1", ", version: v1", NAMED),
        &pod("v2", "n2", ", version: v2", NAMED),
        &service("web", "app: web"),
        DRESSED,
    ];
    lab.apply(&world.concat()).await?;
    lab.wait_ready(SOON).await?;
    let ask = async |n: u32| {
        let url = format!("http://web/anything?[1-{n}]");
        let told = "\n%header{x-own} %header{x-by} %header{content-type}\n";
        let words = [
            "curl",
            "-sS",
            "-m",
            "20",
            "-w",
            told,
            "-H",
            "x-only: client",
            "-H",
            "x-secret: of the client",
            &url,
        ];
        lab.exec(CLIENT, &words).await
    };
    until("the route", async || {
        let ran = ask(1).await?;
        ensure!(ran.out.contains(" all "), "{ran:?}");
        Ok(())
    })
    .await?;
    let ran = ask(ASKED).await?;
    let lines: Vec<&str> = ran.out.lines().collect();
    let mut by = BTreeMap::<String, u32>::new();
    for answer in lines.chunks(2) {
        let [seen, got] = answer else {
            bail!("half an answer: {answer:?}");
        };
        let seen: Value = serde_json::from_str(seen).with_context(|| format!("{answer:?}"))?;
        let server = seen["pod"].as_str().unwrap_or_default().to_owned();
        let headers = ["x-only", "x-secret", "x-for"].map(|name| seen["headers"][name].as_str());
        let expect = match &*server {
            "v1" => ([Some("first"), None, Some("all")], "first all "),
            _ => (
                [Some("client,second"), Some("of the client"), Some("all")],
                "second all application/json",
            ),
        };
        ensure!((headers, *got) == expect, "{server}: {answer:?}");
        *by.entry(server).or_default() += 1;
    }
    let expected = bounds(ASKED, 0.6);
    println!("{by:?} of {ASKED} answered, bounds {expected:?}");
    let first = by.get("v1").copied().unwrap_or_default();
    let all: u32 = by.values().sum();
    ensure!(all == ASKED && expected.contains(&first), "{by:?}");
    Ok(())
}
