//! Requests through a waypoint: routes, edits, faults, retries, bounds, protocols, and how each is reported.

use std::{
    collections::BTreeMap,
    convert::Infallible,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering::SeqCst},
    },
    time::Duration,
};

use ::http::{HeaderMap, Request, Response, StatusCode};
use bytes::Bytes;
use http_body_util::{BodyExt, Full, combinators::BoxBody};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
};
use mesh_model::{
    mesh::{AppProtocol, Change, MtlsMode},
    resilience::{
        Abort, Destination, Fault, Outlier, Pool, Retries, RetryOn, Share, Subset, TrafficPolicy,
    },
    route::http::{
        Action, Backend, Filters, HeaderEdits, Match, PathMatch, PathRewrite, Redirect, Respond,
        Rewrite, RouteSet, Routes, Rule, Selector,
    },
    testing::cast as testing,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::Semaphore,
};

use super::*;
use crate::exchange::ClusterKey;

const PORT: u16 = 8080;

/// An application that says who it is and what it was asked, and does what paths say.
struct App {
    asked: Arc<AtomicU32>,
    address: SocketAddr,
    /// Lets as many requests for `/hold` be answered.
    gate: Arc<Semaphore>,
}

async fn app(ip: std::net::IpAddr, port: u16, name: &'static str) -> App {
    let listener = TcpListener::bind((ip, port)).await.expect("a free port");
    let address = listener.local_addr().expect("bound");
    let asked = Arc::new(AtomicU32::new(0));
    let counted = asked.clone();
    let gate = Arc::new(Semaphore::new(0));
    let opens = gate.clone();
    tokio::spawn(async move {
        while let Ok((tcp, _)) = listener.accept().await {
            let (counted, opens) = (counted.clone(), opens.clone());
            let service = service_fn(move |request| {
                let number = counted.fetch_add(1, SeqCst);
                let opens = opens.clone();
                async move {
                    if request.uri().path() == "/hold" {
                        opens.acquire().await.expect("never closed").forget();
                    }
                    Ok::<_, Infallible>(reply(name, number, request).await)
                }
            });
            tokio::spawn(async move {
                let builder = auto::Builder::new(TokioExecutor::new());
                let serving = builder.serve_connection_with_upgrades(TokioIo::new(tcp), service);
                let _ = serving.await;
            });
        }
    });
    App {
        asked,
        address,
        gate,
    }
}

async fn reply(
    name: &'static str,
    number: u32,
    mut request: Request<Incoming>,
) -> Response<BoxBody<Bytes, Infallible>> {
    let path = request.uri().path().to_owned();
    let mut response = Response::builder().header("x-app", name);
    for (key, value) in request.headers() {
        response = response.header(format!("x-saw-{key}"), value);
    }
    if let Some(authority) = request.uri().authority() {
        response = response.header("x-saw-host", authority.as_str());
    }
    response = response.header("x-saw-target", request.uri().to_string());
    match path.as_str() {
        "/slow" => tokio::time::sleep(Duration::from_secs(5)).await,
        "/broken" => response = response.status(503),
        "/once-broken" if number == 0 => response = response.status(503),
        "/upgrade" => {
            let upgrading = hyper::upgrade::on(&mut request);
            tokio::spawn(async move {
                let upgraded = upgrading.await.expect("upgraded");
                let (mut read, mut write) = tokio::io::split(TokioIo::new(upgraded));
                let _ = tokio::io::copy(&mut read, &mut write).await;
            });
            let response = response.status(101).header("connection", "upgrade");
            let response = response.header("upgrade", "websocket");
            return response.body(Full::default().boxed()).expect("good");
        }
        _ => {}
    }
    let body = request.into_body().collect().await.expect("a body");
    let trailers = body.trailers().cloned();
    let bytes = match path.as_str() {
        "/echo" => body.to_bytes(),
        _ => Bytes::from_static(name.as_bytes()),
    };
    let mut told = HeaderMap::new();
    if path == "/grpc" {
        told.insert("grpc-status", "0".parse().expect("good"));
    }
    if let Some(trailers) = trailers {
        told.extend(trailers);
    }
    let body = Full::new(bytes);
    let body = match told.is_empty() {
        true => body.boxed(),
        false => body
            .with_trailers(std::future::ready(Some(Ok(told))))
            .boxed(),
    };
    response.body(body).expect("good")
}

/// A client, a service with the endpoints `v1` and `v2`, and its waypoint.
struct World {
    node: Node,
    web: Home,
    vip: SocketAddr,
    v1: App,
    v2: App,
}

