//! OpenSSL with hyper-h2 as the peer (`tests/interop/hbone_peer.py`).

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context, Result, ensure};
use mesh_tests::{
    lab::component::Order,
    peers::{envoy::Files, python},
};
use serde_json::Value;

use super::{
    super::{
        flows::{Flow, flows, logged},
        load::flawless,
        tunnel::until,
    },
    CLIENT, DENY, ECHO, FOREIGN, Running, World, streams_open, words,
};

/// The foreign client of OpenSSL and hyper-h2, in the foreign pod.
struct Client<'a> {
    world: &'a World,
    program: Vec<String>,
}

impl Client<'_> {
    fn words(&self, to: SocketAddr, authority: &str, more: &[&str]) -> Vec<String> {
        let given = ["--to", &to.to_string(), "--authority", authority];
        words(&self.program, &[&given, more].concat())
    }

    /// Runs it to its end; its report and whether it was content.
    async fn run(&self, to: SocketAddr, authority: &str, more: &[&str]) -> Result<(Value, bool)> {
        let words = self.words(to, authority, more);
        let ran = self.world.lab.exec("partner/foreign", &words).await?;
        let report = serde_json::from_str(&ran.out).with_context(|| format!("{ran:?}"))?;
        Ok((report, ran.code == 0))
    }

    /// Expects that a CONNECT is answered with `status`.
    async fn answered(&self, to: SocketAddr, authority: &str, status: u64) -> Result<()> {
        until("the answer to CONNECT", async || {
            let (report, _) = self.run(to, authority, &["--bytes", "1"]).await?;
            let got = &report["streams"][0]["status"];
            ensure!(*got == status, "{authority} is answered {got}: {report}");
            Ok(())
        })
        .await
    }
}

/// OpenSSL and hyper-h2 open tunnels to a captured pod.
pub async fn openssl_and_hyper_h2_reach_a_captured_pod() -> Result<()> {
    let Some(peer) = python::program() else {
        return Ok(());
    };
    let world = World::up().await?;
    let lab = &world.lab;
    let files = world.ca.issue("peer", FOREIGN)?;
    let mut program = peer.to_vec();
    program.push("client".to_owned());
    program.extend(python::certificate(&files));
    let client = Client {
        world: &world,
        program,
    };
    let [v4, v6] =
        ["10.244.1.2", "fd00:244:1::2"].map(|ip| ip.parse::<IpAddr>().expect("an address"));
    for ip in [v4, v6] {
        // Many streams in one tunnel, and one that carries much, both half-closed by the client first.
        let (to, app) = (
            SocketAddr::new(ip, 15008),
            SocketAddr::new(ip, 9000).to_string(),
        );
        for more in [
            ["--streams", "150", "--bytes", "20000"],
            ["--streams", "1", "--bytes", "16000000"],
        ] {
            let (report, good) = client.run(to, &app, &more).await?;
            ensure!(good && report["peer"] == ECHO, "{more:?}: {report}");
        }
    }
    let to = SocketAddr::new(v4, 15008);
    // The captured pod's program ends its half first.
    let app = words(
        &peer,
        &["app", "--listen", "0.0.0.0:7000", "--bytes", "300000"],
    );
    let app = world.start("shop/echo", &app).await?;
    app.says(&["listening"]).await?;
    let last = ["--way", "last", "--bytes", "300000"];
    let (report, good) = client.run(to, "10.244.1.2:7000", &last).await?;
    ensure!(good, "{report}");
    app.says(&["\"received\": 300000"]).await?;
    refusals(&client, to).await?;
    drains(&client, to).await?;
    let wanted = [
        ("src.identity", FOREIGN),
        ("path", "hbone"),
        ("mtls", "true"),
        ("direction", "inbound"),
    ];
    let found = logged(lab, "n1", &wanted, |f| f.len() > 300).await?;
    let bytes: u64 = found.iter().map(Flow::bytes).sum();
    ensure!(bytes > 64_000_000, "{bytes} bytes were logged");
    Ok(())
}

/// What a foreign client is told: 400, 401, 503.
async fn refusals(client: &Client<'_>, to: SocketAddr) -> Result<()> {
    let lab = &client.world.lab;
    let other = client.world.ip("shop/other").await?;
    client.answered(to, &format!("{other}:9000"), 400).await?;
    client.answered(to, "no-such-thing", 400).await?;
    client.answered(to, "10.244.1.2:9001", 503).await?;
    lab.apply(DENY).await?;
    client.answered(to, "10.244.1.2:9000", 401).await?;
    for (reason, policy) in [
        ("bad_authority", "deny"),
        ("connect_refused", "allow"),
        ("policy_denied", "deny"),
    ] {
        let wanted = [
            ("src.identity", FOREIGN),
            ("reason", reason),
            ("policy", policy),
        ];
        logged(lab, "n1", &wanted, |f| !f.is_empty()).await?;
    }
    let denied = flows(lab, "n1", &[("policy_name", "shop/deny-peer")]).await?;
    ensure!(!denied.is_empty(), "the policy's name is in the log");
    lab.delete(DENY).await?;
    client.answered(to, "10.244.1.2:9000", 200).await
}

/// A proxy that is replaced says GOAWAY, lets the streams end, and loses nothing.
async fn drains(client: &Client<'_>, to: SocketAddr) -> Result<()> {
    let words = client.words(
        to,
        "10.244.1.2:9000",
        &["--way", "goaway", "--streams", "20", "--bytes", "100000"],
    );
    let mut running = client.world.start("partner/foreign", &words).await?;
    let lab = &client.world.lab;
    streams_open(lab, 20.0).await?;
    lab.node("n1").agent(Order::Upgrade).await?;
    let mut status = None;
    until("the foreign client's end", async || {
        status = running.child.try_wait()?;
        ensure!(status.is_some(), "it still runs: {}", running.said()?);
        Ok(())
    })
    .await?;
    let said = running.said()?;
    let report: Value = serde_json::from_str(&said).with_context(|| said.clone())?;
    ensure!(
        status.is_some_and(|s| s.success()) && report["goaway"] == 0,
        "{report}"
    );
    client.answered(to, "10.244.1.2:9000", 200).await
}

