//! The connection to a collector: authorized, routed and dialed like any other of the waypoint's pod; gRPC over it.
//!
//! Invariant: what is sent says that it is not traced, so that no span is about the sending of spans.

use std::{
    net::SocketAddr,
    pin::Pin,
    rc::Rc,
    sync::Arc,
    task::{Context, Poll},
};

use http::{HeaderValue, Request, Response, Uri};
use hyper::{body::Incoming, client::conn::http2};
use hyper_util::rt::{TokioIo, TokioTimer};
use mesh_model::{
    authz::Denial,
    mesh::{Collector, Mesh, Service, Workload},
    name::ServiceName,
};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, trace_service_client::TraceServiceClient,
};
use tonic::body::Body;

use crate::{
    accept::Pod,
    authorize,
    dial::{self, DialError, Tunnels, Upstream},
    exchange::OnThread,
    route,
    serve::Shared,
    tunnel::{Io, Link},
};

/// Who sends, and by which means.
pub(super) struct Reach {
    pub shared: Arc<Shared>,
    pub tunnels: Rc<Tunnels>,
    pub pod: Arc<Pod>,
}

/// Why spans were not taken.
#[derive(Debug, thiserror::Error)]
pub(super) enum ExportError {
    /// No service has the name, or none of that port.
    #[error("the mesh knows no service of this name and port")]
    Unknown,
    /// Not to be dialed.
    #[error("refused: {}", .0.reason.shown().key)]
    Denied(Denial),
    /// Not to be reached.
    #[error(transparent)]
    Dial(#[from] DialError),
    /// HTTP/2 failed.
    #[error("HTTP/2: {0}")]
    Http(#[from] hyper::Error),
    /// The collector answered with an error, or not at all.
    #[error("the collector answered: {0}")]
    Status(Box<tonic::Status>),
    /// It took too long.
    #[error("no answer in time")]
    Timeout,
}

impl ExportError {
    /// The metric's word.
    pub(super) fn result(&self) -> &'static str {
        match self {
            Self::Unknown => "no_collector",
            Self::Denied(_) => "denied",
            Self::Dial(_) | Self::Http(_) => "unreachable",
            Self::Status(_) => "refused",
            Self::Timeout => "timeout",
        }
    }
}

impl Reach {
    /// The waypoint's own workload, as far as the mesh knows it.
    pub(super) fn own(&self) -> Own {
        Own {
            pod: self.pod.clone(),
            workload: self
                .shared
                .state
                .load()
                .mesh
                .workload(&self.pod.workload)
                .cloned(),
        }
    }

    /// Connects to a collector.
    pub(super) async fn connect(&self, collector: &Collector) -> Result<Connection, ExportError> {
        let shared = &self.shared;
        let snapshot = shared.state.load();
        let v6_only = !self.pod.addresses.iter().any(|ip| ip.is_ipv4());
        let target = address(&snapshot.mesh, collector, &self.pod, v6_only);
        let target = target.ok_or(ExportError::Unknown)?;
        let permitted = authorize::outbound(&shared.state, &self.pod, target).await;
        let permitted = permitted.map_err(ExportError::Denied)?;
        let own = self
            .pod
            .addresses
            .iter()
            .find(|ip| ip.is_ipv4() == target.is_ipv4());
        let client = SocketAddr::new(*own.ok_or(ExportError::Unknown)?, 0);
        let plan = route::outbound(&shared.node, &permitted, client.ip(), &[]);
        let plan = plan.map_err(ExportError::Denied)?;
        let request = dial::Request {
            pod: &self.pod,
            permit: &permitted.permit,
            client,
            behalf: None,
            timeout: shared.limits.connect_timeout,
            names: &shared.names,
            keepalive: None,
        };
        let (upstream, _) = dial::outbound(&self.tunnels, &request, &plan).await?;
        let link = match upstream {
            Upstream::Tunnel(stream) => Link::Tunnel(Io::new(stream)),
            Upstream::Plain(tcp) => Link::Plain(tcp, Default::default()),
        };
        let mut builder = http2::Builder::new(OnThread);
        builder.timer(TokioTimer::new());
        let (sender, connection) = builder.handshake(TokioIo::new(link)).await?;
        tokio::task::spawn_local(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "a connection to a collector failed");
            }
        });
        let origin = format!("http://{}:{}", collector.hostname, collector.port);
        // Names of the configuration are letters, digits, dots, dashes and underscores.
        let origin = Uri::try_from(origin).map_err(|_| ExportError::Unknown)?;
        Ok(Connection(TraceServiceClient::with_origin(
            Sender(sender),
            origin,
        )))
    }
}

/// The address to dial: the service's own, or of a service without one any ready endpoint's.
fn address(mesh: &Mesh, collector: &Collector, pod: &Pod, v6_only: bool) -> Option<SocketAddr> {
    let host = collector.hostname.as_str();
    let named = match &collector.namespace {
        Some(namespace) => Some(ServiceName {
            namespace: namespace.clone(),
            hostname: collector.hostname.clone(),
        }),
        None => {
            let all = mesh.services_named(host);
            let own = all.iter().find(|name| name.namespace == pod.namespace);
            own.or(all.first()).cloned()
        }
    };
    let service: &Arc<Service> = mesh.service(&named?)?;
    service.ports.iter().find(|p| p.port == collector.port)?;
    let mut vips = service.vips.iter().map(|vip| vip.ip);
    if let Some(ip) = vips.find(|ip| ip.is_ipv6() == v6_only) {
        return Some(SocketAddr::new(ip, collector.port));
    }
    let endpoints = mesh.endpoints(&service.name).iter();
    let ready: Vec<&Arc<Workload>> = endpoints.filter(|w| w.healthy).collect();
    let chosen = ready.get(fastrand::usize(..ready.len().max(1)))?;
    mesh_model::route::place(mesh, chosen, service, collector.port, v6_only)
}

/// Who sends, as spans say it.
pub(super) struct Own {
    pub pod: Arc<Pod>,
    pub workload: Option<Arc<Workload>>,
}

/// A connection that takes spans.
pub(super) struct Connection(TraceServiceClient<Sender>);

impl Connection {
    /// Sends spans; gives how many the collector did not want.
    pub(super) async fn export(
        &mut self,
        request: ExportTraceServiceRequest,
    ) -> Result<usize, ExportError> {
        let answer = self.0.export(request).await;
        let answer = answer.map_err(|status| ExportError::Status(Box::new(status)))?;
        let partly = answer.into_inner().partial_success;
        Ok(partly.map_or(0, |p| usize::try_from(p.rejected_spans).unwrap_or(0)))
    }
}

/// HTTP/2 that stays on this thread.
#[derive(Clone)]
struct Sender(http2::SendRequest<Body>);

impl tonic::codegen::Service<Request<Body>> for Sender {
    type Response = Response<Incoming>;
    type Error = hyper::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>>>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        let text = format!(
            "00-{:032x}-{:016x}-00",
            fastrand::u128(1..),
            fastrand::u64(1..)
        );
        if let Ok(value) = HeaderValue::try_from(text) {
            request.headers_mut().insert("traceparent", value);
        }
        Box::pin(self.0.send_request(request))
    }
}
