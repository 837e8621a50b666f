//! Certificates in real life: rotation, an authority that is away, identities that are stolen or made up.

use std::{
    path::Path,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, Result, ensure};
use mesh_tests::lab::{Lab, component::Order, suite, supervisor::Spec};
use rcgen::{ExtendedKeyUsagePurpose, SanType, date_time_ymd};

use super::{
    hbone::{Root, Shown, Tunnel, leaf},
    load::flawless,
    tunnel::{echo, pair_in, until},
};

const CLIENT: &str = "spiffe://cluster.local/ns/shop/sa/client";
const ECHO: &str = "spiffe://cluster.local/ns/shop/sa/echo";
/// Attempts with each bad certificate.
const ATTEMPTS: u32 = 20;
/// What an attempt may cost the node proxy.
const COST: Duration = Duration::from_millis(5);

fn living(leaf_ttl: &str) -> Spec {
    Spec {
        controller_args: vec!["--leaf-ttl".into(), leaf_ttl.into()],
        ..suite::spec()
    }
}

/// When an identity's certificate expires, in seconds since 1970.
async fn expiry(lab: &Lab, node: &str, identity: &str) -> Result<f64> {
    let name = "warren_certificate_expiry_timestamp_seconds";
    lab.node(node).metric(name, &[("identity", identity)]).await
}

fn now() -> f64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0.0, |d| d.as_secs_f64())
}

