//! Timeouts and retries.

use super::*;

#[tokio::test]
async fn timeouts_and_retries() {
    let w = world("53", AppProtocol::Http11).await;
    w.destination(TrafficPolicy::default());
    let mut slow = rule("/slow", to("v1"));
    slow.timeout = Some(Duration::from_millis(200));
    let mut again = rule("/once-broken", to("v1"));
    again.retries = Some(Retries {
        attempts: 2,
        on: RetryOn::parse("5xx").0,
        ..Retries::default_of_istio()
    });
    let mut broken = rule("/broken", to("v2"));
    broken.retries = again.retries.clone();
    w.routes(vec![slow, again, broken]);
    let request = Request::post("/once-broken").header("host", "db");
    let request = request.body(Full::from("a body")).expect("a request");
    let (status, headers, _) = w.ask(request).await;
    assert_eq!((status.as_u16(), w.v1.asked.load(SeqCst)), (200, 2));
    assert_eq!(headers["x-saw-x-envoy-attempt-count"], "2");
    assert_eq!(headers["x-saw-content-length"], "6");
    w.node.line(&["path=/once-broken ", "attempts=2"]).await;
    let (status, ..) = w.get("/broken").await;
    assert_eq!((status.as_u16(), w.v2.asked.load(SeqCst)), (503, 3));
    w.node
        .line(&["path=/broken ", "attempts=3", "response_flags=URX"])
        .await;
    let (status, _, body) = w.get("/slow").await;
    assert_eq!(
        (status.as_u16(), &body[..]),
        (504, &b"upstream request timeout"[..])
    );
    w.node.line(&["path=/slow ", "response_flags=UT"]).await;
    w.node.stop().await;
}

fn retrying(tokens: &str, attempts: u32) -> Retries {
    let (on, unknown) = RetryOn::parse(tokens);
    assert!(unknown.is_empty(), "{unknown:?}");
    Retries {
        attempts,
        on,
        backoff: Duration::from_millis(1),
        ..Retries::default_of_istio()
    }
}

/// Each token of `retryOn`, with an answer that is tried again for it and one that is not.
#[tokio::test]
async fn each_token_says_what_is_tried_again() {
    let w = world("60", AppProtocol::Http11).await;
    w.destination(TrafficPolicy::default());
    for (tokens, path, tries) in [
        ("5xx", "/status/500", 2),
        ("5xx", "/status/501", 2),
        ("5xx", "/status/404", 1),
        ("5xx", "/reset", 2),
        ("5xx", "/marked/x-envoy-overloaded", 1),
        ("5xx", "/marked/x-envoy-ratelimited", 1),
        ("gateway-error", "/status/502", 2),
        ("gateway-error", "/status/503", 2),
        ("gateway-error", "/status/504", 2),
        ("gateway-error", "/status/500", 1),
        ("gateway-error", "/reset", 2),
        ("reset", "/reset", 2),
        ("reset", "/status/503", 1),
        ("reset-before-request", "/reset", 1),
        ("connect-failure", "/reset", 1),
        ("connect-failure", "/status/503", 1),
        ("retriable-4xx", "/status/409", 2),
        ("retriable-4xx", "/status/404", 1),
        ("refused-stream", "/status/503", 1),
        ("retriable-status-codes,418", "/status/418", 2),
        ("retriable-status-codes,418", "/status/503", 1),
        ("418", "/status/418", 2),
        ("retriable-headers", "/status/503", 1),
        ("http3-post-connect-failure", "/status/503", 1),
        ("envoy-ratelimited", "/marked/x-envoy-ratelimited", 2),
        ("envoy-ratelimited", "/status/429", 1),
        ("cancelled", "/grpc-status/1", 2),
        ("deadline-exceeded", "/grpc-status/4", 2),
        ("resource-exhausted", "/grpc-status/8", 2),
        ("internal", "/grpc-status/13", 2),
        ("unavailable", "/grpc-status/14", 2),
        ("unavailable", "/grpc-status/13", 1),
        ("gateway-error,reset, 5xx", "/status/500", 2),
        (" connect-failure , 503 ", "/status/503", 2),
    ] {
        let mut tried = rule("/", to("v1"));
        tried.retries = Some(retrying(tokens, 1));
        w.routes(vec![tried]);
        let before = w.v1.asked.load(SeqCst);
        w.get(path).await;
        assert_eq!(w.v1.asked.load(SeqCst) - before, tries, "{tokens} {path}");
    }
    w.node.stop().await;
}

