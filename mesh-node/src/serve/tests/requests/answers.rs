//! What becomes of a request, and how it is reported: routes, edits, faults, refusals.

use super::*;

#[tokio::test]
async fn a_request_goes_through_and_is_reported() {
    let w = world("50", AppProtocol::Http11).await;
    let (status, headers, body) = w.get("/hello/../there?x=1").await;
    assert_eq!(status, 200);
    assert!(body == "v1" || body == "v2", "{body:?}");
    assert_eq!(headers["x-saw-target"], "/there?x=1");
    assert_eq!(headers["x-saw-host"], "db.shop:8080");
    assert_eq!(
        headers["x-saw-x-forwarded-for"],
        w.web.ip.to_string().as_str()
    );
    assert_eq!(headers["x-saw-x-forwarded-proto"], "http");
    assert_eq!(headers["x-saw-x-request-id"].len(), 36);
    assert!(headers.contains_key("x-envoy-upstream-service-time"));
    let line = w.node.line(&["request complete"]).await;
    for part in [
        "direction=through",
        "src.workload=web",
        "src.identity=spiffe://cluster.local/ns/shop/sa/web",
        "dst.service=db.shop.svc.cluster.local",
        "dst.workload=db-",
        "method=GET",
        "path=\"/hello/../there?x=1\"",
        "protocol=HTTP/1.1",
        "response_code=200",
        "response_flags=-",
        "bytes_sent=2",
        "authority=db.shop:8080",
        "upstream_cluster=outbound|8080||db.shop.svc.cluster.local",
        "route_name=default",
        "attempts=1",
    ] {
        assert!(line.contains(part), "{part} is not in {line}");
    }
    let text = w.node.shared.observer.metrics().text().expect("text");
    let counted = text
        .lines()
        .find(|l| l.starts_with("istio_requests_total{"))
        .expect("counted");
    for part in [
        "reporter=\"waypoint\"",
        "response_code=\"200\"",
        "response_flags=\"-\"",
        "request_protocol=\"http\"",
        "source_principal=\"spiffe://cluster.local/ns/shop/sa/web\"",
        "destination_service_name=\"db\"",
        "connection_security_policy=\"mutual_tls\"",
    ] {
        assert!(counted.contains(part), "{part} is not in {counted}");
    }
    assert!(text.contains("istio_request_duration_milliseconds_bucket{"));
    w.node.stop().await;
}

#[tokio::test]
async fn sizes_of_bodies_are_counted() {
    let w = world("125", AppProtocol::Http11).await;
    let body = Bytes::from(vec![b'x'; 600]);
    let request = Request::post("/echo").header("host", "db.shop:8080");
    let request = request.body(Full::new(body.clone())).expect("a request");
    let (status, _, answer) = w.ask(request).await;
    assert_eq!((status.as_u16(), answer), (200, body));
    w.get("/x").await;
    w.node.line(&["path=/echo ", "bytes_sent=600"]).await;
    w.node.line(&["path=/x ", "bytes_received=0"]).await;
    let text = w.node.shared.observer.metrics().text().expect("text");
    // Both requests may have gone to different pods, which are label sets of their own.
    let sum = |name: &str, part: &str| -> f64 {
        let lines = text.lines().filter(|l| l.starts_with(name));
        let lines = lines.filter(|l| l.contains(part) && l.contains("reporter=\"waypoint\""));
        let last = lines.map(|l| l.rsplit(' ').next().and_then(|n| n.parse::<f64>().ok()));
        last.map(|n| n.expect("a number")).sum()
    };
    for (name, bytes, below) in [
        ("istio_request_bytes", 600.0, 1.0),
        ("istio_response_bytes", 602.0, 1.0),
    ] {
        let of = |rest: &str| format!("{name}_{rest}{{");
        assert_eq!(sum(&of("count"), "response_code=\"200\""), 2.0, "{text}");
        assert_eq!(sum(&of("sum"), ""), bytes, "{text}");
        assert_eq!(sum(&of("bucket"), "le=\"500.0\""), below, "{text}");
        assert_eq!(sum(&of("bucket"), "le=\"1000.0\""), 2.0, "{text}");
    }
    w.node.stop().await;
}

