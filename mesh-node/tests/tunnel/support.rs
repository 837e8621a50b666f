//! Certificates, tunnel pairs and application socket pairs on loopback.

use std::{future::Future, sync::Arc, time::Duration};

use mesh_node::{
    tunnel::{
        ClientTunnel, ConnectRequest, CutSignal, End, Incoming, Meter, OpenError, ServerTunnel,
        Stream, accept, connect, splice,
    },
    wire::{Headers, Limits},
};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, SanType};
use rustls::{
    ClientConfig, RootCertStore, ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer},
    server::WebPkiClientVerifier,
};
use tokio::{
    net::{TcpListener, TcpStream},
    task::{JoinHandle, LocalSet, spawn_local},
};

/// Runs a test on one thread; a test that hangs fails.
pub fn run<F: Future<Output = ()>>(test: F) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    LocalSet::new().block_on(&runtime, async {
        tokio::time::timeout(Duration::from_secs(60), test)
            .await
            .expect("the test hangs");
    });
}

/// Set in the child process that runs one test alone.
const ALONE: &str = "WARREN_TEST_ALONE";

/// Runs the test `name` in a process of its own, whose memory no other test moves.
pub fn alone<F: Future<Output = ()>>(name: &str, test: F) {
    if std::env::var_os(ALONE).is_some() {
        return run(test);
    }
    let child = std::process::Command::new(std::env::current_exe().unwrap())
        .args([name, "--exact", "--nocapture"])
        .env(ALONE, "1")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&child.stdout);
    print!("{said}");
    assert!(
        child.status.success() && said.contains("1 passed"),
        "{said}{}",
        String::from_utf8_lossy(&child.stderr)
    );
}

/// Resident memory of this process.
pub fn resident() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    statm
        .split_whitespace()
        .nth(1)
        .unwrap()
        .parse::<usize>()
        .unwrap()
        * 4096
}

/// Configurations of two sides that trust one root.
pub struct Trust {
    pub client: Arc<ClientConfig>,
    pub server: Arc<ServerConfig>,
    /// A client that proves nothing.
    pub stranger: Arc<ClientConfig>,
}

pub fn trust() -> Trust {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let mut ca = CertificateParams::new(Vec::<String>::new()).unwrap();
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca = CertifiedIssuer::self_signed(ca, KeyPair::generate().unwrap()).unwrap();
    let mut roots = RootCertStore::empty();
    roots.add(ca.der().clone()).unwrap();
    let roots = Arc::new(roots);
    let leaf = || {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::<String>::new()).unwrap();
        params.subject_alt_names = vec![SanType::IpAddress("127.0.0.1".parse().unwrap())];
        let cert: CertificateDer<'static> = params.signed_by(&key, &ca).unwrap().der().clone();
        (
            vec![cert],
            PrivateKeyDer::try_from(key.serialize_der()).unwrap(),
        )
    };
    let tls13 = &[&rustls::version::TLS13];
    let ((c_cert, c_key), (s_cert, s_key)) = (leaf(), leaf());
    let client = || {
        ClientConfig::builder_with_protocol_versions(tls13).with_root_certificates(roots.clone())
    };
    let verifier = WebPkiClientVerifier::builder(roots.clone())
        .build()
        .unwrap();
    let server = ServerConfig::builder_with_protocol_versions(tls13)
        .with_client_cert_verifier(verifier)
        .with_single_cert(s_cert, s_key)
        .unwrap();
    let mut known = client().with_client_auth_cert(c_cert, c_key).unwrap();
    known.alpn_protocols = vec![b"h2".to_vec()];
    let mut server = server;
    server.alpn_protocols = vec![b"h2".to_vec()];
    Trust {
        client: Arc::new(known),
        server: Arc::new(server),
        stranger: Arc::new(client().with_no_client_auth()),
    }
}

/// Two ends of a TCP connection.
pub async fn sockets() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let near = TcpStream::connect(listener.local_addr().unwrap());
    let (near, far) = tokio::join!(near, listener.accept());
    (near.unwrap(), far.unwrap().0)
}

/// Two ends of a tunnel.
pub async fn tunnels(client: Limits, server: Limits) -> (ClientTunnel, ServerTunnel) {
    let trust = trust();
    let (near, far) = sockets().await;
    let (near, far) = tokio::join!(
        connect(near, trust.client, client),
        accept(far, trust.server, server)
    );
    (near.unwrap(), far.unwrap())
}

pub fn request(authority: &str) -> ConnectRequest {
    ConnectRequest {
        authority: authority.into(),
        headers: Headers::new(),
    }
}

/// A stream, both its ends.
pub async fn stream(near: &ClientTunnel, far: &mut ServerTunnel) -> (Stream, Stream) {
    let (near, far) = tokio::join!(near.open(request("10.0.0.1:80")), async {
        far.next().await.expect("a request").accept(Headers::new())
    });
    (near.unwrap(), far)
}

/// A whole path: an application socket at each end of a stream, relays between.
pub struct Path {
    pub client: TcpStream,
    pub server: TcpStream,
    pub near: JoinHandle<End>,
    pub far: JoinHandle<End>,
    pub near_meter: Meter,
    pub far_meter: Meter,
}

pub async fn path(near: &ClientTunnel, far: &mut ServerTunnel) -> Path {
    path_with(near, far, CutSignal::never()).await
}

pub async fn path_with(near: &ClientTunnel, far: &mut ServerTunnel, cut: CutSignal) -> Path {
    let (near, far) = stream(near, far).await;
    let ((client, near_app), (server, far_app)) = (sockets().await, sockets().await);
    let (near_meter, far_meter) = (Meter::new(), Meter::new());
    let near = spawn_local(splice(near_app, near, &near_meter, cut));
    let far = spawn_local(splice(far_app, far, &far_meter, CutSignal::never()));
    Path {
        client,
        server,
        near,
        far,
        near_meter,
        far_meter,
    }
}

/// Bytes that differ at every place and for every seed.
pub fn bytes(seed: u64, len: usize) -> Vec<u8> {
    let mut rng = fastrand::Rng::with_seed(seed);
    let mut out = vec![0; len];
    rng.fill(&mut out);
    out
}

/// Serves every request by `answer`, as a task.
pub fn serve(
    mut tunnel: ServerTunnel,
    answer: impl Fn(Incoming) + 'static,
) -> JoinHandle<ServerTunnel> {
    spawn_local(async move {
        while let Some(incoming) = tunnel.next().await {
            answer(incoming);
        }
        tunnel
    })
}

pub fn refused(result: Result<Stream, OpenError>) -> (u16, Headers) {
    match result {
        Err(OpenError::Refused { status, headers }) => (status, headers),
        other => panic!("expected a refusal, got {other:?}"),
    }
}
