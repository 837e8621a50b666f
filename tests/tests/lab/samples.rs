//! The lab and its samples as a user meets them: the README's commands by the command line, and every path of
//! every sample application through the mesh.

use std::{
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use mesh_tests::lab::Ran;
use serde_json::Value;

/// The command line, for a lab of its own; dropping it takes the lab down.
struct Cli {
    name: String,
}

impl Cli {
    fn new(suffix: &str) -> Self {
        Self {
            name: format!("t{}{suffix}", std::process::id()),
        }
    }

    fn run(&self, args: &[&str]) -> Result<Ran> {
        let out = Command::new(env!("CARGO_BIN_EXE_warren-lab"))
            .args(["--name", &self.name])
            .args(args)
            .stdin(Stdio::null())
            .output()?;
        Ok(out.into())
    }

    /// Runs it and expects success; what it printed.
    fn ok(&self, args: &[&str]) -> Result<String> {
        let ran = self.run(args)?;
        ensure!(ran.code == 0, "lab {args:?}: {ran:?}");
        Ok(ran.out)
    }

    fn json(&self, args: &[&str]) -> Result<Value> {
        let out = self.ok(&[args, &["-o", "json"]].concat())?;
        serde_json::from_str(&out).with_context(|| format!("lab {args:?} -o json printed {out}"))
    }

    fn exec(&self, who: &str, program: &[&str]) -> Result<Ran> {
        self.run(&[&["exec", who, "--"], program].concat())
    }

    fn pods(&self) -> Result<Vec<Value>> {
        let status = self.json(&["ps"])?;
        Ok(status["pods"].as_array().cloned().unwrap_or_default())
    }
}

impl Drop for Cli {
    fn drop(&mut self) {
        // A lab that is down already has nothing to remove.
        let _ = self.run(&["down"]);
    }
}

fn samples() -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/samples");
    root.display().to_string()
}

/// Tries until it succeeds.
fn until(what: &str, mut good: impl FnMut() -> Result<()>) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        match good() {
            Ok(()) => return Ok(()),
            Err(e) if Instant::now() > deadline => return Err(e.context(what.to_owned())),
            Err(_) => std::thread::sleep(Duration::from_millis(50)),
        }
    }
}

/// A request of the curl pod: its arguments, the status that must come, and what must be in the body.
type Ask = (&'static [&'static str], u16, &'static str);

const BOOKS: &[Ask] = &[
    (
        &["http://productpage.bookinfo:9080/"],
        200,
        "Simple Bookstore App",
    ),
    (
        &["http://productpage.bookinfo:9080/health"],
        200,
        "Product page is healthy",
    ),
    (
        &["http://productpage.bookinfo:9080/productpage"],
        200,
        "The Comedy of Errors",
    ),
    (
        &["http://productpage.bookinfo:9080/api/v1/products"],
        200,
        "\"title\"",
    ),
    (
        &["http://productpage.bookinfo:9080/api/v1/products/0"],
        200,
        "\"author\"",
    ),
    (
        &["http://productpage.bookinfo:9080/api/v1/products/0/reviews"],
        200,
        "\"reviewer\"",
    ),
    (
        &["http://productpage.bookinfo:9080/api/v1/products/0/ratings"],
        200,
        "\"ratings\"",
    ),
    (&["http://productpage.bookinfo:9080/no/such/path"], 404, ""),
    (
        &[
            "-d",
            "username=jason",
            "http://productpage.bookinfo:9080/login",
        ],
        302,
        "",
    ),
    (
        &["http://details.bookinfo:9080/details/0"],
        200,
        "\"pages\"",
    ),
    (&["http://details.bookinfo:9080/details/x"], 400, "numeric"),
    (
        &["http://details.bookinfo:9080/health"],
        200,
        "Details is healthy",
    ),
    (
        &["http://reviews.bookinfo:9080/reviews/0"],
        200,
        "\"reviews\"",
    ),
    (
        &["http://reviews.bookinfo:9080/health"],
        200,
        "Reviews is healthy",
    ),
    (
        &["http://ratings.bookinfo:9080/ratings/0"],
        200,
        "\"Reviewer1\"",
    ),
    (
        &["http://ratings.bookinfo:9080/health"],
        200,
        "Ratings is healthy",
    ),
    (
        &["http://book-service.books:8080/book/1"],
        200,
        "\"rating\"",
    ),
    (&["http://book-service.books:8080/"], 404, ""),
    (&["http://rating.books:8080/rate/1"], 200, "\"rating\""),
];

