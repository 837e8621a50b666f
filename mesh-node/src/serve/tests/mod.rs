//! The whole story in one process: pods on loopback addresses, real sockets, real tunnels, a kernel that is taught.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::{Duration, SystemTime},
};

use mesh_model::{
    mesh::{
        Action, Change, MtlsMode, Policy, PolicyScope, Workload,
        policy::{Match, StringMatch},
    },
    reason::Reason,
    resilience::{Destination, Subset, TrafficPolicy},
    route::http::Selector,
    testing::cast as testing,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::mpsc,
};

mod bounded;
mod bounds;
mod flows;
mod handed;
mod nets;
mod requests;
mod streams;
mod waypoint;

use super::*;
use crate::{
    accept::{Family, Kind, Listeners, Pod, PodSockets, PodUid},
    capture::{Datapath, FakeDatapath},
    config::Limits,
    dns::{Names, Resolvers, TtlBounds},
    exchange::Clusters,
    identify::{Certificates, Handshakes, testing::Authority},
    observe::{AccessFormat, Finished, LogSink, Metrics, Observer, Spans},
    state::MeshState,
};

/// Sockets that speak from the pod's own address.
#[derive(Debug)]
struct Loopback(IpAddr);

impl PodSockets for Loopback {
    fn tcp(&self, _: Family, _: Option<SocketAddr>) -> io::Result<socket2::Socket> {
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None)?;
        socket.bind(&SocketAddr::new(self.0, 0).into())?;
        socket.set_nonblocking(true)?;
        Ok(socket)
    }
}

