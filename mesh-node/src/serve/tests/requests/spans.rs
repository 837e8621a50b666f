//! Spans of requests: whose child each is, what goes on to the server, what a collector gets of it, and that nobody waits
//! for one that is away.

use mesh_model::{
    mesh::{Collector, SpanTag, TagValue, Tracing, TracingScope},
    name::Hostname,
};
use opentelemetry_proto::tonic::{
    collector::trace::v1::{
        ExportTracePartialSuccess, ExportTraceServiceRequest, ExportTraceServiceResponse,
        trace_service_server::{TraceService, TraceServiceServer},
    },
    common::v1::{AnyValue, KeyValue, any_value::Value},
    trace::v1::Span,
};
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::TcpListenerStream;

use super::*;
use crate::{export::Exporter, observe::Direction};

/// The collector's port.
const OTLP: u16 = 4317;
const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";

/// Passes on what it gets; one span of each batch it does not want.
struct Taken(mpsc::UnboundedSender<(Option<String>, ExportTraceServiceRequest)>);

#[tonic::async_trait]
impl TraceService for Taken {
    async fn export(
        &self,
        request: tonic::Request<ExportTraceServiceRequest>,
    ) -> Result<tonic::Response<ExportTraceServiceResponse>, tonic::Status> {
        let context = request.metadata().get("traceparent");
        let context = context.and_then(|v| v.to_str().ok()).map(str::to_owned);
        let taken = self.0.send((context, request.into_inner()));
        taken.map_err(|_| tonic::Status::unavailable("the test has ended"))?;
        let partial_success = Some(ExportTracePartialSuccess {
            rejected_spans: 1,
            error_message: "one too many".to_owned(),
        });
        Ok(tonic::Response::new(ExportTraceServiceResponse {
            partial_success,
        }))
    }
}

type Batches = mpsc::UnboundedReceiver<(Option<String>, ExportTraceServiceRequest)>;

/// A world in which requests leave spans, as `sampling` says; what sends them, and what the collector gets of it. Without
/// `listening` there is a service of a collector, and nobody in it.
async fn traced(net: &str, sampling: Share, listening: bool) -> (World, Exporter, Batches) {
    let world = world(net, AppProtocol::Http11).await;
    let node = &world.node;
    let at = |last: u8| format!("127.7.{net}.{last}");
    let home = node.pod("otel", &at(4), MtlsMode::Strict).await;
    let (taken, batches) = mpsc::unbounded_channel();
    let listener = TcpListener::bind((home.ip, 0)).await.expect("a free port");
    let target = listener.local_addr().expect("bound").port();
    if listening {
        let server = tonic::transport::Server::builder();
        let incoming = TcpListenerStream::new(listener);
        let mut server = server;
        let server = server.add_service(TraceServiceServer::new(Taken(taken)));
        tokio::spawn(server.serve_with_incoming(incoming));
    }
    let service = testing::service("shop", "otel", &at(101), OTLP, target);
    let hostname: Hostname = service.name.hostname.clone();
    node.state.apply([
        Change::Service(service),
        Change::Workload(testing::serving(home.workload.clone(), "shop", "otel")),
    ]);
    let mut config = testing::config();
    let tag = |name: &str, value| SpanTag {
        name: name.into(),
        value,
    };
    config.tracing = Box::new([Arc::new(Tracing {
        scope: TracingScope::Mesh,
        sampling,
        collector: Some(Collector {
            namespace: None,
            hostname,
            port: OTLP,
        }),
        tags: Box::new([
            tag("env", TagValue::Literal("test".into())),
            tag("user", TagValue::Header("x-user".into(), None)),
            tag(
                "team",
                TagValue::Header("x-team".into(), Some("none".into())),
            ),
        ]),
    })]);
    node.state.apply([Change::Config(config)]);
    let finished = node.finished.lock().expect("not poisoned").take();
    let pod = pod_of_waypoint(node, &at(9));
    let (_, known) = watch::channel(Some(pod));
    let exporter = Exporter::start(node.shared.clone(), finished.expect("once"), known);
    (world, exporter.expect("a thread"), batches)
}

/// The waypoint, as what sends its spans knows it.
fn pod_of_waypoint(node: &Node, ip: &str) -> Arc<Pod> {
    let ip = testing::ip(ip);
    let mesh = node.state.load().mesh.clone();
    let workload = mesh.workload_at(&"".into(), ip).expect("known").clone();
    Arc::new(Pod {
        uid: PodUid::new("waypoint"),
        workload: workload.uid.clone(),
        namespace: workload.namespace.clone(),
        name: "waypoint".into(),
        service_account: "waypoint".into(),
        identity: workload.identity.clone(),
        addresses: Box::new([ip]),
        netns_cookie: 0,
        barred: None,
        sockets: Arc::new(Loopback(ip)),
    })
}

