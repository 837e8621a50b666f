//! How long clients are waited for, and when a request's own time begins.

use super::*;

fn impatient() -> Limits {
    Limits {
        http_idle: Duration::from_secs(2),
        http_head: Duration::from_millis(300),
        ..limits()
    }
}

/// Waits until the other side has ended the connection, and says how long that took.
async fn ended(tcp: &mut TcpStream) -> Duration {
    let began = std::time::Instant::now();
    let mut rest = Vec::new();
    let end = tokio::time::timeout(Duration::from_secs(10), tcp.read_to_end(&mut rest)).await;
    // In order or not, it has ended.
    let _ = end.expect("ended in time");
    began.elapsed()
}

#[tokio::test]
async fn a_client_that_has_begun_a_head_has_less_time_than_a_silent_one() {
    let w = world_on(Node::within(impatient()).await, "132", AppProtocol::Http11).await;
    let (head, idle) = (impatient().http_head, impatient().http_idle);
    for (begins, least, most) in [
        // Not enough to know what it speaks, then a head that never ends, then nothing at all.
        ("GE", head, idle),
        ("PRI * HTTP/2.0\r\n", head, idle),
        ("GET / HTTP/1.1\r\nhost: a\r\nx", head, idle),
        ("", idle, idle * 3),
    ] {
        let mut tcp = w.node.dial(&w.web, w.vip).await;
        tcp.write_all(begins.as_bytes()).await.expect("sent");
        let took = ended(&mut tcp).await;
        assert!(took >= least && took < most, "{begins:?}: {took:?}");
    }
    w.node
        .line(&["connection failed", "reason=idle_timeout"])
        .await;
    // Between two requests a client is silent, and in the second it may not linger.
    let mut tcp = w.node.dial(&w.web, w.vip).await;
    for _ in 0..2 {
        tcp.write_all(b"GET /echo HTTP/1.1\r\nhost: a\r\n\r\n")
            .await
            .expect("sent");
        let mut answer = Vec::new();
        while !answer.ends_with(b"\r\n\r\n") {
            answer.push(tcp.read_u8().await.expect("an answer"));
        }
        tokio::time::sleep(head * 2).await;
    }
    tcp.write_all(b"GET /").await.expect("sent");
    let took = ended(&mut tcp).await;
    assert!(took >= head && took < idle, "{took:?}");
    // No place is held by any of them.
    until(|| w.node.shared.flows.load(SeqCst) <= 8).await;
    w.node.stop().await;
}

#[tokio::test]
async fn a_silent_client_is_let_go_when_the_waypoint_drains() {
    let w = world("133", AppProtocol::Http11).await;
    let mut tcp = w.node.dial(&w.web, w.vip).await;
    // Its connection has come to the waypoint when another one was answered after it.
    assert_eq!(w.get("/").await.0, 200);
    tokio::time::sleep(Duration::from_millis(100)).await;
    w.node.threads.drain();
    ended(&mut tcp).await;
    w.node
        .line(&["connection failed", "direction=through", "reason=draining"])
        .await;
    w.node.stop().await;
}

/// As Envoy, whose `timeout` spans from the end of the request to the end of the response.
#[tokio::test]
async fn a_rules_timeout_begins_when_all_of_the_request_came() {
    let w = world("134", AppProtocol::Unknown).await;
    w.destination(TrafficPolicy::default());
    let mut timed = rule("/", to("v1"));
    timed.timeout = Some(Duration::from_millis(300));
    w.routes(vec![timed]);
    let slowly = |path: &'static str| {
        let w = &w;
        async move {
            let (give, body) = pieces();
            let mut client = w.client_of().await;
            let request = Request::post(path).header("host", "db").body(body);
            let sent = client.send_request(request.expect("a request"));
            let script = async {
                for _ in 0..6 {
                    give.send(Frame::data(Bytes::from_static(b"x")))
                        .await
                        .expect("taken");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
                drop(give);
                std::time::Instant::now()
            };
            let answer = async { (sent.await.expect("an answer"), std::time::Instant::now()) };
            let ((answer, at), end) = tokio::join!(answer, script);
            let status = answer.status().as_u16();
            let body = answer
                .into_body()
                .collect()
                .await
                .expect("a body")
                .to_bytes();
            (status, body, at.saturating_duration_since(end))
        }
    };
    // Whoever sends for longer than that is not cut off for it.
    let (status, body, _) = slowly("/echo").await;
    assert_eq!((status, &body[..]), (200, &b"xxxxxx"[..]));
    // Whoever answers late is, from the end on.
    let (status, _, after) = slowly("/read-slow").await;
    assert_eq!(status, 504);
    assert!(after >= Duration::from_millis(250), "{after:?}");
    // An endpoint that does not even take the body keeps nobody waiting.
    let began = std::time::Instant::now();
    let request = Request::post("/hold").header("host", "db");
    let request = request.body(Full::from(vec![1; 100 << 10]));
    let (status, ..) = w.ask(request.expect("a request")).await;
    assert_eq!(status, 504);
    let took = began.elapsed();
    assert!(took >= Duration::from_millis(300), "{took:?}");
    assert!(took < Duration::from_secs(5), "{took:?}");
    w.node.line(&["path=/hold ", "response_flags=UT "]).await;
    w.node.stop().await;
}
