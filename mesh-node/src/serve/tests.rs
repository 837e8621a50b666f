//! The whole story in one process: pods on loopback addresses, real sockets, real tunnels, a kernel that is taught.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, atomic::AtomicUsize},
    time::{Duration, SystemTime},
};

use mesh_model::{
    mesh::{Action, Change, MtlsMode, Policy, PolicyScope, Workload, policy::{Match, StringMatch}},
    reason::Reason,
    testing::cast as testing,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

use super::*;
use crate::{
    accept::{Family, Kind, Listeners, Pod, PodSockets, PodUid},
    capture::FakeDatapath,
    config::Limits,
    identify::{Certificates, Handshakes, testing::Authority},
    observe::{AccessFormat, LogSink, Metrics, Observer},
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
        self.0.lock().expect("not poisoned").extend_from_slice(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A node with all its pods on loopback.
struct Node {
    state: MeshState,
    kernel: Arc<FakeDatapath>,
    listeners: Listeners,
    shared: Arc<Shared>,
    threads: DataThreads,
    lines: Lines,
    certificates: Certificates,
    ca: Authority,
}

fn limits() -> Limits {
    Limits {
        connect_timeout: Duration::from_secs(3),
        handshake_timeout: Duration::from_secs(2),
        handshakes: 64,
        handshakes_per_source: 32,
        flows: 256,
        tunnel_idle: Duration::from_secs(60),
    }
}

impl Node {
    async fn start() -> Self {
        let (state, kernel, lines) = (MeshState::new(), Arc::new(FakeDatapath::default()), Lines::default());
        let certificates = Certificates::new(SystemTime::now);
        let sink = LogSink::new(lines.clone()).expect("a thread");
        let shared = Arc::new(Shared {
            node: "n1".into(),
            state: state.clone(),
            certificates: certificates.clone(),
            datapath: kernel.clone(),
            observer: Observer::new(Metrics::new(), sink, AccessFormat::Text, true),
            handshakes: Handshakes::new(64, 32),
            limits: limits(),
            flows: AtomicUsize::new(0),
        });
        let (listeners, receivers) = Listeners::new(2);
        let threads = DataThreads::start(shared.clone(), receivers).expect("threads");
        state.apply([Change::Config(testing::config()), Change::Complete]);
        Self { state, kernel, listeners, shared, threads, lines, certificates, ca: Authority::new("ca") }
    }

    /// Makes a pod known, gives it a certificate and its listeners.
    async fn pod(&self, name: &str, ip: &str, mtls: MtlsMode) -> Home {
        let workload = testing::pod("shop", name, "n1", ip);
        self.certificates.put(self.ca.issue(&workload.identity));
        self.state.apply([Change::Workload(workload.clone()), Change::WorkloadExtra(workload.uid.clone(), testing::extra(mtls))]);
        let ip: IpAddr = ip.parse().expect("an address");
        let pod = Arc::new(Pod {
            uid: PodUid::new(name),
            workload: workload.uid.clone(),
            namespace: "shop".into(),
            name: name.into(),
            service_account: name.into(),
            identity: workload.identity.clone(),
            addresses: Box::new([ip]),
            netns_cookie: 7,
            sockets: Arc::new(Loopback(ip)),
        });
        let mut home = Home { ip, pod: pod.clone(), workload, outbound: SocketAddr::new(ip, 0), plaintext: SocketAddr::new(ip, 0) };
        for (kind, port) in [(Kind::Outbound, 0), (Kind::Plaintext, 0), (Kind::Hbone, 15008)] {
            let listener = std::net::TcpListener::bind((ip, port)).expect("a free port");
            listener.set_nonblocking(true).expect("possible");
            match kind {
                Kind::Outbound => home.outbound = listener.local_addr().expect("bound"),
                Kind::Plaintext => home.plaintext = listener.local_addr().expect("bound"),
                Kind::Hbone => {}
            }
            self.listeners.add(&pod, kind, &listener).await.expect("threads run");
        }
        home
    }

    /// Connects from a pod as if the kernel had captured a dial to `target`.
    async fn dial(&self, from: &Home, target: SocketAddr) -> TcpStream {
        self.try_dial(from, target).await.expect("the proxy listens")
    }

    async fn try_dial(&self, from: &Home, target: SocketAddr) -> io::Result<TcpStream> {
        let socket = tokio::net::TcpSocket::new_v4().expect("a socket");
        socket.bind(SocketAddr::new(from.ip, 0)).expect("free");
        let local = socket.local_addr().expect("bound");
        self.kernel.told().originals.insert((from.outbound, local), target);
        socket.connect(from.outbound).await
    }

    /// Waits until the access log has a line with all these parts, and gives it.
    async fn line(&self, parts: &[&str]) -> String {
        let look = async {
            loop {
                let text = String::from_utf8_lossy(&self.lines.0.lock().expect("not poisoned")).into_owned();
                if let Some(line) = text.lines().find(|l| parts.iter().all(|p| l.contains(p))) {
                    return line.to_owned();
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        let found = tokio::time::timeout(Duration::from_secs(10), look).await;
        found.unwrap_or_else(|_| panic!("no line with {parts:?} in:\n{}", String::from_utf8_lossy(&self.lines.0.lock().expect("not poisoned"))))
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

async fn ask(tcp: &mut TcpStream, text: &[u8]) -> io::Result<Vec<u8>> {
    tcp.write_all(text).await?;
    let mut answer = vec![0; text.len()];
    tokio::time::timeout(Duration::from_secs(10), tcp.read_exact(&mut answer)).await??;
    Ok(answer)
}

/// A refusal is a reset, never an orderly end.
async fn is_reset(mut tcp: TcpStream) -> bool {
    let mut byte = [0];
    let read = tokio::time::timeout(Duration::from_secs(10), tcp.read(&mut byte)).await.expect("an end within the time");
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
    let matched = Match { principals: Box::new([StringMatch::Exact(who.into())]), ..Match::default() };
    testing::policy("shop", name, PolicyScope::Namespace, Action::Deny, [matched])
}

#[tokio::test]
async fn a_flow_goes_through_a_tunnel_and_is_reported_on_both_sides() {
    let node = Node::start().await;
    let web = node.pod("web", "127.7.1.1", MtlsMode::Strict).await;
    let db = node.pod("db", "127.7.1.2", MtlsMode::Strict).await;
    let app = echo(db.ip).await;
    let mut tcp = node.dial(&web, app).await;
    assert_eq!(ask(&mut tcp, b"over the mesh").await.expect("carried"), b"over the mesh");
    tcp.shutdown().await.expect("half-close");
    assert_eq!(tcp.read(&mut [0; 8]).await.expect("the application's end"), 0);
    drop(tcp);
    node.line(&["connection complete", "direction=outbound", "path=hbone", "mtls=true", "bytes_sent=13", "bytes_recv=13"]).await;
    let line = node.line(&["connection complete", "direction=inbound", "policy=allow"]).await;
    assert!(line.contains("spiffe://cluster.local/ns/shop/sa/web"), "{line}");
    assert!(line.contains(&format!("dst.addr={app}")), "{line}");
    node.stop().await;
}

#[tokio::test]
async fn a_service_address_leads_to_an_endpoint_and_a_dead_one_is_passed_over() {
    let node = Node::start().await;
    let web = node.pod("web", "127.7.2.1", MtlsMode::Permissive).await;
    let db = node.pod("db", "127.7.2.2", MtlsMode::Permissive).await;
    let app = echo(db.ip).await;
    let service = testing::service("shop", "db", "127.7.2.100", 5432, app.port());
    let mut dead = testing::pod("shop", "dead", "n1", "127.7.2.3");
    dead.identity = db.workload.identity.clone();
    let dead_extra = Change::WorkloadExtra(dead.uid.clone(), testing::extra(MtlsMode::Permissive));
    node.state.apply([
        Change::Service(service),
        Change::Workload(testing::serving(db.workload.clone(), "shop", "db")),
        Change::Workload(testing::serving(dead, "shop", "db")),
        dead_extra,
    ]);
    for _ in 0..8 {
        let mut tcp = node.dial(&web, "127.7.2.100:5432".parse().expect("an address")).await;
        assert_eq!(ask(&mut tcp, b"hello").await.expect("one of the two answers"), b"hello");
    }
    node.line(&["direction=outbound", "dst.service=db.shop.svc.cluster.local", "connection complete"]).await;
    node.stop().await;
}

#[tokio::test]
async fn a_denied_flow_is_reset_and_named_and_nothing_reaches_the_application() {
    let node = Node::start().await;
    let web = node.pod("web", "127.7.3.1", MtlsMode::Strict).await;
    let db = node.pod("db", "127.7.3.2", MtlsMode::Strict).await;
    node.state.apply([Change::Policy(deny("no-web", "cluster.local/ns/shop/sa/web"))]);
    let listener = TcpListener::bind((db.ip, 0)).await.expect("a free port");
    let app = listener.local_addr().expect("bound");
    let mut tcp = node.dial(&web, app).await;
    tcp.write_all(b"early bytes").await.expect("buffered");
    assert!(is_reset(tcp).await);
    node.line(&["connection refused", "direction=inbound", "policy=deny", "policy_name=shop/no-web", "reason=policy_denied"]).await;
    node.line(&["direction=outbound", "reason=peer_denied"]).await;
    assert_eq!(node.kernel.told().failed, vec![(7, app, Reason::PeerDenied)]);
    let reached = tokio::time::timeout(Duration::from_millis(200), listener.accept()).await;
    assert!(reached.is_err(), "the application was dialed");
    node.stop().await;
}

#[tokio::test]
async fn a_policy_that_arrives_cuts_the_flows_it_forbids_and_no_others() {
    let node = Node::start().await;
    let web = node.pod("web", "127.7.4.1", MtlsMode::Strict).await;
    let other = node.pod("other", "127.7.4.3", MtlsMode::Strict).await;
    let db = node.pod("db", "127.7.4.2", MtlsMode::Strict).await;
    let app = echo(db.ip).await;
    let (mut doomed, mut fine) = (node.dial(&web, app).await, node.dial(&other, app).await);
    ask(&mut doomed, b"one").await.expect("allowed");
    ask(&mut fine, b"one").await.expect("allowed");
    let changed = std::time::Instant::now();
    node.state.apply([Change::Policy(deny("no-web", "cluster.local/ns/shop/sa/web"))]);
    assert!(is_reset(doomed).await);
    assert!(changed.elapsed() < Duration::from_secs(1), "took {:?}", changed.elapsed());
    ask(&mut fine, b"two").await.expect("still allowed");
    node.line(&["direction=inbound", "reason=policy_changed", "policy_name=shop/no-web"]).await;
    node.stop().await;
}

#[tokio::test]
async fn plaintext_is_taken_or_refused_as_the_mode_says() {
    let node = Node::start().await;
    let open = node.pod("open", "127.7.5.1", MtlsMode::Permissive).await;
    let strict = node.pod("strict", "127.7.5.2", MtlsMode::Strict).await;
    // Without a kernel the address that was dialed is the listener itself, so the proxy dials itself: it is
    // enough to see what was decided.
    let connect = |home: &Home| TcpStream::connect(home.plaintext);
    assert!(is_refused(connect(&strict).await).await);
    node.line(&["direction=inbound", "path=plain", "reason=mtls_required", "dst.workload=strict"]).await;
    let taken = connect(&open).await.expect("the proxy listens");
    drop(taken);
    node.line(&["direction=inbound", "path=plain", "policy=allow", "dst.workload=open"]).await;
    node.stop().await;
}

#[tokio::test]
async fn a_connection_that_was_not_captured_is_refused() {
    let node = Node::start().await;
    let web = node.pod("web", "127.7.6.1", MtlsMode::Strict).await;
    assert!(is_refused(TcpStream::connect(web.outbound).await).await);
    node.line(&["direction=outbound", "reason=no_original_destination"]).await;
    assert!(is_refused(node.try_dial(&web, SocketAddr::new(web.ip, 15008)).await).await);
    node.line(&["direction=outbound", "reason=loop"]).await;
    node.stop().await;
}

#[tokio::test]
async fn configuration_that_is_late_is_waited_for() {
    let node = Node::start().await;
    let web = node.pod("web", "127.7.7.1", MtlsMode::Strict).await;
    let db = node.pod("db", "127.7.7.2", MtlsMode::Strict).await;
    let app = echo(db.ip).await;
    node.state.apply([Change::RemoveWorkload(db.workload.uid.clone())]);
    node.state.apply([Change::Workload(db.workload.clone())]);
    let mut tcp = node.dial(&web, app).await;
    tcp.write_all(b"hello").await.expect("buffered");
    assert!(tokio::time::timeout(Duration::from_millis(200), tcp.read(&mut [0; 1])).await.is_err(), "decided without configuration");
    node.state.apply([Change::WorkloadExtra(db.workload.uid.clone(), testing::extra(MtlsMode::Strict))]);
    let mut answer = [0; 5];
    tokio::time::timeout(Duration::from_secs(5), tcp.read_exact(&mut answer)).await.expect("in time").expect("allowed now");
    assert_eq!(&answer, b"hello");
    node.stop().await;
}

#[tokio::test]
async fn a_pod_that_goes_takes_its_listeners_and_flows_with_it() {
    let node = Node::start().await;
    let web = node.pod("web", "127.7.8.1", MtlsMode::Strict).await;
    let db = node.pod("db", "127.7.8.2", MtlsMode::Strict).await;
    let app = echo(db.ip).await;
    let mut tcp = node.dial(&web, app).await;
    ask(&mut tcp, b"one").await.expect("allowed");
    node.listeners.remove(&db.pod.uid).await.expect("threads run");
    assert!(is_reset(tcp).await);
    node.line(&["direction=inbound", "reason=workload_gone"]).await;
    let closed = async {
        while TcpStream::connect((db.ip, 15008)).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(5), closed).await.expect("the listener closes");
    node.stop().await;
}

#[tokio::test]
async fn draining_waits_for_flows_and_then_ends_them() {
    let node = Node::start().await;
    let web = node.pod("web", "127.7.9.1", MtlsMode::Strict).await;
    let db = node.pod("db", "127.7.9.2", MtlsMode::Strict).await;
    let app = echo(db.ip).await;
    let mut tcp = node.dial(&web, app).await;
    ask(&mut tcp, b"one").await.expect("allowed");
    let Node { threads, shared, .. } = node;
    threads.drain();
    let closed = async {
        while TcpStream::connect((db.ip, 15008)).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(5), closed).await.expect("accepting stops");
    ask(&mut tcp, b"two").await.expect("live flows go on");
    threads.end().await;
    assert!(is_reset(tcp).await);
    assert_eq!(shared.flows.load(std::sync::atomic::Ordering::Relaxed), 0);
}

/// What a foreign client gets for a CONNECT to `authority` in a tunnel to `to`, as `who`.
async fn connect_as(node: &Node, who: &Home, to: &Home, authority: &str) -> Result<(), u16> {
    use crate::relay::{ConnectRequest, OpenError, tunnel};
    let tls = node.certificates.try_client(&who.workload.identity, std::slice::from_ref(&to.workload.identity)).expect("a certificate");
    let (address, from, authority) = (SocketAddr::new(to.ip, 15008), who.ip, authority.to_owned());
    let opened = async move {
        let socket = tokio::net::TcpSocket::new_v4().expect("a socket");
        socket.bind(SocketAddr::new(from, 0)).expect("free");
        let tcp = socket.connect(address).await.expect("the proxy listens");
        let tunnel = tunnel::connect(tcp, tls, crate::wire::Limits::client()).await.expect("both prove who they are");
        match tunnel.open(ConnectRequest { authority, headers: crate::wire::Headers::new() }).await {
            Ok(_) => Ok(()),
            Err(OpenError::Refused { status, .. }) => Err(status),
            Err(other) => panic!("{other}"),
        }
    };
    let asking = tokio::task::LocalSet::new();
    asking.run_until(tokio::time::timeout(Duration::from_secs(10), opened)).await.expect("an answer in time")
}

#[tokio::test]
async fn a_connect_reaches_nothing_but_the_pod_it_came_to() {
    let node = Node::start().await;
    let web = node.pod("web", "127.7.10.1", MtlsMode::Strict).await;
    let db = node.pod("db", "127.7.10.2", MtlsMode::Strict).await;
    let other = echo("127.7.10.3".parse().expect("an address")).await;
    let app = echo(db.ip).await;
    assert_eq!(connect_as(&node, &web, &db, &app.to_string()).await, Ok(()));
    let port = app.port();
    for authority in [
        other.to_string(),
        format!("127.0.0.1:{port}"),
        format!("[::1]:{port}"),
        format!("[::ffff:127.7.10.2]:{port}"),
        "169.254.169.254:80".to_owned(),
        format!("{}:{port}", web.ip),
        format!("db.shop.svc.cluster.local:{port}"),
        format!("{}:0", db.ip),
        format!("{}:15008", db.ip),
        format!("{}:15001", db.ip),
        format!("{}:15006", db.ip),
        format!("{}:15053", db.ip),
    ] {
        assert_eq!(connect_as(&node, &web, &db, &authority).await, Err(400), "{authority}");
    }
    node.line(&["direction=inbound", "reason=bad_authority"]).await;
    node.line(&["direction=inbound", "reason=loop"]).await;
    let closed = TcpListener::bind((db.ip, 0)).await.expect("free").local_addr().expect("bound");
    assert_eq!(connect_as(&node, &web, &db, &closed.to_string()).await, Err(503));
    node.line(&["direction=inbound", "reason=connect_refused"]).await;
    node.stop().await;
}

#[tokio::test]
async fn a_handshake_that_is_never_finished_ends_and_is_counted() {
    let node = Node::start().await;
    let db = node.pod("db", "127.7.11.2", MtlsMode::Strict).await;
    let mut silent = TcpStream::connect((db.ip, 15008)).await.expect("the proxy listens");
    let mut noise = TcpStream::connect((db.ip, 15008)).await.expect("the proxy listens");
    noise.write_all(b"GET / HTTP/1.1\r\n\r\n").await.expect("buffered");
    let ended = tokio::time::timeout(Duration::from_secs(10), silent.read(&mut [0; 16])).await.expect("the deadline holds");
    assert!(matches!(ended, Ok(0) | Err(_)), "{ended:?}");
    node.line(&["direction=inbound", "reason=tls_failure", "not finished in time"]).await;
    let text = node.shared.observer.metrics().text().expect("text");
    for result in ["timeout", "error"] {
        assert!(text.contains(&format!("warren_tunnel_handshakes_total{{result=\"{result}\"}} 1")), "{result} in:\n{text}");
    }
    node.stop().await;
}

#[tokio::test]
async fn a_rotated_certificate_makes_new_tunnels_and_breaks_no_flow() {
    let node = Node::start().await;
    let web = node.pod("web", "127.7.12.1", MtlsMode::Strict).await;
    let db = node.pod("db", "127.7.12.2", MtlsMode::Strict).await;
    let app = echo(db.ip).await;
    let mut long = node.dial(&web, app).await;
    ask(&mut long, b"one").await.expect("carried");
    for round in 0..5 {
        node.certificates.put(node.ca.issue(&web.workload.identity));
        node.certificates.put(node.ca.issue(&db.workload.identity));
        let mut fresh = node.dial(&web, app).await;
        ask(&mut fresh, b"new").await.unwrap_or_else(|e| panic!("round {round}: {e}"));
        ask(&mut long, b"old").await.unwrap_or_else(|e| panic!("round {round}: {e}"));
    }
    node.stop().await;
}
