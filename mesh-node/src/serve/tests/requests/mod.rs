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
use hyper::{
    body::{Frame, Incoming},
    service::service_fn,
};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
};
use mesh_model::{
    mesh::{AppProtocol, Change, MtlsMode},
    resilience::{
        Abort, Affinity, AffinityKey, Destination, Fault, HashTable, Http2Keepalive, LoadBalancing,
        LocalityPreference, Outlier, Pool, Retries, RetryOn, Session, Share, Simple, TrafficPolicy,
        Warmup, Weighing, session_of,
    },
    route::http::{
        Action, Backend, Cors, Filters, HeaderEdits, Match, Mirror, PathMatch, PathRewrite,
        Pattern, Redirect, Respond, Rewrite, RouteSet, Routes, Rule, Text,
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

mod abuse;
mod addressed;
mod affinity;
mod answers;
mod beyond;
mod deadlines;
mod dialects;
mod faults;
mod fields;
mod frames;
mod leaving;
mod mirrors;
mod origins;
mod patience;
mod pools;
mod protocols;
mod refusing;
mod secured;
mod smuggled;
mod spans;
mod tries;

/// An application that says who it is and what it was asked, and does what paths say.
struct App {
    asked: Arc<AtomicU32>,
    /// Connections that it accepted.
    connections: Arc<AtomicU32>,
    /// Method, path, `host` and body of what it was asked.
    seen: Arc<Mutex<Vec<[String; 4]>>>,
    address: SocketAddr,
    /// Lets as many requests for `/hold` be answered.
    gate: Arc<Semaphore>,
    listening: tokio::task::AbortHandle,
}

fn app(listener: TcpListener, name: &'static str) -> App {
    let address = listener.local_addr().expect("bound");
    let (asked, connections) = (Arc::<AtomicU32>::default(), Arc::<AtomicU32>::default());
    let seen = Arc::<Mutex<Vec<_>>>::default();
    let gate = Arc::new(Semaphore::new(0));
    let (counted, accepted, opens, noted) = (
        asked.clone(),
        connections.clone(),
        gate.clone(),
        seen.clone(),
    );
    let listening = tokio::spawn(async move {
        while let Ok((tcp, _)) = listener.accept().await {
            accepted.fetch_add(1, SeqCst);
            let (counted, opens, noted) = (counted.clone(), opens.clone(), noted.clone());
            let service = service_fn(move |request| {
                let number = counted.fetch_add(1, SeqCst);
                let (opens, noted) = (opens.clone(), noted.clone());
                async move {
                    if holds(name, &request) {
                        opens.acquire().await.expect("never closed").forget();
                    }
                    reply(name, number, request, &noted).await
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
        connections,
        seen,
        address,
        gate,
        listening: listening.abort_handle(),
    }
}

impl App {
    /// Listens no more.
    async fn stop(&self) {
        self.listening.abort();
        until(|| self.listening.is_finished()).await;
    }

    /// What it was asked, for a path.
    fn seen(&self, path: &str) -> Vec<[String; 4]> {
        let seen = self.seen.lock().expect("not poisoned");
        seen.iter().filter(|s| s[1] == path).cloned().collect()
    }
}

/// Whether a request waits for the gate.
fn holds(name: &str, request: &Request<Incoming>) -> bool {
    let tries = request.headers().get("x-envoy-attempt-count");
    match request.uri().path() {
        "/hold" => true,
        "/hold-v2" => name == "v2",
        "/fail-then-hold" => tries.is_some_and(|n| n != "1"),
        _ => false,
    }
}

type Body = BoxBody<Bytes, Infallible>;

async fn reply(
    name: &'static str,
    number: u32,
    mut request: Request<Incoming>,
    noted: &Mutex<Vec<[String; 4]>>,
) -> io::Result<Response<Body>> {
    let path = request.uri().path().to_owned();
    let method = request.method().to_string();
    let mut host = request.headers().get("host").map_or(String::new(), |h| {
        String::from_utf8_lossy(h.as_bytes()).into_owned()
    });
    let mut response = Response::builder()
        .header("x-app", name)
        .header("x-version", format!("{:?}", request.version()));
    for (key, value) in request.headers() {
        response = response.header(format!("x-saw-{key}"), value);
    }
    let tries = request.headers().get("x-envoy-attempt-count").cloned();
    if let Some(authority) = request.uri().authority() {
        response = response.header("x-saw-host", authority.as_str());
        host = authority.to_string();
    }
    response = response.header("x-saw-target", request.uri().to_string());
    let rest = path.strip_prefix('/').unwrap_or("tunnel");
    let (what, of) = rest.split_once('/').unwrap_or((rest, ""));
    match what {
        "slow" => tokio::time::sleep(Duration::from_secs(5)).await,
        "broken" => response = response.status(503),
        "once-broken" if number == 0 => response = response.status(503),
        "only-v2" if name == "v1" => response = response.status(503),
        "fail-then-hold" if tries.is_some_and(|n| n == "1") => response = response.status(503),
        "status" => response = response.status(of.parse::<u16>().expect("a status")),
        "grpc-status" => response = response.header("grpc-status", of),
        "marked" => response = response.status(503).header(of, "true"),
        "reset" => return Err(io::ErrorKind::ConnectionReset.into()),
        "reset-v2" if name == "v2" => return Err(io::ErrorKind::ConnectionReset.into()),
        "tunnel" if host.starts_with("refused") => response = response.status(405),
        "upgrade" | "tunnel" => {
            let upgrading = hyper::upgrade::on(&mut request);
            tokio::spawn(async move {
                let upgraded = upgrading.await.expect("upgraded");
                let (mut read, mut write) = tokio::io::split(TokioIo::new(upgraded));
                let _ = tokio::io::copy(&mut read, &mut write).await;
            });
            if what == "upgrade" {
                response = response.status(101).header("connection", "upgrade");
                response = response.header("upgrade", "websocket");
            }
            return Ok(response.body(Full::default().boxed()).expect("good"));
        }
        _ => {}
    }
    let body = request.into_body().collect().await;
    let body = body.map_err(io::Error::other)?;
    match what {
        "read-reset" => return Err(io::ErrorKind::ConnectionReset.into()),
        "read-slow" => tokio::time::sleep(Duration::from_secs(5)).await,
        _ => {}
    }
    let trailers = body.trailers().cloned();
    for (name, value) in trailers.iter().flatten() {
        response = response.header(format!("x-trailer-{name}"), value);
    }
    let bytes = body.to_bytes();
    let mut text = String::from_utf8_lossy(&bytes).into_owned();
    for (name, value) in trailers.iter().flatten() {
        text += &format!(" {name}={}", value.to_str().expect("text"));
    }
    noted
        .lock()
        .expect("not poisoned")
        .push([method, path.clone(), host, text]);
    let bytes = match path.as_str() {
        "/echo" => bytes,
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
    Ok(response.body(body).expect("good"))
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
    world_on(Node::start().await, net, protocol).await
}

async fn world_on(node: Node, net: &str, protocol: AppProtocol) -> World {
    let at = |last: u8| format!("127.7.{net}.{last}");
    let web = node.pod("web", &at(1), MtlsMode::Strict).await;
    let waypoint = node.waypoint("waypoint", &at(9)).await;
    let (one, two) = (
        node.pod("db-1", &at(2), MtlsMode::Strict).await,
        node.pod("db-2", &at(3), MtlsMode::Strict).await,
    );
    let (first, second) = same_port(one.ip, two.ip).await;
    let (v1, v2) = (app(first, "v1"), app(second, "v2"));
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
        self.node.state.apply([destination(policy)]);
    }

    fn routes(&self, rules: Vec<Rule>) {
        self.node.state.apply([Change::Routes(Routes {
            service: testing::service_name("shop", "db"),
            sets: Box::new([RouteSet {
                clients: None,
                ports: Box::default(),
                rules: rules.into(),
                streams: [].into(),
            }]),
            features: Box::default(),
        })]);
    }

    async fn client(&self) -> hyper::client::conn::http1::SendRequest<Full<Bytes>> {
        self.client_of().await
    }

    /// A client's connection for requests with bodies of another kind.
    async fn client_of<B>(&self) -> hyper::client::conn::http1::SendRequest<B>
    where
        B: hyper::body::Body<Data = Bytes, Error = Infallible> + Send + 'static,
    {
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

    /// A client's connection of HTTP/2.
    async fn client2(&self) -> hyper::client::conn::http2::SendRequest<Full<Bytes>> {
        self.client2_of().await
    }

    /// The same for requests with bodies of another kind.
    async fn client2_of<B>(&self) -> hyper::client::conn::http2::SendRequest<B>
    where
        B: hyper::body::Body<Data = Bytes, Error = Infallible> + Send + Unpin + 'static,
    {
        let tcp = self.node.dial(&self.web, self.vip).await;
        let io = TokioIo::new(tcp);
        let handshake = hyper::client::conn::http2::handshake(TokioExecutor::new(), io).await;
        let (sender, connection) = handshake.expect("HTTP/2");
        tokio::spawn(connection);
        sender
    }

    /// The service, or a subset of it, as the waypoint uses it.
    fn cluster(&self, subset: Option<&str>) -> Arc<crate::exchange::Cluster> {
        self.node.shared.clusters.get(&ClusterKey::Service {
            service: testing::service_name("shop", "db"),
            port: PORT,
            subset: subset.map(Into::into),
        })
    }

    /// Has every connection to endpoints closed that is not in use.
    async fn forget_connections(&self) {
        let cluster = self.cluster(Some("v1"));
        until(|| {
            cluster.wanted.notify_waiters();
            cluster.connections.get() == 0
        })
        .await;
    }

    /// What a metric says whose name and labels begin so, or 0.
    fn metric(&self, begins: &str) -> u64 {
        let text = self.node.shared.observer.metrics().text().expect("text");
        let lines = text.lines().filter(|l| l.starts_with(begins));
        let last = lines.map(|l| l.rsplit(' ').next().and_then(|n| n.parse::<u64>().ok()));
        last.map(|n| n.expect("a number")).sum()
    }

    /// Counts requests by the flags that metrics report of them.
    fn counted(&self, flags: &str) -> u64 {
        let text = self.node.shared.observer.metrics().text().expect("text");
        let flags = format!("response_flags=\"{flags}\"");
        let lines = text
            .lines()
            .filter(|l| l.starts_with("istio_requests_total{"));
        let lines = lines.filter(|l| l.contains(&flags));
        let last = lines.map(|l| l.rsplit(' ').next().and_then(|n| n.parse::<u64>().ok()));
        last.map(|n| n.expect("a number")).sum()
    }
}

/// A body that comes in pieces, as a test gives them; it ends when the test lets go of its sender.
type Pieces = http_body_util::combinators::BoxBody<Bytes, Infallible>;

fn pieces() -> (mpsc::Sender<Frame<Bytes>>, Pieces) {
    let (give, take) = mpsc::channel(1);
    let next = |mut take: mpsc::Receiver<Frame<Bytes>>| async move {
        let frame = take.recv().await?;
        Some((Ok(frame), take))
    };
    let body = http_body_util::StreamBody::new(futures_util::stream::unfold(take, next));
    (give, BodyExt::boxed(body))
}

/// One request on a connection of HTTP/2.
async fn ask2(
    client: &mut hyper::client::conn::http2::SendRequest<Full<Bytes>>,
    path: &str,
) -> (StatusCode, HeaderMap, Bytes) {
    let request = Request::get(format!("http://db.shop:8080{path}"));
    let request = request.body(Full::default()).expect("a request");
    let sent = client.send_request(request);
    let response = tokio::time::timeout(Duration::from_secs(10), sent).await;
    let (parts, body) = response.expect("in time").expect("an answer").into_parts();
    let body = body.collect().await.expect("a body").to_bytes();
    (parts.status, parts.headers, body)
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
        session: None,
    }
}

fn to(subset: &str) -> Action {
    Action::Forward(Box::new([backend(Some(subset), 1)]))
}
