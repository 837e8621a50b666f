//! Bounds of connections and requests, and endpoints that are left out.

use super::*;

#[tokio::test]
async fn bounds_refuse_at_once_and_failing_endpoints_are_left_out() {
    let w = world("54", AppProtocol::Http11).await;
    w.destination(TrafficPolicy {
        pool: Pool {
            max_connections: Some(1),
            max_pending: Some(1),
            ..Pool::default()
        },
        ..TrafficPolicy::default()
    });
    w.routes(vec![rule("/hold", to("v1"))]);
    let cluster = w.node.shared.clusters.get(&ClusterKey::Service {
        service: testing::service_name("shop", "db"),
        port: PORT,
        subset: Some("v1".into()),
    });
    let script = async {
        // The only connection is taken by the first request, the only place to wait by the second.
        until(|| cluster.pending.get() == 1 && w.v1.asked.load(SeqCst) == 1).await;
        for _ in 0..2 {
            let (status, headers, _) = w.get("/hold").await;
            assert_eq!(status, 503);
            assert_eq!(headers["x-envoy-overloaded"], "true");
        }
        assert_eq!(cluster.connections.get(), 1);
        w.v1.gate.add_permits(2);
    };
    let second = async {
        until(|| w.v1.asked.load(SeqCst) == 1).await;
        w.get("/hold").await
    };
    let (first, second, ()) = tokio::join!(w.get("/hold"), second, script);
    assert_eq!((first.0.as_u16(), second.0.as_u16()), (200, 200));
    assert_eq!(w.v1.asked.load(SeqCst), 2);
    w.node
        .line(&["response_code=503", "response_flags=UO"])
        .await;
    w.destination(TrafficPolicy {
        outlier: Some(Outlier {
            consecutive_5xx: 1,
            max_ejected: 100,
            ..Outlier::default()
        }),
        ..TrafficPolicy::default()
    });
    let all = Action::Forward(Box::new([backend(None, 1)]));
    w.routes(vec![rule("/broken", to("v2")), rule("/", all)]);
    assert_eq!(w.get("/broken").await.0, 503);
    // The same endpoint in another cluster has a record of its own.
    let by_service = [w.get("/x").await.2, w.get("/x").await.2];
    assert!(by_service.iter().all(|b| b == "v1" || b == "v2"));
    assert_eq!(w.get("/broken").await.2, "no healthy upstream");
    w.node.line(&["path=/broken ", "response_flags=UH"]).await;
    // All of it is seen in metrics.
    let of = |subset: &str, name: &str, more: &str| {
        let cluster = format!("outbound|8080|{subset}|db.shop.svc.cluster.local");
        w.metric(&format!(
            "warren_cluster_{name}{{cluster=\"{cluster}\"{more}}}"
        ))
    };
    assert_eq!(of("v1", "overflows_total", ",bound=\"pending\""), 2);
    assert_eq!(of("v1", "requests_total", ""), 4);
    assert_eq!(of("v1", "ejections_total", ""), 0);
    assert_eq!(of("v2", "ejections_total", ""), 1);
    assert_eq!(of("v2", "endpoints", ",state=\"ejected\""), 1);
    assert_eq!(of("v2", "endpoints", ",state=\"healthy\""), 0);
    assert_eq!(w.metric("warren_endpoint_ejected{"), 1);
    w.node.stop().await;
}

fn pooled(pool: Pool) -> TrafficPolicy {
    TrafficPolicy {
        pool,
        ..TrafficPolicy::default()
    }
}

