//! How long clients of gRPC wait, and what is counted of their messages.

use super::*;

/// What a call to `path` sends, waited for as `patience` says.
fn call(path: &str, patience: &str, body: Bytes) -> Request<Full<Bytes>> {
    let request = Request::post(format!("http://db.shop:8080{path}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers");
    let request = match patience.is_empty() {
        true => request,
        false => request.header("grpc-timeout", patience),
    };
    request.body(Full::new(body)).expect("a request")
}

/// As Envoy does with Istio's `max_grpc_timeout`, which is the route's timeout.
#[tokio::test]
async fn a_client_of_grpc_waits_as_long_as_it_says_and_its_rule_allows() {
    let w = world("135", AppProtocol::Grpc).await;
    w.destination(TrafficPolicy::default());
    let mut timed = rule("/slow/timed", to("v1"));
    timed.timeout = Some(Duration::from_millis(200));
    w.routes(vec![timed, rule("/", to("v1"))]);
    let mut client = w.client2().await;
    for (path, patience, status, within) in [
        // Its own patience, and what a rule allows where that is less, or nothing is said.
        ("/slow/x", "200m", "4", 200..2000),
        ("/slow/timed", "3S", "14", 200..2000),
        ("/slow/timed", "50m", "4", 50..200),
        ("/slow/timed", "", "14", 200..2000),
        // What is no patience at all, or cannot be understood, bounds nothing.
        ("/grpc", "0m", "0", 0..2000),
        ("/grpc", "soon", "0", 0..2000),
    ] {
        let began = std::time::Instant::now();
        let answer = client
            .send_request(call(path, patience, Bytes::new()))
            .await;
        let answer = answer.expect("an answer");
        let took = began.elapsed().as_millis();
        assert!(within.contains(&took), "{path} {patience}: {took} ms");
        assert_eq!(answer.status(), 200, "{path} {patience}");
        let (parts, body) = answer.into_parts();
        let body = body.collect().await.expect("a body");
        let told = parts.headers.get("grpc-status").or_else(|| {
            let trailers = body.trailers()?;
            trailers.get("grpc-status")
        });
        assert_eq!(told.expect("a status"), status, "{path} {patience}");
    }
    w.node
        .line(&["path=/slow/x ", "response_flags=UT ", "grpc_status=4"])
        .await;
    // What speaks no gRPC knows no such header.
    let request = Request::get("/v1")
        .header("host", "db")
        .header("grpc-timeout", "1n");
    let request = request.body(Full::default()).expect("a request");
    assert_eq!(w.ask(request).await.0, 200);
    w.node.stop().await;
}

#[tokio::test]
async fn an_endpoint_is_told_how_long_its_answer_is_waited_for() {
    let w = world("136", AppProtocol::Grpc).await;
    w.destination(TrafficPolicy::default());
    let mut timed = rule("/timed", to("v1"));
    timed.timeout = Some(Duration::from_secs(7));
    let mut tried = rule("/tried", to("v1"));
    tried.timeout = Some(Duration::from_secs(7));
    tried.retries = Some(Retries {
        per_try_timeout: Some(Duration::from_secs(3)),
        ..Retries::default_of_istio()
    });
    w.routes(vec![timed, tried, rule("/", to("v1"))]);
    let mut client = w.client2().await;
    for (path, patience, least, most) in [
        ("/timed", "", 7000, 7000),
        ("/timed", "1H", 7000, 7000),
        ("/timed", "5S", 4000, 5000),
        ("/tried", "5S", 3000, 3000),
        ("/plain", "5S", 4000, 5000),
    ] {
        let answer = client
            .send_request(call(path, patience, Bytes::new()))
            .await;
        let answer = answer.expect("an answer");
        let told = answer.headers()["x-saw-grpc-timeout"]
            .to_str()
            .expect("text");
        let ms: u64 = told.strip_suffix('m').expect(told).parse().expect("digits");
        assert!((least..=most).contains(&ms), "{path} {patience}: {told}");
    }
    let answer = client.send_request(call("/plain", "", Bytes::new())).await;
    let answer = answer.expect("an answer");
    assert!(!answer.headers().contains_key("x-saw-grpc-timeout"));
    w.node.stop().await;
}

#[tokio::test]
async fn messages_of_grpc_are_counted_both_ways() {
    let w = world("137", AppProtocol::Grpc).await;
    let mut client = w.client2().await;
    let mut three = Vec::new();
    for message in ["", "one", "another"] {
        three.push(0);
        three.extend(u32::try_from(message.len()).expect("small").to_be_bytes());
        three.extend(message.as_bytes());
    }
    // Echoed, so that as many come back, but for the second call, which brings two bytes that are no message.
    for path in ["/echo", "/grpc"] {
        let answer = client
            .send_request(call(path, "", three.clone().into()))
            .await;
        let body = answer.expect("an answer").into_body();
        body.collect().await.expect("a body");
        w.node.line(&[&format!("path={path} ")]).await;
    }
    assert_eq!(w.metric("istio_request_messages_total{"), 6);
    assert_eq!(w.metric("istio_response_messages_total{"), 3);
    // Requests that are none of gRPC's have no such figures.
    assert_eq!(w.get("/x").await.0, 200);
    w.node.line(&["path=/x "]).await;
    let text = w.node.shared.observer.metrics().text().expect("text");
    let lines = text
        .lines()
        .filter(|l| l.starts_with("istio_request_messages_total{"));
    for line in lines {
        assert!(line.contains("request_protocol=\"grpc\""), "{line}");
    }
    w.node.stop().await;
}
