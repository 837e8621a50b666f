//! Measures a pair of relays on loopback against direct connections in the same round: request/response,
//! throughput, new connections. `cargo run --release -p mesh-node --example tunnel_bench -- [seconds] [spin us] [name]`.
//!
//! Four threads: load, opening relay, serving relay, application. Ratios mean something; figures depend on the machine.

use std::{
    net::SocketAddr,
    rc::Rc,
    sync::Arc,
    sync::mpsc,
    time::{Duration, Instant},
};

use mesh_node::{
    tunnel::{ClientTunnel, ConnectRequest, CutSignal, Meter, accept, connect, splice},
    wire::{Headers, Limits},
};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, SanType};
use rustls::{
    ClientConfig, RootCertStore, ServerConfig, pki_types::PrivateKeyDer,
    server::WebPkiClientVerifier,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::{LocalSet, spawn_local},
};

fn main() {
    let mut args = std::env::args().skip(1);
    let seconds = args.next().and_then(|a| a.parse().ok()).unwrap_or(2.0);
    let spin = args.next().and_then(|a| a.parse().ok());
    let only = args.next().unwrap_or_default();
    let round = Duration::from_secs_f64(seconds);
    let (client, server) = trust();
    let echo = thread("application", application);
    let spin = spin.map_or(Limits::client().spin, Duration::from_micros);
    let far = thread("serving", move |listener| {
        serving(listener, server, echo, spin)
    });
    let near = thread("opening", move |listener| {
        opening(listener, client, far, echo, spin)
    });
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    let local = LocalSet::new();
    for (name, connections, kind) in [
        ("request/response, 1 connection", 1, Kind::Echo),
        ("request/response, 64 connections", 64, Kind::Echo),
        ("throughput, 1 stream", 1, Kind::Bulk),
        ("throughput, 8 streams", 8, Kind::Bulk),
        ("new connections, 16 at once", 16, Kind::Open),
    ] {
        for _ in 0..2 {
            if !name.contains(&only) {
                continue;
            }
            let before = cpu();
            let direct = local.block_on(&runtime, load(echo, connections, kind, round));
            let between = cpu();
            let tunnel = local.block_on(&runtime, load(near, connections, kind, round));
            let after = cpu();
            // Microseconds of all four threads for each request, or for each 100 KB.
            let unit = if kind == Kind::Bulk { 1e5 } else { 1.0 };
            let cost = |cpu: f64, got: &Got| cpu * 1e6 / (got.rate * got.seconds / unit);
            println!(
                "{name}: direct {}  tunnel {}  ratio {:.2}  cpu {:.1} -> {:.1} us",
                direct.show(kind),
                tunnel.show(kind),
                tunnel.rate / direct.rate,
                cost(between - before, &direct),
                cost(after - between, &tunnel),
            );
        }
    }
}

/// Connections of one worker in a round: with many more than this, ephemeral ports run out, and the round would
/// measure that.
const OPENED: u64 = 500;

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Echo,
    Bulk,
    Open,
}

struct Got {
    rate: f64,
    p50: f64,
    p99: f64,
    seconds: f64,
}

impl Got {
    fn show(&self, kind: Kind) -> String {
        match kind {
            Kind::Bulk => format!("{:.2} Gbit/s", self.rate * 8.0 / 1e9),
            _ => format!(
                "{:.0}/s p50 {:.0} us p99 {:.0} us",
                self.rate, self.p50, self.p99
            ),
        }
    }
}

/// CPU seconds of this process so far.
fn cpu() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let ticks: Vec<f64> = stat
        .split_whitespace()
        .skip(13)
        .take(2)
        .filter_map(|t| t.parse().ok())
        .collect();
    ticks.iter().sum::<f64>() / 100.0
}

/// Runs `serve` on a thread of its own with a listener; gives the listener's address.
fn thread<F: Future<Output = ()> + 'static>(
    name: &str,
    serve: impl FnOnce(TcpListener) -> F + Send + 'static,
) -> SocketAddr {
    let (tell, told) = mpsc::channel();
    let body = move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime");
        LocalSet::new().block_on(&runtime, async move {
            let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
            tell.send(listener.local_addr().expect("an address"))
                .expect("the main thread waits");
            serve(listener).await;
        });
    };
    std::thread::Builder::new()
        .name(name.into())
        .spawn(body)
        .expect("a thread");
    told.recv().expect("the thread came up")
}

/// Echoes small messages; swallows what comes in larger ones.
async fn application(listener: TcpListener) {
    loop {
        let Ok((mut tcp, _)) = listener.accept().await else {
            return;
        };
        let _ = tcp.set_nodelay(true);
        spawn_local(async move {
            let mut buf = vec![0; 128 << 10];
            while let Ok(n @ 1..) = tcp.read(&mut buf).await {
                if n <= 512 && tcp.write_all(&buf[..n]).await.is_err() {
                    return;
                }
            }
        });
    }
}

