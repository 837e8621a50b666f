//! What clients and servers of other make find behind a waypoint: HTTP/2's conformance cases, gRPC's interoperability
//! cases, grpcurl, and WebSocket frames of all kinds.

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use mesh_tests::lab::{Lab, images::Images, suite, supervisor::Spec};

use super::tunnel::{SOON, until};

/// The waypoint's pod.
pub(super) const POD: &str = "default/waypoint-1";
pub(super) const CLIENT: &str = "default/client";

/// A namespace, a waypoint that somebody has made by hand on n1, and a client on n2.
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

/// Set by `cargo xtask test lab` to the folder with the programs of other make.
const PROGRAMS: &str = "WARREN_PROTOCOLS";
/// What clients ask, beside the waypoint and the client.
const SERVERS: &str = r#"---
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {selector: {app: web}, ports: [{name: http, port: 80}, {name: http2, port: 8080, targetPort: 80}]}
---
apiVersion: v1
kind: Pod
metadata: {name: web, labels: {app: web}}
spec: {nodeName: n1, containers: [{name: c, image: 'httpbin:v1', ports: [{containerPort: 80}]}]}
---
apiVersion: v1
kind: Service
metadata: {name: says}
spec: {selector: {app: says}, ports: [{name: grpc, port: 8053}]}
---
apiVersion: v1
kind: Pod
metadata: {name: says, labels: {app: says}}
spec: {nodeName: n1, containers: [{name: c, image: 'grpc-echo:v1', ports: [{containerPort: 8053}]}]}
---
apiVersion: v1
kind: Service
metadata: {name: interop}
spec: {selector: {app: interop}, ports: [{name: grpc, port: 10000}]}
---
apiVersion: v1
kind: Pod
metadata: {name: interop, labels: {app: interop}}
spec: {nodeName: n1, containers: [{name: c, image: 'interop:v1', ports: [{containerPort: 10000}]}]}
"#;

/// gRPC's interoperability cases that need neither TLS nor credentials.
const CASES: [&str; 14] = [
    "empty_unary",
    "large_unary",
    "client_streaming",
    "server_streaming",
    "ping_pong",
    "empty_stream",
    "timeout_on_sleeping_server",
    "cancel_after_begin",
    "cancel_after_first_response",
    "status_code_and_message",
    "special_status_message",
    "custom_metadata",
    "unimplemented_method",
    "unimplemented_service",
];

/// What h2spec finds that is meant: a port of HTTP speaks both versions, so that what begins otherwise than HTTP/2 is
/// taken for HTTP/1.1, answered 400 by it and ended; h2spec wants an end without a word.
const MEANT: [&str; 1] = ["2: Sends invalid connection preface"];

/// The folder with the programs. Without them a test is passed over, and says so as an ignored one; where everything has
/// to be tested it fails.
fn programs(test: &str) -> Result<Option<PathBuf>> {
    let folder = std::env::var_os(PROGRAMS).map(PathBuf::from);
    if folder.is_none() {
        let why = format!(
            "no h2spec, grpcurl and gRPC peers (run `cargo xtask test lab`, or set {PROGRAMS} to their folder)"
        );
        ensure!(std::env::var("CI").as_deref() != Ok("true"), "{why}");
        println!("test protocols::{test} ... ignored, {why}");
    }
    Ok(folder)
}

/// The lab, once requests go through the waypoint to each server.
async fn world(images: Images) -> Result<Lab> {
    let spec = Spec {
        images,
        ..suite::spec()
    };
    let lab = Lab::up(spec).await?;
    lab.apply(&[BASE, SERVERS].concat()).await?;
    lab.wait_ready(SOON).await?;
    until("service by the waypoint", async || {
        let ran = lab
            .exec(CLIENT, &["curl", "-sSi", "-m", "5", "http://web/get"])
            .await?;
        let led = ran.out.contains("x-envoy-upstream-service-time");
        ensure!(led && ran.out.contains(" 200 "), "{ran:?}");
        Ok(())
    })
    .await?;
    Ok(lab)
}

