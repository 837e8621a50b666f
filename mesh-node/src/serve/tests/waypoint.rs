//! Flows through a waypoint: what it serves, and whom the server's node takes the client for.

use std::net::SocketAddr;

use mesh_model::{
    mesh::{AppProtocol, Change, MtlsMode, Service},
    testing::cast as testing,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;
use crate::{
    tunnel::{self, ConnectRequest, OpenError, error::REASON_HEADER},
    wire::{self, Headers},
};

const PORT: u16 = 5432;

/// `db` behind a service with this protocol, which names the waypoint.
fn served(app: SocketAddr, vip: &str, protocol: AppProtocol, waypoint: &Pod) -> Service {
    let mut service = testing::service("shop", "db", vip, PORT, app.port());
    service.ports[0].protocol = protocol;
    service.waypoint = through(waypoint.addresses[0]);
    service
}

#[tokio::test]
async fn bytes_go_through_a_waypoint_and_the_server_sees_the_client() {
    let node = Node::start().await;
    let web = node.pod("web", "127.7.40.1", MtlsMode::Strict).await;
    let db = node.pod("db", "127.7.40.2", MtlsMode::Strict).await;
    let waypoint = node.waypoint("waypoint", "127.7.40.9").await;
    let app = echo(db.ip).await;
    node.state.apply([
        Change::Service(served(app, "127.7.40.100", AppProtocol::Tcp, &waypoint)),
        Change::Workload(testing::serving(db.workload.clone(), "shop", "db")),
    ]);
    let vip = SocketAddr::new(testing::ip("127.7.40.100"), PORT);
    let mut tcp = node.dial(&web, vip).await;
    let client = tcp.local_addr().expect("bound");
    assert_eq!(
        ask(&mut tcp, b"through").await.expect("carried"),
        b"through"
    );
    // Much, in both directions at once, and then half-close.
    let much = vec![7u8; 3 << 20];
    let (mut read, mut write) = tcp.into_split();
    let sent = much.clone();
    let sending = tokio::spawn(async move {
        write.write_all(&sent).await.expect("sent");
        write.shutdown().await.expect("half-closed");
        write
    });
    let mut got = Vec::new();
    read.read_to_end(&mut got).await.expect("an orderly end");
    assert!(got == much, "{} of {} bytes", got.len(), much.len());
    drop(sending.await.expect("no panic"));
    let bytes = format!("bytes_sent={}", much.len() + 7);
    let line = node
        .line(&["direction=through", "connection complete"])
        .await;
    for part in [
        "dst.service=db.shop.svc.cluster.local",
        "src.workload=web",
        "src.identity=spiffe://cluster.local/ns/shop/sa/web",
        &bytes,
    ] {
        assert!(line.contains(part), "{part} is not in {line}");
    }
    let line = node
        .line(&["direction=inbound", "connection complete"])
        .await;
    for part in [
        "src.identity=spiffe://cluster.local/ns/shop/sa/web",
        "src.workload=web",
        "via=spiffe://cluster.local/ns/mesh/sa/waypoint",
        &format!("src.addr={client}"),
        &format!("dst.addr={app}"),
    ] {
        assert!(line.contains(part), "{part} is not in {line}");
    }
    node.stop().await;
}

/// An application that answers every request with two letters.
async fn brief(ip: std::net::IpAddr) -> SocketAddr {
    let listener = TcpListener::bind((ip, 0)).await.expect("a free port");
    let address = listener.local_addr().expect("bound");
    tokio::spawn(async move {
        while let Ok((mut tcp, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut head = Vec::new();
                while let Ok(byte) = tcp.read_u8().await {
                    head.push(byte);
                    if head.ends_with(b"\r\n\r\n") {
                        head.clear();
                        let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
                        tcp.write_all(answer).await.expect("written");
                    }
                }
            });
        }
    });
    address
}

