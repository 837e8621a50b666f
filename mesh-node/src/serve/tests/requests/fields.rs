//! Fields of requests and answers that a waypoint leaves as they came, and does not act upon.

use super::{
    dialects::{head, spoken_for},
    *,
};

/// Who answered, and by way of whom, is the application's to say.
#[tokio::test]
async fn server_and_via_are_left_alone() {
    let w = world("158", AppProtocol::Http11).await;
    let listener = spoken_for(&w).await;
    tokio::spawn(async move {
        while let Ok((mut tcp, _)) = listener.accept().await {
            let asked = head(&mut tcp).await;
            let names = match asked.starts_with("GET /named ") {
                true => "server: own/1.0 (test)\r\nvia: 1.1 inner\r\nvia: 1.0 outer (test)\r\n",
                false => "",
            };
            let told = asked.lines().filter(|line| line.starts_with("via: "));
            let told: String = told.map(|line| format!("x-saw-{line}\r\n")).collect();
            let rest = "content-length: 0\r\nconnection: close\r\n";
            let answer = format!("HTTP/1.1 200 OK\r\n{names}{told}{rest}\r\n");
            tcp.write_all(answer.as_bytes()).await.expect("sent");
        }
    });
    for (path, sent, server, via) in [
        (
            "/named",
            &["1.1 client", "2 before"][..],
            &["own/1.0 (test)"][..],
            &["1.1 inner", "1.0 outer (test)"][..],
        ),
        ("/nameless", &[], &[], &[]),
    ] {
        let mut request = Request::get(path).header("host", "db");
        for value in sent {
            request = request.header("via", *value);
        }
        let request = request.body(Full::default()).expect("a request");
        let (status, headers, _) = w.ask(request).await;
        assert_eq!(status, 200, "{path}");
        for (name, expect) in [("server", server), ("via", via), ("x-saw-via", sent)] {
            let all: Vec<_> = headers.get_all(name).iter().collect();
            assert_eq!(all, expect, "{name} of {path}");
        }
    }
    w.node.stop().await;
}

/// What Envoy takes from clients, a client cannot have more of than its service's rules give, nor less.
#[tokio::test]
async fn clients_do_not_say_how_often_or_how_long_is_tried() {
    let w = world("159", AppProtocol::Http11).await;
    w.destination(TrafficPolicy::default());
    let wishes = [
        ("x-envoy-retry-on", "5xx,reset,retriable-4xx"),
        ("x-envoy-retry-grpc-on", "unavailable"),
        ("x-envoy-max-retries", "5"),
        ("x-envoy-upstream-rq-timeout-ms", "1"),
        ("x-envoy-upstream-rq-per-try-timeout-ms", "1"),
        ("x-envoy-hedge-on-per-try-timeout", "true"),
    ];
    let wishing = |path: &str, others: &[(&'static str, &'static str)]| {
        let mut request = get(path);
        for (name, value) in wishes.iter().chain(others) {
            let value = value.parse().expect("a value");
            request.headers_mut().insert(*name, value);
        }
        request
    };
    let mut tried = rule("/status/501", to("v1"));
    tried.retries = Some(Retries {
        attempts: 1,
        on: RetryOn::parse("5xx").0,
        backoff: Duration::from_millis(1),
        ..Retries::default_of_istio()
    });
    let mut bounded = rule("/slow", to("v1"));
    bounded.timeout = Some(Duration::from_millis(200));
    w.routes(vec![tried, bounded, rule("/", to("v1"))]);
    let less: &[_] = &[("x-envoy-max-retries", "0"), ("x-envoy-retry-on", "")];
    let longer: &[_] = &[("x-envoy-upstream-rq-timeout-ms", "60000")];
    for (path, others, status, tries) in [
        ("/status/500", &[][..], 500, 1),
        ("/status/409", &[], 409, 1),
        ("/reset", &[], 503, 1),
        ("/status/501", &[], 501, 2),
        ("/status/501", less, 501, 2),
        ("/slow", longer, 504, 1),
    ] {
        let before = w.v1.asked.load(SeqCst);
        let got = w.ask(wishing(path, others)).await.0.as_u16();
        let made = w.v1.asked.load(SeqCst) - before;
        assert_eq!((got, made), (status, tries), "{path} {others:?}");
    }
    // Far longer than the millisecond that was wished for; and the application knows of all of it.
    let script = async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        w.v1.gate.add_permits(1);
    };
    let ((status, headers, _), ()) = tokio::join!(w.ask(wishing("/hold", &[])), script);
    assert_eq!(status, 200);
    for (name, value) in wishes {
        assert_eq!(headers[format!("x-saw-{name}").as_str()], value);
    }
    w.node.stop().await;
}