pub async fn http2_is_spoken_as_its_specification_says() -> Result<()> {
    let Some(folder) = programs("http2_is_spoken_as_its_specification_says")? else {
        return Ok(());
    };
    let lab = world(Images::default()).await?;
    let h2spec = folder.join("h2spec").display().to_string();
    let words = [&h2spec, "-h", "web", "-p", "8080", "-P", "/get", "-o", "5"];
    let ran = lab.exec(CLIENT, &words).await?;
    let (all, failures) = ran.out.split_once("Failures:").unwrap_or((&ran.out, ""));
    let found: Vec<&str> = failures
        .lines()
        .filter_map(|l| l.trim().strip_prefix("× "))
        .collect();
    ensure!(
        found == MEANT
            && ran
                .out
                .contains("145 tests, 144 passed, 0 skipped, 1 failed"),
        "{found:?} of {} lines\n{failures}",
        all.lines().count()
    );
    println!("144 of 145 cases of h2spec, and {MEANT:?} is meant");
    // Requests of which answers have no content, by both versions.
    for version in ["--http1.1", "--http2-prior-knowledge"] {
        let words = ["curl", "-sSI", "-m", "5", version, "http://web:8080/get"];
        let ran = lab.exec(CLIENT, &words).await?;
        ensure!(ran.code == 0 && ran.out.contains(" 200"), "{ran:?}");
    }
    Ok(())
}

pub async fn grpc_peers_of_other_make_understand_each_other() -> Result<()> {
    let Some(folder) = programs("grpc_peers_of_other_make_understand_each_other")? else {
        return Ok(());
    };
    let map = tempfile::Builder::new().suffix(".yaml").tempfile()?;
    let server = folder.join("interop-server");
    std::fs::write(
        map.path(),
        format!("interop:*: [{}, --port=10000]\n", server.display()),
    )?;
    let lab = world(Images::read(map.path(), None)?).await?;
    let client = folder.join("interop-client").display().to_string();
    for case in CASES {
        let case = format!("--test_case={case}");
        let words = [
            &client,
            "--server_host=interop",
            "--server_port=10000",
            "--use_tls=false",
            &case,
        ];
        let ran = lab.exec(CLIENT, &words).await?;
        ensure!(ran.code == 0, "{case}: {ran:?}");
    }
    until("the waypoint's lines", async || {
        let lines = lab
            .log_lines(POD, &["path=/grpc.testing.TestService/"])
            .await?;
        // Of a call that was given up before it was sent it cannot have one.
        ensure!(
            lines.len() >= CASES.len() - 2,
            "it saw {} calls",
            lines.len()
        );
        Ok(())
    })
    .await?;
    let proto = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("proto");
    let (grpcurl, proto) = (
        folder.join("grpcurl").display().to_string(),
        proto.display().to_string(),
    );
    let words = [
        &grpcurl,
        "-plaintext",
        "-import-path",
        &proto,
        "-proto",
        "echo.proto",
        "-d",
        r#"{"text": "hi", "count": 3}"#,
        "says:8053",
        "warren.sample.v1.Echo/ServerStream",
    ];
    let ran = lab.exec(CLIENT, &words).await?;
    let answers = ran.out.matches("\"text\": \"hi\"").count();
    ensure!(ran.code == 0 && answers == 3, "{ran:?}");
    Ok(())
}

pub async fn websocket_frames_are_carried_as_they_are() -> Result<()> {
    let lab = world(Images::default()).await?;
    let sample = lab.program("warren-sample").display().to_string();
    let words = [&sample, "ask", "websocket-cases", "web:80"];
    let ran = lab.exec(CLIENT, &words).await?;
    ensure!(ran.code == 0, "{ran:?}");
    let seen: serde_json::Value = serde_json::from_str(&ran.out).context("what was seen")?;
    println!("{} cases of WebSocket", seen["cases"]);
    ensure!(seen["cases"].as_u64() >= Some(30), "{seen}");
    Ok(())
}