const ECHOES: &[Ask] = &[
    (&["http://httpbin.echo/"], 200, "hello from httpbin"),
    (
        &["-H", "X-Mine: yours", "http://httpbin.echo/headers"],
        200,
        "\"x-mine\":\"yours\"",
    ),
    (&["http://httpbin.echo/status/418"], 418, ""),
    (&["http://httpbin.echo/status/204"], 204, ""),
    (
        &["http://httpbin.echo/delay/0.2"],
        200,
        "\"method\":\"GET\"",
    ),
    (&["http://httpbin.echo/stream/3"], 200, "{\"id\": 2}"),
    (
        &["-d", "some body", "http://httpbin.echo/anything"],
        200,
        "\"data\":\"some body\"",
    ),
    (&["http://httpbin.echo/ip"], 200, "\"origin\""),
    (
        &["-A", "me", "http://httpbin.echo/user-agent"],
        200,
        "\"me\"",
    ),
    (&["http://httpbin.echo/ws"], 426, ""),
    (
        &["--http2-prior-knowledge", "http://httpbin.echo/get"],
        200,
        "\"method\":\"GET\"",
    ),
];

fn ask(cli: &Cli, (args, status, body): &Ask) -> Result<()> {
    let curl = [&["curl", "-s", "-m", "10", "-w", "\n%{http_code}"], *args].concat();
    let ran = cli.exec("curl/curl", &curl)?;
    let (got, code) = ran
        .out
        .rsplit_once('\n')
        .with_context(|| format!("{ran:?}"))?;
    ensure!(
        code == status.to_string() && got.contains(body),
        "{args:?}: {ran:?}"
    );
    Ok(())
}

/// Every path of the samples; all of it from a pod of the mesh.
pub async fn every_sample_answers_on_every_path() -> Result<()> {
    let cli = Cli::new("s");
    let up = cli.json(&["up", "-f", &samples()])?;
    ensure!(up["pods"].as_array().is_some_and(|p| p.len() > 10), "{up}");
    for one in BOOKS.iter().chain(ECHOES) {
        until("a sample", || ask(&cli, one))?;
    }
    let curl = |args: &[&str]| cli.exec("curl/curl", &[&["curl", "-s", "-m", "10"], args].concat());
    let bytes = curl(&[
        "-o",
        "/dev/null",
        "-w",
        "%{size_download}",
        "http://httpbin.echo/bytes/1000000",
    ])?;
    ensure!(bytes.out == "1000000", "{bytes:?}");
    all_versions_of_reviews(&cli)?;
    a_rating_misbehaves(&cli)?;
    for (protocol, to, sign) in [
        ("websocket", "httpbin.echo:80", "\"closed\":true"),
        ("grpc", "grpc-echo.echo:8053", "\"bidi\":100"),
    ] {
        let ran = cli.exec("curl/curl", &["warren-sample", "ask", protocol, to])?;
        ensure!(ran.code == 0 && ran.out.contains(sign), "{ran:?}");
    }
    let script = "exec 3<>/dev/tcp/tcp-echo.echo/9000 && echo said >&3 && timeout 5 head -1 <&3";
    let ran = cli.exec("curl/curl", &["bash", "-c", script])?;
    ensure!(ran.out == "said\n", "{ran:?}");
    Ok(())
}

