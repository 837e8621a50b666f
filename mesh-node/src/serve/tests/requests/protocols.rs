//! What clients and endpoints speak: HTTP of each version, gRPC, upgrades, bytes.

use super::*;

#[tokio::test]
async fn an_unknown_protocol_is_what_is_spoken_first() {
    let w = world("55", AppProtocol::Unknown).await;
    assert_eq!(w.get("/").await.0, 200);
    w.node.line(&["request complete"]).await;
    // A server that speaks first, on the same port of other endpoints.
    let node = &w.node;
    let db = node.pod("greeter", "127.7.55.4", MtlsMode::Strict).await;
    let listener = TcpListener::bind((db.ip, 0)).await.expect("a free port");
    let mut service = testing::service(
        "shop",
        "greeter",
        "127.7.55.101",
        25,
        listener.local_addr().expect("bound").port(),
    );
    service.waypoint = through(testing::ip("127.7.55.9"));
    node.state.apply([
        Change::Service(service),
        Change::Workload(testing::serving(db.workload.clone(), "shop", "greeter")),
    ]);
    tokio::spawn(async move {
        while let Ok((mut tcp, _)) = listener.accept().await {
            tokio::spawn(async move {
                tcp.write_all(b"220 hello\r\n").await.expect("sent");
                let (mut read, mut write) = tcp.split();
                let _ = tokio::io::copy(&mut read, &mut write).await;
            });
        }
    });
    let greeter = "127.7.55.101:25".parse().expect("an address");
    let mut tcp = node.dial(&w.web, greeter).await;
    let mut greeting = [0; 11];
    let read = tcp.read_exact(&mut greeting);
    let read = tokio::time::timeout(Duration::from_secs(5), read).await;
    read.expect("not delayed").expect("a greeting");
    assert_eq!(&greeting, b"220 hello\r\n");
    assert_eq!(
        ask(&mut tcp, b"QUIT\r\n").await.expect("carried"),
        b"QUIT\r\n"
    );
    // Bytes that a client begins with.
    let mut tcp = node.dial(&w.web, greeter).await;
    tcp.write_all(b"\x16\x03\x01").await.expect("sent");
    let mut all = [0; 14];
    tcp.read_exact(&mut all).await.expect("carried");
    assert_eq!(&all, b"220 hello\r\n\x16\x03\x01");
    drop(tcp);
    node.line(&[
        "connection complete",
        "direction=through",
        "dst.service=greeter",
    ])
    .await;
    w.node.stop().await;
}

#[tokio::test]
async fn grpc_over_http2_has_trailers_and_its_own_statuses() {
    let w = world("56", AppProtocol::Grpc).await;
    let tcp = w.node.dial(&w.web, w.vip).await;
    let handshake =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(tcp)).await;
    let (mut client, connection) = handshake.expect("HTTP/2");
    tokio::spawn(connection);
    let call = |path: &str| {
        let request = Request::post(format!("http://db.shop:8080{path}"))
            .header("content-type", "application/grpc")
            .header("te", "trailers");
        request.body(Full::<Bytes>::from("message")).expect("one")
    };
    let response = client.send_request(call("/grpc")).await.expect("an answer");
    assert_eq!(response.headers()["x-saw-te"], "trailers");
    assert_eq!(response.headers()["x-saw-host"], "db.shop:8080");
    let body = response.into_body().collect().await.expect("a body");
    let trailers = body.trailers().expect("trailers");
    assert_eq!(trailers["grpc-status"], "0");
    w.node
        .line(&["protocol=HTTP/2", "grpc_status=0", "response_code=200"])
        .await;
    let text = w.node.shared.observer.metrics().text().expect("text");
    assert!(text.contains("request_protocol=\"grpc\""));
    assert!(text.contains("grpc_response_status=\"0\""));
    w.routes(vec![rule("/other", to("v1"))]);
    let response = client.send_request(call("/grpc")).await.expect("an answer");
    assert_eq!(response.status(), 200);
    assert_eq!(response.headers()["grpc-status"], "12");
    w.node
        .line(&["protocol=HTTP/2", "grpc_status=12", "response_flags=NR"])
        .await;
    w.node.stop().await;
}

