//! A waypoint that is told to go, and its log in JSON.

use super::*;

#[tokio::test]
async fn requests_under_way_end_and_connections_close_after_them() {
    let w = world("75", AppProtocol::Unknown).await;
    // A connection of each kind that carries a request, and one of each that is idle.
    let (mut one, mut two) = (w.client().await, w.client2().await);
    let (mut idle_one, mut idle_two) = (w.client().await, w.client2().await);
    assert_eq!(ask2(&mut idle_two, "/").await.0, 200);
    let answer = idle_one.send_request(get("/")).await.expect("an answer");
    answer.into_body().collect().await.expect("a body");
    let held = async { one.send_request(get("/hold")).await };
    let script = async {
        until(|| w.v1.asked.load(SeqCst) + w.v2.asked.load(SeqCst) == 4).await;
        w.node.threads.drain();
        // Idle connections are closed at once.
        let closed = async {
            while idle_one.ready().await.is_ok() {
                tokio::task::yield_now().await;
            }
            while idle_two.ready().await.is_ok() {
                tokio::task::yield_now().await;
            }
        };
        let closed = tokio::time::timeout(Duration::from_secs(10), closed).await;
        closed.expect("idle connections close");
        // Both requests are still waited for.
        w.v1.gate.add_permits(2);
        w.v2.gate.add_permits(2);
    };
    let (first, second, ()) = tokio::join!(held, ask2(&mut two, "/hold"), script);
    let first = first.expect("an answer");
    assert_eq!((first.status().as_u16(), second.0.as_u16()), (200, 200));
    first.into_body().collect().await.expect("a whole body");
    let closed = tokio::time::timeout(Duration::from_secs(10), async {
        while one.ready().await.is_ok() {
            tokio::task::yield_now().await;
        }
        while two.ready().await.is_ok() {
            tokio::task::yield_now().await;
        }
    });
    closed
        .await
        .expect("connections close after their requests");
    w.node.stop().await;
}

#[tokio::test]
async fn a_line_in_json_is_one_object_with_the_documented_keys() {
    let node = Node::logging(AccessFormat::Json).await;
    let w = world_on(node, "76", AppProtocol::Http11).await;
    let request = Request::post("/echo?q=%221%22").header("host", "db.shop:8080");
    let request = request.header("user-agent", "a \"quoted\" \\ agent");
    let request = request.body(Full::from("four"));
    assert_eq!(w.ask(request.expect("a request")).await.0, 200);
    let line = w.node.line(&["request complete"]).await;
    let read: serde_json::Value = serde_json::from_str(&line).expect("JSON");
    for (key, expect) in [
        ("message", serde_json::json!("request complete")),
        ("direction", "through".into()),
        ("src.workload", "web".into()),
        ("method", "POST".into()),
        ("path", "/echo?q=%221%22".into()),
        ("protocol", "HTTP/1.1".into()),
        ("response_code", 200.into()),
        ("response_flags", "-".into()),
        ("bytes_received", 4.into()),
        ("bytes_sent", 4.into()),
        ("user_agent", "a \"quoted\" \\ agent".into()),
        ("authority", "db.shop:8080".into()),
        (
            "upstream_cluster",
            "outbound|8080||db.shop.svc.cluster.local".into(),
        ),
        ("route_name", "default".into()),
        ("attempts", 1.into()),
    ] {
        assert_eq!(read[key], expect, "{key} in {line}");
    }
    for key in [
        "duration",
        "upstream_service_time",
        "request_id",
        "x_forwarded_for",
        "timestamp",
    ] {
        assert!(read[key].is_string(), "{key} in {line}");
    }
    assert!(read.get("grpc_status").is_none(), "{line}");
    w.node.stop().await;
}
