//! Flows from beginning to end, and what ends them early.

use std::{net::SocketAddr, time::Duration};

use mesh_model::{
    mesh::{Change, MtlsMode},
    testing::cast as testing,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

use super::*;

#[tokio::test]
async fn a_flow_goes_through_a_tunnel_and_is_reported_on_both_sides() {
    let node = Node::start().await;
    let web = node.pod("web", "127.7.1.1", MtlsMode::Strict).await;
    let db = node.pod("db", "127.7.1.2", MtlsMode::Strict).await;
    let app = echo(db.ip).await;
    let mut tcp = node.dial(&web, app).await;
    assert_eq!(
        ask(&mut tcp, b"over the mesh").await.expect("carried"),
        b"over the mesh"
    );
    tcp.shutdown().await.expect("half-close");
    assert_eq!(
        tcp.read(&mut [0; 8]).await.expect("the application's end"),
        0
    );
    drop(tcp);
    node.line(&[
        "connection complete",
        "direction=outbound",
        "path=hbone",
        "mtls=true",
        "bytes_sent=13",
        "bytes_recv=13",
    ])
    .await;
    let line = node
        .line(&["connection complete", "direction=inbound", "policy=allow"])
        .await;
    assert!(
        line.contains("spiffe://cluster.local/ns/shop/sa/web"),
        "{line}"
    );
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
        let mut tcp = node
            .dial(&web, "127.7.2.100:5432".parse().expect("an address"))
            .await;
        assert_eq!(
            ask(&mut tcp, b"hello")
                .await
                .expect("one of the two answers"),
            b"hello"
        );
    }
    node.line(&[
        "direction=outbound",
        "dst.service=db.shop.svc.cluster.local",
        "connection complete",
    ])
    .await;
    node.stop().await;
}

#[tokio::test]
async fn a_denied_flow_is_reset_and_named_and_nothing_reaches_the_application() {
    let node = Node::start().await;
    let web = node.pod("web", "127.7.3.1", MtlsMode::Strict).await;
    let db = node.pod("db", "127.7.3.2", MtlsMode::Strict).await;
    node.state.apply([Change::Policy(deny(
        "no-web",
        "cluster.local/ns/shop/sa/web",
    ))]);
    let listener = TcpListener::bind((db.ip, 0)).await.expect("a free port");
    let app = listener.local_addr().expect("bound");
    // Nothing is decided until the bytes are there: a refusal may be faster than whoever writes.
    let late = node.hold_back(&db, MtlsMode::Strict);
    let mut tcp = node.dial(&web, app).await;
    tcp.write_all(b"early bytes").await.expect("buffered");
    node.state.apply([late]);
    assert!(is_reset(tcp).await);
    node.line(&[
        "connection refused",
        "direction=inbound",
        "policy=deny",
        "policy_name=shop/no-web",
        "reason=policy_denied",
    ])
    .await;
    node.line(&["direction=outbound", "reason=peer_denied"])
        .await;
    let failed = node.kernel.told().failed.clone();
    let seen: Vec<_> = failed
        .iter()
        .map(|f| (f.source, f.original, f.reason))
        .collect();
    assert_eq!(seen, vec![(7, app, Reason::PeerDenied)]);
    assert!(
        failed[0].lasting <= Duration::from_millis(200),
        "only the far side knows when this ends: {failed:?}"
    );
    let reached = tokio::time::timeout(Duration::from_millis(200), listener.accept()).await;
    assert!(reached.is_err(), "the application was dialed");
    node.stop().await;
}

#[tokio::test]
async fn a_refusal_is_remembered_in_the_epoch_that_it_was_decided_in() {
    let node = Node::start().await;
    let web = node.pod("web", "127.7.11.1", MtlsMode::Strict).await;
    let vip: SocketAddr = "127.7.11.100:80".parse().expect("an address");
    let service = testing::service("shop", "db", "127.7.11.100", 80, 8080);
    node.state.apply([Change::Service(service)]);
    for _ in 0..3 {
        node.kernel.bump_epoch(vip.ip()).expect("a number");
    }
    assert!(is_refused(node.try_dial(&web, vip).await).await);
    node.line(&["direction=outbound", "reason=no_endpoints"])
        .await;
    let failed = node.kernel.told().failed.clone();
    assert_eq!(failed.len(), 1, "{failed:?}");
    assert_eq!(
        (failed[0].epoch, failed[0].reason),
        (3, Reason::NoEndpoints)
    );
    node.stop().await;
}