/// T12: while the CA is away the old certificates serve until they expire, then nothing is carried, and all
/// is well as soon as it is back.
pub async fn t12_without_a_ca_certificates_serve_until_they_expire() -> Result<()> {
    let lab = pair_in(living("20s")).await?;
    lab.component("controller", Order::Stop).await?;
    let stopped = now();
    let (client, server) = (
        expiry(&lab, "n2", CLIENT).await?,
        expiry(&lab, "n1", ECHO).await?,
    );
    let (first, last) = (client.min(server), client.max(server));
    ensure!(
        first > stopped,
        "the certificates are good when the CA goes"
    );
    let failures = [("result", "error")];
    let mut rounds = 0;
    while now() < first - 1.0 {
        let begun = now();
        let outcome = echo(&lab, "shop/client", "10.244.1.2").await;
        // One that began in good time and ended late says nothing.
        if begun < first - 1.0 && now() < first {
            outcome.with_context(|| format!("{:.1} s before expiry", first - begun))?;
            rounds += 1;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    ensure!(
        rounds > 0,
        "nothing was tried before the certificates expired"
    );
    let failed = lab
        .node("n2")
        .metric("warren_certificate_requests_total", &failures)
        .await?;
    ensure!(failed >= 1.0, "renewal was tried and failed: {failed}");
    while now() < last + 1.0 {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    for _ in 0..3 {
        let outcome = echo(&lab, "shop/client", "10.244.1.2").await;
        ensure!(outcome.is_err(), "carried with an expired certificate");
    }
    ensure!(
        expiry(&lab, "n2", CLIENT).await? < now(),
        "the metric says that the certificate has expired"
    );
    lab.until_logged("n2", &["reason=no_certificate"]).await?;
    let counted = lab
        .node("n2")
        .metric(
            "istio_tcp_connections_failed_total",
            &[("response_flags", "TLS_FAILURE")],
        )
        .await?;
    ensure!(counted >= 3.0, "the refusals are counted: {counted}");
    lab.component("controller", Order::Start).await?;
    let back = Instant::now();
    until("service with the CA back", async || {
        echo(&lab, "shop/client", "10.244.1.2").await
    })
    .await?;
    println!(
        "T12: served {:.1} s after the CA's start",
        back.elapsed().as_secs_f32()
    );
    Ok(())
}

/// T13: certificates are replaced every few seconds under new connections and long streams; nothing fails.
pub async fn t13_rotation_under_load_fails_nothing() -> Result<()> {
    let lab = pair_in(living("12s")).await?;
    let before = expiry(&lab, "n2", CLIENT).await?;
    let connections = [
        "--seconds",
        "20",
        "conns",
        "10.244.1.2:9000",
        "--rate",
        "200",
    ];
    let streams = [
        "--seconds",
        "20",
        "streams",
        "10.244.1.2:9000",
        "--count",
        "50",
        "--every-ms",
        "200",
    ];
    let (connections, streams) = tokio::join!(
        flawless(&lab, "shop/client", &connections),
        flawless(&lab, "shop/client", &streams)
    );
    let connections = connections?;
    ensure!(connections["ok"] == 4000, "every connection: {connections}");
    streams?;
    let after = expiry(&lab, "n2", CLIENT).await?;
    ensure!(
        after > before + 10.0,
        "expiry moved from {before} to {after}"
    );
    for (node, identity) in [("n1", ECHO), ("n2", CLIENT)] {
        let log = lab.node(node).log()?;
        let issued = log
            .lines()
            .filter(|l| l.contains("certificate issued") && l.contains(identity))
            .count();
        ensure!(issued >= 3, "{node}: {identity} was issued {issued} times");
        let ok = lab
            .node(node)
            .metric("warren_certificate_requests_total", &[("result", "ok")])
            .await?;
        ensure!(ok >= 3.0, "{node}: {ok} renewals are counted");
    }
    Ok(())
}

/// A certificate that proves nothing, and the reason that the log gives.
struct Row {
    what: &'static str,
    shown: Option<Shown>,
    reason: &'static str,
}

fn rows(root: &Root) -> Result<Vec<Row>> {
    let stranger = Root::new()?;
    let dated = |from: i32, until: i32| -> Result<_> {
        let mut leaf = leaf(&[CLIENT])?;
        (leaf.not_before, leaf.not_after) = (date_time_ymd(from, 1, 1), date_time_ymd(until, 1, 1));
        root.signs(leaf)
    };
    let mut server_only = leaf(&[CLIENT])?;
    server_only.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    let mut no_usage = leaf(&[CLIENT])?;
    no_usage.extended_key_usages = Vec::new();
    let mut dns = leaf(&[])?;
    dns.subject_alt_names = vec![SanType::DnsName("client.shop".try_into()?)];
    let row = |what, shown, reason| Row {
        what,
        shown,
        reason,
    };
    let (identity, tls) = ("identity_mismatch", "tls_failure");
    let uri = |text: &str| root.signs(leaf(&[text])?).map(Some);
    Ok(vec![
        row(
            "a node's certificate",
            uri("spiffe://cluster.local/warren/node/n2")?,
            identity,
        ),
        row(
            "another trust domain",
            uri("spiffe://elsewhere/ns/shop/sa/client")?,
            identity,
        ),
        row(
            "a NUL in the name",
            uri("spiffe://cluster.local/ns/shop/sa/client\0x")?,
            identity,
        ),
        row(
            "a name without an account",
            uri("spiffe://cluster.local/ns/shop")?,
            identity,
        ),
        row(
            "two names",
            Some(root.signs(leaf(&[CLIENT, ECHO])?)?),
            identity,
        ),
        row("a DNS name only", Some(root.signs(dns)?), identity),
        row("expired", Some(dated(2020, 2021)?), tls),
        row("not valid yet", Some(dated(2090, 2091)?), tls),
        row("for servers only", Some(root.signs(server_only)?), tls),
        row("for no use", Some(root.signs(no_usage)?), tls),
        row(
            "signed by itself",
            Some(Shown::self_signed(leaf(&[CLIENT])?)?),
            tls,
        ),
        row(
            "signed by a root of the same name",
            Some(stranger.signs(leaf(&[CLIENT])?)?),
            tls,
        ),
        row(
            "below twenty others",
            Some(root.signs_below(leaf(&[CLIENT])?, 20)?),
            tls,
        ),
        row("no certificate", None, tls),
    ])
}

/// The time that a process has used on CPUs.
pub fn cpu(pid: u32) -> Result<Duration> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let (_, rest) = stat.rsplit_once(')').context("the name in parentheses")?;
    let field = |n: usize| -> Result<u64> {
        Ok(rest.split_whitespace().nth(n).context("a field")?.parse()?)
    };
    // Counted in hundredths of a second since Linux has no other unit for user space.
    Ok(Duration::from_millis((field(11)? + field(12)?) * 10))
}

/// The process of a component.
pub async fn pid(lab: &Lab, name: &str) -> Result<u32> {
    let status = lab.status().await?;
    let found = status.components.iter().find(|c| c.name == name);
    found
        .and_then(|c| c.condition.pid)
        .with_context(|| format!("{name} runs"))
}

/// T16: whoever does not prove one identity of the mesh, in force and for this use, gets no tunnel.
pub async fn t16_a_stolen_or_made_up_identity_is_refused() -> Result<()> {
    let root = Root::new()?;
    let lab = pair_in(root.spec()).await?;
    let (fabric, to) = (lab.place.netns_path("fabric"), "10.244.1.2:15008".parse()?);
    let good = root.signs(leaf(&[CLIENT])?)?;
    let mut tunnel = Tunnel::open(&fabric, to, Some(&good)).await?;
    let status = tunnel.ask("10.244.1.2:9000", b"").await?;
    ensure!(status == 200, "a good one passes: {status}");
    let node = lab.node("n1");
    let errors = [("result", "error")];
    let agent = pid(&lab, "n1").await?;
    for row in rows(&root)? {
        let said = |log: &str| {
            let wanted = format!("reason={}", row.reason);
            log.lines()
                .filter(|l| l.contains("direction=inbound") && l.contains(&wanted))
                .count()
        };
        let before = node
            .metric("warren_tunnel_handshakes_total", &errors)
            .await?;
        let lines = said(&node.log()?);
        let used = cpu(agent)?;
        for _ in 0..ATTEMPTS {
            let what = row.what;
            ensure!(
                !passes(&fabric, to, row.shown.as_ref()).await,
                "{what}: it opened a stream"
            );
        }
        until(row.what, async || {
            let failed = node
                .metric("warren_tunnel_handshakes_total", &errors)
                .await?
                - before;
            ensure!(
                failed >= f64::from(ATTEMPTS),
                "{failed} handshakes are counted as failed"
            );
            let told = said(&node.log()?) - lines;
            ensure!(
                told >= ATTEMPTS as usize,
                "{}: {told} lines say {}",
                row.what,
                row.reason
            );
            Ok(())
        })
        .await?;
        let each = (cpu(agent)? - used) / ATTEMPTS;
        println!("T16: {}: {each:?} of CPU each", row.what);
        ensure!(
            each <= COST,
            "{}: {each:?} of CPU for each attempt",
            row.what
        );
    }
    somebody_elses(&lab, &root, &fabric).await
}

async fn passes(from: &Path, to: std::net::SocketAddr, shown: Option<&Shown>) -> bool {
    match Tunnel::open(from, to, shown).await {
        Ok(mut tunnel) => tunnel.ask("10.244.1.2:9000", b"").await.is_ok(),
        Err(_) => false,
    }
}

/// A certificate that is good, of the same account in another namespace: it is what it says and nobody else.
async fn somebody_elses(lab: &Lab, root: &Root, fabric: &Path) -> Result<()> {
    lab.apply(ONLY_CLIENT).await?;
    let to = "10.244.1.2:15008".parse()?;
    let other = root.signs(leaf(&["spiffe://cluster.local/ns/other/sa/client"])?)?;
    let good = root.signs(leaf(&[CLIENT])?)?;
    until("the policy", async || {
        let mut tunnel = Tunnel::open(fabric, to, Some(&other)).await?;
        let status = tunnel.ask("10.244.1.2:9000", b"").await?;
        ensure!(status == 401, "another namespace's account got {status}");
        Ok(())
    })
    .await?;
    let mut tunnel = Tunnel::open(fabric, to, Some(&good)).await?;
    let status = tunnel.ask("10.244.1.2:9000", b"").await?;
    ensure!(status == 200, "the one that is named got {status}");
    Ok(())
}

const ONLY_CLIENT: &str = r#"
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: only-client, namespace: shop}
spec:
  selector: {matchLabels: {app: echo}}
  rules: [{from: [{source: {principals: [cluster.local/ns/shop/sa/client]}}]}]
"#;

/// Certificates and keys pass to a successor in memory: it serves without the controller and without files.
pub async fn an_upgrade_hands_keys_over_in_memory() -> Result<()> {
    let lab = pair_in(suite::spec()).await?;
    lab.component("controller", Order::Stop).await?;
    for node in ["n1", "n2"] {
        let keys = lab
            .place
            .node_run(node)
            .join(lab.place.instance(node))
            .join("keys");
        let files = std::fs::read_dir(&keys)?.collect::<Result<Vec<_>, _>>()?;
        ensure!(
            files.len() >= 2,
            "{node} keeps its keys in {}",
            keys.display()
        );
        for file in files {
            std::fs::remove_file(file.path())?;
        }
        lab.node(node).agent(Order::Upgrade).await?;
        until("the hand-over", async || {
            let log = lab.node(node).log()?;
            let words = [
                "handed over in memory",
                "took over from the earlier process",
            ];
            ensure!(words.iter().all(|w| log.contains(w)), "{node} says:\n{log}");
            Ok(())
        })
        .await?;
        for _ in 0..5 {
            echo(&lab, "shop/client", "10.244.1.2").await?;
        }
    }
    Ok(())
}
