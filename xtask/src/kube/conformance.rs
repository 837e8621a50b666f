//! `cargo xtask test conformance`: the Gateway API's conformance suite for meshes, against a cluster of our own.
//!
//! Invariants: the suite and its images are built from the modules that are pinned here, unchanged; a test that did not
//! pass fails the run, also one that was skipped or never begun. All namespaces of the suite are enrolled, and nothing is
//! done for its sake that a user would not.

mod results;

use std::{
    fs,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail, ensure};

use self::results::Results;
use super::{Cluster, INSTALL, go::Module, image, image::Content, running, script, with};
use crate::{step, workspace};

const SUITE: Module = Module("kube/conformance");
const ECHO: Module = Module("kube/echo");
/// The images that the suite's manifests name.
const BASIC: &str = "registry.k8s.io/gateway-api/echo-basic:v1.5.1";
const ADVANCED: &str = "registry.k8s.io/gateway-api/echo-advanced:v1.5.1";
/// Where the project keeps what became of each test.
const LIST: &str = "deploy/conformance/tests.txt";
const RENEW: &str = "`cargo xtask test conformance` writes it anew";
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

/// Which of the suite's tests, and what becomes of the report and of the list of tests.
#[derive(Clone, Copy, Debug)]
pub enum Run<'a> {
    /// All of them; the report and the list are the project's.
    Reported,
    /// All of them; the report is thrown away, and the list is the project's already.
    Tested,
    /// The one with this name.
    One(&'a str),
}

/// Runs the suite in a cluster that goes afterwards.
pub fn run(parts: &Parts, what: Run<'_>) -> Result<()> {
    if matches!(what, Run::Tested) {
        // Better now than after the suite.
        kept()?;
    }
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
    let (results, ok) = step::timed("the conformance suite", || told(suite, &log))?;
    println!("conformance: {}", results.counts());
    let wanted = match what {
        Run::One(name) => results.missed_of(&[name]),
        Run::Reported | Run::Tested => results.missed(),
    };
    if !(ok && wanted.is_empty()) {
        bail!(
            "the conformance suite did not pass ({}); its log is {}",
            wanted.join(", "),
            log.display()
        );
    }
    match what {
        Run::One(_) => Ok(()),
        Run::Reported => {
            let list = workspace()?.join(LIST);
            fs::write(&list, results.list()).with_context(|| list.display().to_string())
        }
        Run::Tested => {
            let same = kept()? == results.list();
            ensure!(same, "{LIST} says otherwise than this run; {RENEW}");
            Ok(())
        }
    }
}

/// The list of tests and their results that the project has.
fn kept() -> Result<String> {
    fs::read_to_string(workspace()?.join(LIST)).with_context(|| format!("{LIST}; {RENEW}"))
}

/// Runs the suite; what it says goes to a file, and which test it is at to the terminal. Gives also whether it ended well.
fn told(mut suite: Command, log: &Path) -> Result<(Results, bool)> {
    let mut child = suite
        .stdout(Stdio::piped())
        .spawn()
        .context("starting the conformance suite")?;
    let out = child.stdout.take().context("a pipe was asked for")?;
    let mut results = Results::default();
    let mut text = String::new();
    for line in BufReader::new(out).lines() {
        let line = line.context("reading what the conformance suite says")?;
        if results.line(&line) || results::begins(&line) {
            println!("{}", line.trim_start());
        }
        text.push_str(&line);
        text.push('\n');
    }
    let ended = child.wait();
    let ended = ended.context("waiting for the conformance suite")?;
    fs::write(log, text).with_context(|| log.display().to_string())?;
    Ok((results, ended.success()))
}
