//! What endpoints are told or asked to prove before the first byte of HTTP: TLS, the PROXY protocol.

use std::path::Path;

use mesh_model::resilience::{ProxyProtocol, TlsFiles, UpstreamTls};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};

use super::*;
use crate::identify::testing::Leaf;

/// The number of the server's certificate.
const SERIAL: u64 = 7;

/// In the place of `v1`, a server that speaks TLS, and asks clients for certificates of the same authority when it is told to.
async fn tls_server(w: &World, ca: &Authority, sans: &[&str], mutual: bool) {
    w.v1.stop().await;
    let mut leaf = Leaf::of(&[]);
    leaf.serial = Some(SERIAL);
    leaf.sans = sans
        .iter()
        .map(|san| match san.contains("://") {
            true => rcgen::SanType::URI((*san).try_into().expect("ASCII")),
            false => rcgen::SanType::DnsName((*san).try_into().expect("ASCII")),
        })
        .collect();
    let (_, pem) = ca.sign(&leaf);
    let chain: Vec<_> = CertificateDer::pem_slice_iter(pem.as_bytes())
        .map(|c| c.expect("PEM"))
        .collect();
    let key = PrivateKeyDer::from_pem_slice(pem.as_bytes()).expect("a key");
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = rustls::ServerConfig::builder_with_provider(provider.clone());
    let builder = builder.with_safe_default_protocol_versions().expect("good");
    let builder = match mutual {
        false => builder.with_no_client_auth(),
        true => {
            let mut roots = rustls::RootCertStore::empty();
            roots.add(ca.root()).expect("a root");
            let verifier = rustls::server::WebPkiClientVerifier::builder_with_provider(
                Arc::new(roots),
                provider,
            );
            builder.with_client_cert_verifier(verifier.build().expect("good"))
        }
    };
    let mut config = builder.with_single_cert(chain, key).expect("good");
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind(w.v1.address).await.expect("free again");
    tokio::spawn(async move {
        while let Ok((tcp, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                let Ok(tls) = acceptor.accept(tcp).await else {
                    return;
                };
                let sni = tls.get_ref().1.server_name().unwrap_or_default().to_owned();
                let service = service_fn(move |request: Request<Incoming>| {
                    let response = Response::builder()
                        .header("x-sni", &sni)
                        .header("x-version", format!("{:?}", request.version()));
                    async move { response.body(Full::<Bytes>::from("over TLS")) }
                });
                let builder = auto::Builder::new(TokioExecutor::new());
                let _ = builder.serve_connection(TokioIo::new(tls), service).await;
            });
        }
    });
}

fn write(dir: &Path, name: &str, text: &str) -> Option<Arc<str>> {
    let path = dir.join(name);
    std::fs::write(&path, text).expect("written");
    Some(path.to_str().expect("UTF-8").into())
}

fn pem(der: &[u8]) -> String {
    use base64::Engine;
    let text = base64::engine::general_purpose::STANDARD.encode(der);
    format!("-----BEGIN CERTIFICATE-----\n{text}\n-----END CERTIFICATE-----\n")
}

/// What a policy says of the server, beside where its roots are.
fn simple(roots: Option<Arc<str>>, sni: Option<&str>, names: &[&str]) -> UpstreamTls {
    let files = TlsFiles {
        roots,
        ..TlsFiles::default()
    };
    origin(files, sni, names)
}

fn origin(files: TlsFiles, sni: Option<&str>, names: &[&str]) -> UpstreamTls {
    UpstreamTls::Origin {
        sni: sni.map(Into::into),
        names: names.iter().map(|n| (*n).into()).collect(),
        roots: None,
        credential: None,
        files,
        insecure: false,
    }
}

/// A policy that says no more than where the files are.
fn by_files(files: TlsFiles) -> TrafficPolicy {
    demanding(origin(files, None, &[]))
}

fn demanding(tls: UpstreamTls) -> TrafficPolicy {
    TrafficPolicy {
        tls: Some(tls),
        ..TrafficPolicy::default()
    }
}

