//! `cargo xtask test conformance`: the Gateway API's conformance suite for meshes, against a cluster of our own.
//!
//! Invariants: the suite and its images are built from the modules that are pinned here, unchanged; a test that did not
//! pass fails the run. All namespaces of the suite are enrolled, and nothing is done for its sake that a user would not.

use std::{
    fs,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail, ensure};

use super::{Cluster, INSTALL, go::Module, image, image::Content, running, script, with};
use crate::{step, workspace};

const SUITE: Module = Module("kube/conformance");
const ECHO: Module = Module("kube/echo");
/// The images that the suite's manifests name.
const BASIC: &str = "registry.k8s.io/gateway-api/echo-basic:v1.5.1";
const ADVANCED: &str = "registry.k8s.io/gateway-api/echo-advanced:v1.5.1";
/// What is asked of a mesh.
const PROFILES: &str = "MESH-HTTP,MESH-GRPC";
/// Features beyond the core of the profiles.
const EXTENDED: [&str; 14] = [
    "MeshClusterIPMatching",
    "MeshConsumerRoute",
    "MeshHTTPRouteRewritePath",
    "MeshHTTPRouteSchemeRedirect",
    "MeshHTTPRouteRedirectPort",
    "MeshHTTPRouteRedirectPath",
    "MeshHTTPRouteBackendRequestHeaderModification",
    "MeshHTTPRouteQueryParamMatching",
    "MeshHTTPRouteNamedRouteRule",
    "HTTPRouteParentRefPort",
    "HTTPRouteResponseHeaderModification",
    "HTTPRoute303RedirectStatusCode",
    "HTTPRoute307RedirectStatusCode",
    "HTTPRoute308RedirectStatusCode",
];

/// Which of the suite's tests, and what becomes of the report.
#[derive(Clone, Copy, Debug)]
pub enum Run<'a> {
    /// All of them; the report is the project's.
    Reported,
    /// All of them; the report is thrown away.
    Tested,
    /// The one with this name.
    One(&'a str),
}

/// Runs the suite in a cluster that goes afterwards.
pub fn run(parts: &Parts, what: Run<'_>) -> Result<()> {
    let cluster = Cluster::start(false)?;
    let outcome = prepare(parts).and_then(|()| suite(parts, what));
    let removed = cluster.remove();
    outcome.and(removed)
}

/// What the suite consists of.
pub struct Parts {
    suite: PathBuf,
    images: Vec<PathBuf>,
    /// The definitions of the Gateway API's kinds, experimental ones among them.
    definitions: PathBuf,
}

/// Builds what is not there yet.
pub fn build() -> Result<Parts> {
    step::timed(
        "building the conformance suite and its servers (minutes, once)",
        || {
            let test = ["test", "-c"];
            let suite = SUITE.program(&test, "sigs.k8s.io/gateway-api/conformance", "suite")?;
            let module = SUITE.dependency("sigs.k8s.io/gateway-api")?;
            Ok(Parts {
                suite,
                images: vec![basic()?, advanced()?],
                definitions: module.join("config/crd/experimental"),
            })
        },
    )
}

fn basic() -> Result<PathBuf> {
    let tar = SUITE.kept()?.join("echo-basic.tar");
    let package = "sigs.k8s.io/gateway-api/conformance/echo-basic";
    let program = SUITE.program(&["build"], package, "echo-basic")?;
    let content = vec![Content::file("echo-basic", &program)?];
    image::write(&tar, BASIC, &["/echo-basic"], content)?;
    Ok(tar)
}

fn advanced() -> Result<PathBuf> {
    let kept = ECHO.kept()?;
    let tar = kept.join("echo-advanced.tar");
    let mut content = Vec::new();
    for name in ["server", "client"] {
        let package = format!("istio.io/istio/pkg/test/echo/cmd/{name}");
        let program = ECHO.program(&["build"], &package, name)?;
        content.push(Content::file(&format!("usr/local/bin/{name}"), &program)?);
    }
    let (certificate, key) = (kept.join("cert.crt"), kept.join("cert.key"));
    if !(certificate.is_file() && key.is_file()) {
        let words = "req -x509 -newkey rsa:2048 -nodes -days 3650 -subj /CN=echo -addext subjectAltName=DNS:echo";
        let out = Command::new("openssl")
            .args(words.split(' '))
            .arg("-keyout")
            .arg(&key)
            .arg("-out")
            .arg(&certificate)
            .output()
            .context("starting openssl")?;
        let why = String::from_utf8_lossy(&out.stderr);
        ensure!(out.status.success(), "openssl req: {}", why.trim());
    }
    content.push(Content::file("cert.crt", &certificate)?);
    content.push(Content::file("cert.key", &key)?);
    image::write(&tar, ADVANCED, &["/usr/local/bin/server"], content)?;
    Ok(tar)
}

