//! What HTTP allows beside plain requests and answers: trailers, interim answers, requests behind each other, HTTP/1.0, and
//! bodies that take their time.

use super::*;

/// Sends bytes on a connection of their own, and gives all that comes back until it ends.
async fn say(w: &World, text: &str) -> String {
    let mut tcp = w.node.dial(&w.web, w.vip).await;
    tcp.write_all(text.as_bytes()).await.expect("sent");
    let mut all = Vec::new();
    let read = tokio::time::timeout(Duration::from_secs(10), tcp.read_to_end(&mut all)).await;
    read.expect("ended in time").expect("ended in order");
    String::from_utf8(all).expect("text")
}

#[tokio::test]
async fn trailers_of_http1_go_both_ways() {
    let w = world("139", AppProtocol::Http11).await;
    let chunked = "POST /echo HTTP/1.1\r\nhost: db\r\nte: trailers\r\nconnection: close\r\n\
        transfer-encoding: chunked\r\ntrailer: x-end\r\n\r\n4\r\nbody\r\n0\r\nx-end: here\r\n\r\n";
    let answer = say(&w, chunked).await;
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    assert!(answer.contains("x-trailer-x-end: here\r\n"), "{answer}");
    w.node.line(&["path=/echo ", "bytes_received=4"]).await;
    w.node.stop().await;
}

#[tokio::test]
async fn a_client_that_waits_to_be_told_to_go_on_is_told() {
    let w = world("140", AppProtocol::Http11).await;
    let mut tcp = w.node.dial(&w.web, w.vip).await;
    let head = b"POST /echo HTTP/1.1\r\nhost: db\r\nconnection: close\r\nexpect: 100-continue\r\n\
        content-length: 4\r\n\r\n";
    tcp.write_all(head).await.expect("sent");
    let mut interim = [0; 25];
    let read = tcp.read_exact(&mut interim);
    let read = tokio::time::timeout(Duration::from_secs(10), read).await;
    read.expect("in time").expect("an interim answer");
    assert_eq!(&interim, b"HTTP/1.1 100 Continue\r\n\r\n");
    tcp.write_all(b"body").await.expect("sent");
    let mut rest = String::new();
    tcp.read_to_string(&mut rest).await.expect("an answer");
    assert!(rest.starts_with("HTTP/1.1 200 "), "{rest}");
    assert!(rest.ends_with("\r\n\r\nbody"), "{rest}");
    w.node.stop().await;
}

#[tokio::test]
async fn requests_behind_each_other_are_answered_in_their_order() {
    let w = world("141", AppProtocol::Http11).await;
    let one = |n: u32| {
        let end = if n == 5 { "connection: close\r\n" } else { "" };
        format!("POST /echo HTTP/1.1\r\nhost: db\r\n{end}content-length: 3\r\n\r\n<{n}>")
    };
    let answer = say(&w, &(1..=5).map(one).collect::<String>()).await;
    let places: Vec<_> = (1..=5).map(|n| answer.find(&format!("<{n}>"))).collect();
    assert!(
        places.iter().all(Option::is_some) && places.is_sorted(),
        "{answer}"
    );
    assert_eq!(answer.matches("HTTP/1.1 200 ").count(), 5, "{answer}");
    w.node.stop().await;
}

#[tokio::test]
async fn http_1_0_needs_no_host_and_ends_its_connections() {
    let w = world("142", AppProtocol::Http11).await;
    w.destination(TrafficPolicy::default());
    let host = Match {
        authority: Some(Text::Exact("db.shop.svc.cluster.local:8080".into())),
        ..Match::default()
    };
    let mut whole = rule("/", to("v1"));
    whole.matches = Box::new([host]);
    w.routes(vec![whole]);
    let answer = say(&w, "GET /x HTTP/1.0\r\n\r\n").await;
    assert!(
        answer.starts_with("HTTP/1.0 200 ") || answer.starts_with("HTTP/1.1 200 "),
        "{answer}"
    );
    assert!(
        answer.contains("x-saw-host: db.shop.svc.cluster.local:8080\r\n"),
        "{answer}"
    );
    w.node
        .line(&["path=/x ", "protocol=HTTP/1.0", "response_code=200"])
        .await;
    // Unless they ask to be kept: then the second request ends it.
    let kept = "GET /y HTTP/1.0\r\nconnection: keep-alive\r\n\r\nGET /z HTTP/1.0\r\n\r\n";
    let answer = say(&w, kept).await;
    assert_eq!(answer.matches(" 200 OK\r\n").count(), 2, "{answer}");
    assert!(answer.contains("connection: keep-alive\r\n"), "{answer}");
    // Who names a host means it, and an empty name is none.
    let answer = say(&w, "GET /x HTTP/1.0\r\nhost: other\r\n\r\n").await;
    assert!(answer.contains(" 404 "), "{answer}");
    let answer = say(&w, "GET /x HTTP/1.0\r\nhost:\r\n\r\n").await;
    assert!(answer.contains(" 400 "), "{answer}");
    w.node.stop().await;
}