#[tokio::test]
async fn a_try_has_a_bound_of_its_own_within_that_of_the_request() {
    let w = world("61", AppProtocol::Http11).await;
    w.destination(TrafficPolicy::default());
    let per_try = Some(Duration::from_millis(100));
    let mut tried = rule("/slow", to("v1"));
    tried.retries = Some(Retries {
        per_try_timeout: per_try,
        ..retrying("gateway-error", 2)
    });
    w.routes(vec![tried.clone()]);
    let began = std::time::Instant::now();
    let (status, _, text) = w.get("/slow").await;
    let took = began.elapsed();
    assert_eq!(
        (status.as_u16(), &text[..]),
        (504, &b"upstream request timeout"[..])
    );
    assert_eq!(w.v1.asked.load(SeqCst), 3);
    assert!(took >= Duration::from_millis(300), "{took:?}");
    w.node
        .line(&["path=/slow ", "attempts=3", "response_flags=URX,UT "])
        .await;
    // Tokens that do not speak of silence do not try again for it.
    tried.retries = Some(Retries {
        per_try_timeout: per_try,
        ..retrying("connect-failure,503", 2)
    });
    w.routes(vec![tried.clone()]);
    assert_eq!(w.get("/slow").await.0, 504);
    assert_eq!(w.v1.asked.load(SeqCst), 4);
    w.node
        .line(&["path=/slow ", "attempts=1", "response_flags=UT "])
        .await;
    // The request's own bound ends the tries.
    tried.retries = Some(Retries {
        per_try_timeout: per_try,
        ..retrying("gateway-error", 100)
    });
    tried.timeout = Some(Duration::from_millis(350));
    w.routes(vec![tried]);
    let began = std::time::Instant::now();
    assert_eq!(w.get("/slow").await.0, 504);
    assert!(began.elapsed() >= Duration::from_millis(350));
    let tries = w.v1.asked.load(SeqCst) - 4;
    assert!((1..=4).contains(&tries), "{tries}");
    w.node.stop().await;
}

#[tokio::test]
async fn another_endpoint_is_tried_unless_that_is_not_wanted() {
    let w = world("62", AppProtocol::Http11).await;
    w.destination(TrafficPolicy::default());
    let all = Action::Forward(Box::new([backend(None, 1)]));
    let mut tried = rule("/", all);
    tried.retries = Some(retrying("5xx", 1));
    w.routes(vec![tried.clone()]);
    for _ in 0..40 {
        assert_eq!(w.get("/only-v2").await.0, 200);
    }
    let failed = w.v1.asked.load(SeqCst);
    assert!(failed > 0, "no request went to the failing endpoint first");
    tried.retries.as_mut().expect("there").avoid_previous = false;
    w.routes(vec![tried]);
    let mut statuses = BTreeMap::<u16, u32>::new();
    // One in four fails twice; that none of 60 does happens once in 30 million.
    for _ in 0..60 {
        *statuses
            .entry(w.get("/only-v2").await.0.as_u16())
            .or_default() += 1;
    }
    assert!(
        statuses.contains_key(&200) && statuses.contains_key(&503),
        "{statuses:?}"
    );
    w.node.stop().await;
}

/// `retryRemoteLocalities`: endpoints in places that come later are tried, once nothing is left where the first try went.
#[tokio::test]
async fn another_place_is_tried_only_where_that_is_wanted() {
    let w = world("98", AppProtocol::Http11).await;
    let placed = |namespace: &str, name: &str, ip: &str, zone: &str| {
        let mut pod = testing::pod(namespace, name, "n1", ip);
        pod.locality.region = "region".into();
        pod.locality.zone = zone.into();
        pod
    };
    let at = |name: &str, ip: &str, zone: &str| {
        Change::Workload(testing::serving(
            placed("shop", name, ip, zone),
            "shop",
            "db",
        ))
    };
    w.node.state.apply([
        Change::Workload(placed("mesh", "waypoint", "127.7.98.9", "near")),
        at("db-1", "127.7.98.2", "near"),
        at("db-2", "127.7.98.3", "far"),
    ]);
    w.destination(TrafficPolicy {
        balancing: LoadBalancing {
            locality: Some(LocalityPreference::unasked()),
            ..LoadBalancing::default()
        },
        ..TrafficPolicy::default()
    });
    for (remote, avoid, status, tries) in [
        (false, true, 503, (2, 0)),
        (true, true, 200, (1, 1)),
        // What failed is as good as before, and near.
        (true, false, 503, (2, 0)),
    ] {
        let all = Action::Forward(Box::new([backend(None, 1)]));
        let mut tried = rule("/", all);
        tried.retries = Some(Retries {
            remote_localities: remote,
            avoid_previous: avoid,
            ..retrying("5xx", 1)
        });
        w.routes(vec![tried]);
        for _ in 0..10 {
            let asked = || (w.v1.asked.load(SeqCst), w.v2.asked.load(SeqCst));
            let before = asked();
            let got = w.get("/only-v2").await.0.as_u16();
            let after = asked();
            let made = (after.0 - before.0, after.1 - before.1);
            assert_eq!((got, made), (status, tries), "{remote} {avoid}");
        }
    }
    w.node.stop().await;
}