#[tokio::test]
async fn bodies_stream_and_connections_are_upgraded() {
    let w = world("57", AppProtocol::Http11).await;
    let much = Bytes::from(vec![3u8; 2 << 20]);
    let request = Request::post("/echo").header("host", "db");
    let request = request.body(Full::new(much.clone())).expect("a request");
    let (status, _, body) = w.ask(request).await;
    assert_eq!(status, 200);
    assert!(body == much, "{} bytes", body.len());
    let sent = format!("bytes_received={} bytes_sent={}", much.len(), much.len());
    w.node.line(&["path=/echo ", &sent]).await;
    let mut tcp: TcpStream = w.node.dial(&w.web, w.vip).await;
    let request =
        b"GET /upgrade HTTP/1.1\r\nhost: db\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\r\n";
    tcp.write_all(request).await.expect("sent");
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(tcp.read_u8().await.expect("a head"));
    }
    let head = String::from_utf8_lossy(&head);
    assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
    assert!(head.contains("upgrade: websocket"), "{head}");
    assert_eq!(ask(&mut tcp, b"frames").await.expect("carried"), b"frames");
    tcp.shutdown().await.expect("half-closed");
    assert_eq!(tcp.read(&mut [0; 4]).await.expect("an end"), 0);
    w.node.line(&["path=/upgrade ", "response_code=101"]).await;
    w.node
        .line(&["connection complete", "direction=through", "bytes_sent=6"])
        .await;
    w.node.stop().await;
}

#[tokio::test]
async fn tunnels_through_the_service_are_the_services_to_allow() {
    let w = world("84", AppProtocol::Unknown).await;
    // By HTTP/1.1: first one that is refused, which leaves the connection as it is.
    let mut tcp = w.node.dial(&w.web, w.vip).await;
    for (authority, expect) in [
        ("refused:1", "HTTP/1.1 405 "),
        ("a.example:443", "HTTP/1.1 200 "),
    ] {
        let request = format!("CONNECT {authority} HTTP/1.1\r\nhost: {authority}\r\n\r\n");
        tcp.write_all(request.as_bytes()).await.expect("sent");
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(tcp.read_u8().await.expect("a head"));
        }
        let head = String::from_utf8_lossy(&head).into_owned();
        assert!(head.starts_with(expect), "{head}");
        if let Some(at) = head.find("content-length: ") {
            let length = head[at + 16..]
                .split_once('\r')
                .and_then(|(n, _)| n.parse().ok());
            let mut body = vec![0; length.expect("a number")];
            tcp.read_exact(&mut body).await.expect("a body");
        }
    }
    assert_eq!(
        ask(&mut tcp, b"anything").await.expect("carried"),
        b"anything"
    );
    tcp.shutdown().await.expect("half-closed");
    assert_eq!(tcp.read(&mut [0; 4]).await.expect("an end"), 0);
    w.node
        .line(&[
            "method=CONNECT",
            "protocol=HTTP/1.1",
            "authority=a.example:443",
            "response_code=200",
        ])
        .await;
    w.node
        .line(&["connection complete", "direction=through", "bytes_sent=8"])
        .await;
    // By HTTP/2, beside other requests.
    let mut client = w.client2().await;
    let connect = Request::connect("b.example:443").body(Full::default());
    let answer = client
        .send_request(connect.expect("a request"))
        .await
        .expect("an answer");
    assert_eq!(answer.status(), 200);
    let upgraded = hyper::upgrade::on(answer).await.expect("a tunnel");
    let (mut read, mut write) = tokio::io::split(TokioIo::new(upgraded));
    write.write_all(b"through HTTP/2").await.expect("sent");
    let mut back = [0; 14];
    read.read_exact(&mut back).await.expect("carried");
    assert_eq!(&back, b"through HTTP/2");
    assert_eq!(ask2(&mut client, "/").await.0, 200);
    write.shutdown().await.expect("half-closed");
    assert_eq!(read.read(&mut [0; 4]).await.expect("an end"), 0);
    w.node
        .line(&["connection complete", "direction=through", "bytes_sent=14"])
        .await;
    w.node.stop().await;
}

/// A client of HTTP/2 takes content in such a response for an error (RFC 9113, 8.1.1).
#[tokio::test]
async fn answers_of_our_own_have_no_content_where_none_may_be() {
    let w = world("95", AppProtocol::Http2).await;
    let respond = |status| {
        let body = Bytes::from_static(b"said");
        Action::Respond(Respond { status, body })
    };
    w.routes(vec![
        rule("/said", respond(200)),
        rule("/nothing", respond(204)),
    ]);
    let mut client = w.client2().await;
    for (method, path, status, length, content) in [
        ("GET", "/said", 200, Some("4"), "said"),
        ("HEAD", "/said", 200, Some("4"), ""),
        ("GET", "/nothing", 204, None, ""),
        // No rule matches.
        ("HEAD", "/", 404, None, ""),
    ] {
        let uri = format!("http://db.shop:8080{path}");
        let request = Request::builder().method(method).uri(uri);
        let request = request.body(Full::default()).expect("a request");
        let answer = client.send_request(request).await.expect("an answer");
        let said = answer.headers().get("content-length").cloned();
        let said = said.as_ref().map(|v| v.to_str().expect("digits"));
        assert_eq!(
            (answer.status().as_u16(), said),
            (status, length),
            "{method} {path}"
        );
        let body = answer.into_body().collect().await.expect("a body");
        assert_eq!(body.to_bytes(), content, "{method} {path}");
    }
    w.node.stop().await;
}