#[tokio::test]
async fn requests_under_way_are_bounded_whatever_connections_there_are() {
    let w = world("77", AppProtocol::Http11).await;
    let most = Pool {
        max_requests: Some(1),
        ..Pool::default()
    };
    // Once for all ports and once for this one, which then inherits nothing.
    for own in [false, true] {
        let mut destination = Destination {
            service: testing::service_name("shop", "db"),
            by: "shop/db".into(),
            policy: Arc::new(pooled(most.clone())),
            ports: Box::default(),
            subsets: Box::default(),
            features: Box::default(),
        };
        if own {
            destination.policy = Arc::default();
            destination.ports = Box::new([(PORT, Arc::new(pooled(most.clone())))]);
        }
        w.node.state.apply([Change::Destination(destination)]);
        let cluster = w.cluster(None);
        let script = async {
            until(|| cluster.requests.get() == 1).await;
            let (status, headers, text) = w.get("/over").await;
            assert_eq!(
                (status.as_u16(), &headers["x-envoy-overloaded"]),
                (503, &"true".parse().expect("good"))
            );
            assert!(text.ends_with(b"reset reason: overflow"), "{text:?}");
            w.v1.gate.add_permits(1);
            w.v2.gate.add_permits(1);
        };
        let (held, ()) = tokio::join!(w.get("/hold"), script);
        assert_eq!(held.0, 200);
        until(|| cluster.requests.get() == 0).await;
        assert_eq!(w.get("/after").await.0, 200);
        // Only one of the gates was used.
        w.v1.gate.forget_permits(1);
        w.v2.gate.forget_permits(1);
    }
    w.node
        .line(&["path=/over ", "response_flags=UO ", "attempts=0"])
        .await;
    w.node.stop().await;
}

/// How often the application is connected to by requests after one another, with a pause between them.
#[tokio::test]
async fn connections_end_by_number_age_and_idleness() {
    let w = world("78", AppProtocol::Unknown).await;
    w.routes(vec![rule("/", to("v1"))]);
    let short = Duration::from_millis(60);
    let none = Pool {
        max_connections: Some(100),
        ..Pool::default()
    };
    let each = |n| Pool {
        requests_per_connection: n,
        ..none.clone()
    };
    let old = Pool {
        max_duration: Some(short),
        ..none.clone()
    };
    let idle = Pool {
        http_idle: short,
        ..none.clone()
    };
    for (pool, pause, expect) in [
        (none.clone(), Duration::ZERO, 1),
        (each(1), Duration::ZERO, 6),
        (each(2), Duration::ZERO, 3),
        (each(5), Duration::ZERO, 2),
        (old, short * 2, 6),
        (idle, short * 2, 6),
    ] {
        for h2 in [false, true] {
            let shown = format!("{pool:?} {h2}");
            w.destination(pooled(pool.clone()));
            let before = w.v1.connections.load(SeqCst);
            let cluster = w.cluster(Some("v1"));
            // What was told before is of no interest.
            cluster.freed.notify_one();
            cluster.freed.notified().await;
            // One that is silent would be taken for one that waits for its server to speak.
            let (mut one, mut two) = match h2 {
                true => (None, Some(w.client2().await)),
                false => (Some(w.client().await), None),
            };
            for n in 0..6 {
                let path = format!("/n/{n}");
                match (&mut one, &mut two) {
                    (_, Some(two)) => assert_eq!(ask2(two, &path).await.0, 200),
                    (None, None) => unreachable!("one of them is there"),
                    (Some(one), None) => {
                        let answer = one.send_request(get(&path)).await.expect("an answer");
                        answer.into_body().collect().await.expect("a body");
                        one.ready().await.expect("kept alive");
                    }
                }
                // It can be used again, or has ended.
                cluster.freed.notified().await;
                tokio::time::sleep(pause).await;
            }
            let made = w.v1.connections.load(SeqCst) - before;
            assert_eq!(made, expect, "{shown}");
            w.forget_connections().await;
        }
    }
    w.node.stop().await;
}