#[tokio::test]
async fn retries_under_way_are_bounded_by_number_or_by_budget() {
    let w = world("63", AppProtocol::Http11).await;
    let numbered = |most| TrafficPolicy {
        pool: Pool {
            max_retries: most,
            ..Pool::default()
        },
        ..TrafficPolicy::default()
    };
    let budget = |share, least, most| TrafficPolicy {
        retry_budget: Some((share, least)),
        ..numbered(most)
    };
    let mut tried = rule("/", to("v1"));
    tried.retries = Some(retrying("5xx", 1));
    w.routes(vec![tried]);
    for (policy, second, flags) in [
        (numbered(Some(1)), 503, "UO"),
        (numbered(Some(2)), 200, "-"),
        (budget(Share::NONE, 1, None), 503, "UO"),
        // Two requests are under way, half of them may be retries.
        (budget(Share::per_million(500_000), 1, None), 503, "UO"),
        (budget(Share::ALL, 0, None), 200, "-"),
        // A budget holds instead of the number.
        (budget(Share::NONE, 2, Some(1)), 200, "-"),
    ] {
        let shown = format!("{policy:?}");
        w.destination(policy);
        let cluster = w.cluster(Some("v1"));
        let script = async {
            until(|| cluster.retries.get() == 1).await;
            let other = async {
                if second == 200 {
                    until(|| cluster.retries.get() == 2).await;
                    w.v1.gate.add_permits(2);
                }
            };
            let (answer, ()) = tokio::join!(w.get("/fail-then-hold"), other);
            if second == 503 {
                w.v1.gate.add_permits(1);
            }
            answer.0.as_u16()
        };
        let (first, got) = tokio::join!(w.get("/fail-then-hold"), script);
        assert_eq!((first.0.as_u16(), got), (200, second), "{shown}");
        w.node
            .line(&[
                "path=/fail-then-hold ",
                &format!("response_code={second} response_flags={flags} "),
            ])
            .await;
    }
    w.node.stop().await;
}

#[tokio::test]
async fn what_cannot_be_reached_is_tried_again_and_said() {
    let w = world("64", AppProtocol::Http11).await;
    w.destination(TrafficPolicy::default());
    w.v1.stop().await;
    let mut tried = rule("/", to("v1"));
    tried.retries = Some(retrying("connect-failure", 1));
    w.routes(vec![tried]);
    let (status, _, text) = w.get("/x").await;
    assert_eq!(status, 503);
    assert!(
        text.ends_with(b"reset reason: connection failure"),
        "{text:?}"
    );
    w.node
        .line(&["path=/x ", "attempts=2", "response_flags=URX,UF "])
        .await;
    // With what Istio does by itself the other endpoint answers.
    let all = Action::Forward(Box::new([backend(None, 1)]));
    let mut tried = rule("/", all);
    tried.retries = Some(Retries::default_of_istio());
    w.routes(vec![tried]);
    for _ in 0..20 {
        assert_eq!(w.get("/y").await.2, "v2");
    }
    w.node.stop().await;
}

#[tokio::test]
async fn a_refused_stream_was_not_looked_at() {
    let w = world("65", AppProtocol::Http2).await;
    w.destination(TrafficPolicy::default());
    // In the place of `v1`, a server that refuses every stream.
    w.v1.stop().await;
    let listener = TcpListener::bind(w.v1.address).await.expect("free again");
    let streams = Arc::new(AtomicU32::new(0));
    let counted = streams.clone();
    tokio::spawn(async move {
        while let Ok((tcp, _)) = listener.accept().await {
            let counted = counted.clone();
            tokio::spawn(async move {
                let mut served = h2::server::handshake(tcp).await.expect("HTTP/2");
                while let Some(Ok((_, mut respond))) = served.accept().await {
                    counted.fetch_add(1, SeqCst);
                    respond.send_reset(h2::Reason::REFUSED_STREAM);
                }
            });
        }
    });
    for (tokens, tries) in [
        ("refused-stream", 3),
        ("connect-failure", 1),
        ("reset-before-request", 1),
    ] {
        let mut tried = rule("/", to("v1"));
        tried.retries = Some(retrying(tokens, 2));
        w.routes(vec![tried]);
        let before = streams.load(SeqCst);
        assert_eq!(w.get("/x").await.0, 503, "{tokens}");
        assert_eq!(streams.load(SeqCst) - before, tries, "{tokens}");
    }
    w.node
        .line(&["path=/x ", "attempts=3", "response_flags=URX,UR "])
        .await;
    w.node.stop().await;
}