fn prepare(parts: &Parts) -> Result<()> {
    for tar in &parts.images {
        step::run(script("load", Some(running()?))?.arg(tar))?;
    }
    let mut apply = script("kubectl", None)?;
    apply.args(["apply", "--server-side"]);
    let mut files: Vec<PathBuf> = fs::read_dir(&parts.definitions)
        .with_context(|| parts.definitions.display().to_string())?
        .flatten()
        .map(|e| e.path())
        .filter(|p| {
            p.extension().is_some_and(|e| e == "yaml") && !p.ends_with("kustomization.yaml")
        })
        .collect();
    files.sort();
    for file in files {
        apply.arg("-f").arg(file);
    }
    step::run(&mut apply)?;
    let mesh_ctl = step::built()?.join("mesh-ctl");
    step::run(with(None)?.arg(mesh_ctl).args(INSTALL))?;
    let before = SUITE.source()?.join("before.yaml");
    step::run(script("kubectl", None)?.args(["apply", "-f"]).arg(before))?;
    let programmed =
        r#"jsonpath={.status.parents[0].conditions[?(@.type=="Programmed")].status}=True"#;
    let wait = ["wait", "--timeout=60s", "httproute/before"];
    step::run(
        script("kubectl", None)?
            .args(["-n", "gateway-conformance-mesh"])
            .args(wait)
            .arg(format!("--for={programmed}")),
    )
}

fn suite(parts: &Parts, what: Run<'_>) -> Result<()> {
    let log = workspace()?.join("target/conformance.log");
    let reports = workspace()?.join("deploy/conformance");
    fs::create_dir_all(&reports).with_context(|| reports.display().to_string())?;
    let mut suite = with(None)?;
    suite.arg(&parts.suite).args([
        "-test.run",
        "^TestConformance$",
        "-test.v",
        "-test.timeout",
        "40m",
        "--organization=Warren",
        "--project=Warren",
        "--url=https://warren.dev",
        "--contact=https://warren.dev",
        "--namespace-labels=warren.dev/mesh=enabled",
    ]);
    suite.arg(format!("--version={}", env!("CARGO_PKG_VERSION")));
    suite.arg(format!("--conformance-profiles={PROFILES}"));
    suite.arg(format!("--supported-features={}", EXTENDED.join(",")));
    match what {
        Run::Reported => {
            let report = reports.join("report.yaml");
            suite.arg(format!("--report-output={}", report.display()));
        }
        Run::Tested => {}
        Run::One(name) => {
            suite.arg(format!("--run-test={name}"));
        }
    }
    let counted = step::timed("the conformance suite", || told(suite, &log))?;
    let Counted { passed, failed, ok } = counted;
    println!(
        "conformance: {passed} tests passed, {} failed",
        failed.len()
    );
    if !ok || !failed.is_empty() || passed == 0 {
        bail!(
            "the conformance suite did not pass ({}); its log is {}",
            failed.join(", "),
            log.display()
        );
    }
    Ok(())
}

/// What a run of the suite came to.
#[derive(Debug, Default, PartialEq, Eq)]
struct Counted {
    /// Tests of the suite that passed, not the cases within them.
    passed: usize,
    failed: Vec<String>,
    ok: bool,
}

impl Counted {
    /// Takes a line of `go test -v`; whether it tells of a test of the suite.
    fn line(&mut self, line: &str) -> bool {
        let Some((verdict, rest)) = line
            .trim_start()
            .strip_prefix("--- ")
            .and_then(|l| l.split_once(": TestConformance/"))
        else {
            return false;
        };
        let name = rest.split(' ').next().unwrap_or_default();
        if name.contains('/') {
            return false;
        }
        match verdict {
            "PASS" => self.passed += 1,
            "FAIL" => self.failed.push(name.to_owned()),
            _ => {}
        }
        true
    }
}

/// Runs the suite; what it says goes to a file, and which test it is at to the terminal.
fn told(mut suite: Command, log: &Path) -> Result<Counted> {
    let mut child = suite
        .stdout(Stdio::piped())
        .spawn()
        .context("starting the conformance suite")?;
    let out = child.stdout.take().context("a pipe was asked for")?;
    let mut counted = Counted::default();
    let mut text = String::new();
    for line in BufReader::new(out).lines() {
        let line = line.context("reading what the conformance suite says")?;
        let begins = line
            .strip_prefix("=== RUN   TestConformance/")
            .is_some_and(|name| !name.contains('/'));
        if counted.line(&line) || begins {
            println!("{}", line.trim_start());
        }
        text.push_str(&line);
        text.push('\n');
    }
    counted.ok = child
        .wait()
        .context("waiting for the conformance suite")?
        .success();
    fs::write(log, text).with_context(|| log.display().to_string())?;
    Ok(counted)
}

#[cfg(test)]
mod tests {
    use super::Counted;

    #[test]
    fn tests_are_counted_and_their_cases_are_not() {
        let mut counted = Counted::default();
        let lines = [
            ("=== RUN   TestConformance/MeshBasic", false),
            ("--- FAIL: TestConformance (90.21s)", false),
            ("    --- PASS: TestConformance/MeshBasic (1.02s)", true),
            (
                "        --- PASS: TestConformance/MeshBasic/0_request (1.02s)",
                false,
            ),
            ("    --- FAIL: TestConformance/MeshSplit (9.00s)", true),
            (
                "    --- SKIP: TestConformance/GatewayInfrastructure (0.00s)",
                true,
            ),
        ];
        for (line, tells) in lines {
            assert_eq!(counted.line(line), tells, "{line}");
        }
        let expected = Counted {
            passed: 1,
            failed: vec!["MeshSplit".into()],
            ok: false,
        };
        assert_eq!(counted, expected);
    }
}