async fn opening(
    listener: TcpListener,
    tls: Arc<ClientConfig>,
    far: SocketAddr,
    to: SocketAddr,
    spin: Duration,
) {
    let tunnel: Rc<tokio::sync::OnceCell<ClientTunnel>> = Rc::default();
    loop {
        let Ok((app, _)) = listener.accept().await else {
            return;
        };
        let (tls, tunnel) = (tls.clone(), tunnel.clone());
        spawn_local(async move {
            let tunnel = tunnel
                .get_or_init(|| async {
                    let tcp = TcpStream::connect(far).await.expect("the far relay");
                    connect(
                        tcp,
                        tls,
                        Limits {
                            spin,
                            ..Limits::client()
                        },
                    )
                    .await
                    .expect("a tunnel")
                })
                .await;
            let request = ConnectRequest {
                authority: to.to_string(),
                headers: Headers::new()
                    .with("baggage", "k8s.namespace.name=shop,k8s.pod.name=web-1"),
            };
            match tunnel.open(request).await {
                Ok(stream) => drop(splice(app, stream, &Meter::new(), CutSignal::never()).await),
                Err(e) => eprintln!("open: {e}"),
            }
        });
    }
}

async fn serving(listener: TcpListener, tls: Arc<ServerConfig>, to: SocketAddr, spin: Duration) {
    loop {
        let Ok((tcp, _)) = listener.accept().await else {
            return;
        };
        let tls = tls.clone();
        spawn_local(async move {
            let mut tunnel = accept(
                tcp,
                tls,
                Limits {
                    spin,
                    ..Limits::server()
                },
            )
            .await
            .expect("a tunnel");
            while let Some(incoming) = tunnel.next().await {
                spawn_local(async move {
                    let app = TcpStream::connect(to).await.expect("the application");
                    let stream = incoming.accept(Headers::new());
                    splice(app, stream, &Meter::new(), CutSignal::never()).await;
                });
            }
            eprintln!("tunnel ended: {:?}", tunnel.error());
        });
    }
}

async fn load(to: SocketAddr, connections: usize, kind: Kind, round: Duration) -> Got {
    let start = Instant::now();
    let end = start + round;
    let tasks: Vec<_> = (0..connections)
        .map(|_| spawn_local(worker(to, kind, end)))
        .collect();
    let (mut total, mut times) = (0u64, Vec::new());
    for task in tasks {
        let (n, t) = task.await.expect("a worker");
        total += n;
        times.extend(t);
    }
    times.sort_unstable();
    let at = |q: f64| {
        times
            .get((times.len() as f64 * q) as usize)
            .map_or(0.0, |n: &u64| *n as f64 / 1e3)
    };
    let seconds = start.elapsed().as_secs_f64();
    Got {
        seconds,
        rate: total as f64 / seconds,
        p50: at(0.5),
        p99: at(0.99),
    }
}

async fn worker(to: SocketAddr, kind: Kind, end: Instant) -> (u64, Vec<u64>) {
    let (mut total, mut times, mut buf) = (0, Vec::new(), vec![7; 128 << 10]);
    let connect = || async {
        let tcp = TcpStream::connect(to).await.expect("a connection");
        tcp.set_nodelay(true).expect("a socket");
        tcp
    };
    let mut tcp = connect().await;
    while Instant::now() < end && (kind != Kind::Open || total < OPENED) {
        let begin = Instant::now();
        match kind {
            Kind::Bulk => {
                tcp.write_all(&buf).await.expect("a write");
                total += buf.len() as u64;
                continue;
            }
            Kind::Open => tcp = connect().await,
            Kind::Echo => {}
        }
        tcp.write_all(&buf[..128]).await.expect("a write");
        tcp.read_exact(&mut buf[..128]).await.expect("an answer");
        total += 1;
        times.push(begin.elapsed().as_nanos() as u64);
    }
    (total, times)
}

fn trust() -> (Arc<ClientConfig>, Arc<ServerConfig>) {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let mut ca = CertificateParams::new(Vec::<String>::new()).expect("parameters");
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca = CertifiedIssuer::self_signed(ca, KeyPair::generate().expect("a key")).expect("a root");
    let mut roots = RootCertStore::empty();
    roots.add(ca.der().clone()).expect("a root");
    let roots = Arc::new(roots);
    let leaf = || {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::new(Vec::<String>::new()).expect("parameters");
        params.subject_alt_names = vec![SanType::IpAddress([127, 0, 0, 1].into())];
        let cert = params
            .signed_by(&key, &ca)
            .expect("a certificate")
            .der()
            .clone();
        (
            vec![cert],
            PrivateKeyDer::try_from(key.serialize_der()).expect("a key"),
        )
    };
    let ((c_cert, c_key), (s_cert, s_key)) = (leaf(), leaf());
    let client = ClientConfig::builder_with_protocol_versions(&[&rustls::version::TLS13])
        .with_root_certificates(roots.clone())
        .with_client_auth_cert(c_cert, c_key)
        .expect("a configuration");
    let verifier = WebPkiClientVerifier::builder(roots)
        .build()
        .expect("a verifier");
    let server = ServerConfig::builder_with_protocol_versions(&[&rustls::version::TLS13])
        .with_client_cert_verifier(verifier)
        .with_single_cert(s_cert, s_key)
        .expect("a configuration");
    (Arc::new(client), Arc::new(server))
}
