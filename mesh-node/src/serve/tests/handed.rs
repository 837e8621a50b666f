//! What arrives in the clear at a pod that a waypoint guards: by way of the waypoint and back, and who may do that.

use std::sync::atomic::{AtomicU32, Ordering::SeqCst};

use mesh_model::{
    mesh::{AppProtocol, Change, MtlsMode, Service},
    route::http::{self, Backend, Filters, PathMatch, Respond, RouteSet, Routes, Rule},
    testing::cast as testing,
};

use super::*;
use crate::{
    tunnel::{self, ConnectRequest, Io, OpenError, error::REASON_HEADER},
    wire::{self, Headers},
};

const PORT: u16 = 8080;

/// A service `db` through a waypoint, with guarded pods.
struct World {
    node: Node,
    waypoint: Arc<Pod>,
    vip: SocketAddr,
}

fn served(vip: SocketAddr, target: u16, protocol: AppProtocol, waypoint: &Pod) -> Service {
    let mut service = testing::service("shop", "db", &vip.ip().to_string(), PORT, target);
    service.ports[0].protocol = protocol;
    service.waypoint = through(waypoint.addresses[0]);
    service
}

impl World {
    async fn new(net: u8) -> Self {
        let node = Node::start().await;
        node.certificates.put_node(node.ca.issue_node("n1"));
        let waypoint = node.waypoint("waypoint", &format!("127.7.{net}.9")).await;
        let vip = SocketAddr::new(testing::ip(&format!("127.7.{net}.100")), PORT);
        Self {
            node,
            waypoint,
            vip,
        }
    }

    /// A pod that is an endpoint of `db`, and guarded.
    async fn pod(&self, name: &str, ip: &str, mtls: MtlsMode) -> Home {
        let home = self.node.pod(name, ip, mtls).await;
        let mut guarded = testing::extra(mtls);
        guarded.guarded = true;
        self.node.state.apply([
            Change::Workload(testing::serving(home.workload.clone(), "shop", "db")),
            Change::WorkloadExtra(home.workload.uid.clone(), guarded),
        ]);
        home
    }

    fn service(&self, target: u16, protocol: AppProtocol) {
        let service = served(self.vip, target, protocol, &self.waypoint);
        self.node.state.apply([Change::Service(service)]);
    }

    /// Has the waypoint answer whatever is asked for below `/deny` with 403, and the rest with 200 where `all`, else send
    /// it to a version of the service that no pod is of.
    fn answers(&self, all: bool) {
        let respond = |status| {
            http::Action::Respond(Respond {
                status,
                body: "answered".into(),
            })
        };
        let forward = |service: &str, subset: Option<&str>| {
            http::Action::Forward(Box::new([Backend {
                service: testing::service_name("shop", service),
                port: None,
                subset: subset.map(Into::into),
                weight: 1,
                filters: Filters::default(),
                invalid: None,
            }]))
        };
        let rule = |prefix: &str, action| Rule {
            name: format!("VirtualService/shop/db#{prefix}").into(),
            matches: Box::new([http::Match {
                path: Some(PathMatch::Prefix(prefix.into())),
                ..http::Match::default()
            }]),
            filters: Filters::default(),
            action,
            timeout: None,
            retries: None,
            fault: None,
            mirrors: Box::default(),
            cors: None,
            session: None,
        };
        let rest = match all {
            true => respond(200),
            false => forward("db", Some("v1")),
        };
        let rules = vec![
            rule("/deny", respond(403)),
            rule("/other", forward("other", None)),
            rule("/far", forward("far", None)),
            rule("/", rest),
        ];
        self.node.state.apply([Change::Routes(Routes {
            service: testing::service_name("shop", "db"),
            sets: Box::new([RouteSet {
                clients: None,
                ports: Box::default(),
                rules: rules.into(),
                streams: [].into(),
            }]),
            features: Box::default(),
        })]);
    }
}