/// v1 shows no stars, v2 black ones, v3 red ones: with time all are seen.
fn all_versions_of_reviews(cli: &Cli) -> Result<()> {
    let mut seen = [false; 3];
    until("all versions of reviews", || {
        let url = "http://reviews.bookinfo:9080/reviews/0";
        let page = cli.exec("curl/curl", &["curl", "-s", "-m", "10", url])?.out;
        let version = match (page.contains("black"), page.contains("red")) {
            (true, _) => 1,
            (_, true) => 2,
            _ => 0,
        };
        seen[version] = true;
        ensure!(seen == [true; 3], "seen: {seen:?}");
        Ok(())
    })
}

/// `/rate/misbehave` makes a rating fail until `/rate/behave`; the book shows it.
fn a_rating_misbehaves(cli: &Cli) -> Result<()> {
    let pods = cli.pods()?;
    let ratings: Vec<&str> = pods
        .iter()
        .filter(|p| {
            p["namespace"] == "books" && p["name"].as_str().is_some_and(|n| n.starts_with("rating"))
        })
        .filter_map(|p| p["ip"].as_str())
        .collect();
    ensure!(ratings.len() == 2, "{ratings:?}");
    for (word, status) in [("misbehave", 503), ("behave", 200)] {
        for ip in &ratings {
            let url = format!("http://{ip}:8080/rate/{word}");
            let ran = cli.exec("curl/curl", &["curl", "-s", "-m", "10", &url])?;
            ensure!(ran.code == 0 && !ran.out.is_empty(), "{ran:?}");
        }
        let book: Ask = (&["http://book-service.books:8080/book/1"], status, "");
        for _ in 0..5 {
            ask(cli, &book).with_context(|| word.to_owned())?;
        }
    }
    Ok(())
}

const POLICY: &str = r#"
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: nobody, namespace: echo}
spec: {selector: {matchLabels: {app: httpbin}}}
"#;

const WEB: &str = r#"
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, namespace: curl}
spec:
  replicas: 2
  template:
    metadata: {labels: {app: web}}
    spec: {containers: [{name: c, image: "httpbin:1", ports: [{containerPort: 80}]}, {name: idle, image: "nobody/knows:1"}]}
"#;

/// The README's commands, one by one, with three nodes; and what they print for a script.
pub async fn the_readme_works_word_by_word() -> Result<()> {
    let (cli, dir) = (Cli::new("r"), tempfile::tempdir()?);
    let file = |name: &str, text: &str| -> Result<String> {
        let path = dir.path().join(name);
        std::fs::write(&path, text)?;
        Ok(path.display().to_string())
    };
    let up = cli.ok(&["up", "--nodes", "3", "-f", &samples()])?;
    ensure!(up.contains("is up after") && up.contains("3 nodes"), "{up}");
    let again = cli.run(&["up"])?;
    ensure!(
        again.code != 0 && again.err.contains("already up"),
        "{again:?}"
    );
    let shown = cli.ok(&["ps"])?;
    ensure!(
        shown.contains("COMPONENT") && shown.contains("captured"),
        "{shown}"
    );
    for pod in cli.pods()? {
        let expect = if pod["namespace"] == "outside" {
            "out"
        } else {
            "captured"
        };
        ensure!(pod["mesh"] == expect && pod["ready"] == true, "{pod}");
    }
    until("the first command", || ask(&cli, &BOOKS[3]))?;
    let policy = file("my-policy.yaml", POLICY)?;
    let said = cli.json(&["apply", "-f", &policy])?;
    ensure!(said.to_string().contains("created"), "{said}");
    until("the policy", || match ask(&cli, &ECHOES[0]) {
        Ok(()) => bail!("it is not in force"),
        Err(_) => Ok(()),
    })?;
    let said = cli.ok(&["delete", "-f", &policy])?;
    ensure!(said.contains("deleted"), "{said}");
    until("service after the policy", || ask(&cli, &ECHOES[0]))?;
    look_around(&cli, &dir.path().join("wire.pcap").display().to_string())?;
    grow_and_shrink(&cli, &file)?;
    let down = cli.json(&["down"])?;
    ensure!(down["namespaces"].as_u64() > Some(10), "{down}");
    let gone = cli.run(&["ps"])?;
    ensure!(
        gone.code != 0 && gone.err.contains("lab up"),
        "it says what to do: {gone:?}"
    );
    Ok(())
}