#[tokio::test]
async fn a_server_is_believed_by_its_roots_and_names_only() {
    let w = world("87", AppProtocol::Http11).await;
    let dir = tempfile::tempdir().expect("a directory");
    let (ca, other) = (Authority::new("outside"), Authority::new("other"));
    let host = "db.shop.svc.cluster.local";
    tls_server(
        &w,
        &ca,
        &[host, "alt.example", "spiffe://outside/server"],
        false,
    )
    .await;
    w.routes(vec![rule("/", to("v1"))]);
    let roots = write(dir.path(), "roots.pem", &pem(&ca.root()));
    let others = write(dir.path(), "others.pem", &pem(&other.root()));
    let empty = write(dir.path(), "empty.pem", "nothing");
    let given = |tls: UpstreamTls, text: String| match tls {
        UpstreamTls::Origin {
            sni,
            names,
            credential,
            files,
            insecure,
            ..
        } => UpstreamTls::Origin {
            sni,
            names,
            roots: Some(text.into()),
            credential,
            files,
            insecure,
        },
        other => other,
    };
    let unchecked = |tls: UpstreamTls| match tls {
        UpstreamTls::Origin {
            sni,
            names,
            roots,
            credential,
            files,
            ..
        } => UpstreamTls::Origin {
            sni,
            names,
            roots,
            credential,
            files,
            insecure: true,
        },
        other => other,
    };
    let missing = Some("/nowhere/roots.pem".into());
    for (tls, sni) in [
        (simple(roots.clone(), None, &[]), Some(host)),
        (
            simple(roots.clone(), Some("alt.example"), &[]),
            Some("alt.example"),
        ),
        (
            simple(roots.clone(), Some("any.example"), &["alt.example"]),
            Some("any.example"),
        ),
        (
            simple(roots.clone(), None, &["spiffe://outside/server"]),
            Some(host),
        ),
        (given(simple(None, None, &[]), pem(&ca.root())), Some(host)),
        (
            unchecked(simple(None, Some("any.example"), &[])),
            Some("any.example"),
        ),
        // The system does not trust it.
        (simple(None, None, &[]), None),
        (simple(others, None, &[]), None),
        (simple(empty, None, &[]), None),
        (simple(missing, None, &[]), None),
        (simple(roots.clone(), Some("any.example"), &[]), None),
        (simple(roots.clone(), None, &["any.example"]), None),
        (
            simple(roots.clone(), None, &["spiffe://outside/other"]),
            None,
        ),
        (simple(roots.clone(), Some("no name"), &[]), None),
    ] {
        let shown = format!("{tls:?}");
        w.destination(demanding(tls));
        let (status, headers, body) = w.get("/x").await;
        match sni {
            Some(sni) => {
                assert_eq!(
                    (status.as_u16(), &body[..]),
                    (200, &b"over TLS"[..]),
                    "{shown}"
                );
                assert_eq!(headers["x-sni"], sni, "{shown}");
            }
            None => assert_eq!(status, 503, "{shown}"),
        }
    }
    w.node.line(&["path=/x ", "response_flags=UF "]).await;
    // Without TLS it does not understand a word.
    w.destination(TrafficPolicy::default());
    assert_ne!(w.get("/x").await.0, 200);
    // HTTP/2 is agreed upon by name.
    w.destination(TrafficPolicy {
        pool: Pool {
            upgrade: true,
            ..Pool::default()
        },
        ..demanding(simple(roots, None, &[]))
    });
    assert_eq!(w.get("/x").await.1["x-version"], "HTTP/2.0");
    w.node.stop().await;
}

#[tokio::test]
async fn a_server_whose_certificate_was_revoked_is_not_believed() {
    let w = world("92", AppProtocol::Http11).await;
    let dir = tempfile::tempdir().expect("a directory");
    let (ca, other) = (Authority::new("outside"), Authority::new("other"));
    tls_server(&w, &ca, &["db.shop.svc.cluster.local"], false).await;
    w.routes(vec![rule("/", to("v1"))]);
    let roots = write(dir.path(), "roots.pem", &pem(&ca.root()));
    let (now, hour) = (SystemTime::now(), Duration::from_secs(3600));
    let (revoked, another) = (
        ca.revokes(SERIAL, now + hour / 2),
        ca.revokes(SERIAL + 1, now + hour / 2),
    );
    let others = other.revokes(SERIAL + 1, now + hour / 2);
    let mut written = 0;
    for (lists, expect) in [
        (Some(another.clone()), Ok(())),
        (Some(format!("{others}{another}")), Ok(())),
        (Some(revoked.clone()), Err("Revoked")),
        (Some(format!("{others}{revoked}")), Err("Revoked")),
        (Some(others), Err("UnknownRevocationStatus")),
        (
            Some(ca.revokes(SERIAL + 1, now - hour)),
            Err("certificate revocation list expired"),
        ),
        (Some("nothing".into()), Err("has no list")),
        (Some(another.replacen("MI", "AA", 1)), Err("lists-")),
        (None, Err("No such file")),
    ] {
        // A name of its own, so that no connection of before is used.
        written += 1;
        let name = format!("lists-{written}.pem");
        let file = match &lists {
            Some(text) => write(dir.path(), &name, text),
            None => Some(format!("/nowhere/{name}").into()),
        };
        w.destination(by_files(TlsFiles {
            roots: roots.clone(),
            revoked: file,
            ..TlsFiles::default()
        }));
        let (path, shown) = (format!("/{written}"), format!("{lists:?}"));
        let (status, _, body) = w.get(&path).await;
        match expect {
            Ok(()) => assert_eq!(
                (status.as_u16(), &body[..]),
                (200, &b"over TLS"[..]),
                "{shown}"
            ),
            Err(why) => {
                assert_eq!(status, 503, "{shown}");
                let of_this = format!("path={path} ");
                w.node.line(&[&of_this, "response_flags=UF ", why]).await;
            }
        }
    }
    w.node.stop().await;
}

