//! Copies of requests: they get there whole, and the request itself never notices them.

use super::*;

fn copied(path: &str, to_whom: &[(Option<&str>, u32)]) -> Rule {
    let mirror = |(subset, parts): &(Option<&str>, u32)| Mirror {
        backend: backend(*subset, 1),
        share: Share::per_million(*parts),
    };
    let mut rule = rule(path, to("v1"));
    rule.mirrors = to_whom.iter().map(mirror).collect();
    rule
}

#[tokio::test]
async fn a_copy_is_the_whole_request_marked_as_a_shadow() {
    let w = world("70", AppProtocol::Http11).await;
    w.destination(TrafficPolicy::default());
    let mut edited = copied("/", &[(Some("v2"), 1_000_000)]);
    edited.filters.request = HeaderEdits {
        set: Box::new([(
            "x-added".parse().expect("a name"),
            "1".parse().expect("one"),
        )]),
        ..HeaderEdits::default()
    };
    w.routes(vec![edited]);
    for (method, body) in [("GET", ""), ("POST", "a body"), ("PUT", "another body")] {
        let request = Request::builder()
            .method(method)
            .uri("/echo?a=1")
            .header("host", "db.shop:8080");
        let request = request.body(Full::from(body)).expect("a request");
        let (status, headers, echoed) = w.ask(request).await;
        assert_eq!((status.as_u16(), &echoed[..]), (200, body.as_bytes()));
        assert_eq!(headers["x-app"], "v1");
        until(|| w.v2.seen("/echo").iter().any(|s| s[0] == method)).await;
        let [_, _, host, copy] = w.v2.seen("/echo").pop().expect("one");
        assert_eq!((&*host, &*copy), ("db.shop-shadow:8080", body));
    }
    // Chunked, and of unknown length.
    let chunks = http_body_util::StreamBody::new(futures_util::stream::iter(
        ["in ", "pieces"].map(|t| Ok::<_, Infallible>(hyper::body::Frame::data(Bytes::from(t)))),
    ));
    let tcp = w.node.dial(&w.web, w.vip).await;
    let handshake = hyper::client::conn::http1::handshake(TokioIo::new(tcp)).await;
    let (mut client, connection) = handshake.expect("HTTP");
    tokio::spawn(connection);
    let request = Request::post("/echo").header("host", "db").body(chunks);
    let answer = client
        .send_request(request.expect("a request"))
        .await
        .expect("an answer");
    assert_eq!(answer.status(), 200);
    until(|| w.v2.seen("/echo").iter().any(|s| s[3] == "in pieces")).await;
    assert_eq!((w.v1.asked.load(SeqCst), w.v2.asked.load(SeqCst)), (4, 4));
    // With something behind its end.
    let (give, body) = pieces();
    let mut client = w.client_of().await;
    let request = Request::post("/echo").header("host", "db");
    let request = request.header("trailer", "x-end").body(body);
    let sent = client.send_request(request.expect("a request"));
    let script = async {
        let mut end = HeaderMap::new();
        end.insert("x-end", "here".parse().expect("good"));
        for frame in [
            Frame::data(Bytes::from_static(b"before")),
            Frame::trailers(end),
        ] {
            give.send(frame).await.expect("taken");
        }
        drop(give);
    };
    let (answer, ()) = tokio::join!(sent, script);
    assert_eq!(
        answer.expect("an answer").headers()["x-trailer-x-end"],
        "here"
    );
    until(|| {
        let mut seen = w.v2.seen("/echo").into_iter();
        seen.any(|s| s[3] == "before x-end=here")
    })
    .await;
    until(|| w.metric("warren_mirrors_total{result=\"answered\"}") == 5).await;
    w.node.stop().await;
}

/// Copies that are never answered, break, or have nowhere to go.
#[tokio::test]
async fn a_copy_neither_delays_nor_fails_the_request() {
    let w = world("71", AppProtocol::Http11).await;
    w.destination(TrafficPolicy::default());
    let nowhere = Backend {
        service: testing::service_name("shop", "nowhere"),
        ..backend(None, 1)
    };
    let mut lost = copied("/lost", &[]);
    lost.mirrors = Box::new([Mirror {
        backend: nowhere,
        share: Share::ALL,
    }]);
    w.routes(vec![
        lost,
        copied("/gone", &[(Some("v3"), 1_000_000)]),
        copied("/", &[(Some("v2"), 1_000_000)]),
    ]);
    for path in ["/lost", "/gone", "/hold-v2", "/reset-v2"] {
        for _ in 0..3 {
            let (status, headers, _) = w.get(path).await;
            assert_eq!(
                (status.as_u16(), &headers["x-app"]),
                (200, &"v1".parse().expect("good")),
                "{path}"
            );
        }
        w.node
            .line(&[
                &format!("path={path} "),
                "response_flags=- ",
                "response_code=200",
            ])
            .await;
    }
    // The silent ones were sent and are still waited for, which nobody notices.
    until(|| w.cluster(Some("v2")).requests.get() == 3).await;
    w.v2.gate.add_permits(3);
    until(|| w.cluster(Some("v2")).requests.get() == 0).await;
    // A body that is larger than what is kept goes to its service alone.
    let much = Bytes::from(vec![5u8; 300 << 10]);
    let request = Request::post("/echo").header("host", "db");
    let request = request.body(Full::new(much.clone())).expect("a request");
    let (status, _, echoed) = w.ask(request).await;
    assert!(status == 200 && echoed == much);
    assert!(w.v2.seen("/echo").is_empty());
    for (path, why) in [("/echo", "body_not_kept"), ("/lost", "no_backend")] {
        let detail = format!("response_code_details=mirror_not_sent{{{why}}}");
        w.node.line(&[&format!("path={path} "), &detail]).await;
        let counted = format!("warren_mirrors_total{{result=\"{why}\"}}");
        assert!(w.metric(&counted) > 0, "{why}");
    }
    // A request that fails is copied all the same.
    assert_eq!(w.get("/status/500").await.0, 500);
    until(|| w.v2.seen("/status/500").len() == 1).await;
    w.node.stop().await;
}

#[tokio::test]
async fn several_get_their_shares() {
    let w = world("72", AppProtocol::Http11).await;
    w.destination(TrafficPolicy::default());
    w.routes(vec![copied(
        "/",
        &[(Some("v2"), 250_000), (Some("v2"), 1_000_000)],
    )]);
    let mut client = w.client().await;
    for _ in 0..400 {
        let response = client.send_request(get("/x")).await.expect("an answer");
        response.into_body().collect().await.expect("a body");
        client.ready().await.expect("kept alive");
    }
    let cluster = w.cluster(Some("v2"));
    until(|| w.v2.asked.load(SeqCst) >= 400 && cluster.requests.get() == 0).await;
    // 100 of 400 are expected beside all; beyond 60 and 144 lies less than one in a million.
    let drawn = w.v2.asked.load(SeqCst) - 400;
    assert!((60..=144).contains(&drawn), "{drawn}");
    assert_eq!(w.v1.asked.load(SeqCst), 400);
    w.node.stop().await;
}