#[tokio::test]
async fn a_body_that_was_not_kept_is_sent_once_and_that_is_said() {
    let w = world("66", AppProtocol::Http11).await;
    w.destination(TrafficPolicy::default());
    let mut tried = rule("/", to("v1"));
    tried.retries = Some(retrying("5xx", 3));
    w.routes(vec![tried]);
    let post = |size: usize| {
        let request = Request::post("/broken").header("host", "db");
        request
            .body(Full::from(vec![1u8; size]))
            .expect("a request")
    };
    assert_eq!(w.ask(post(200 << 10)).await.0, 503);
    assert_eq!(w.v1.asked.load(SeqCst), 4);
    assert_eq!(w.ask(post(300 << 10)).await.0, 503);
    assert_eq!(w.v1.asked.load(SeqCst), 5);
    w.node
        .line(&["attempts=1", "request_payload_exceeded_retry_buffer_limit"])
        .await;
    // However the one try ended.
    for (path, flag, details) in [
        (
            "/read-reset",
            "UC",
            "upstream_reset_before_response_started{connection_termination}",
        ),
        ("/read-slow", "UT", "response_timeout"),
    ] {
        let mut tried = rule("/", to("v1"));
        tried.retries = Some(Retries {
            per_try_timeout: Some(Duration::from_millis(500)),
            ..retrying("5xx", 3)
        });
        w.routes(vec![tried]);
        let request = Request::post(path).header("host", "db");
        let request = request.body(Full::from(vec![1u8; 300 << 10]));
        let (status, ..) = w.ask(request.expect("a request")).await;
        assert!(status.is_server_error(), "{path}: {status}");
        w.node
            .line(&[
                &format!("path={path} "),
                "attempts=1",
                &format!("response_flags={flag} "),
                &format!("request_payload_exceeded_retry_buffer_limit,{details}"),
            ])
            .await;
    }
    w.node.stop().await;
}

/// A try that is given up reads no more of the body than the one after it.
#[tokio::test]
async fn a_body_that_still_comes_goes_to_the_try_after_the_one_that_was_given_up() {
    let w = world("138", AppProtocol::Http2).await;
    w.destination(TrafficPolicy::default());
    // In the place of `v1`, a server that reads bodies and never answers.
    w.v1.stop().await;
    let listener = TcpListener::bind(w.v1.address).await.expect("free again");
    tokio::spawn(async move {
        while let Ok((tcp, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut served = h2::server::handshake(tcp).await.expect("HTTP/2");
                let mut held = Vec::new();
                while let Some(Ok((request, respond))) = served.accept().await {
                    held.push(respond);
                    tokio::spawn(async move {
                        let mut body = request.into_body();
                        while let Some(Ok(data)) = body.data().await {
                            let _ = body.flow_control().release_capacity(data.len());
                        }
                    });
                }
            });
        }
    });
    let all = Action::Forward(Box::new([backend(None, 1)]));
    let mut tried = rule("/", all);
    tried.retries = Some(Retries {
        per_try_timeout: Some(Duration::from_millis(100)),
        ..retrying("gateway-error", 1)
    });
    w.routes(vec![tried]);
    for n in 0..10 {
        let (give, body) = pieces();
        let mut client = w.client_of().await;
        let request = Request::post("/echo").header("host", "db");
        let sent = client.send_request(request.body(body).expect("a request"));
        let last = n.to_string();
        let script = async {
            for piece in ["in ", "pieces ", last.as_str()] {
                let data = Frame::data(Bytes::copy_from_slice(piece.as_bytes()));
                give.send(data).await.expect("taken");
                tokio::time::sleep(Duration::from_millis(60)).await;
            }
            drop(give);
        };
        let (answer, ()) = tokio::join!(sent, script);
        let answer = answer.expect("an answer");
        assert_eq!(
            (answer.status().as_u16(), &answer.headers()["x-app"]),
            (200, &"v2".parse().expect("good"))
        );
        let body = answer.into_body().collect().await.expect("a body");
        assert_eq!(body.to_bytes(), format!("in pieces {n}"));
    }
    w.node.stop().await;
}
