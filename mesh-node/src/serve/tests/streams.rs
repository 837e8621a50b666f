//! Connections through a waypoint that carry no requests: rules for TCP and for TLS by name, and what policies bound.

use std::collections::BTreeMap;

use mesh_model::{
    mesh::{AppProtocol, Change, MtlsMode},
    resilience::{Outlier, Pool, TrafficPolicy},
    route::{
        http::{Backend, Filters, RouteSet, Routes},
        stream::{StreamAction, StreamMatch, StreamRule},
    },
    testing::cast as testing,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;

const PORT: u16 = 5432;

/// An application that says its name, then what it hears.
fn named(listener: TcpListener, name: &'static str) -> (SocketAddr, tokio::task::AbortHandle) {
    let address = listener.local_addr().expect("bound");
    let listening = tokio::spawn(async move {
        while let Ok((mut tcp, _)) = listener.accept().await {
            tokio::spawn(async move {
                tcp.write_all(name.as_bytes()).await.expect("sent");
                let (mut read, mut write) = tcp.split();
                let _ = tokio::io::copy(&mut read, &mut write).await;
            });
        }
    });
    (address, listening.abort_handle())
}

struct World {
    node: Node,
    web: Home,
    vip: SocketAddr,
    first: tokio::task::AbortHandle,
}

async fn world(net: &str, protocol: AppProtocol) -> World {
    let node = Node::start().await;
    let at = |last: u8| format!("127.7.{net}.{last}");
    let web = node.pod("web", &at(1), MtlsMode::Strict).await;
    let waypoint = node.waypoint("waypoint", &at(9)).await;
    let one = node.pod("db-1", &at(2), MtlsMode::Strict).await;
    let two = node.pod("db-2", &at(3), MtlsMode::Strict).await;
    let (at_one, at_two) = same_port(one.ip, two.ip).await;
    let (app, first) = named(at_one, "one");
    named(at_two, "two");
    let mut service = testing::service("shop", "db", &at(100), PORT, app.port());
    service.ports[0].protocol = protocol;
    service.waypoint = through(waypoint.addresses[0]);
    node.state.apply([Change::Service(service)]);
    for (home, group) in [(&one, "version=v1"), (&two, "version=v2")] {
        let mut extra = testing::extra(MtlsMode::Strict);
        extra.groups = Box::new([group.into()]);
        node.state.apply([
            Change::Workload(testing::serving(home.workload.clone(), "shop", "db")),
            Change::WorkloadExtra(home.workload.uid.clone(), extra),
        ]);
    }
    let vip = SocketAddr::new(testing::ip(&at(100)), PORT);
    World {
        node,
        web,
        vip,
        first,
    }
}

impl World {
    fn destination(&self, policy: TrafficPolicy) {
        self.node.state.apply([destination(policy)]);
    }

    fn streams(&self, rules: Vec<StreamRule>) {
        self.node.state.apply([Change::Routes(Routes {
            service: testing::service_name("shop", "db"),
            sets: Box::new([RouteSet {
                clients: None,
                ports: Box::default(),
                rules: Box::default(),
                streams: rules.into(),
            }]),
            features: Box::default(),
        })]);
    }

    /// Who answers first to what is sent, in pieces of this size.
    async fn ask(&self, sent: &[u8], piece: usize) -> io::Result<(TcpStream, String)> {
        let mut tcp = self.node.dial(&self.web, self.vip).await;
        tcp.set_nodelay(true)?;
        let asked = async {
            for piece in sent.chunks(piece.max(1)) {
                tcp.write_all(piece).await?;
                tokio::task::yield_now().await;
            }
            let mut name = [0; 3];
            tcp.read_exact(&mut name).await?;
            Ok::<_, io::Error>(String::from_utf8_lossy(&name).into_owned())
        };
        let name = tokio::time::timeout(Duration::from_secs(10), asked).await??;
        Ok((tcp, name))
    }
}

fn rule(hosts: &[&str], backends: &[(&str, u32)]) -> StreamRule {
    let backend = |(subset, weight): &(&str, u32)| Backend {
        service: testing::service_name("shop", "db"),
        port: None,
        subset: Some((*subset).into()).filter(|s: &Arc<str>| !s.is_empty()),
        weight: *weight,
        filters: Filters::default(),
        invalid: None,
    };
    let matched = StreamMatch {
        hosts: hosts.iter().map(|h| (*h).into()).collect(),
        ..StreamMatch::default()
    };
    StreamRule {
        name: "VirtualService/shop/db#0".into(),
        matches: Box::new([matched]),
        action: StreamAction::Forward(backends.iter().map(backend).collect()),
    }
}

/// What a client of TLS says first.
fn hello(name: &str) -> Vec<u8> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("good")
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth();
    let name = rustls::pki_types::ServerName::try_from(name.to_owned()).expect("a name");
    let mut client = rustls::ClientConnection::new(Arc::new(config), name).expect("good");
    let mut first = Vec::new();
    client.write_tls(&mut first).expect("written");
    first
}