#[tokio::test]
async fn connections_through_a_waypoint_end_in_order_when_they_are_old() {
    let limits = Limits {
        waypoint_age: Duration::from_millis(400),
        ..limits()
    };
    let node = Node::within(limits).await;
    let web = node.pod("web", "127.7.43.1", MtlsMode::Strict).await;
    let db = node.pod("db", "127.7.43.2", MtlsMode::Strict).await;
    let waypoint = node.waypoint("waypoint", "127.7.43.9").await;
    let app = brief(db.ip).await;
    node.state.apply([
        Change::Service(served(app, "127.7.43.100", AppProtocol::Http11, &waypoint)),
        Change::Workload(testing::serving(db.workload.clone(), "shop", "db")),
    ]);
    let vip = SocketAddr::new(testing::ip("127.7.43.100"), PORT);
    // Two lives of a connection: none fails, each is told to end.
    for _ in 0..2 {
        let mut tcp = node.dial(&web, vip).await;
        let mut asked = 0;
        loop {
            tcp.write_all(b"GET / HTTP/1.1\r\nhost: db\r\n\r\n")
                .await
                .expect("written");
            let mut answer = Vec::new();
            while !answer.ends_with(b"\r\n\r\nok") {
                let byte = tokio::time::timeout(Duration::from_secs(10), tcp.read_u8()).await;
                answer.push(byte.expect("in time").expect("an answer"));
            }
            let answer = String::from_utf8(answer).expect("text");
            assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
            asked += 1;
            if answer.to_ascii_lowercase().contains("connection: close") {
                break;
            }
            assert!(asked < 1000, "it is never told to end");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        assert_eq!(tcp.read(&mut [0]).await.expect("an orderly end"), 0);
        assert!(asked > 1, "it ended at once");
    }
    node.stop().await;
}

#[tokio::test]
async fn policies_at_the_server_mean_the_original_client() {
    let node = Node::start().await;
    let web = node.pod("web", "127.7.41.1", MtlsMode::Strict).await;
    let other = node.pod("other", "127.7.41.3", MtlsMode::Strict).await;
    let db = node.pod("db", "127.7.41.2", MtlsMode::Strict).await;
    let waypoint = node.waypoint("waypoint", "127.7.41.9").await;
    let app = echo(db.ip).await;
    let mut guarded = testing::extra(MtlsMode::Strict);
    guarded.guarded = true;
    node.state.apply([
        Change::Service(served(app, "127.7.41.100", AppProtocol::Tcp, &waypoint)),
        Change::Workload(testing::serving(db.workload.clone(), "shop", "db")),
        Change::WorkloadExtra(db.workload.uid.clone(), guarded),
        Change::Policy(deny("no-web", "cluster.local/ns/shop/sa/web")),
    ]);
    let vip = SocketAddr::new(testing::ip("127.7.41.100"), PORT);
    assert!(is_reset(node.dial(&web, vip).await).await);
    node.line(&["direction=inbound", "policy_name=shop/no-web", "via="])
        .await;
    let mut tcp = node.dial(&other, vip).await;
    assert_eq!(ask(&mut tcp, b"hello").await.expect("carried"), b"hello");
    // Past the waypoint there is no way.
    assert!(is_reset(node.dial(&other, app).await).await);
    node.line(&["direction=inbound", "reason=waypoint_required"])
        .await;
    // A live flow ends when a policy about its original client comes.
    let deny = deny("no-other", "cluster.local/ns/shop/sa/other");
    node.state.apply([Change::Policy(deny)]);
    assert!(is_reset(tcp).await);
    node.line(&["direction=inbound", "reason=policy_changed", "via="])
        .await;
    node.stop().await;
}

/// A CONNECT with headers of one's own.
async fn connect(
    node: &Node,
    from: &Home,
    to: SocketAddr,
    who: &mesh_model::name::Identity,
    authority: &str,
    headers: Headers,
) -> Result<(), (u16, String)> {
    let (certificates, identity) = (node.certificates.clone(), from.pod.identity.clone());
    let (authority, who, ip) = (authority.to_owned(), who.clone(), from.ip);
    let open = async move {
        let tls = certificates
            .try_client(&identity, &[who])
            .expect("one is there");
        let socket = tokio::net::TcpSocket::new_v4().expect("a socket");
        socket.bind(SocketAddr::new(ip, 0)).expect("free");
        let tcp = socket.connect(to).await.expect("it listens");
        let tunnel = tunnel::connect(tcp, tls, wire::Limits::client()).await;
        let tunnel = tunnel.expect("a tunnel");
        match tunnel.open(ConnectRequest { authority, headers }).await {
            Ok(_) => Ok(()),
            Err(OpenError::Refused { status, headers }) => {
                let reason = headers.get(REASON_HEADER).unwrap_or_default();
                Err((status, reason.to_owned()))
            }
            Err(other) => panic!("{other}"),
        }
    };
    tokio::task::LocalSet::new().run_until(open).await
}

#[tokio::test]
async fn a_waypoint_is_no_open_relay_and_nobody_else_speaks_for_others() {
    let node = Node::start().await;
    let web = node.pod("web", "127.7.42.1", MtlsMode::Strict).await;
    let db = node.pod("db", "127.7.42.2", MtlsMode::Strict).await;
    let waypoint = node.waypoint("waypoint", "127.7.42.9").await;
    let app = echo(db.ip).await;
    let mut not_its = testing::service("shop", "other", "127.7.42.101", PORT, app.port());
    not_its.waypoint = None;
    node.state.apply([
        Change::Service(served(app, "127.7.42.100", AppProtocol::Tcp, &waypoint)),
        Change::Service(not_its),
        Change::Workload(testing::serving(db.workload.clone(), "shop", "db")),
        Change::Policy(deny("no-web", "cluster.local/ns/shop/sa/web")),
    ]);
    let at_waypoint = SocketAddr::new(waypoint.addresses[0], 15008);
    for authority in [
        "127.7.42.101:5432",
        "127.7.42.2:5432",
        "127.0.0.1:22",
        "db.shop.svc.cluster.local:5432",
    ] {
        let got = connect(
            &node,
            &web,
            at_waypoint,
            &waypoint.identity,
            authority,
            Headers::new(),
        );
        assert_eq!(got.await, Err((400, "bad_authority".into())), "{authority}");
    }
    // `web` says that somebody else is behind it, as only a waypoint of `db` may.
    let at_db = SocketAddr::new(db.ip, 15008);
    let spoof = |source: &str, forwarded: &str| {
        Headers::new()
            .with("x-warren-source", source)
            .with("forwarded", forwarded)
    };
    let authority = app.to_string();
    for (headers, expect) in [
        (
            spoof(
                "spiffe://cluster.local/ns/shop/sa/friend",
                "for=\"127.7.42.3:1\"",
            ),
            (401, "not_waypoint"),
        ),
        (
            spoof("friend", "for=\"127.7.42.3:1\""),
            (400, "bad_authority"),
        ),
        (Headers::new(), (401, "policy_denied")),
    ] {
        let got = connect(&node, &web, at_db, &db.pod.identity, &authority, headers);
        assert_eq!(got.await, Err((expect.0, expect.1.to_owned())));
    }
    node.stop().await;
}