/// A server in the place of `v1` that answers what the test gives it, byte by byte.
pub(super) async fn spoken_for(w: &World) -> TcpListener {
    w.destination(TrafficPolicy::default());
    w.routes(vec![rule("/", to("v1"))]);
    w.v1.stop().await;
    TcpListener::bind(w.v1.address).await.expect("free again")
}

/// Reads the head of a request.
pub(super) async fn head(tcp: &mut TcpStream) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(tcp.read_u8().await.expect("a head"));
    }
    String::from_utf8(head).expect("text")
}

#[tokio::test]
async fn events_pass_one_by_one() {
    let w = world("143", AppProtocol::Http11).await;
    let listener = spoken_for(&w).await;
    let server = async {
        let (mut tcp, _) = listener.accept().await.expect("dialed");
        head(&mut tcp).await;
        let begin = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n";
        tcp.write_all(begin).await.expect("sent");
        tcp
    };
    let mut client = w.client().await;
    let (answer, mut tcp) = tokio::join!(client.send_request(get("/events")), server);
    let answer = answer.expect("an answer");
    assert_eq!(answer.headers()["content-type"], "text/event-stream");
    let mut body = answer.into_body();
    // Each is seen before the next one is sent.
    for n in 0..5 {
        let event = format!("data: {n}\n\n");
        let chunk = format!("{:x}\r\n{event}\r\n", event.len());
        tcp.write_all(chunk.as_bytes()).await.expect("sent");
        let frame = tokio::time::timeout(Duration::from_secs(10), body.frame()).await;
        let frame = frame.expect("in time").expect("an event").expect("whole");
        assert_eq!(frame.into_data().expect("data"), event);
    }
    // The server ends it, behind a trailer.
    tcp.write_all(b"0\r\n\r\n").await.expect("sent");
    assert!(body.frame().await.is_none());
    w.node.stop().await;
}

#[tokio::test]
async fn a_reader_that_does_not_read_holds_its_writer_up() {
    let w = world("144", AppProtocol::Http11).await;
    let listener = spoken_for(&w).await;
    // Far more than all buffers on the way together.
    const MUCH: usize = 256 << 20;
    let piece = vec![7u8; 64 << 10];
    let client = async {
        let mut tcp = w.node.dial(&w.web, w.vip).await;
        tcp.write_all(b"GET /x HTTP/1.1\r\nhost: db\r\n\r\n")
            .await
            .expect("sent");
        tcp
    };
    let server = async {
        let (mut tcp, _) = listener.accept().await.expect("dialed");
        head(&mut tcp).await;
        let begin = format!("HTTP/1.1 200 OK\r\ncontent-length: {MUCH}\r\n\r\n");
        tcp.write_all(begin.as_bytes()).await.expect("sent");
        let mut sent = 0;
        while sent < MUCH {
            let more = tokio::time::timeout(Duration::from_secs(1), tcp.write(&piece)).await;
            match more {
                Ok(n) => sent += n.expect("open"),
                Err(_) => break,
            }
        }
        sent
    };
    let (tcp, sent) = tokio::join!(client, server);
    assert!(sent < MUCH / 4, "{sent} bytes are somewhere");
    drop(tcp);
    w.node.line(&["path=/x ", "response_flags=DC "]).await;
    w.node.stop().await;
}

#[tokio::test]
async fn grpc_web_passes_as_it_is() {
    let w = world("145", AppProtocol::Http11).await;
    // A message, and trailers as one of their own.
    let body = b"\0\0\0\0\x03one\x80\0\0\0\x0fgrpc-status: 0\r\n";
    let request = Request::post("/echo").header("host", "db");
    let request = request.header("content-type", "application/grpc-web+proto");
    let request = request.header("x-grpc-web", "1");
    let request = request.body(Full::from(&body[..])).expect("a request");
    let (status, headers, echoed) = w.ask(request).await;
    assert_eq!((status.as_u16(), &echoed[..]), (200, &body[..]));
    assert_eq!(headers["x-saw-content-type"], "application/grpc-web+proto");
    assert_eq!(headers["x-saw-x-grpc-web"], "1");
    w.node.stop().await;
}