#[tokio::test]
async fn a_host_name_that_does_not_resolve_is_refused_by_that_name() {
    let node = Node::start().await;
    let web = node.pod("web", "127.7.13.1", MtlsMode::Strict).await;
    let mut outside = testing::pod("shop", "outside", "", "192.0.2.1");
    outside.addresses = Box::new([]);
    outside.hostname = Some("db.example.com".into());
    outside.protocol = mesh_model::mesh::workload::TunnelProtocol::None;
    node.state.apply([
        Change::Service(testing::service("shop", "db", "127.7.13.100", 80, 8080)),
        Change::Workload(testing::serving(outside, "shop", "db")),
    ]);
    let vip = "127.7.13.100:80".parse().expect("an address");
    assert!(is_refused(node.try_dial(&web, vip).await).await);
    let line = node
        .line(&["connection failed", "reason=name_unresolved", "path=plain"])
        .await;
    assert!(line.contains("db.example.com"), "it says which: {line}");
    node.stop().await;
}

#[tokio::test]
async fn an_address_that_lost_its_pod_is_not_dialed_in_the_clear() {
    let node = Node::start().await;
    let web = node.pod("web", "127.7.14.1", MtlsMode::Permissive).await;
    let db = node.pod("db", "127.7.14.2", MtlsMode::Permissive).await;
    // Whoever has the address next.
    let next = TcpListener::bind((db.ip, 0)).await.expect("a free port");
    let app = next.local_addr().expect("bound");
    node.state
        .apply([Change::RemoveWorkload(db.workload.uid.clone())]);
    assert!(is_refused(node.try_dial(&web, app).await).await);
    node.line(&["direction=outbound", "reason=workload_gone"])
        .await;
    let reached = tokio::time::timeout(Duration::from_millis(200), next.accept()).await;
    assert!(reached.is_err(), "it was dialed");
    // Somebody of the mesh, outside capture, has it now.
    let mut owner = testing::pod("shop", "next", "n2", "127.7.14.2");
    owner.protocol = mesh_model::mesh::workload::TunnelProtocol::None;
    node.state.apply([Change::Workload(owner)]);
    let (dialed, accepted) = tokio::join!(node.dial(&web, app), next.accept());
    drop((dialed, accepted.expect("dialed")));
    node.stop().await;
}

#[tokio::test]
async fn a_pod_that_is_heard_of_while_it_is_dialed_is_reached_through_a_tunnel() {
    let node = Node::start().await;
    let web = node.pod("web", "127.7.15.1", MtlsMode::Strict).await;
    let (db, news) = node
        .pod_unheard("db", "127.7.15.2", MtlsMode::Strict, None)
        .await;
    // Dialed as somebody outside the mesh, it would answer.
    let app = echo(db.ip).await;
    let mut tcp = node.dial(&web, app).await;
    node.state.apply(news);
    assert_eq!(ask(&mut tcp, b"hello").await.expect("carried"), b"hello");
    drop(tcp);
    node.line(&["connection complete", "direction=outbound", "path=hbone"])
        .await;
    node.stop().await;
}

