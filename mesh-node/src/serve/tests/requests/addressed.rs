//! Requests for a workload itself: a waypoint sees them as it sees those for a service, and nobody's rules route them.

use super::*;

/// The world, in which `db-1` itself is reached by way of the waypoint; `w.vip` is that pod's address.
async fn addressed(net: &str, protocol: AppProtocol) -> World {
    let mut w = world(net, protocol).await;
    let mut pod = testing::pod("shop", "db-1", "n1", &format!("127.7.{net}.2"));
    pod.waypoint = through(testing::ip(&format!("127.7.{net}.9")));
    let pod = testing::serving(pod, "shop", "db");
    w.node.state.apply([Change::Workload(pod)]);
    w.vip = w.v1.address;
    w
}

#[tokio::test]
async fn requests_for_a_workload_are_seen_and_routed_by_nobody() {
    for (net, protocol) in [
        ("201", AppProtocol::Http11),
        // Nothing is declared: what the client says tells.
        ("202", AppProtocol::Unknown),
    ] {
        let w = addressed(net, protocol).await;
        // The service's rules and its destination are not asked.
        let action = Action::Respond(Respond {
            status: 418,
            body: Bytes::new(),
        });
        w.routes(vec![rule("/", action)]);
        w.destination(TrafficPolicy {
            pool: Pool {
                max_requests: Some(0),
                ..Pool::default()
            },
            ..TrafficPolicy::default()
        });
        for path in ["/one", "/two"] {
            let (status, headers, body) = w.get(path).await;
            assert_eq!((status.as_u16(), &body[..]), (200, &b"v1"[..]));
            assert_eq!(headers["x-saw-host"], "db.shop:8080");
            assert_eq!(headers["x-version"], "HTTP/1.1");
        }
        let (status, _, _) = w.get("/status/503").await;
        assert_eq!(status, 503);
        let mut client = w.client2().await;
        let (status, headers, _) = ask2(&mut client, "/grown").await;
        assert_eq!(status, 200);
        assert_eq!(headers["x-version"], "HTTP/2.0");
        assert_eq!(w.v2.asked.load(SeqCst), 0);
        let line = w.node.line(&["direction=through", "path=/one "]).await;
        for part in [
            "dst.workload=db-1",
            "dst.identity=spiffe://cluster.local/ns/shop/sa/db-1",
            "src.workload=web",
            "upstream_cluster=encap",
            "response_code=200",
        ] {
            assert!(line.contains(part), "{part} is not in {line}");
        }
        assert!(!line.contains("dst.service="), "{line}");
        let text = w.node.shared.observer.metrics().text().expect("text");
        let counted = text.lines().find(|l| {
            l.starts_with("istio_requests_total{")
                && l.contains("reporter=\"waypoint\"")
                && l.contains("response_code=\"503\"")
                && l.contains("source_principal=\"spiffe://cluster.local/ns/shop/sa/web\"")
                && l.contains("destination_principal=\"spiffe://cluster.local/ns/shop/sa/db-1\"")
                && l.contains("destination_service=\"unknown\"")
        });
        assert!(counted.is_some(), "{text}");
        w.node.stop().await;
    }
}

#[tokio::test]
async fn a_workload_of_which_nothing_is_declared_may_speak_first() {
    let w = addressed("206", AppProtocol::Unknown).await;
    let ip = w.v1.address.ip();
    let listener = TcpListener::bind((ip, 0)).await.expect("a free port");
    let greeter = listener.local_addr().expect("bound");
    tokio::spawn(async move {
        while let Ok((mut tcp, _)) = listener.accept().await {
            tcp.write_all(b"hello").await.expect("written");
            let mut told = [0; 3];
            tcp.read_exact(&mut told).await.expect("read");
            tcp.write_all(&told).await.expect("written");
        }
    });
    let mut tcp = w.node.dial(&w.web, greeter).await;
    let mut said = [0; 5];
    let read = tokio::time::timeout(Duration::from_secs(10), tcp.read_exact(&mut said)).await;
    read.expect("in time").expect("a greeting");
    assert_eq!(&said, b"hello");
    assert_eq!(ask(&mut tcp, b"bye").await.expect("carried"), b"bye");
    drop(tcp);
    let line = [
        "direction=through",
        "connection complete",
        "dst.workload=db-1",
    ];
    w.node.line(&line).await;
    w.node.stop().await;
}

#[tokio::test]
async fn what_is_declared_as_bytes_is_not_looked_into() {
    let w = addressed("207", AppProtocol::Tcp).await;
    let (status, headers, _) = w.get("/bytes").await;
    assert_eq!(status, 200);
    assert!(
        !headers.contains_key("x-saw-x-forwarded-for"),
        "{headers:?}"
    );
    let line = [
        "direction=through",
        "connection complete",
        "dst.workload=db-1",
    ];
    w.node.line(&line).await;
    w.node.stop().await;
}