/// What the access log was given.
#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl io::Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0
            .lock()
            .expect("not poisoned")
            .extend_from_slice(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A node with all its pods on loopback.
struct Node {
    /// Its own; no other node of the tests has the addresses that it has.
    number: usize,
    state: MeshState,
    kernel: Arc<FakeDatapath>,
    listeners: Listeners,
    shared: Arc<Shared>,
    threads: DataThreads,
    lines: Lines,
    certificates: Certificates,
    ca: Authority,
    /// Spans that wait for whoever sends them.
    finished: Mutex<Option<mpsc::Receiver<Box<Finished>>>>,
}

fn limits() -> Limits {
    Limits {
        connect_timeout: Duration::from_secs(3),
        handshake_timeout: Duration::from_secs(2),
        handshakes: 64,
        handshakes_per_source: 32,
        flows: 256,
        tunnel_idle: Duration::from_secs(60),
        waypoint_age: Duration::from_secs(600),
        http_idle: Limits::HTTP_IDLE,
        http_head: Limits::HTTP_HEAD,
    }
}

impl Node {
    async fn start() -> Self {
        Self::with(limits(), AccessFormat::Text).await
    }

    async fn within(limits: Limits) -> Self {
        Self::with(limits, AccessFormat::Text).await
    }

    async fn logging(format: AccessFormat) -> Self {
        Self::with(limits(), format).await
    }

    async fn with(limits: Limits, format: AccessFormat) -> Self {
        let (state, kernel, lines) = (
            MeshState::new(),
            Arc::new(FakeDatapath::default()),
            Lines::default(),
        );
        let certificates = Certificates::new(SystemTime::now);
        let sink = LogSink::new(lines.clone()).expect("a thread");
        let bounds = TtlBounds {
            least: Duration::from_millis(50),
            most: Duration::from_secs(60),
        };
        let (names, resolving) = Names::new(Resolvers::Fixed(Vec::new()), bounds, Metrics::new());
        tokio::spawn(resolving.run());
        let metrics = Metrics::new();
        let (spans, finished) = Spans::new(metrics.clone());
        let clusters = Clusters::default();
        metrics.add_clusters(Box::new(clusters.clone()));
        let shared = Arc::new(Shared {
            node: "n1".into(),
            state: state.clone(),
            certificates: certificates.clone(),
            datapath: kernel.clone(),
            observer: Observer::new(metrics, sink, format, true),
            handshakes: Handshakes::new(64, 32),
            limits,
            names,
            flows: AtomicUsize::new(0),
            clusters,
            spans,
        });
        let (listeners, receivers) = Listeners::new(2);
        let threads = DataThreads::start(shared.clone(), receivers).expect("threads");
        state.apply([Change::Config(testing::config()), Change::Complete]);
        static NUMBERS: AtomicUsize = AtomicUsize::new(0);
        Self {
            number: NUMBERS.fetch_add(1, Relaxed),
            state,
            kernel,
            listeners,
            shared,
            threads,
            lines,
            certificates,
            ca: Authority::new("ca"),
            finished: Mutex::new(Some(finished)),
        }
    }

    /// Makes a pod known, gives it a certificate and its listeners.
    async fn pod(&self, name: &str, ip: &str, mtls: MtlsMode) -> Home {
        self.pod_barred(name, ip, mtls, None).await
    }

    async fn pod_barred(
        &self,
        name: &str,
        ip: &str,
        mtls: MtlsMode,
        barred: Option<Reason>,
    ) -> Home {
        let (home, news) = self.pod_unheard(name, ip, mtls, barred).await;
        self.state.apply(news);
        home
    }

    /// A pod that is served here before anybody has heard of it, and the news of it.
    async fn pod_unheard(
        &self,
        name: &str,
        ip: &str,
        mtls: MtlsMode,
        barred: Option<Reason>,
    ) -> (Home, [Change; 2]) {
        let workload = testing::pod("shop", name, "n1", ip);
        self.certificates.put(self.ca.issue(&workload.identity));
        let news = [
            Change::Workload(workload.clone()),
            Change::WorkloadExtra(workload.uid.clone(), testing::extra(mtls)),
        ];
        let ip: IpAddr = ip.parse().expect("an address");
        nets::take(self.number, ip);
        let pod = Arc::new(Pod {
            uid: PodUid::new(name),
            workload: workload.uid.clone(),
            namespace: "shop".into(),
            name: name.into(),
            service_account: name.into(),
            identity: workload.identity.clone(),
            addresses: Box::new([ip]),
            netns_cookie: 7,
            barred,
            sockets: Arc::new(Loopback(ip)),
        });
        let mut home = Home {
            ip,
            pod: pod.clone(),
            workload,
            outbound: SocketAddr::new(ip, 0),
            plaintext: SocketAddr::new(ip, 0),
        };
        for (kind, port) in [
            (Kind::Outbound, 0),
            (Kind::Plaintext, 0),
            (Kind::Hbone, 15008),
        ] {
            let listener = std::net::TcpListener::bind((ip, port)).expect("a free port");
            listener.set_nonblocking(true).expect("possible");
            match kind {
                Kind::Outbound => home.outbound = listener.local_addr().expect("bound"),
                Kind::Plaintext => home.plaintext = listener.local_addr().expect("bound"),
                Kind::Hbone | Kind::Waypoint => {}
            }
            self.listeners
                .add(&pod, kind, &listener)
                .await
                .expect("threads run");
        }
        (home, news)
    }

    /// Takes back half of what is known of a pod, so that connections to it wait, and gives the change that brings
    /// it again.
    fn hold_back(&self, pod: &Home, mtls: MtlsMode) -> Change {
        let uid = &pod.workload.uid;
        self.state.apply([Change::RemoveWorkload(uid.clone())]);
        self.state.apply([Change::Workload(pod.workload.clone())]);
        Change::WorkloadExtra(uid.clone(), testing::extra(mtls))
    }

    /// Connects from a pod as if the kernel had captured a dial to `target`.
    async fn dial(&self, from: &Home, target: SocketAddr) -> TcpStream {
        self.try_dial(from, target)
            .await
            .expect("the proxy listens")
    }

    async fn try_dial(&self, from: &Home, target: SocketAddr) -> io::Result<TcpStream> {
        let socket = from.pod.sockets.tcp(Family::V4, None)?;
        let local = socket.local_addr()?.as_socket().expect("an address");
        self.kernel
            .told()
            .originals
            .insert((from.outbound, local), target);
        // Blocking, which takes no time on loopback: the runtime's own connect looks at the socket once more
        // afterwards, and fails when the connection was reset by then.
        socket.set_nonblocking(false)?;
        socket.connect(&from.outbound.into())?;
        socket.set_nonblocking(true)?;
        TcpStream::from_std(socket.into())
    }

    /// Waits until the access log has a line with all these parts, and gives it.
    async fn line(&self, parts: &[&str]) -> String {
        let look = async {
            loop {
                let text = String::from_utf8_lossy(&self.lines.0.lock().expect("not poisoned"))
                    .into_owned();
                if let Some(line) = text.lines().find(|l| parts.iter().all(|p| l.contains(p))) {
                    return line.to_owned();
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        let found = tokio::time::timeout(Duration::from_secs(10), look).await;
        found.unwrap_or_else(|_| {
            panic!(
                "no line with {parts:?} in:\n{}",
                String::from_utf8_lossy(&self.lines.0.lock().expect("not poisoned"))
            )
        })
    }

    async fn stop(self) {
        self.threads.end().await;
    }
}

/// Where a pod lives in a test.
struct Home {
    ip: IpAddr,
    pod: Arc<Pod>,
    workload: Workload,
    outbound: SocketAddr,
    plaintext: SocketAddr,
}

/// An application that sends back what it gets, and closes when its client has.
async fn echo(ip: IpAddr) -> SocketAddr {
    let listener = TcpListener::bind((ip, 0)).await.expect("a free port");
    let address = listener.local_addr().expect("bound");
    tokio::spawn(async move {
        while let Ok((mut tcp, _)) = listener.accept().await {
            tokio::spawn(async move {
                let (mut read, mut write) = tcp.split();
                let _ = tokio::io::copy(&mut read, &mut write).await;
            });
        }
    });
    address
}

/// Listeners at two addresses on one port. What is free at one address may be taken at the other, by a pod's own
/// listeners as well.
async fn same_port(one: IpAddr, two: IpAddr) -> (TcpListener, TcpListener) {
    loop {
        let first = TcpListener::bind((one, 0)).await.expect("a free port");
        let port = first.local_addr().expect("bound").port();
        if let Ok(second) = TcpListener::bind((two, port)).await {
            return (first, second);
        }
    }
}

async fn ask(tcp: &mut TcpStream, text: &[u8]) -> io::Result<Vec<u8>> {
    tcp.write_all(text).await?;
    let mut answer = vec![0; text.len()];
    tokio::time::timeout(Duration::from_secs(10), tcp.read_exact(&mut answer)).await??;
    Ok(answer)
}

/// A refusal is a reset, never an orderly end.
async fn is_reset(mut tcp: TcpStream) -> bool {
    let mut byte = [0];
    let read = tokio::time::timeout(Duration::from_secs(10), tcp.read(&mut byte))
        .await
        .expect("an end within the time");
    matches!(read, Err(e) if e.kind() == io::ErrorKind::ConnectionReset)
}

/// As `is_reset`, for a connection that may be reset so fast that connecting already fails.
async fn is_refused(connected: io::Result<TcpStream>) -> bool {
    match connected {
        Ok(tcp) => is_reset(tcp).await,
        Err(e) => e.kind() == io::ErrorKind::ConnectionReset,
    }
}

fn deny(name: &str, who: &str) -> Policy {
    let matched = Match {
        principals: Box::new([StringMatch::Exact(who.into())]),
        ..Match::default()
    };
    testing::policy(
        "shop",
        name,
        PolicyScope::Namespace,
        Action::Deny,
        [matched],
    )
}

/// The waypoint of `n1`, which serves what names it, and what its own pod needs to be known.
impl Node {
    async fn waypoint(&self, name: &str, ip: &str) -> Arc<Pod> {
        let workload = testing::pod("mesh", name, "n1", ip);
        self.certificates.put(self.ca.issue(&workload.identity));
        self.state.apply(testing::known(workload.clone()));
        let ip: IpAddr = ip.parse().expect("an address");
        nets::take(self.number, ip);
        let pod = Arc::new(Pod {
            uid: PodUid::new(name),
            workload: workload.uid.clone(),
            namespace: "mesh".into(),
            name: name.into(),
            service_account: name.into(),
            identity: workload.identity,
            addresses: Box::new([ip]),
            netns_cookie: 0,
            barred: None,
            sockets: Arc::new(Loopback(ip)),
        });
        let listener = std::net::TcpListener::bind((ip, 15008)).expect("a free port");
        listener.set_nonblocking(true).expect("possible");
        let added = self.listeners.add(&pod, Kind::Waypoint, &listener).await;
        added.expect("threads run");
        pod
    }
}

/// As its waypoint, the workload at an address.
fn through(ip: IpAddr) -> Option<mesh_model::mesh::GatewayAddress> {
    Some(mesh_model::mesh::GatewayAddress {
        destination: mesh_model::mesh::GatewayDestination::Address(
            mesh_model::name::NetworkAddress {
                network: "".into(),
                ip,
            },
        ),
        hbone_port: 15008,
    })
}

/// A destination rule of `shop/db`: the same for the service and for each of two versions.
fn destination(policy: TrafficPolicy) -> Change {
    let policy = Arc::new(policy);
    let subset = |name: &str| Subset {
        name: name.into(),
        selector: Selector(format!("version={name}").into()),
        policy: policy.clone(),
        ports: Box::default(),
    };
    Change::Destination(Destination {
        service: testing::service_name("shop", "db"),
        by: "shop/db".into(),
        policy: policy.clone(),
        ports: Box::default(),
        subsets: Box::new([subset("v1"), subset("v2")]),
        features: Box::default(),
    })
}