#[tokio::test]
async fn rules_match_edit_and_answer() {
    let w = world("51", AppProtocol::Http11).await;
    w.destination(TrafficPolicy::default());
    let edits = |name: &'static str, value: &'static str| HeaderEdits {
        set: Box::new([(name.parse().expect("a name"), value.parse().expect("one"))]),
        ..HeaderEdits::default()
    };
    let mut rewritten = rule("/old", to("v2"));
    rewritten.filters = Filters {
        rewrite: Some(Rewrite {
            authority: Some("other.example".into()),
            path: Some(PathRewrite::Prefix("/new".into())),
        }),
        request: edits("x-added", "1"),
        response: edits("x-answered", "2"),
    };
    let redirect = Redirect {
        status: 301,
        scheme: None,
        host: Some("example.com".into()),
        port: None,
        path: None,
    };
    let respond = Respond {
        status: 418,
        body: Bytes::from_static(b"short and stout"),
    };
    let mut aborted = rule("/abort", to("v1"));
    aborted.fault = Some(Fault {
        delay: None,
        abort: Some((Share::ALL, Abort::Http(555))),
    });
    w.routes(vec![
        rewritten,
        rule("/moved", Action::Redirect(redirect)),
        rule("/teapot", Action::Respond(respond)),
        aborted,
        rule("/invalid", Action::Invalid("for this reason".into())),
        rule("/gone", to("v3")),
        rule("/zero", Action::Forward(Box::new([backend(None, 0)]))),
        rule("/v1", to("v1")),
    ]);
    let (status, headers, body) = w.get("/old/path?q").await;
    assert_eq!((status.as_u16(), &body[..]), (200, &b"v2"[..]));
    assert_eq!(headers["x-saw-target"], "/new/path?q");
    assert_eq!(headers["x-saw-host"], "other.example");
    assert_eq!(headers["x-saw-x-added"], "1");
    assert_eq!(headers["x-answered"], "2");
    let (status, headers, _) = w.get("/moved").await;
    assert_eq!(status, 301);
    assert_eq!(headers["location"], "http://example.com:8080/moved");
    for (path, status, flags, body) in [
        ("/teapot", 418, "-", "short and stout"),
        ("/abort", 555, "FI", "fault filter abort"),
        ("/invalid", 500, "NC", ""),
        ("/zero", 500, "NC", ""),
        ("/gone", 503, "UH", "no healthy upstream"),
        ("/none", 404, "NR", ""),
        ("/v1", 200, "-", "v1"),
    ] {
        let (got, _, text) = w.get(path).await;
        assert_eq!((got.as_u16(), &*text), (status, body.as_bytes()), "{path}");
        let (path, code) = (format!("path={path} "), format!("response_code={status}"));
        let flags = format!("response_flags={flags} ");
        w.node
            .line(&["request complete", &path, &code, &flags])
            .await;
    }
    w.node.stop().await;
}

#[tokio::test]
async fn weights_hold_over_many_requests() {
    let w = world("52", AppProtocol::Http11).await;
    w.destination(TrafficPolicy::default());
    let split = Action::Forward(Box::new([backend(Some("v1"), 80), backend(Some("v2"), 20)]));
    w.routes(vec![rule("/", split)]);
    let mut client = w.client().await;
    let mut seen = BTreeMap::<Bytes, u32>::new();
    for _ in 0..1000 {
        let response = client.send_request(get("/")).await.expect("an answer");
        let body = response.into_body().collect().await.expect("a body");
        *seen.entry(body.to_bytes()).or_default() += 1;
        client.ready().await.expect("kept alive");
    }
    // 200 are expected; beyond 138 and 266 lies less than one in a million.
    let v2 = seen[&Bytes::from_static(b"v2")];
    assert!((138..=266).contains(&v2), "{seen:?}");
    assert_eq!(w.v1.asked.load(SeqCst) + w.v2.asked.load(SeqCst), 1000);
    w.node.stop().await;
}

#[tokio::test]
async fn what_cannot_be_understood_is_refused() {
    let w = world("58", AppProtocol::Http11).await;
    for (request, expect) in [
        ("GET / HTTP/1.1\r\n\r\n", "HTTP/1.1 400"),
        (
            "GET / HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n",
            "HTTP/1.1 400",
        ),
        ("GET /a%00b HTTP/1.1\r\nhost: a\r\n\r\n", "HTTP/1.1 400"),
        ("CONNECT a:1 HTTP/1.1\r\nhost: b:1\r\n\r\n", "HTTP/1.1 400"),
        (
            "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nab",
            "HTTP/1.1 400",
        ),
        ("hello\r\n\r\n", "HTTP/1.1 400"),
    ] {
        let mut tcp = w.node.dial(&w.web, w.vip).await;
        tcp.write_all(request.as_bytes()).await.expect("sent");
        let mut start = [0; 12];
        let read = tcp.read_exact(&mut start);
        let read = tokio::time::timeout(Duration::from_secs(5), read).await;
        read.expect("an answer").expect("an answer");
        assert_eq!(String::from_utf8_lossy(&start), expect, "{request:?}");
    }
    assert_eq!(w.v1.asked.load(SeqCst) + w.v2.asked.load(SeqCst), 0);
    w.node.stop().await;
}