async fn world(net: &str, protocol: AppProtocol) -> World {
    let node = Node::start().await;
    let at = |last: u8| format!("127.7.{net}.{last}");
    let web = node.pod("web", &at(1), MtlsMode::Strict).await;
    let waypoint = node.waypoint("waypoint", &at(9)).await;
    let (one, two) = (
        node.pod("db-1", &at(2), MtlsMode::Strict).await,
        node.pod("db-2", &at(3), MtlsMode::Strict).await,
    );
    let v1 = app(one.ip, 0, "v1").await;
    let v2 = app(two.ip, v1.address.port(), "v2").await;
    let mut service = testing::service("shop", "db", &at(100), PORT, v1.address.port());
    service.ports[0].protocol = protocol;
    service.waypoint = through(waypoint.addresses[0]);
    node.state.apply([Change::Service(service)]);
    for (home, group) in [(&one, "version=v1"), (&two, "version=v2")] {
        let mut extra = testing::extra(MtlsMode::Strict);
        extra.groups = Box::new([group.into()]);
        node.state.apply([
            Change::Workload(testing::serving(home.workload.clone(), "shop", "db")),
            Change::WorkloadExtra(home.workload.uid.clone(), extra),
        ]);
    }
    World {
        node,
        web,
        vip: SocketAddr::new(testing::ip(&at(100)), PORT),
        v1,
        v2,
    }
}

impl World {
    fn destination(&self, policy: TrafficPolicy) {
        let policy = Arc::new(policy);
        let subset = |name: &str| Subset {
            name: name.into(),
            selector: Selector(format!("version={name}").into()),
            policy: policy.clone(),
            ports: Box::default(),
        };
        self.node.state.apply([Change::Destination(Destination {
            service: testing::service_name("shop", "db"),
            by: "shop/db".into(),
            policy: policy.clone(),
            ports: Box::default(),
            subsets: Box::new([subset("v1"), subset("v2")]),
            features: Box::default(),
        })]);
    }

    fn routes(&self, rules: Vec<Rule>) {
        self.node.state.apply([Change::Routes(Routes {
            service: testing::service_name("shop", "db"),
            sets: Box::new([RouteSet {
                clients: None,
                ports: Box::default(),
                rules: rules.into(),
            }]),
            features: Box::default(),
        })]);
    }

    async fn client(&self) -> hyper::client::conn::http1::SendRequest<Full<Bytes>> {
        let tcp = self.node.dial(&self.web, self.vip).await;
        let handshake = hyper::client::conn::http1::handshake(TokioIo::new(tcp)).await;
        let (sender, connection) = handshake.expect("HTTP");
        tokio::spawn(connection.with_upgrades());
        sender
    }

    /// One request on a connection of its own.
    async fn ask(&self, request: Request<Full<Bytes>>) -> (StatusCode, HeaderMap, Bytes) {
        let mut client = self.client().await;
        let sent = client.send_request(request);
        let response = tokio::time::timeout(Duration::from_secs(10), sent).await;
        let response = response.expect("in time").expect("an answer");
        let (parts, body) = response.into_parts();
        let body = body.collect().await.expect("a body").to_bytes();
        (parts.status, parts.headers, body)
    }

    async fn get(&self, path: &str) -> (StatusCode, HeaderMap, Bytes) {
        self.ask(get(path)).await
    }
}

/// Waits until something is so, as other tasks make it.
async fn until(good: impl Fn() -> bool) {
    let waiting = async {
        while !good() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    let waited = tokio::time::timeout(Duration::from_secs(10), waiting).await;
    waited.expect("in time");
}

fn get(path: &str) -> Request<Full<Bytes>> {
    let request = Request::get(path).header("host", "db.shop:8080");
    request.body(Full::default()).expect("a request")
}

fn backend(subset: Option<&str>, weight: u32) -> Backend {
    Backend {
        service: testing::service_name("shop", "db"),
        port: None,
        subset: subset.map(Into::into),
        weight,
        filters: Filters::default(),
        invalid: None,
    }
}

fn rule(prefix: &str, action: Action) -> Rule {
    let matched = Match {
        path: Some(PathMatch::Prefix(prefix.into())),
        ..Match::default()
    };
    Rule {
        name: format!("VirtualService/shop/db#{prefix}").into(),
        matches: Box::new([matched]),
        filters: Filters::default(),
        action,
        timeout: None,
        retries: None,
        fault: None,
        mirrors: Box::default(),
        cors: None,
    }
}

fn to(subset: &str) -> Action {
    Action::Forward(Box::new([backend(Some(subset), 1)]))
}

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
    let cluster = w.node.shared.clusters.get(&ClusterKey {
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
    w.node.stop().await;
}

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
async fn what_cannot_be_understood_is_refused() {
    let w = world("58", AppProtocol::Http11).await;
    for (request, expect) in [
        ("GET / HTTP/1.1\r\n\r\n", "HTTP/1.1 400"),
        (
            "GET / HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n",
            "HTTP/1.1 400",
        ),
        ("GET /a%00b HTTP/1.1\r\nhost: a\r\n\r\n", "HTTP/1.1 400"),
        ("CONNECT a:1 HTTP/1.1\r\nhost: a:1\r\n\r\n", "HTTP/1.1 501"),
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