/// Captured pods reach a server made of OpenSSL and hyper-h2.
pub async fn a_captured_pod_reaches_openssl_and_hyper_h2() -> Result<()> {
    let Some(peer) = python::program() else {
        return Ok(());
    };
    let world = World::up().await?;
    let files = world.ca.issue("peer", FOREIGN)?;
    let listen = ["server", "--listen", "[::]:15008", "--goaway-after", "30"];
    let server = server(&world, &peer, &files, &listen).await?;
    let (v4, v6) = {
        let status = world.lab.status().await?;
        let pod = status.pod("partner/foreign")?;
        (IpAddr::V4(pod.ip), IpAddr::V6(pod.ip6))
    };
    for to in [SocketAddr::new(v4, 9000), SocketAddr::new(v6, 9000)] {
        // The tunnel is told to go away again and again; nobody notices.
        let to = to.to_string();
        plain(&world, &peer, &to, 8_000_000).await?;
        flawless(
            &world.lab,
            "shop/client",
            &["--seconds", "1", "conns", &to, "--rate", "50"],
        )
        .await?;
        let many = [
            "--seconds",
            "1",
            "streams",
            &to,
            "--count",
            "12",
            "--every-ms",
            "20",
        ];
        flawless(&world.lab, "shop/client", &many).await?;
    }
    plain(&world, &peer, "foreign.partner:9000", 100_000).await?;
    let lines = server.lines()?;
    let requests: Vec<&Value> = lines.iter().filter(|l| l["method"] == "CONNECT").collect();
    let pods = [SocketAddr::new(v4, 9000), SocketAddr::new(v6, 9000)].map(|a| a.to_string());
    let good = |r: &&Value| {
        let headers = r["headers"].as_object();
        r["peer"] == CLIENT
            && pods.iter().any(|p| r["authority"] == *p)
            && headers.is_some_and(|h| !h.contains_key(":path") && !h.contains_key(":scheme"))
    };
    ensure!(requests.len() > 100, "{} streams", requests.len());
    ensure!(requests.iter().all(good), "{requests:?}");
    ensure!(
        lines
            .iter()
            .any(|l| l["received"] == 8_000_000 && l["by"] == "end"),
        "the long stream ended by END_STREAM"
    );
    let wanted = [
        ("src.workload", "client"),
        ("dst.identity", FOREIGN),
        ("path", "hbone"),
        ("mtls", "true"),
    ];
    logged(&world.lab, "n2", &wanted, |f| f.len() > 100).await?;
    let clear = [("dst.workload", "foreign"), ("path", "plain")];
    ensure!(
        flows(&world.lab, "n2", &clear).await?.is_empty(),
        "in the clear"
    );
    drop(server);
    refused_by_the_server(&world, &peer, &files).await
}

async fn server(world: &World, peer: &[String; 2], files: &Files, how: &[&str]) -> Result<Running> {
    let certificate = python::certificate(files);
    let program = words(peer, how).into_iter().chain(certificate);
    let program: Vec<String> = program.collect();
    let server = world.start("partner/foreign", &program).await?;
    server.says(&["listening"]).await?;
    Ok(server)
}

/// Bytes there and back at the same time, half-closed by the client, from a captured pod to `to`.
async fn plain(world: &World, peer: &[String; 2], to: &str, bytes: u64) -> Result<()> {
    let bytes = bytes.to_string();
    let program = words(peer, &["plain", "--to", to, "--bytes", &bytes]);
    until("an echo through the foreign server", async || {
        let ran = world.lab.exec("shop/client", &program).await?;
        ensure!(ran.code == 0, "{ran:?}");
        Ok(())
    })
    .await
}

/// A foreign server that refuses, or that is somebody else: the application is refused, and the log says why.
async fn refused_by_the_server(world: &World, peer: &[String; 2], files: &Files) -> Result<()> {
    let impostor = world
        .ca
        .issue("impostor", "spiffe://cluster.local/ns/partner/sa/thief")?;
    for (status, files, reasons) in [
        ("401", files, &["peer_denied"][..]),
        // The identity is looked at within the handshake.
        ("200", &impostor, &["identity_mismatch", "tls_failure"]),
    ] {
        let listen = ["server", "--listen", "[::]:15008", "--status", status];
        let server = server(world, peer, files, &listen).await?;
        let to = SocketAddr::new(world.ip("partner/foreign").await?, 9000).to_string();
        let wanted = [("src.workload", "client"), ("dst.addr", &*to)];
        until("the refusal", async || {
            let program = words(peer, &["plain", "--to", &to, "--bytes", "10"]);
            let ran = world.lab.exec("shop/client", &program).await?;
            ensure!(ran.code != 0, "it got through: {ran:?}");
            let seen = flows(&world.lab, "n2", &wanted).await?;
            ensure!(
                seen.iter().any(|f| reasons.contains(&f.get("reason"))),
                "none of {reasons:?} is logged yet"
            );
            Ok(())
        })
        .await
        .with_context(|| format!("the server said:\n{}", server.said().unwrap_or_default()))?;
        let got = server.lines()?;
        ensure!(
            status == "401" || got.iter().all(|l| l["method"] != "CONNECT"),
            "an impostor was asked to CONNECT: {got:?}"
        );
    }
    Ok(())
}