/// One request; the status and the body of its answer.
async fn get(
    stream: &mut (impl AsyncReadExt + AsyncWriteExt + Unpin),
    path: &str,
) -> (u16, String) {
    let request = format!("GET {path} HTTP/1.1\r\nhost: db.shop:8080\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.expect("written");
    let mut answer = Vec::new();
    let read = stream.read_to_end(&mut answer);
    let read = tokio::time::timeout(Duration::from_secs(10), read).await;
    read.expect("in time").expect("an orderly end");
    let text = String::from_utf8(answer).expect("text");
    let status = text.get(9..12).and_then(|s| s.parse().ok());
    let body = text.split("\r\n\r\n").nth(1).unwrap_or_default();
    (
        status.unwrap_or_else(|| panic!("{text:?}")),
        body.to_owned(),
    )
}

/// An application that answers with its name, and counts what it was asked.
async fn named(ip: IpAddr, port: u16, name: &'static str) -> (SocketAddr, Arc<AtomicU32>) {
    let listener = TcpListener::bind((ip, port)).await.expect("a free port");
    let address = listener.local_addr().expect("bound");
    let asked = Arc::<AtomicU32>::default();
    let counted = asked.clone();
    tokio::spawn(async move {
        while let Ok((mut tcp, _)) = listener.accept().await {
            let counted = counted.clone();
            tokio::spawn(async move {
                let mut head = Vec::new();
                while let Ok(byte) = tcp.read_u8().await {
                    head.push(byte);
                    if head.ends_with(b"\r\n\r\n") {
                        head.clear();
                        counted.fetch_add(1, SeqCst);
                        let length = name.len();
                        let answer =
                            format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n\r\n{name}");
                        tcp.write_all(answer.as_bytes()).await.expect("written");
                    }
                }
            });
        }
    });
    (address, asked)
}

#[tokio::test]
async fn what_arrives_in_the_clear_is_handed_to_the_waypoint() {
    let w = World::new(120).await;
    let db = w.pod("db", "127.7.120.2", MtlsMode::Permissive).await;
    // Without a kernel the listener itself is what was dialed, so that the waypoint has to answer.
    w.service(db.plaintext.port(), AppProtocol::Http11);
    w.answers(true);
    let mut tcp = TcpStream::connect(db.plaintext).await.expect("it listens");
    let client = tcp.local_addr().expect("bound");
    assert_eq!(get(&mut tcp, "/deny/x").await.0, 403);
    let mut tcp = TcpStream::connect(db.plaintext).await.expect("it listens");
    assert_eq!(get(&mut tcp, "/ok").await.0, 200);
    let tunnel = format!("dst.hbone_addr={}:15008", w.waypoint.addresses[0]);
    let line = w
        .node
        .line(&[
            "direction=handed",
            "connection complete",
            &format!("src.addr={client} "),
        ])
        .await;
    for part in [
        "dst.service=db.shop.svc.cluster.local",
        "dst.workload=db",
        "path=plain mtls=none policy=allow",
        &tunnel,
    ] {
        assert!(line.contains(part), "{part} is not in {line}");
    }
    let line = w.node.line(&["request complete", "path=/deny/x"]).await;
    for part in [
        "direction=through",
        "dst.service=db.shop.svc.cluster.local",
        "via=spiffe://cluster.local/warren/node/n1",
        "response_code=403",
        &format!("src.addr={client} "),
    ] {
        assert!(line.contains(part), "{part} is not in {line}");
    }
    assert!(!line.contains("src.identity"), "{line}");
    let text = w.node.shared.observer.metrics().text().expect("text");
    let counted = |metric: &str, parts: &[&str]| {
        text.lines()
            .any(|l| l.starts_with(metric) && parts.iter().all(|p| l.contains(p)))
    };
    let who = [
        "source_principal=\"unknown\"",
        "destination_service_name=\"db\"",
    ];
    let at_waypoint = [
        who[0],
        who[1],
        "reporter=\"waypoint\"",
        "response_code=\"403\"",
    ];
    assert!(counted("istio_requests_total", &at_waypoint), "{text}");
    let at_node = [
        who[0],
        who[1],
        "reporter=\"source\"",
        "connection_security_policy=\"unknown\"",
    ];
    assert!(
        counted("istio_tcp_connections_opened_total", &at_node),
        "{text}"
    );
    w.node.stop().await;
}

#[tokio::test]
async fn who_may_not_enter_gets_no_further_and_a_waypoint_that_is_gone_is_none() {
    let w = World::new(121).await;
    let strict = w.pod("strict", "127.7.121.2", MtlsMode::Strict).await;
    let db = w.pod("db", "127.7.121.3", MtlsMode::Permissive).await;
    w.service(db.plaintext.port(), AppProtocol::Http11);
    w.answers(true);
    let refused = async |home: &Home, parts: &[&str]| {
        assert!(is_refused(TcpStream::connect(home.plaintext).await).await);
        w.node.line(parts).await
    };
    let plain = "path=plain";
    refused(
        &strict,
        &["direction=inbound", plain, "reason=mtls_required"],
    )
    .await;
    let mut tcp = TcpStream::connect(db.plaintext).await.expect("it listens");
    assert_eq!(get(&mut tcp, "/").await.0, 200);
    let allow = testing::policy(
        "shop",
        "only-web",
        PolicyScope::Namespace,
        Action::Allow,
        [Match {
            principals: Box::new([StringMatch::Exact("cluster.local/ns/shop/sa/web".into())]),
            ..Match::default()
        }],
    );
    // A live one ends when policy says so.
    let live = TcpStream::connect(db.plaintext).await.expect("it listens");
    until(|| w.node.shared.flows.load(SeqCst) > 0).await;
    w.node.state.apply([Change::Policy(allow.clone())]);
    assert!(is_reset(live).await);
    w.node
        .line(&["direction=handed", "reason=policy_changed"])
        .await;
    refused(
        &db,
        &["direction=inbound", plain, "reason=policy_not_allowed"],
    )
    .await;
    w.node.state.apply([Change::RemovePolicy(allow.name)]);
    // Another service of its own waypoint over the same port.
    let other = testing::serving(
        testing::serving(db.workload.clone(), "shop", "db"),
        "shop",
        "other",
    );
    let mut second = testing::service("shop", "other", "127.7.121.101", PORT, db.plaintext.port());
    second.waypoint = through(testing::ip("127.7.121.8"));
    w.node
        .state
        .apply([Change::Workload(other), Change::Service(second)]);
    refused(
        &db,
        &["direction=inbound", plain, "reason=waypoint_required"],
    )
    .await;
    let one = testing::serving(db.workload.clone(), "shop", "db");
    w.node.state.apply([Change::Workload(one)]);
    let mut tcp = TcpStream::connect(db.plaintext).await.expect("it listens");
    assert_eq!(get(&mut tcp, "/").await.0, 200);
    // Not known any more: refused, and not let past.
    let gone = w.waypoint.workload.clone();
    w.node.state.apply([Change::RemoveWorkload(gone)]);
    refused(&db, &["direction=handed", plain, "reason=config_not_ready"]).await;
    w.node.stop().await;
}

/// A stream to the waypoint, as the node or as a pod opens it.
async fn bring(
    w: &World,
    certificate: Option<&mesh_model::name::Identity>,
    headers: Headers,
) -> Result<tunnel::Stream, (u16, String)> {
    let expected = std::slice::from_ref(&w.waypoint.identity);
    let tls = match certificate {
        Some(identity) => w.node.certificates.try_client(identity, expected),
        None => w.node.certificates.try_node_client(expected),
    };
    let at = SocketAddr::new(w.waypoint.addresses[0], 15008);
    let tcp = TcpStream::connect(at).await.expect("it listens");
    let tls = tls.expect("one is there");
    let tunnel = tunnel::connect(tcp, tls, wire::Limits::client()).await;
    let tunnel = tunnel.expect("a tunnel");
    let authority = w.vip.to_string();
    match tunnel.open(ConnectRequest { authority, headers }).await {
        Ok(stream) => Ok(stream),
        Err(OpenError::Refused { status, headers }) => {
            let reason = headers.get(REASON_HEADER).unwrap_or_default();
            Err((status, reason.to_owned()))
        }
        Err(other) => panic!("{other}"),
    }
}

fn marked(arrived: SocketAddr) -> Headers {
    Headers::new()
        .with("forwarded", "for=\"192.0.2.7:4711\"")
        .with("x-warren-return-to", arrived.to_string())
}

#[tokio::test]
async fn it_comes_back_to_the_very_pod_as_nobodys() {
    let w = World::new(122).await;
    let one = w.pod("db-1", "127.7.122.2", MtlsMode::Permissive).await;
    let two = w.pod("db-2", "127.7.122.3", MtlsMode::Permissive).await;
    let (first, not_asked) = named(one.ip, 0, "v1").await;
    let (second, asked) = named(two.ip, first.port(), "v2").await;
    w.service(first.port(), AppProtocol::Http11);
    w.answers(false);
    // A rule may send it to another service, as ever.
    let other = w
        .node
        .pod("other", "127.7.122.4", MtlsMode::Permissive)
        .await;
    let (third, elsewhere) = named(other.ip, 0, "other").await;
    let mut service = testing::service("shop", "other", "127.7.122.101", PORT, third.port());
    service.waypoint = through(w.waypoint.addresses[0]);
    w.node.state.apply([
        Change::Service(service),
        Change::Workload(testing::serving(other.workload.clone(), "shop", "other")),
    ]);
    // To one of another waypoint, or of none, it may not: there it would come with the waypoint's own name.
    let far = w.node.pod("far", "127.7.122.5", MtlsMode::Permissive).await;
    let (fourth, not_reached) = named(far.ip, 0, "far").await;
    w.node.state.apply([
        Change::Service(testing::service(
            "shop",
            "far",
            "127.7.122.102",
            PORT,
            fourth.port(),
        )),
        Change::Workload(testing::serving(far.workload.clone(), "shop", "far")),
    ]);
    // The destination's policy would choose among both, and would not use a tunnel.
    let policy = TrafficPolicy {
        tls: Some(mesh_model::resilience::UpstreamTls::Disable),
        ..TrafficPolicy::default()
    };
    w.node.state.apply([destination(policy)]);
    let tasks = tokio::task::LocalSet::new();
    let all = async {
        for _ in 0..12 {
            let stream = bring(&w, None, marked(second)).await.expect("it is taken");
            assert_eq!(get(&mut Io::new(stream), "/x").await, (200, "v2".into()));
        }
        let stream = bring(&w, None, marked(second)).await.expect("it is taken");
        assert_eq!(get(&mut Io::new(stream), "/deny").await.0, 403);
        let stream = bring(&w, None, marked(second)).await.expect("it is taken");
        let answer = get(&mut Io::new(stream), "/other").await;
        assert_eq!(answer, (200, "other".into()));
        let stream = bring(&w, None, marked(second)).await.expect("it is taken");
        assert_eq!(get(&mut Io::new(stream), "/far").await.0, 403);
    };
    tasks.run_until(all).await;
    assert_eq!((not_asked.load(SeqCst), asked.load(SeqCst)), (0, 12));
    assert_eq!((elsewhere.load(SeqCst), not_reached.load(SeqCst)), (1, 0));
    let line = w.node.line(&["request complete", "path=/x"]).await;
    for part in [
        "src.addr=192.0.2.7:4711",
        "dst.workload=db-2",
        "response_code=200",
    ] {
        assert!(line.contains(part), "{part} is not in {line}");
    }
    // Policies at the server mean the client, of whom nothing but the address is known.
    let from = |net: &str| Match {
        source_ips: Box::new([net.parse().expect("a network")]),
        ..Match::default()
    };
    let check = async |action, matched: Match, status: u16| {
        let policy = testing::policy("shop", "p", PolicyScope::Namespace, action, [matched]);
        let name = policy.name.clone();
        w.node.state.apply([Change::Policy(policy)]);
        let tasks = tokio::task::LocalSet::new();
        // The waypoint may be using a connection to the server at the very moment when the policy ends it.
        let asking = async {
            loop {
                let stream = bring(&w, None, marked(second)).await.expect("it is taken");
                match get(&mut Io::new(stream), "/x").await.0 {
                    503 => {}
                    got => return got,
                }
            }
        };
        let got = tokio::time::timeout(Duration::from_secs(10), tasks.run_until(asking));
        assert_eq!(got.await.expect("in time"), status);
        w.node.state.apply([Change::RemovePolicy(name)]);
    };
    let exact = |text: &str| Box::new([StringMatch::Exact(text.into())]);
    let web = "cluster.local/ns/shop/sa/web";
    check(Action::Allow, from("192.0.2.0/24"), 200).await;
    check(Action::Allow, from("127.0.0.0/8"), 403).await;
    check(Action::Deny, from("192.0.2.7/32"), 403).await;
    let principals = Match {
        principals: exact(web),
        ..Match::default()
    };
    check(Action::Allow, principals, 403).await;
    let namespaces = Match {
        namespaces: exact("shop"),
        ..Match::default()
    };
    check(Action::Allow, namespaces, 403).await;
    let not_principals = Match {
        not_principals: exact(web),
        ..Match::default()
    };
    check(Action::Deny, not_principals, 403).await;
    w.node
        .line(&[
            "direction=inbound",
            "via=spiffe://cluster.local/ns/mesh/sa/waypoint",
            "reason=policy_denied",
        ])
        .await;
    w.node.stop().await;
}

#[tokio::test]
async fn bytes_come_back_too() {
    let w = World::new(123).await;
    let one = w.pod("db-1", "127.7.123.2", MtlsMode::Permissive).await;
    let two = w.pod("db-2", "127.7.123.3", MtlsMode::Permissive).await;
    let (first, second) = same_port(one.ip, two.ip).await;
    let port = first.local_addr().expect("bound").port();
    drop(first);
    tokio::spawn(async move {
        while let Ok((mut tcp, _)) = second.accept().await {
            tokio::spawn(async move {
                let (mut read, mut write) = tcp.split();
                let _ = tokio::io::copy(&mut read, &mut write).await;
            });
        }
    });
    w.service(port, AppProtocol::Tcp);
    for bounded in [false, true] {
        if bounded {
            w.node.state.apply([destination(TrafficPolicy::default())]);
        }
        let arrived = SocketAddr::new(two.ip, port);
        let tasks = tokio::task::LocalSet::new();
        let all = async {
            for _ in 0..6 {
                let stream = bring(&w, None, marked(arrived)).await.expect("it is taken");
                let mut io = Io::new(stream);
                io.write_all(b"hello").await.expect("written");
                let mut got = [0; 5];
                let read = io.read_exact(&mut got);
                let read = tokio::time::timeout(Duration::from_secs(10), read).await;
                read.expect("in time").expect("an answer");
                assert_eq!(&got, b"hello");
                io.shutdown().await.expect("an orderly end");
                let mut rest = Vec::new();
                io.read_to_end(&mut rest).await.expect("an orderly end");
            }
        };
        tasks.run_until(all).await;
    }
    let line = w
        .node
        .line(&["direction=through", "connection complete"])
        .await;
    for part in [
        "src.addr=192.0.2.7:4711",
        "dst.service=db.shop",
        "dst.workload=db-2",
        "via=spiffe://cluster.local/warren/node/n1",
    ] {
        assert!(line.contains(part), "{part} is not in {line}");
    }
    w.node.stop().await;
}

#[tokio::test]
async fn nobody_but_its_node_hands_a_connection_over() {
    let w = World::new(124).await;
    let db = w.pod("db", "127.7.124.2", MtlsMode::Permissive).await;
    let web = w.node.pod("web", "127.7.124.1", MtlsMode::Permissive).await;
    let (app, asked) = named(db.ip, 0, "db").await;
    w.service(app.port(), AppProtocol::Http11);
    let elsewhere = testing::serving(
        testing::pod("shop", "far", "n2", "127.7.124.3"),
        "shop",
        "db",
    );
    w.node.state.apply(testing::known(elsewhere));
    let far = SocketAddr::new(testing::ip("127.7.124.3"), app.port());
    let client = || Headers::new().with("forwarded", "for=\"192.0.2.7:4711\"");
    let marker = |text: &str| client().with("x-warren-return-to", text);
    let not_its = (401, "not_its_node".to_owned());
    let unreadable = (400, "bad_authority".to_owned());
    let other_port = SocketAddr::new(db.ip, app.port() ^ 1);
    let tasks = tokio::task::LocalSet::new();
    let all = async {
        // Each waits a moment for configuration that might make it right: all at once.
        let tries = [
            // A pod, of the server itself as well.
            (Some(&web.pod.identity), marked(app), &not_its),
            (Some(&db.pod.identity), marked(app), &not_its),
            // A pod of another node, another port, nobody.
            (None, marked(far), &not_its),
            (None, marked(other_port), &not_its),
            (
                None,
                marked("127.7.124.77:80".parse().expect("good")),
                &not_its,
            ),
            // A node speaks for itself of nothing, and has to say for whom.
            (None, client(), &unreadable),
            (None, Headers::new(), &unreadable),
            (None, marker("db:80"), &unreadable),
            (Some(&web.pod.identity), marker("db:80"), &unreadable),
            (
                None,
                Headers::new().with("x-warren-return-to", app.to_string()),
                &unreadable,
            ),
        ];
        let w = &w;
        let tries = tries.map(|(who, headers, expect)| async move {
            let got = bring(w, who, headers).await.map(drop);
            assert_eq!(got.as_ref().err(), Some(expect), "{who:?}");
        });
        futures_util::future::join_all(tries).await;
        // Nor does the server's own node take a node for anybody.
        let at_db = SocketAddr::new(db.ip, 15008);
        let tls = w
            .node
            .certificates
            .try_node_client(std::slice::from_ref(&db.pod.identity));
        let tcp = TcpStream::connect(at_db).await.expect("it listens");
        let tls = tls.expect("one is there");
        let opened = async {
            let tunnel = tunnel::connect(tcp, tls, wire::Limits::client())
                .await
                .ok()?;
            let (authority, headers) = (app.to_string(), marked(app));
            tunnel
                .open(ConnectRequest { authority, headers })
                .await
                .ok()
        };
        assert!(opened.await.is_none(), "a node dialed a pod as itself");
    };
    tasks.run_until(all).await;
    w.node
        .line(&[
            "direction=through",
            "connection refused",
            "reason=not_its_node",
            "via=",
        ])
        .await;
    assert_eq!(asked.load(SeqCst), 0);
    w.node.stop().await;
}

async fn until(good: impl Fn() -> bool) {
    let waiting = async {
        while !good() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    let waited = tokio::time::timeout(Duration::from_secs(10), waiting).await;
    waited.expect("in time");
}