/// Requests in which two readers could see different ones: refused, or seen as one by the application as well.
#[tokio::test]
async fn nothing_is_smuggled() {
    let w = world("59", AppProtocol::Http11).await;
    let smuggled = "GET /smuggled HTTP/1.1\r\nhost: a\r\n\r\n";
    let post =
        |head: &str, body: &str| format!("POST /first HTTP/1.1\r\nhost: a\r\n{head}\r\n{body}");
    let chunk = format!("{:x}\r\n{smuggled}\r\n0\r\n\r\n", smuggled.len());
    let length = format!("content-length: {}\r\n", smuggled.len());
    for request in [
        // Two lengths, by header or by coding.
        post("content-length: 0\r\ncontent-length: 5\r\n", smuggled),
        post("content-length: 5, 6\r\n", smuggled),
        post("content-length: +5\r\n", smuggled),
        post("content-length: 0x5\r\n", smuggled),
        post("content-length: -1\r\n", smuggled),
        post("content-length: 5 6\r\n", smuggled),
        post(
            "transfer-encoding: chunked\r\ntransfer-encoding: identity\r\n",
            &format!("0\r\n\r\n{smuggled}"),
        ),
        post(
            "transfer-encoding: identity, chunked, identity\r\n",
            &format!("0\r\n\r\n{smuggled}"),
        ),
        post(
            "transfer-encoding: xchunked\r\n",
            &format!("0\r\n\r\n{smuggled}"),
        ),
        post(&format!("{length}transfer-encoding : chunked\r\n"), &chunk),
        post(" transfer-encoding: chunked\r\n", &chunk),
        post("x: 1\r\n\ttransfer-encoding: chunked\r\n", &chunk),
        post("transfer-encoding:\x0bchunked\r\n", &chunk),
        // Chunks that are none.
        post(
            "transfer-encoding: chunked\r\n",
            &format!("0x0\r\n\r\n{smuggled}"),
        ),
        post(
            "transfer-encoding: chunked\r\n",
            &format!("-1\r\n\r\n{smuggled}"),
        ),
        post(
            "transfer-encoding: chunked\r\n",
            &format!("fffffffffffffffff\r\n{smuggled}"),
        ),
        post(
            "transfer-encoding: chunked\r\n",
            &format!("1\r\nab\r\n0\r\n\r\n{smuggled}"),
        ),
        // Heads that are read in two ways.
        format!("GET /first HTTP/1.1\r\nhost: a\r\n bad: fold\r\n\r\n{smuggled}"),
        format!("GET /first HTTP/1.1\r\nhost: a\r\nna me: x\r\n\r\n{smuggled}"),
        format!("GET /first HTTP/1.1\r\nhost: a\0b\r\n\r\n{smuggled}"),
        format!("GET /first HTTP/1.1\r\nhost: a\r\nx: a\rb\r\n\r\n{smuggled}"),
        format!("GET /first HTTP/9.9\r\nhost: a\r\n\r\n{smuggled}"),
        format!("GET /first /second HTTP/1.1\r\nhost: a\r\n\r\n{smuggled}"),
    ] {
        let mut tcp = w.node.dial(&w.web, w.vip).await;
        tcp.write_all(request.as_bytes()).await.expect("sent");
        let mut all = Vec::new();
        let read = tokio::time::timeout(Duration::from_secs(5), tcp.read_to_end(&mut all)).await;
        // The connection ends: nobody knows what would be next on it.
        let ended =
            read.unwrap_or_else(|_| panic!("not ended: {request:?}, {}", all.escape_ascii()));
        let answer = String::from_utf8_lossy(&all).into_owned();
        // A body that turns out to be none ends the request on both sides.
        let refused = ["HTTP/1.1 400", "HTTP/1.1 503"];
        let refused = refused.iter().any(|start| answer.starts_with(start));
        let bad = answer.is_empty() || refused || ended.is_err();
        assert!(bad, "{request:?}: {answer}");
        assert!(
            w.v1.seen("/smuggled").is_empty() && w.v2.seen("/smuggled").is_empty(),
            "{request:?}"
        );
    }
    // Both a length and chunks: the chunks hold, and the length does not go on (RFC 9112, 6.3).
    let both = post(
        "content-length: 3\r\ntransfer-encoding: chunked\r\n",
        &chunk,
    );
    let mut tcp = w.node.dial(&w.web, w.vip).await;
    tcp.write_all(both.as_bytes()).await.expect("sent");
    let mut start = [0; 12];
    tcp.read_exact(&mut start).await.expect("an answer");
    if &start == b"HTTP/1.1 200" {
        let seen = [w.v1.seen("/first"), w.v2.seen("/first")].concat();
        assert!(seen.iter().all(|s| s[3] == smuggled), "{seen:?}");
    }
    assert!(w.v1.seen("/smuggled").is_empty() && w.v2.seen("/smuggled").is_empty());
    w.node.stop().await;
}