#[tokio::test]
async fn one_connection_of_http2_carries_as_many_as_its_bound_allows() {
    let w = world("79", AppProtocol::Http2).await;
    w.routes(vec![rule("/", to("v1"))]);
    let streams = |most, connections| Pool {
        max_streams: most,
        max_connections: Some(connections),
        ..Pool::default()
    };
    for (pool, made) in [
        (streams(None, 100), 1),
        (streams(None, 1), 1),
        (streams(Some(6), 100), 1),
        (streams(Some(1), 6), 6),
    ] {
        let shown = format!("{pool:?}");
        w.destination(pooled(pool));
        let (asked, before) = (w.v1.asked.load(SeqCst), w.v1.connections.load(SeqCst));
        let client = w.client2().await;
        let mut holding = Vec::new();
        for _ in 0..6 {
            let mut client = client.clone();
            holding.push(tokio::spawn(
                async move { ask2(&mut client, "/hold").await.0 },
            ));
        }
        until(|| w.v1.asked.load(SeqCst) - asked == 6).await;
        assert_eq!(w.v1.connections.load(SeqCst) - before, made, "{shown}");
        w.v1.gate.add_permits(6);
        for held in holding {
            assert_eq!(held.await.expect("no panic"), 200, "{shown}");
        }
        w.forget_connections().await;
    }
    // One stream at a time on the only connection: the second waits, and goes when the first has ended.
    w.destination(pooled(streams(Some(1), 1)));
    let asked = w.v1.asked.load(SeqCst);
    let client = w.client2().await;
    let (mut first, mut second) = (client.clone(), client);
    let cluster = w.cluster(Some("v1"));
    let script = async {
        until(|| cluster.pending.get() == 1 && w.v1.asked.load(SeqCst) - asked == 1).await;
        w.v1.gate.add_permits(2);
    };
    let second = async {
        until(|| w.v1.asked.load(SeqCst) - asked == 1).await;
        ask2(&mut second, "/hold").await
    };
    let (first, second, ()) = tokio::join!(ask2(&mut first, "/hold"), second, script);
    assert_eq!((first.0.as_u16(), second.0.as_u16()), (200, 200));
    w.node.stop().await;
}

#[tokio::test]
async fn the_endpoint_is_spoken_to_as_the_policy_says() {
    let (h1, h2) = ("HTTP/1.1", "HTTP/2.0");
    let upgrade = Pool {
        upgrade: true,
        ..Pool::default()
    };
    let client = Pool {
        use_client_protocol: true,
        ..Pool::default()
    };
    for (net, protocol, rows) in [
        (
            "80",
            AppProtocol::Http11,
            [
                (Pool::default(), h1, h1),
                (upgrade.clone(), h2, h2),
                (client.clone(), h1, h2),
            ],
        ),
        (
            "81",
            AppProtocol::Http2,
            [
                (Pool::default(), h2, h2),
                (upgrade.clone(), h2, h2),
                (client.clone(), h1, h2),
            ],
        ),
        (
            "82",
            AppProtocol::Unknown,
            [
                (Pool::default(), h1, h2),
                (upgrade, h2, h2),
                (client, h1, h2),
            ],
        ),
    ] {
        let w = world(net, protocol).await;
        for (pool, by_one, by_two) in rows {
            let shown = format!("{protocol:?} {pool:?}");
            w.destination(pooled(pool));
            assert_eq!(w.get("/").await.1["x-version"], by_one, "{shown}");
            let mut client = w.client2().await;
            assert_eq!(
                ask2(&mut client, "/").await.1["x-version"],
                by_two,
                "{shown}"
            );
        }
        w.node.stop().await;
    }
}