/// `PASSTHROUGH` of a service whose addresses are those of its endpoints.
#[tokio::test]
async fn what_was_dialed_is_what_is_passed_through_to() {
    let w = world("146", AppProtocol::Http11).await;
    w.destination(TrafficPolicy {
        balancing: LoadBalancing {
            weighing: Weighing::Simple(Simple::Passthrough),
            ..LoadBalancing::default()
        },
        ..TrafficPolicy::default()
    });
    let cluster = w.cluster(None);
    let snapshot = w.node.state.load();
    let source = snapshot.mesh.workload(&w.web.workload.uid).expect("known");
    let from = mesh_model::balance::Viewpoint::of(&snapshot.mesh, &w.node.shared.node, source);
    let picked = |dialed: Option<SocketAddr>| {
        let wish = crate::exchange::Wish {
            dialed,
            ..Default::default()
        };
        let view = (&snapshot.mesh, snapshot.generation, from);
        let picked = cluster.pick(view, |_| None, wish, std::time::Instant::now());
        picked
            .expect("an endpoint")
            .endpoint
            .workload
            .name
            .to_string()
    };
    for _ in 0..30 {
        assert_eq!(picked(Some(w.v1.address)), "db-1");
        assert_eq!(picked(Some(w.v2.address)), "db-2");
    }
    // The service's own address is nobody's; one in a thousand million times only one of them is drawn.
    for dialed in [Some(w.vip), None] {
        let all: std::collections::BTreeSet<String> = (0..31).map(|_| picked(dialed)).collect();
        assert_eq!(all.len(), 2, "{all:?}");
    }
    w.node.stop().await;
}

#[tokio::test]
async fn our_own_answers_have_statuses_of_grpc() {
    let w = world("147", AppProtocol::Grpc).await;
    w.destination(TrafficPolicy::default());
    let mut denied = rule("/denied", to("v1"));
    denied.fault = Some(Fault {
        delay: None,
        abort: Some((Share::ALL, Abort::Http(403))),
    });
    w.routes(vec![
        denied,
        rule("/gone", to("v3")),
        rule("/invalid", Action::Invalid("for a reason".into())),
        rule("/reset", to("v1")),
    ]);
    let mut client = w.client2().await;
    for (path, expect) in [
        ("/denied", "7"),
        ("/gone", "14"),
        ("/reset", "14"),
        ("/invalid", "2"),
        ("/nowhere", "12"),
    ] {
        let request = Request::post(format!("http://db.shop:8080{path}"));
        let request = request.header("content-type", "application/grpc");
        let request = request.body(Full::default()).expect("a request");
        let answer = client.send_request(request).await.expect("an answer");
        assert_eq!(answer.status(), 200, "{path}");
        assert_eq!(answer.headers()["grpc-status"], expect, "{path}");
    }
    w.node.stop().await;
}

/// `http2KeepAlive`: an endpoint that is there for TCP and answers nothing any more.
#[tokio::test]
async fn an_endpoint_that_answers_no_ping_is_given_up() {
    let w = world("148", AppProtocol::Http2).await;
    let listener = spoken_for(&w).await;
    w.destination(TrafficPolicy {
        pool: Pool {
            http2_keepalive: Some(Http2Keepalive {
                interval: Duration::from_millis(100),
                timeout: Duration::from_millis(200),
            }),
            ..Pool::default()
        },
        ..TrafficPolicy::default()
    });
    let server = async {
        let (tcp, _) = listener.accept().await.expect("dialed");
        let mut served = h2::server::handshake(tcp).await.expect("HTTP/2");
        // The first is answered, so that the connection is known to be good.
        for _ in 0..2 {
            let asked = served.accept().await.expect("a request");
            let (request, mut respond) = asked.expect("a request");
            if request.uri().path() == "/held" {
                // From here on nobody looks at the connection.
                return (served, Some(respond));
            }
            let answered = respond.send_response(Response::new(()), true);
            drop(answered.expect("sent"));
        }
        (served, None)
    };
    let script = async {
        let mut client = w.client2().await;
        assert_eq!(ask2(&mut client, "/first").await.0, 200);
        ask2(&mut client, "/held").await.0
    };
    let (status, held) = tokio::join!(script, server);
    assert_eq!(status, 503);
    assert!(held.1.is_some());
    w.node.line(&["path=/held ", "response_flags=UC "]).await;
    w.node.stop().await;
}