#[tokio::test]
async fn a_server_that_proves_another_identity_is_an_identity_error() {
    let node = Node::start().await;
    let web = node.pod("web", "127.7.12.1", MtlsMode::Strict).await;
    let db = node.pod("db", "127.7.12.2", MtlsMode::Strict).await;
    let app = echo(db.ip).await;
    // The address is said to be another's, whose certificate the listener does not have.
    let mut claimed = testing::pod("shop", "bank", "n1", "127.7.12.2");
    claimed.uid = db.workload.uid.clone();
    node.state.apply([Change::Workload(claimed)]);
    assert!(is_refused(node.try_dial(&web, app).await).await);
    let line = node
        .line(&[
            "connection failed",
            "direction=outbound",
            "reason=identity_mismatch",
        ])
        .await;
    assert!(
        line.contains("spiffe://cluster.local/ns/shop/sa/db") && line.contains("sa/bank"),
        "it says who came and who was expected: {line}"
    );
    let text = node.shared.observer.metrics().text().expect("text");
    let counted = text.lines().any(|l| {
        l.starts_with("istio_tcp_connections_failed_total")
            && l.contains("response_flags=\"IDENTITY_ERROR\"")
    });
    assert!(counted, "{text}");
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
    node.state.apply([Change::Policy(deny(
        "no-web",
        "cluster.local/ns/shop/sa/web",
    ))]);
    assert!(is_reset(doomed).await);
    assert!(
        changed.elapsed() < Duration::from_secs(1),
        "took {:?}",
        changed.elapsed()
    );
    ask(&mut fine, b"two").await.expect("still allowed");
    node.line(&[
        "direction=inbound",
        "reason=policy_changed",
        "policy_name=shop/no-web",
    ])
    .await;
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
    node.line(&[
        "direction=inbound",
        "path=plain",
        "reason=mtls_required",
        "dst.workload=strict",
    ])
    .await;
    let taken = connect(&open).await.expect("the proxy listens");
    drop(taken);
    node.line(&[
        "direction=inbound",
        "path=plain",
        "policy=allow",
        "dst.workload=open",
    ])
    .await;
    node.stop().await;
}

#[tokio::test]
async fn a_connection_that_was_not_captured_is_refused() {
    let node = Node::start().await;
    let web = node.pod("web", "127.7.6.1", MtlsMode::Strict).await;
    assert!(is_refused(TcpStream::connect(web.outbound).await).await);
    node.line(&["direction=outbound", "reason=no_original_destination"])
        .await;
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
    let late = node.hold_back(&db, MtlsMode::Strict);
    let mut tcp = node.dial(&web, app).await;
    tcp.write_all(b"hello").await.expect("buffered");
    assert!(
        tokio::time::timeout(Duration::from_millis(200), tcp.read(&mut [0; 1]))
            .await
            .is_err(),
        "decided without configuration"
    );
    node.state.apply([late]);
    let mut answer = [0; 5];
    tokio::time::timeout(Duration::from_secs(5), tcp.read_exact(&mut answer))
        .await
        .expect("in time")
        .expect("allowed now");
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
    node.listeners
        .remove(&db.pod.uid, Reason::WorkloadGone)
        .await
        .expect("threads run");
    assert!(is_reset(tcp).await);
    node.line(&["direction=inbound", "reason=workload_gone"])
        .await;
    let closed = async {
        while TcpStream::connect((db.ip, 15008)).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(5), closed)
        .await
        .expect("the listener closes");
    node.stop().await;
}

#[tokio::test]
async fn a_barred_pod_is_neither_served_nor_reached() {
    let node = Node::start().await;
    let web = node.pod("web", "127.7.18.1", MtlsMode::Permissive).await;
    let bar = Some(Reason::ForwardsOthers);
    let router = (node.pod_barred("router", "127.7.18.2", MtlsMode::Permissive, bar)).await;
    let (at_web, at_router) = (echo(web.ip).await, echo(router.ip).await);
    let dialed = node.try_dial(&router, at_web).await;
    assert!(is_refused(dialed).await, "it dialed");
    let why = "reason=forwards_others";
    node.line(&["direction=outbound", why]).await;
    let dialed = node.try_dial(&web, at_router).await;
    assert!(is_refused(dialed).await, "it was reached through a tunnel");
    node.line(&["direction=inbound", "path=hbone", why]).await;
    let connected = TcpStream::connect(router.plaintext).await;
    assert!(is_refused(connected).await, "it was reached in plain");
    node.line(&["direction=inbound", "path=plain", why]).await;
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
    let Node {
        threads, shared, ..
    } = node;
    threads.drain();
    let closed = async {
        while TcpStream::connect((db.ip, 15008)).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(5), closed)
        .await
        .expect("accepting stops");
    ask(&mut tcp, b"two").await.expect("live flows go on");
    threads.end().await;
    assert!(is_reset(tcp).await);
    assert_eq!(shared.flows.load(std::sync::atomic::Ordering::Relaxed), 0);
}