#[tokio::test]
async fn bytes_are_split_by_weight_and_a_server_that_speaks_first_is_not_waited_for() {
    let w = world("47", AppProtocol::Tcp).await;
    w.destination(TrafficPolicy::default());
    // A rule by name never holds on a port that declares no TLS, and nothing is read for its sake.
    w.streams(vec![
        rule(&["a.example"], &[("v1", 1)]),
        rule(&[], &[("v1", 75), ("v2", 25)]),
    ]);
    let began = std::time::Instant::now();
    let mut seen = BTreeMap::<String, u32>::new();
    for _ in 0..200 {
        *seen
            .entry(w.ask(b"", 1).await.expect("a greeting").1)
            .or_default() += 1;
    }
    // 50 are expected; beyond 22 and 82 lies less than one in a million.
    assert!((22..=82).contains(&seen["two"]), "{seen:?}");
    assert!(
        began.elapsed() < Duration::from_secs(8),
        "{:?}",
        began.elapsed()
    );
    let (mut tcp, _) = w.ask(b"", 1).await.expect("a greeting");
    assert_eq!(
        ask(&mut tcp, b"and more").await.expect("carried"),
        b"and more"
    );
    drop(tcp);
    w.node
        .line(&[
            "direction=through",
            "connection complete",
            "dst.service=db.shop",
            "dst.workload=db-",
        ])
        .await;
    let invalid = StreamRule {
        action: StreamAction::Invalid("for this reason".into()),
        ..rule(&[], &[])
    };
    for (rules, reason) in [
        (vec![invalid], "route_invalid"),
        (vec![rule(&[], &[("v1", 0)])], "no_endpoints"),
        (vec![rule(&[], &[("v3", 1)])], "no_endpoints"),
        (vec![rule(&["a.example"], &[("v1", 1)])], "no_endpoints"),
    ] {
        w.streams(rules);
        assert!(w.ask(b"", 1).await.is_err(), "{reason}");
        w.node
            .line(&["direction=through", &format!("reason={reason}")])
            .await;
    }
    w.node.stop().await;
}

#[tokio::test]
async fn tls_goes_where_its_name_says_untouched() {
    for (net, protocol) in [("44", AppProtocol::Tls), ("45", AppProtocol::Unknown)] {
        let w = world(net, protocol).await;
        w.destination(TrafficPolicy::default());
        w.streams(vec![
            rule(&["a.example", "x.example"], &[("v1", 1)]),
            rule(&["*.b.example"], &[("v2", 1)]),
            rule(&[], &[("v1", 1)]),
        ]);
        for (name, expect) in [
            ("a.example", "one"),
            ("X.example", "one"),
            ("deep.in.b.example", "two"),
            ("b.example", "one"),
            ("c.example", "one"),
        ] {
            let said = hello(name);
            for piece in [said.len(), 1, 100] {
                let (mut tcp, got) = w.ask(&said, piece).await.expect("an answer");
                assert_eq!(got, expect, "{name} in pieces of {piece}");
                let mut back = vec![0; said.len()];
                tcp.read_exact(&mut back).await.expect("carried");
                assert!(back == said, "{name}: something was changed");
            }
        }
        // What is no TLS has no name.
        let (_, got) = w.ask(b"\x16 is not enough", 4).await.expect("an answer");
        assert_eq!(got, "one");
        w.streams(vec![rule(&["*.b.example"], &[("v2", 1)])]);
        assert!(w.ask(&hello("c.example"), 1000).await.is_err());
        w.node.stop().await;
    }
}

#[tokio::test]
async fn connections_are_bounded_and_dead_endpoints_left_out() {
    let w = world("46", AppProtocol::Tcp).await;
    w.destination(TrafficPolicy {
        pool: Pool {
            max_connections: Some(2),
            ..Pool::default()
        },
        ..TrafficPolicy::default()
    });
    let (first, _) = w.ask(b"", 1).await.expect("a greeting");
    let (second, _) = w.ask(b"", 1).await.expect("a greeting");
    assert!(w.ask(b"", 1).await.is_err());
    w.node
        .line(&["direction=through", "reason=overloaded"])
        .await;
    drop(first);
    let again = async {
        loop {
            if let Ok(third) = w.ask(b"", 1).await {
                return third;
            }
        }
    };
    let third = tokio::time::timeout(Duration::from_secs(10), again).await;
    drop((second, third.expect("a place is free again")));
    // One that is silent for too long is ended in order.
    w.destination(TrafficPolicy {
        pool: Pool {
            tcp_idle: Duration::from_millis(300),
            ..Pool::default()
        },
        ..TrafficPolicy::default()
    });
    let (mut silent, _) = w.ask(b"", 1).await.expect("a greeting");
    let mut byte = [0];
    let end = tokio::time::timeout(Duration::from_secs(10), silent.read(&mut byte));
    assert_eq!(end.await.expect("an end").expect("no reset"), 0);
    w.node
        .line(&["direction=through", "reason=idle_timeout"])
        .await;
    w.destination(TrafficPolicy {
        outlier: Some(Outlier {
            consecutive_local: 1,
            split_local: true,
            max_ejected: 50,
            ..Outlier::default()
        }),
        ..TrafficPolicy::default()
    });
    w.first.abort();
    while !w.first.is_finished() {
        tokio::task::yield_now().await;
    }
    // The other one is tried at once, so that nobody notices.
    for _ in 0..20 {
        assert_eq!(w.ask(b"", 1).await.expect("a greeting").1, "two");
    }
    let cluster = w.node.shared.clusters.describe();
    let ejected = cluster.to_string().matches("\"ejected\":true").count();
    assert_eq!(ejected, 1, "{cluster}");
    w.node.stop().await;
}