/// Logs, metrics and a capture.
fn look_around(cli: &Cli, pcap: &str) -> Result<()> {
    for (who, word) in [
        ("controller", ""),
        ("n1", ""),
        ("supervisor", ""),
        ("echo/httpbin", "listening"),
    ] {
        let log = cli.ok(&["logs", who])?;
        ensure!(log.contains(word), "{who}: {log}");
    }
    let nodes = ["n1", "n2", "n3"];
    let logs: String = nodes
        .iter()
        .map(|n| cli.ok(&["logs", n]))
        .collect::<Result<_>>()?;
    ensure!(
        logs.contains("direction=outbound") && logs.contains("policy_not_allowed"),
        "{logs}"
    );
    let metrics: Vec<String> = nodes
        .iter()
        .map(|n| cli.ok(&["metrics", n]))
        .collect::<Result<_>>()?;
    ensure!(
        metrics.iter().all(|m| m.contains("warren_build_info"))
            && metrics
                .iter()
                .any(|m| m.contains("istio_tcp_connections_opened_total{")),
        "{metrics:?}"
    );
    let mut capture = Command::new(env!("CARGO_BIN_EXE_warren-lab"))
        .args([
            "--name",
            &cli.name,
            "capture",
            "n1",
            "-w",
            pcap,
            "--seconds",
            "2",
        ])
        .stderr(Stdio::null())
        .spawn()?;
    while capture.try_wait()?.is_none() {
        for one in &BOOKS[4..6] {
            ask(cli, one)?;
        }
    }
    let packets = std::fs::read(pcap)?;
    ensure!(
        packets.starts_with(&0xa1b2_c3d4_u32.to_le_bytes()) && packets.len() > 1000,
        "{} bytes of pcap",
        packets.len()
    );
    let lost = cli.run(&["exec", "nobody", "--", "true"])?;
    ensure!(lost.code != 0 && lost.err.contains("nobody"), "{lost:?}");
    let code = cli.exec("curl/curl", &["sh", "-c", "exit 7"])?.code;
    ensure!(code == 7, "the program's own exit status: {code}");
    Ok(())
}

/// Scaling, deleting and moving by `apply`; a container of an unknown image idles.
fn grow_and_shrink(cli: &Cli, file: &impl Fn(&str, &str) -> Result<String>) -> Result<()> {
    let count = |want: usize, node: Option<&str>| {
        until("the pods", || {
            let pods = cli.pods()?;
            let web = |p: &&Value| p["name"].as_str().is_some_and(|n| n.starts_with("web-"));
            let there: Vec<&Value> = pods.iter().filter(web).collect();
            let fit = |p: &&Value| p["ready"] == true && node.is_none_or(|n| p["node"] == n);
            ensure!(there.len() == want && there.iter().all(fit), "{there:?}");
            Ok(())
        })
    };
    cli.ok(&["apply", "--wait", "-f", &file("web.yaml", WEB)?])?;
    count(2, None)?;
    cli.ok(&[
        "apply",
        "-f",
        &file("web.yaml", &WEB.replace("replicas: 2", "replicas: 5"))?,
    ])?;
    count(5, None)?;
    let moved = WEB.replace(
        "spec: {containers",
        "spec: {nodeSelector: {kubernetes.io/hostname: n3}, containers",
    );
    cli.ok(&["apply", "-f", &file("web.yaml", &moved)?])?;
    count(2, Some("n3"))?;
    let name = cli
        .pods()?
        .iter()
        .filter_map(|p| p["name"].as_str())
        .find(|n| n.starts_with("web-"))
        .context("a pod")?
        .to_owned();
    cli.ok(&["delete", "pod", &format!("curl/{name}")])?;
    count(2, Some("n3"))?;
    ensure!(
        cli.pods()?.iter().all(|p| p["name"] != *name),
        "another pod takes its place"
    );
    cli.ok(&["delete", "-f", &file("web.yaml", WEB)?])?;
    count(0, None)
}
