//! Bad input on the wire against a captured pod: what is not TLS, certificates that prove nothing, and frames that
//! no honest peer sends; on the tunnel's port and on the proxy's other ones.
//!
//! Every one is ended and named in the log, and a neighbour's streams go on undisturbed all the while.

mod frames;
mod requests;

use std::{
    io::{ErrorKind, Read, Write},
    net::{Shutdown, SocketAddr, TcpStream},
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow, bail, ensure};
use mesh_tests::{
    lab::{Lab, enter::in_netns, net::FABRIC_NAME, suite, supervisor::Spec},
    peers::{anyone, ca::Ca, envoy::Files},
};
use rustls::{
    ClientConfig, ClientConnection, StreamOwned,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject},
};
use tokio::task::spawn_blocking;

use super::{
    flows::{flows, logged},
    load::load,
    tunnel::{pair_in, until},
};
use frames::{answered, connect};

pub use frames::hostile_frames_end_their_tunnel_and_no_other;
pub use requests::{flood, floods_where_requests_belong_cost_others_nothing};

/// Where a captured pod takes tunnels.
const TUNNEL: &str = "10.244.1.2:15008";
/// No answer may take longer than this: handshakes are given up after ten seconds.
const PATIENCE: Duration = Duration::from_secs(30);
const STRANGER: &str = "spiffe://cluster.local/ns/partner/sa/peer";

/// A client's TLS with these files, or with no certificate.
fn tls(files: Option<&Files>, alpn: &str) -> Result<Arc<ClientConfig>> {
    let builder = anyone::client()?;
    let mut config = match files {
        Some(files) => {
            let chain = CertificateDer::pem_file_iter(&files.chain)?.collect::<Result<_, _>>()?;
            builder.with_client_auth_cert(chain, PrivateKeyDer::from_pem_file(&files.key)?)?
        }
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![alpn.as_bytes().to_vec()];
    Ok(Arc::new(config))
}

/// Connects from the fabric, where nothing is captured, and runs `talk` with the connection.
async fn from_outside<T: Send + 'static>(
    lab: &Lab,
    to: &str,
    talk: impl FnOnce(TcpStream) -> Result<T> + Send + 'static,
) -> Result<T> {
    let (netns, to) = (lab.place.netns_path(FABRIC_NAME), to.parse::<SocketAddr>()?);
    let talk = move || {
        let tcp = TcpStream::connect_timeout(&to, PATIENCE).context("connecting")?;
        tcp.set_read_timeout(Some(PATIENCE))?;
        tcp.set_write_timeout(Some(PATIENCE))?;
        talk(tcp)
    };
    spawn_blocking(move || in_netns(&netns, talk)).await?
}

/// Reads until the other side ends it, by FIN, RST or a TLS alert; returns what came. Silence is an error.
fn until_ended(stream: &mut impl Read) -> Result<Vec<u8>> {
    let (mut all, mut block) = (Vec::new(), [0; 4096]);
    let begun = Instant::now();
    loop {
        match stream.read(&mut block) {
            Ok(0) => return Ok(all),
            Ok(n) => all.extend(&block[..n]),
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                bail!("it was not ended within {:?}", begun.elapsed())
            }
            Err(_) => return Ok(all),
        }
    }
}

struct World {
    lab: Lab,
    ca: Ca,
    _dir: tempfile::TempDir,
}

async fn world() -> Result<World> {
    let dir = tempfile::tempdir()?;
    let ca = Ca::new(dir.path())?;
    let spec = Spec {
        controller_args: ca.controller_args(),
        ..suite::spec()
    };
    let lab = pair_in(spec).await?;
    Ok(World { lab, ca, _dir: dir })
}

const STREAMS: [&str; 8] = [
    "--seconds",
    "4",
    "streams",
    "10.244.1.2:9000",
    "--count",
    "20",
    "--every-ms",
    "50",
];

/// As many rounds of streams as it takes; ends only when one of them suffers.
async fn keep_up(lab: &Lab) -> Result<()> {
    loop {
        let report = load(lab, "shop/client", &STREAMS).await?;
        ensure!(
            report["failed"] == 0,
            "the neighbour's streams suffered: {report}"
        );
    }
}

/// Runs `attack` while streams of a good pod go on; they must not notice.
async fn beside_good_streams(lab: &Lab, attack: impl Future<Output = Result<()>>) -> Result<()> {
    tokio::select! {
        ended = keep_up(lab) => ended,
        ended = attack => ended,
    }?;
    let after = load(lab, "shop/client", &STREAMS).await?;
    ensure!(
        after["failed"] == 0 && after["ok"].as_u64() > Some(100),
        "afterwards: {after}"
    );
    Ok(())
}