#[tokio::test]
async fn a_client_proves_who_it_is_by_its_files() {
    let w = world("88", AppProtocol::Http11).await;
    let dir = tempfile::tempdir().expect("a directory");
    let (ca, other) = (Authority::new("outside"), Authority::new("other"));
    tls_server(&w, &ca, &["db.shop.svc.cluster.local"], true).await;
    w.routes(vec![rule("/", to("v1"))]);
    let (_, own) = ca.sign(&Leaf::of(&["spiffe://outside/client"]));
    let (_, foreign) = other.sign(&Leaf::of(&["spiffe://outside/client"]));
    let roots = write(dir.path(), "roots.pem", &pem(&ca.root()));
    let own = write(dir.path(), "own.pem", &own);
    let foreign = write(dir.path(), "foreign.pem", &foreign);
    for (chain, key, expect) in [
        (own.clone(), own.clone(), 200),
        (None, None, 503),
        (foreign.clone(), foreign.clone(), 503),
        (own.clone(), foreign, 503),
        (own, None, 503),
    ] {
        let shown = format!("{chain:?} {key:?}");
        w.destination(by_files(TlsFiles {
            roots: roots.clone(),
            chain,
            key,
            revoked: None,
        }));
        assert_eq!(w.get("/x").await.0, expect, "{shown}");
    }
    w.node.stop().await;
}

#[tokio::test]
async fn the_meshs_own_tls_is_not_left_out_and_none_is_none() {
    let w = world("89", AppProtocol::Http11).await;
    w.routes(vec![rule("/", to("v1"))]);
    let once = TrafficPolicy {
        pool: Pool {
            requests_per_connection: 1,
            ..Pool::default()
        },
        ..demanding(UpstreamTls::Mesh(Box::default()))
    };
    w.destination(once.clone());
    assert_eq!(w.get("/x").await.2, "v1");
    // A rule may say whom it takes; who proves to be somebody else is not asked.
    let named = |accounts: &[&str]| {
        let all = accounts.iter().map(|sa| testing::identity("shop", sa));
        TrafficPolicy {
            tls: Some(UpstreamTls::Mesh(all.collect())),
            ..once.clone()
        }
    };
    w.destination(named(&["other", "db-1"]));
    assert_eq!(w.get("/named").await.2, "v1");
    w.destination(named(&["other"]));
    assert_eq!(w.get("/other").await.0, 503);
    let why = "upstream_transport_failure_reason=\"the endpoint is none of the identities";
    w.node
        .line(&["path=/other ", "response_flags=UF ", why])
        .await;
    // An endpoint that takes no tunnels is not spoken to in the clear.
    let uid = testing::pod("shop", "db-1", "n1", "127.7.89.2").uid;
    let mut extra = testing::extra(MtlsMode::Disable);
    extra.groups = Box::new(["version=v1".into()]);
    w.node.state.apply([Change::WorkloadExtra(uid, extra)]);
    assert_eq!(w.get("/x").await.0, 503);
    w.node.line(&["path=/x ", "response_flags=UF "]).await;
    w.destination(demanding(UpstreamTls::Disable));
    assert_eq!(w.get("/x").await.2, "v1");
    w.node.stop().await;
}

#[tokio::test]
async fn the_proxy_protocol_says_who_the_client_is() {
    let w = world("90", AppProtocol::Http11).await;
    w.v1.stop().await;
    let listener = TcpListener::bind(w.v1.address).await.expect("free again");
    let (told, mut heard) = tokio::sync::mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Ok((mut tcp, _)) = listener.accept().await {
            let told = told.clone();
            tokio::spawn(async move {
                let mut all = Vec::new();
                while !all.ends_with(b"\r\n\r\n") || all.len() < 60 {
                    let mut byte = [0];
                    tcp.read_exact(&mut byte).await.expect("a request");
                    all.push(byte[0]);
                }
                told.send(all).expect("heard");
                let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\nok";
                tcp.write_all(answer).await.expect("sent");
            });
        }
    });
    w.routes(vec![rule("/", to("v1"))]);
    for version in [ProxyProtocol::V1, ProxyProtocol::V2] {
        w.destination(TrafficPolicy {
            proxy_protocol: Some(version),
            ..TrafficPolicy::default()
        });
        let tcp = w.node.dial(&w.web, w.vip).await;
        let client = tcp.local_addr().expect("bound");
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(tcp))
            .await
            .expect("HTTP");
        tokio::spawn(connection);
        let answer = sender.send_request(get("/x")).await.expect("an answer");
        assert_eq!(answer.status(), 200);
        let all = heard.recv().await.expect("a connection");
        let header = crate::dial::proxy_protocol::header(version, client, w.vip);
        assert!(all.starts_with(&header), "{}", all.escape_ascii());
        assert!(
            all[header.len()..].starts_with(b"GET /x HTTP/1.1\r\n"),
            "{}",
            all.escape_ascii()
        );
    }
    w.node.stop().await;
}
