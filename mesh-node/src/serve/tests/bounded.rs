//! What a destination says of connections, kept to by the node proxy where no waypoint is on the way.

use std::time::Instant;

use mesh_model::resilience::{Outlier, Pool};

use super::*;

const PORT: u16 = 5432;

struct World {
    node: Node,
    web: Home,
    vip: SocketAddr,
}

/// A client, and a service with one application that sends back what it gets.
async fn world(net: &str) -> World {
    let node = Node::start().await;
    let at = |last: u8| format!("127.7.{net}.{last}");
    let web = node.pod("web", &at(1), MtlsMode::Permissive).await;
    let db = node.pod("db", &at(2), MtlsMode::Permissive).await;
    let app = echo(db.ip).await;
    let service = testing::service("shop", "db", &at(100), PORT, app.port());
    node.state.apply([
        Change::Service(service),
        Change::Workload(testing::serving(db.workload.clone(), "shop", "db")),
    ]);
    let vip = SocketAddr::new(testing::ip(&at(100)), PORT);
    World { node, web, vip }
}

impl World {
    fn pool(&self, pool: Pool) {
        self.node.state.apply([destination(TrafficPolicy {
            pool,
            ..TrafficPolicy::default()
        })]);
    }

    async fn dial(&self) -> TcpStream {
        self.node.dial(&self.web, self.vip).await
    }
}

/// A connection that is used every now and then for so long `used`, and then is silent, ends in order; how long it lived.
/// Were it used until it ends, what is just being asked could be lost, which is no order.
async fn lives(mut tcp: TcpStream, used: Duration) -> Duration {
    let began = Instant::now();
    loop {
        let silent = began.elapsed() >= used;
        let pause = Duration::from_millis(if silent { 20_000 } else { 100 });
        let mut byte = [0; 4];
        match tokio::time::timeout(pause, tcp.read(&mut byte)).await {
            Err(_) if silent => panic!("lives on"),
            Err(_) => assert_eq!(ask(&mut tcp, b"ping").await.expect("open"), b"ping"),
            Ok(read) => {
                assert_eq!(read.expect("an orderly end, no reset"), 0);
                return began.elapsed();
            }
        }
    }
}

#[tokio::test]
async fn a_silent_connection_is_closed_and_a_long_one_too() {
    let w = world("151").await;
    let ms = Duration::from_millis;
    w.pool(Pool {
        tcp_idle: ms(400),
        ..Pool::default()
    });
    let mut tcp = w.dial().await;
    assert_eq!(ask(&mut tcp, b"hello").await.expect("carried"), b"hello");
    let lived = lives(tcp, Duration::ZERO).await;
    assert!(lived >= ms(300), "{lived:?}");
    w.node
        .line(&["direction=outbound", "reason=idle_timeout", "bytes_sent=5"])
        .await;
    // The far side was told in order.
    w.node
        .line(&["direction=inbound", "connection complete", "bytes_sent=5"])
        .await;
    // What is used within the time stays, until its life is over.
    w.pool(Pool {
        tcp_idle: ms(1_000),
        max_duration: Some(ms(2_500)),
        ..Pool::default()
    });
    let mut tcp = w.dial().await;
    assert_eq!(ask(&mut tcp, b"hello").await.expect("carried"), b"hello");
    let lived = lives(tcp, ms(2_000)).await;
    assert!(lived >= ms(2_300), "{lived:?}");
    w.node
        .line(&["direction=outbound", "reason=max_duration"])
        .await;
    w.node.stop().await;
}

#[tokio::test]
async fn so_many_connections_and_no_more() {
    let w = world("152").await;
    w.pool(Pool {
        max_connections: Some(1),
        ..Pool::default()
    });
    let mut first = w.dial().await;
    assert_eq!(ask(&mut first, b"hello").await.expect("carried"), b"hello");
    assert!(is_reset(w.dial().await).await);
    w.node
        .line(&["direction=outbound", "reason=overloaded"])
        .await;
    assert!(
        w.node.kernel.told().failed.is_empty(),
        "what frees itself is not remembered"
    );
    let text = w.node.shared.observer.metrics().text().expect("text");
    for (name, more, number) in [
        ("connections_open", "", 1),
        ("connections_total", "", 1),
        ("overflows_total", ",bound=\"connections\"", 1),
        ("endpoints", ",state=\"healthy\"", 1),
    ] {
        let cluster = "outbound|5432||db.shop.svc.cluster.local";
        let line = format!("warren_cluster_{name}{{cluster=\"{cluster}\"{more}}} {number}");
        assert!(text.lines().any(|l| l == line), "{line} is not in\n{text}");
    }
    let dump = w.node.shared.describe();
    assert_eq!(dump["clusters"][0]["connections"], 1, "{dump}");
    drop(first);
    let again = async {
        loop {
            let mut tcp = w.dial().await;
            if ask(&mut tcp, b"again").await.is_ok() {
                return;
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(10), again)
        .await
        .expect("a place is free again");
    w.node.stop().await;
}

#[tokio::test]
async fn an_endpoint_that_cannot_be_connected_to_is_left_out() {
    let w = world("153").await;
    let mut dead = testing::pod("shop", "dead", "n1", "127.7.153.3");
    dead.identity = testing::pod("shop", "db", "n1", "127.7.153.2").identity;
    let uid = dead.uid.clone();
    w.node.state.apply([
        Change::Workload(testing::serving(dead, "shop", "db")),
        Change::WorkloadExtra(uid, testing::extra(MtlsMode::Permissive)),
        destination(TrafficPolicy {
            outlier: Some(Outlier {
                consecutive_local: 1,
                split_local: true,
                max_ejected: 50,
                ..Outlier::default()
            }),
            ..TrafficPolicy::default()
        }),
    ]);
    let mut ejected = 0;
    for _ in 0..200 {
        let mut tcp = w.dial().await;
        assert_eq!(ask(&mut tcp, b"hello").await.expect("carried"), b"hello");
        let shown = w.node.shared.clusters.describe().to_string();
        ejected = shown.matches("\"ejected\":true").count();
        if ejected > 0 {
            break;
        }
    }
    assert_eq!(ejected, 1);
    w.node.stop().await;
}

#[tokio::test]
async fn a_policy_that_is_not_understood_refuses() {
    let w = world("154").await;
    let with = |pool: Pool| {
        let Change::Destination(mut destination) = destination(TrafficPolicy {
            pool,
            ..TrafficPolicy::default()
        }) else {
            unreachable!("it is one")
        };
        destination.features = Box::new(["invalid: for a reason".into()]);
        w.node.state.apply([Change::Destination(destination)]);
    };
    // Nothing in it is for the node proxy.
    with(Pool {
        max_retries: Some(1),
        ..Pool::default()
    });
    let mut tcp = w.dial().await;
    assert_eq!(ask(&mut tcp, b"hello").await.expect("carried"), b"hello");
    with(Pool {
        max_connections: Some(5),
        ..Pool::default()
    });
    assert!(is_reset(w.dial().await).await);
    w.node
        .line(&["direction=outbound", "reason=route_invalid"])
        .await;
    w.node.stop().await;
}