/// Failures of our own are counted apart, and an endpoint that was left out is used again later.
#[tokio::test]
async fn an_endpoint_that_cannot_be_reached_is_left_out_for_its_time() {
    let w = world("83", AppProtocol::Http11).await;
    w.destination(TrafficPolicy {
        outlier: Some(Outlier {
            consecutive_5xx: 0,
            consecutive_local: 2,
            split_local: true,
            base_ejection: Duration::from_secs(180),
            interval: Duration::from_secs(1),
            max_ejected: 50,
            ..Outlier::default()
        }),
        ..TrafficPolicy::default()
    });
    let all = Action::Forward(Box::new([backend(None, 1)]));
    w.routes(vec![rule("/", all)]);
    w.v1.stop().await;
    let mut refused = 0;
    for _ in 0..60 {
        refused += u32::from(w.get("/x").await.0 == 503);
    }
    assert_eq!(refused, 2);
    // Whatever it answers counts elsewhere.
    for _ in 0..10 {
        assert_eq!(w.get("/status/500").await.0, 500);
    }
    assert_eq!(w.get("/x").await.0, 200);
    let cluster = w.cluster(None);
    let snapshot = w.node.state.load();
    let mesh = &snapshot.mesh;
    let own = mesh.workload(&w.web.workload.uid).expect("known").clone();
    let node = "n1".into();
    let view = mesh_model::balance::Viewpoint::of(&snapshot.mesh, &node, &own);
    let now = std::time::Instant::now();
    let picked = |after: u64| {
        let mut who = BTreeMap::<String, u32>::new();
        for _ in 0..60 {
            let at = now + Duration::from_secs(after);
            let picked = cluster.pick(
                (mesh, snapshot.generation, view),
                |_| None,
                Default::default(),
                at,
            );
            let name = picked.expect("one").endpoint.workload.name.to_string();
            *who.entry(name).or_default() += 1;
        }
        who.len()
    };
    assert_eq!((picked(170), picked(185)), (1, 2));
    w.node.stop().await;
}

/// A new endpoint begins with a part of its share; time is what the cluster is told.
#[tokio::test]
async fn a_new_endpoint_comes_to_its_share_slowly() {
    let w = world("91", AppProtocol::Http11).await;
    let at = |healthy| {
        let mut v2 = testing::pod("shop", "db-2", "n1", "127.7.91.3");
        v2.healthy = healthy;
        w.node
            .state
            .apply([Change::Workload(testing::serving(v2, "shop", "db"))]);
    };
    let policy = |simple, aggression| TrafficPolicy {
        balancing: LoadBalancing {
            weighing: Weighing::Simple(simple),
            warmup: Some(Warmup {
                duration: Duration::from_secs(100),
                minimum: Share::per_million(100_000),
                aggression,
            }),
            ..LoadBalancing::default()
        },
        ..TrafficPolicy::default()
    };
    let cluster = w.cluster(None);
    let now = std::time::Instant::now();
    let node = "n1".into();
    let picked = |after: u64, times: u32| {
        let snapshot = w.node.state.load();
        let own = snapshot.mesh.workload(&w.web.workload.uid).expect("known");
        let view = mesh_model::balance::Viewpoint::of(&snapshot.mesh, &node, own);
        let at = now + Duration::from_secs(after);
        let picks = (0..times).filter(|_| {
            let view = (&snapshot.mesh, snapshot.generation, view);
            let picked = cluster.pick(view, |_| None, Default::default(), at);
            &*picked.expect("one").endpoint.workload.name == "db-2"
        });
        picks.count()
    };
    at(false);
    w.destination(policy(Simple::RoundRobin, 1000));
    assert_eq!(picked(0, 10), 0);
    at(true);
    // A tenth of its share, then what of the time has passed, then all of it.
    for (after, expect) in [(1000, 10), (1005, 10), (1050, 37), (1100, 55), (2000, 55)] {
        let got = picked(after, 110);
        assert!(
            got.abs_diff(expect) <= 2,
            "{got} of 110 after {after}, not {expect}"
        );
    }
    // A break begins it anew; a greater exponent has the share grow faster: (1/4)^(1/2) is a half.
    at(false);
    assert_eq!(picked(3000, 10), 0);
    at(true);
    w.destination(policy(Simple::RoundRobin, 2000));
    for (after, expect) in [(4000, 10), (4025, 37), (4100, 55)] {
        let got = picked(after, 110);
        assert!(
            got.abs_diff(expect) <= 2,
            "{got} of 110 after {after}, not {expect}"
        );
    }
    // What is drawn at random is not slowed down, as Envoy documents.
    at(false);
    assert_eq!(picked(5000, 10), 0);
    at(true);
    w.destination(policy(Simple::Random, 1000));
    // 100 of 200 are expected; beyond 65 and 135 lies less than one in a million.
    let got = picked(5000, 200);
    assert!((65..=135).contains(&got), "{got}");
    w.node.stop().await;
}