/// How many failures with this reason n1 has logged of tunnels to the pod.
async fn failures(lab: &Lab, reason: &str) -> Result<usize> {
    Ok(
        flows(lab, "n1", &[("direction", "inbound"), ("reason", reason)])
            .await?
            .len(),
    )
}

/// Waits until one more than `before` was logged.
async fn named(lab: &Lab, what: &str, reason: &str, before: usize) -> Result<()> {
    until(what, async || {
        let now = failures(lab, reason).await?;
        ensure!(
            now > before,
            "{reason} was logged {now} times; the last lines:\n{}",
            tail(lab).await?
        );
        Ok(())
    })
    .await
}

async fn tail(lab: &Lab) -> Result<String> {
    let lines = lab.node("n1").access_log().await?;
    Ok(lines[lines.len().saturating_sub(5)..].join("\n"))
}

/// What is not a TLS handshake, whole or in part.
pub async fn what_is_not_tls_is_ended_and_named() -> Result<()> {
    let world = world().await?;
    let lab = &world.lab;
    let noise: Vec<u8> = (0..5000).map(|_| fastrand::u8(..)).collect();
    let mut hello = Vec::new();
    let name = ServerName::try_from("mesh.invalid")?;
    ClientConnection::new(tls(None, "h2")?, name)?.write_tls(&mut hello)?;
    let half = hello[..hello.len() / 2].to_vec();
    let huge = [&[22, 3, 1, 0xff, 0xff][..], &[0; 4096]].concat();
    let http = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n".to_vec();
    let h2 = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0".to_vec();
    let attack = async {
        for (what, bytes, close) in [
            ("noise", noise, false),
            ("HTTP/1.1", http, false),
            ("HTTP/2 in the clear", h2, false),
            ("a record that is too long", huge, false),
            ("half a ClientHello, then the end", half.clone(), true),
            ("half a ClientHello, then silence", half, false),
            ("nothing, then the end", Vec::new(), true),
        ] {
            // Who goes away by itself broke no rule of TLS.
            let reason = if close {
                "tunnel_failure"
            } else {
                "tls_failure"
            };
            let before = failures(lab, reason).await?;
            from_outside(lab, TUNNEL, move |mut tcp| {
                // It may be ended before all is written.
                let _ = tcp.write_all(&bytes);
                if close {
                    tcp.shutdown(Shutdown::Write)?;
                }
                until_ended(&mut tcp)
            })
            .await
            .context(what)?;
            named(lab, what, reason, before).await?;
        }
        Ok(())
    };
    beside_good_streams(lab, attack).await?;
    let failed = lab
        .node("n1")
        .metric("warren_tunnel_handshakes_total", &[("result", "error")])
        .await?;
    let late = lab
        .node("n1")
        .metric("warren_tunnel_handshakes_total", &[("result", "timeout")])
        .await?;
    ensure!(
        failed >= 5.0 && late >= 1.0,
        "{failed} failed, {late} timed out"
    );
    Ok(())
}