async fn next(batches: &mut Batches) -> (Option<String>, ExportTraceServiceRequest) {
    let taken = tokio::time::timeout(Duration::from_secs(10), batches.recv());
    taken.await.expect("in time").expect("a batch")
}

fn spans(request: &ExportTraceServiceRequest) -> Vec<&Span> {
    let scopes = request.resource_spans.iter().flat_map(|r| &r.scope_spans);
    scopes.flat_map(|s| &s.spans).collect()
}

/// An attribute as text.
fn said(all: &[KeyValue], key: &str) -> Option<String> {
    let found = all.iter().find(|kv| kv.key == key)?;
    match &found.value {
        Some(AnyValue {
            value: Some(Value::StringValue(text)),
        }) => Some(text.clone()),
        Some(AnyValue {
            value: Some(Value::IntValue(number)),
        }) => Some(number.to_string()),
        other => panic!("{key}: {other:?}"),
    }
}

fn counted(world: &World, result: &str) -> u64 {
    let text = world.node.shared.observer.metrics().text().expect("text");
    let of = format!("warren_spans_total{{result=\"{result}\"}} ");
    let line = text.lines().find_map(|l| l.strip_prefix(&of));
    line.map_or(0, |n| n.parse().expect("a number"))
}

fn bytes(hex: &str) -> Vec<u8> {
    let digits = (0..hex.len()).step_by(2).map(|at| &hex[at..at + 2]);
    digits
        .map(|d| u8::from_str_radix(d, 16).expect("hexadecimal"))
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_span_lies_between_the_clients_and_the_servers() {
    let (world, exporter, mut batches) = traced("96", Share::NONE, true).await;
    let mut request = get("/status/503?secret=1");
    let headers = request.headers_mut();
    let parent = format!("00-{TRACE}-00f067aa0ba902b7-01");
    headers.insert("traceparent", parent.parse().expect("good"));
    headers.insert("tracestate", "a=1".parse().expect("good"));
    headers.insert("x-user", "jason".parse().expect("good"));
    headers.insert("user-agent", "curl/8".parse().expect("good"));
    let (status, answer, _) = world.ask(request).await;
    assert_eq!(status, 503);
    let went = answer["x-saw-traceparent"].to_str().expect("text");
    let ours = went.strip_prefix(&format!("00-{TRACE}-"));
    let ours = ours
        .and_then(|rest| rest.strip_suffix("-01"))
        .unwrap_or_else(|| panic!("{went}"));
    assert_eq!(answer["x-saw-tracestate"], "a=1");
    let (context, batch) = next(&mut batches).await;
    let context = context.expect("the sender's own context");
    assert!(
        context.ends_with("-00"),
        "sending leaves no spans: {context}"
    );
    let [span] = spans(&batch)[..] else {
        panic!("{batch:?}")
    };
    assert_eq!(span.trace_id, bytes(TRACE));
    assert_eq!(span.parent_span_id, bytes("00f067aa0ba902b7"));
    assert_eq!(span.span_id, bytes(ours));
    assert_eq!((span.kind, &*span.trace_state), (2, "a=1"));
    assert_eq!(span.name, "db.shop.svc.cluster.local:8080/*");
    assert!(span.end_time_unix_nano > span.start_time_unix_nano);
    assert_eq!(span.status.as_ref().map(|s| s.code), Some(2));
    let client = world.web.ip.to_string();
    for (key, expect) in [
        ("http.request.method", "GET"),
        ("url.path", "/status/503"),
        ("http.response.status_code", "503"),
        ("server.address", "db.shop"),
        ("server.port", "8080"),
        ("client.address", &*client),
        ("user_agent.original", "curl/8"),
        ("network.protocol.version", "1.1"),
        ("error.type", "503"),
        ("response_flags", "URX"),
        (
            "upstream_cluster",
            "outbound|8080||db.shop.svc.cluster.local",
        ),
        ("warren.source.workload", "web"),
        ("env", "test"),
        ("user", "jason"),
        ("team", "none"),
    ] {
        assert_eq!(
            said(&span.attributes, key).as_deref(),
            Some(expect),
            "{key}"
        );
    }
    assert!(said(&span.attributes, "istio.canonical_service").is_some());
    let resource = batch.resource_spans[0]
        .resource
        .as_ref()
        .expect("a resource");
    assert_eq!(
        said(&resource.attributes, "k8s.pod.name").as_deref(),
        Some("waypoint")
    );
    let name = said(&resource.attributes, "service.name").expect("a name");
    assert!(name.ends_with(".mesh"), "{name}");
    until(|| counted(&world, "rejected") == 1).await;
    exporter.end().await;
    world.node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_decides_whether_there_is_a_span() {
    let (world, exporter, mut batches) = traced("97", Share::NONE, true).await;
    let seen = async |name: &'static str, value: &str| {
        let mut request = get("/");
        if !name.is_empty() {
            let value = value.parse().expect("good");
            request.headers_mut().insert(name, value);
        }
        let (status, answer, _) = world.ask(request).await;
        assert_eq!(status, 200);
        let saw = |name: &str| {
            answer
                .get(name)
                .map(|v| v.to_str().expect("text").to_owned())
        };
        (saw("x-saw-traceparent"), saw("x-saw-b3"))
    };
    // Nobody has decided and nothing is sampled: whoever comes next hears that.
    let (w3c, b3) = seen("", "").await;
    assert!(w3c.is_some_and(|t| t.ends_with("-00")));
    assert_eq!(b3, None);
    let (w3c, b3) = seen("b3", "0").await;
    assert_eq!((w3c, b3.as_deref()), (None, Some("0")));
    let silent = format!("00-{TRACE}-00f067aa0ba902b7-00");
    assert_eq!(
        seen("traceparent", &silent).await,
        (Some(silent.clone()), None)
    );
    // The client has decided.
    let (w3c, b3) = seen("b3", &format!("{TRACE}-00f067aa0ba902b7-1")).await;
    let ours = w3c.expect("W3C's form goes along")[36..52].to_owned();
    assert_eq!(b3, Some(format!("{TRACE}-{ours}-1-00f067aa0ba902b7")));
    let (_, batch) = next(&mut batches).await;
    let [span] = spans(&batch)[..] else {
        panic!("{batch:?}")
    };
    assert_eq!(span.span_id, bytes(&ours));
    // Everything is sampled.
    let mesh = world.node.state.load().mesh.clone();
    let mut config = mesh.config().expect("known").as_ref().clone();
    let mut rule = config.tracing[0].as_ref().clone();
    rule.sampling = Share::ALL;
    config.tracing = Box::new([Arc::new(rule)]);
    world.node.state.apply([Change::Config(config.clone())]);
    let (w3c, _) = seen("", "").await;
    assert!(w3c.is_some_and(|t| t.ends_with("-01")));
    let (_, batch) = next(&mut batches).await;
    let [span] = spans(&batch)[..] else {
        panic!("{batch:?}")
    };
    assert!(span.parent_span_id.is_empty());
    // Without rules headers are nobody's business, and at the end everything was sent.
    config.tracing = Box::default();
    world.node.state.apply([Change::Config(config)]);
    assert_eq!(seen("", "").await, (None, None));
    exporter.end().await;
    assert_eq!(counted(&world, "rejected"), 2);
    assert_eq!(counted(&world, "queue_full"), 0);
    world.node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_waits_for_a_collector_that_is_away() {
    let (world, exporter, _batches) = traced("93", Share::ALL, false).await;
    let (status, ..) = world.get("/").await;
    assert_eq!(status, 200);
    until(|| counted(&world, "unreachable") == 1).await;
    exporter.end().await;
    // Nobody takes anything any more.
    let (status, ..) = world.get("/").await;
    assert_eq!(status, 200);
    until(|| counted(&world, "ended") == 1).await;
    world.node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_waits_is_bounded() {
    let world = world("94", AppProtocol::Http11).await;
    let shared = &world.node.shared;
    let rule = Arc::new(Tracing {
        scope: TracingScope::Mesh,
        sampling: Share::ALL,
        collector: None,
        tags: Box::default(),
    });
    let flow = shared.observer.flow(Direction::Through, None);
    let record = flow.record().clone();
    flow.forget();
    for _ in 0..5000 {
        let asked = || "db:8080".to_owned();
        let (_, span) = shared.spans.begin(&rule, &HeaderMap::new(), asked);
        let span = span.expect("everything is sampled");
        span.finish(&record, &Default::default(), Duration::ZERO);
    }
    assert_eq!(counted(&world, "queue_full"), 5000 - 4096);
    world.node.stop().await;
}