/// RFC 8441.
#[tokio::test]
async fn websocket_over_http2_is_an_upgrade_at_the_service() {
    let w = world("85", AppProtocol::Unknown).await;
    let mut client = w.client2().await;
    // The client may ask for it once it knows that it may.
    assert_eq!(ask2(&mut client, "/").await.0, 200);
    let request = |path: &str| {
        let mut request = Request::connect(format!("http://db.shop:8080{path}"))
            .header("sec-websocket-version", "13")
            .body(Full::default())
            .expect("a request");
        let protocol = hyper::ext::Protocol::from_static("websocket");
        request.extensions_mut().insert(protocol);
        request
    };
    let answer = client
        .send_request(request("/upgrade"))
        .await
        .expect("an answer");
    assert_eq!(answer.status(), 200);
    let headers = answer.headers().clone();
    assert_eq!(headers["x-saw-upgrade"], "websocket");
    assert_eq!(headers["x-saw-sec-websocket-version"], "13");
    assert_eq!(headers["x-saw-sec-websocket-key"].len(), 24);
    assert!(!headers.contains_key("upgrade") && !headers.contains_key("connection"));
    let upgraded = hyper::upgrade::on(answer).await.expect("frames");
    let (mut read, mut write) = tokio::io::split(TokioIo::new(upgraded));
    write.write_all(b"frames").await.expect("sent");
    let mut back = [0; 6];
    read.read_exact(&mut back).await.expect("carried");
    assert_eq!(&back, b"frames");
    // A service that does not want it says so.
    let answer = client
        .send_request(request("/status/403"))
        .await
        .expect("an answer");
    assert_eq!(answer.status(), 403);
    w.node.stop().await;
}

/// A frame of a client's WebSocket (RFC 6455, 5.2): whether it is a message's last, its opcode, what is in it.
fn of_websocket(last: bool, opcode: u8, data: &[u8]) -> Vec<u8> {
    let mask = [0x5a, 0, 0xff, 0x0d];
    let mut frame = vec![u8::from(last) << 7 | opcode];
    match data.len() {
        short @ ..126 => frame.push(0x80 | short as u8),
        long => {
            frame.push(0x80 | 127);
            frame.extend((long as u64).to_be_bytes());
        }
    }
    frame.extend(mask);
    frame.extend(data.iter().zip(mask.iter().cycle()).map(|(b, m)| b ^ m));
    frame
}

#[tokio::test]
async fn messages_of_websocket_over_http2_pass_byte_by_byte() {
    let w = world("160", AppProtocol::Unknown).await;
    let mut client = w.client2().await;
    assert_eq!(ask2(&mut client, "/").await.0, 200);
    let request = Request::connect("http://db.shop:8080/upgrade");
    let request = request.header("sec-websocket-version", "13");
    let mut request = request.body(Full::default()).expect("a request");
    let protocol = hyper::ext::Protocol::from_static("websocket");
    request.extensions_mut().insert(protocol);
    let answer = client.send_request(request).await.expect("an answer");
    assert_eq!(answer.status(), 200);
    let upgraded = hyper::upgrade::on(answer).await.expect("frames");
    let (mut read, mut write) = tokio::io::split(TokioIo::new(upgraded));
    // Each byte in all places, and none where another one was.
    let much: Vec<u8> = (0..1u32 << 20)
        .map(|n| (n ^ n >> 8 ^ n >> 16) as u8)
        .collect();
    let (text, more, ping, binary) = (1, 0, 9, 2);
    let frames = [
        of_websocket(false, text, "in f".as_bytes()),
        // What is said between the pieces of a message is none of it.
        of_websocket(true, ping, b"there?"),
        of_websocket(false, more, b""),
        of_websocket(true, more, "ragments".as_bytes()),
        of_websocket(true, binary, &much),
        of_websocket(true, 8, &1000u16.to_be_bytes()),
    ];
    let sent = frames.concat();
    let send = async {
        for frame in &frames {
            write.write_all(frame).await.expect("sent");
        }
        write.shutdown().await.expect("half-closed");
    };
    let mut back = Vec::new();
    let receive = read.read_to_end(&mut back);
    let both = async { tokio::join!(send, receive).1 };
    let both = tokio::time::timeout(Duration::from_secs(20), both).await;
    both.expect("in time").expect("an orderly end");
    assert_eq!(back.len(), sent.len());
    let other = back.iter().zip(&sent).position(|(b, s)| b != s);
    assert_eq!(other, None, "the first byte that is another one");
    let bytes = format!("bytes_sent={} bytes_recv={}", sent.len(), sent.len());
    w.node
        .line(&["connection complete", "direction=through", &bytes])
        .await;
    // Beside it the connection carries requests as before.
    assert_eq!(ask2(&mut client, "/").await.0, 200);
    w.node.stop().await;
}