/// Certificates that prove nothing, or somebody who may not open tunnels.
pub async fn wrong_certificates_get_no_tunnel() -> Result<()> {
    let world = world().await?;
    let (lab, ca) = (&world.lab, &world.ca);
    let dir = tempfile::tempdir()?;
    let other = Ca::new(dir.path())?;
    let day = |year| rcgen::date_time_ymd(year, 1, 1);
    let (a, b) = (STRANGER, "spiffe://cluster.local/ns/shop/sa/echo");
    let bad = [
        ("none at all", None),
        ("another root", Some(other.issue("other", a)?)),
        (
            "expired",
            Some(ca.issue_with("old", &[a], |p| p.not_after = day(2020))?),
        ),
        (
            "not valid yet",
            Some(ca.issue_with("new", &[a], |p| p.not_before = day(2090))?),
        ),
        ("two URIs", Some(ca.issue_with("two", &[a, b], |_| {})?)),
        ("no URI", Some(ca.issue_with("no", &[], |_| {})?)),
        (
            "another trust domain",
            Some(ca.issue("domain", "spiffe://elsewhere.org/ns/shop/sa/echo")?),
        ),
        (
            "a node's",
            Some(ca.issue("node", "spiffe://cluster.local/warren/node/n2")?),
        ),
        (
            "for servers only",
            Some(ca.issue_with("eku", &[a], |p| drop(p.extended_key_usages.pop()))?),
        ),
        (
            "a CA's own",
            Some(ca.issue_with("ca", &[a], |p| {
                p.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained)
            })?),
        ),
    ];
    let attack = async {
        for (what, files) in bad {
            let before =
                failures(lab, "tls_failure").await? + failures(lab, "identity_mismatch").await?;
            let config = tls(files.as_ref(), "h2")?;
            let answer = from_outside(lab, TUNNEL, move |tcp| {
                ask(tcp, config, &connect("10.244.1.2:9000"))
            })
            .await
            .with_context(|| what.to_owned())?;
            ensure!(!answered(&answer), "{what}: the CONNECT was answered");
            until(what, async || {
                let now = failures(lab, "tls_failure").await?
                    + failures(lab, "identity_mismatch").await?;
                ensure!(
                    now > before,
                    "{now} refusals are logged:\n{}",
                    tail(lab).await?
                );
                Ok(())
            })
            .await?;
        }
        // The control: the same client with a certificate that is as it should be is answered.
        let good = ca.issue("good", a)?;
        let config = tls(Some(&good), "h2")?;
        let answer = from_outside(lab, TUNNEL, move |tcp| {
            let mut stream = open(tcp, config)?;
            stream.write_all(&connect("10.244.1.2:9000"))?;
            read_until(&mut stream, answered)
        })
        .await?;
        ensure!(answered(&answer), "the control was not answered");
        // Whoever does not speak h2 gets none either.
        let config = tls(Some(&good), "http/1.1")?;
        let _ = from_outside(lab, TUNNEL, move |tcp| {
            ask(tcp, config, &connect("10.244.1.2:9000"))
        })
        .await?;
        Ok(())
    };
    beside_good_streams(lab, attack).await?;
    let opened = flows(lab, "n1", &[("src.identity", b), ("path", "hbone")]).await?;
    ensure!(
        opened.is_empty(),
        "somebody passed for the echo: {opened:?}"
    );
    Ok(())
}

type Tls = StreamOwned<ClientConnection, TcpStream>;

fn open(tcp: TcpStream, config: Arc<ClientConfig>) -> Result<Tls> {
    let name = ServerName::try_from("mesh.invalid")?;
    Ok(StreamOwned::new(ClientConnection::new(config, name)?, tcp))
}

/// Says `bytes` over TLS and reads until it is ended.
fn ask(tcp: TcpStream, config: Arc<ClientConfig>, bytes: &[u8]) -> Result<Vec<u8>> {
    let mut stream = open(tcp, config)?;
    // With TLS 1.3 a client may write before it learns that it was refused.
    let _ = stream.write_all(bytes).and_then(|()| stream.flush());
    until_ended(&mut stream)
}

fn read_until(stream: &mut Tls, enough: impl Fn(&[u8]) -> bool) -> Result<Vec<u8>> {
    let (mut all, mut block) = (Vec::new(), [0; 4096]);
    while !enough(&all) {
        match stream.read(&mut block)? {
            0 => return Err(anyhow!("it ended after {} bytes", all.len())),
            n => all.extend(&block[..n]),
        }
    }
    Ok(all)
}

/// The proxy's other ports are nobody's: from outside there is nothing, from inside a reset.
pub async fn the_proxys_other_ports_serve_nobody() -> Result<()> {
    let world = world().await?;
    let lab = &world.lab;
    let attack = async {
        for port in [15001, 15002, 15006] {
            let to = format!("10.244.1.2:{port}");
            let answer = from_outside(lab, &to, |mut tcp| {
                let _ = tcp.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n");
                until_ended(&mut tcp)
            })
            .await;
            // Not let in at all is as good as ended at once.
            ensure!(
                answer.as_ref().map_or(true, Vec::is_empty),
                "{to} answered {answer:?}"
            );
            for ip in ["127.0.0.1", "10.244.1.2"] {
                let script =
                    format!("exec 3<>/dev/tcp/{ip}/{port} && echo hello >&3 && timeout 20 cat <&3");
                let ran = lab.exec("shop/echo", &["bash", "-c", &script]).await?;
                ensure!(
                    ran.out.is_empty() && ran.code != 124,
                    "{ip}:{port} from inside: {ran:?}"
                );
            }
        }
        Ok(())
    };
    beside_good_streams(lab, attack).await?;
    logged(lab, "n1", &[("reason", "no_original_destination")], |f| {
        !f.is_empty()
    })
    .await?;
    Ok(())
}
