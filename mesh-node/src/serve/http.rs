//! The story of an HTTP request at a waypoint: permit -> route -> faults -> an endpoint, perhaps again -> its answer.
//! One for a workload itself is routed by nobody: it goes there.
//!
//! Invariants: each request is permitted, and decided with one snapshot, before anything of it is changed; what cannot
//! be understood is refused; each request is reported exactly once, however it ends; nothing is read of a body faster
//! than it is taken.

mod fair;
mod forward;
mod head;
mod patient;
mod side;

use std::{
    cell::{Cell, RefCell},
    convert::Infallible,
    future::{Future, poll_fn},
    pin::{Pin, pin},
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use http::{
    HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Version, header, request::Parts,
};
use hyper::{
    body::Incoming,
    ext::Protocol,
    server::conn::{http1, http2},
    service::service_fn,
    upgrade::OnUpgrade,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use mesh_model::{
    authz::Target,
    mesh::{Mesh, Workload, tracing_of},
    resilience::{Abort, Fault},
    route::http::{Action, Asked, Crossing, Found, Rule},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    sync::oneshot,
    time::timeout,
};

use self::{
    fair::Fair,
    forward::Forward,
    head::{Addressed, Head},
    patient::Patient,
    side::Side,
};
use super::{
    Data, parties,
    streams::Reached,
    thread::Place,
    waypoint::{Carry, Near, joined},
};
use crate::{
    authorize,
    exchange::{Kept, Local, OnThread, Reply, is_grpc, local},
    observe::{Mark, RequestGuard},
    tunnel::{Io, Link},
};

/// Streams of one HTTP/2 connection at once.
const STREAMS: u32 = 1024;
/// Windows of HTTP/2 towards clients: a stream's, a connection's.
const WINDOWS: (u32, u32) = (1 << 20, 4 << 20);
/// The largest header list, in bytes.
const HEADERS: u32 = 64 << 10;
/// How long a client may take to end its side of a connection that was ended here.
const LINGER: Duration = Duration::from_secs(5);
/// What is kept of a request's body for another try, in bytes (Envoy's `per_connection_buffer_limit_bytes` is larger).
const KEPT: usize = 256 << 10;

/// A client's connection on which requests come.
pub(super) struct Session {
    data: Rc<Data>,
    carry: Carry,
    h2: bool,
    /// The endpoint's side, after a request was upgraded to something else.
    upgraded: RefCell<Option<oneshot::Receiver<(Link, Bytes)>>>,
    /// Whether the client of a connection of HTTP/1 is to come again on another.
    old: Cell<bool>,
}

type Answer = Pin<Box<dyn Future<Output = Result<Response<Reply>, Infallible>>>>;

/// Serves a connection to its end.
pub(super) async fn serve(data: Rc<Data>, carry: Carry, io: Io, h2: bool, place: Place) {
    let session = Rc::new(Session {
        data: data.clone(),
        carry,
        h2,
        upgraded: RefCell::default(),
        old: Cell::new(false),
    });
    let asked = session.clone();
    let service = service_fn(move |request| {
        let session = asked.clone();
        Box::pin(async move { Ok(answer(session, request).await) }) as Answer
    });
    if h2 {
        let mut builder = http2::Builder::new(OnThread);
        builder
            .timer(TokioTimer::new())
            .max_concurrent_streams(STREAMS)
            .enable_connect_protocol()
            .max_header_list_size(HEADERS)
            .initial_stream_window_size(WINDOWS.0)
            .initial_connection_window_size(WINDOWS.1);
        let mut connection =
            pin!(builder.serve_connection(TokioIo::new(Side::new(io, Fair::default())), service));
        let ended = tokio::select! {
            ended = connection.as_mut() => ended,
            () = data.outlived() => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        };
        if let Err(error) = ended {
            tracing::debug!(%error, "a client's HTTP/2 connection failed");
        }
        return;
    }
    let limits = &data.shared.limits;
    let patient = Patient::new(limits.http_head);
    let mut builder = http1::Builder::new();
    builder
        .timer(patient.clone())
        .header_read_timeout(limits.http_idle)
        .half_close(true)
        .auto_date_header(false);
    let io = TokioIo::new(patient.watch(io));
    let mut connection = builder.serve_connection(io, service);
    let mut draining = pin!(data.draining());
    let mut age = pin!(data.age());
    let mut drained = false;
    let ended = poll_fn(|cx| {
        // An idle connection is not closed for its age: its client may just be asking.
        if !session.old.get() && age.as_mut().poll(cx).is_ready() {
            session.old.set(true);
        }
        if !drained && draining.as_mut().poll(cx).is_ready() {
            drained = true;
            Pin::new(&mut connection).graceful_shutdown();
        }
        connection.poll_without_shutdown(cx)
    });
    if let Err(error) = ended.await {
        tracing::debug!(%error, "a client's HTTP connection failed");
        return;
    }
    let parts = connection.into_parts();
    let near = parts.io.into_inner().into_inner();
    finish(&session, near, parts.read_buf, place).await;
}

/// Ends a client's connection in order, or goes on with what it was upgraded to.
async fn finish(session: &Rc<Session>, mut near: Io, read: Bytes, place: Place) {
    let upgraded = session.upgraded.borrow_mut().take();
    let Some(upgraded) = upgraded else {
        return close(near).await;
    };
    let Ok((far, first)) = upgraded.await else {
        return;
    };
    near.unread(read);
    session.joined(near, far.after(first), place);
}

/// Ends a client's connection in order. A peer that is gone needs none. Another ends its side once it has read ours; were it
/// reset before, it might lose what it has not read yet.
pub(super) async fn close(mut near: Io) {
    let ending = async {
        near.shutdown().await?;
        let mut rest = [0; 512];
        while near.read(&mut rest).await? > 0 {}
        std::io::Result::Ok(())
    };
    let _ = timeout(LINGER, ending).await;
}

/// Goes on with a stream among others that has become something else.
async fn through(session: Rc<Session>, near: OnUpgrade, far: oneshot::Receiver<(Link, Bytes)>) {
    let (Ok(near), Ok((far, first))) = tokio::join!(near, far) else {
        return;
    };
    let Some(place) = session.data.shared.place() else {
        return;
    };
    session.joined(TokioIo::new(near), far.after(first), place);
}

/// Answers a request.
async fn answer(session: Rc<Session>, request: Request<Incoming>) -> Response<Reply> {
    let grpc = is_grpc(request.method(), request.headers());
    let (parts, body) = request.into_parts();
    let mut guard = session.begin(&parts, grpc);
    let kept = Kept::new(body, KEPT, grpc);
    let mut told = HeaderMap::new();
    let mut response = match decide(&session, &parts, &kept, &mut guard, &mut told).await {
        Ok(response) => response,
        Err(answer) => {
            guard.flag(answer.flag);
            guard.detail(answer.details);
            kept.give_up();
            local(answer, grpc)
        }
    };
    // Whatever the answer is, a script that may read it is to see it.
    tell(response.headers_mut(), told);
    if session.old.get() && response.status() != StatusCode::SWITCHING_PROTOCOLS {
        let close = HeaderValue::from_static("close");
        response.headers_mut().insert(header::CONNECTION, close);
    }
    // Over HTTP/2 a body where none may be is an error of ours (RFC 9113, 8.1.1).
    let head = parts.method == Method::HEAD;
    if (head || response.status() == StatusCode::NO_CONTENT)
        && let Some(length) = response.body_mut().leave_out()
        && head
    {
        response
            .headers_mut()
            .insert(header::CONTENT_LENGTH, length.into());
    }
    guard.record.status = response.status().as_u16();
    guard.grpc(response.headers());
    response.body_mut().report(guard, Some(kept));
    response
}

/// Puts what is told about origins into a response.
fn tell(headers: &mut HeaderMap, mut told: HeaderMap) {
    if let Some(vary) = told.remove(header::VARY) {
        headers.append(header::VARY, vary);
    }
    headers.extend(told);
}

/// What becomes of a request; `told` is what its response says about origins, whatever it is.
async fn decide(
    session: &Rc<Session>,
    parts: &Parts,
    kept: &Kept,
    guard: &mut RequestGuard,
    told: &mut HeaderMap,
) -> Result<Response<Reply>, Local> {
    let (shared, carry) = (&session.data.shared, &session.carry);
    let (pod, bringer) = (&carry.arrived.pod, &carry.bringer);
    let original = carry.permitted.permit.subject().original;
    let permitted = authorize::through(&shared.state, pod, bringer, original).await;
    let permitted = permitted.map_err(|_| Local::UNSERVED)?;
    let addressed = Addressed::of(permitted.permit.subject()).ok_or(Local::UNSERVED)?;
    guard.flow.service = addressed.service().cloned();
    if let Addressed::Workload(workload, _) = &addressed {
        guard.flow.destination.workload = Some(workload.clone());
    }
    let mesh = permitted.snapshot.mesh.clone();
    let own = &permitted.permit.subject().source;
    let mark = session.trace(parts, (&mesh, own), &addressed, guard);
    let head = Head::read(parts, &addressed)?;
    let client = session.client(&mesh, &permitted.permit.subject().source);
    let extra = client.as_ref().and_then(|w| mesh.extra(&w.uid));
    let asked = Asked {
        namespace: carry.identity().map(|i| &i.namespace),
        groups: extra.map_or(&[], |e| &*e.groups),
        port: addressed.port(),
        // An upgrade as HTTP/2 says it is the request that HTTP/1.1 makes of it.
        method: match parts.extensions.get::<Protocol>() {
            Some(_) => Method::GET.as_str(),
            None => parts.method.as_str(),
        },
        scheme: "http",
        authority: &head.authority,
        path: &head.path,
        query: head.query.as_deref(),
        headers: &parts.headers,
    };
    let found = addressed.service().and_then(|name| mesh.routes(name));
    let (rule, covered) = match found.map_or(Found::Unrouted, |routes| routes.find(&asked)) {
        Found::Rule { rule, covered } => (Some(rule), covered),
        Found::Unrouted => (None, head.path.len()),
        Found::NoRule => return Err(Local::NO_ROUTE),
        Found::Refused(reason) => {
            tracing::debug!(service = %addressed.name(), reason = reason.shown().key, "the routes of a service are refused");
            return Err(Local::NO_CLUSTER);
        }
    };
    guard.record.route = Some(rule.map_or_else(|| "default".to_owned(), |r| r.name.to_string()));
    if let Some(cors) = rule.and_then(|r| r.cors.as_ref()) {
        match cors.look(parts.method.as_str(), &parts.headers) {
            Crossing::Plain(headers) | Crossing::Marked(headers) => *told = headers,
            Crossing::Answered(headers) => {
                *told = headers;
                return Ok(Response::new(Reply::of(Bytes::new())));
            }
        }
    }
    if let Some(fault) = rule.and_then(|r| r.fault.as_ref())
        && let Some(aborted) = inject(fault, guard).await
    {
        return aborted;
    }
    let mut response = match rule.map(|r| &r.action) {
        Some(Action::Invalid(why)) => {
            tracing::debug!(rule = ?guard.record.route, %why, "a rule that could not be understood refused a request");
            return Err(Local::NO_CLUSTER);
        }
        Some(Action::Redirect(redirect)) => {
            sent_elsewhere(redirect.status, &redirect.location(&asked, covered))?
        }
        Some(Action::Respond(respond)) => {
            let mut response = Response::new(Reply::of(respond.body.clone()));
            *response.status_mut() = status(respond.status)?;
            response
        }
        Some(Action::Forward(_)) | None => {
            let way = Forward::new(session, permitted, client, rule, mark);
            way.go(parts, &head, covered, kept, guard).await?
        }
    };
    if let Some(Rule { filters, .. }) = rule {
        filters.response.apply(response.headers_mut());
    }
    Ok(response)
}

/// Delays, then perhaps aborts, as a rule says. Both are drawn independently.
async fn inject(fault: &Fault, guard: &mut RequestGuard) -> Option<Result<Response<Reply>, Local>> {
    if let Some((share, delay)) = &fault.delay
        && share.covers(fastrand::u64(..))
    {
        guard.flag("DI");
        tokio::time::sleep(*delay).await;
    }
    let (share, abort) = fault.abort.as_ref()?;
    if !share.covers(fastrand::u64(..)) {
        return None;
    }
    Some(match abort {
        Abort::Http(status) => Err(Local::abort(*status)),
        Abort::Grpc(code) => {
            let answer = Local::abort(200);
            guard.flag(answer.flag);
            guard.detail(answer.details);
            Ok(crate::exchange::grpc_status(*code, answer.text))
        }
    })
}

fn status(code: u16) -> Result<StatusCode, Local> {
    StatusCode::from_u16(code).map_err(|_| Local::NO_CLUSTER)
}

fn sent_elsewhere(code: u16, location: &str) -> Result<Response<Reply>, Local> {
    let mut response = Response::new(Reply::of(Bytes::new()));
    *response.status_mut() = status(code)?;
    let location = HeaderValue::try_from(location).map_err(|_| Local::MALFORMED)?;
    response.headers_mut().insert(header::LOCATION, location);
    Ok(response)
}

impl Session {
    /// The client, where it proved to be one that the mesh knows.
    fn client(&self, mesh: &Mesh, own: &Workload) -> Option<Arc<Workload>> {
        let found = mesh.workload_at(&own.network, self.carry.client.ip());
        let proven = self.carry.identity()?;
        found.filter(|w| w.identity == *proven).cloned()
    }

    /// Begins to report a flow of this connection.
    fn report_flow(&self) -> crate::observe::FlowGuard {
        let carry = &self.carry;
        let mut report = carry.report(&self.data.shared.observer);
        let original = carry.permitted.permit.subject().original;
        report.record_mut().destination.addr = Some(original);
        let client = carry.client.ip();
        parties::client(&carry.permitted, client, carry.identity(), &mut report);
        report
    }

    /// Relays what is no HTTP any more, reported as a flow of its own.
    fn joined(&self, near: impl Near, far: Link, place: Place) {
        let mut report = self.report_flow();
        report.record_mut().service = match &self.carry.permitted.permit.subject().target {
            Target::Service(service, _) => Some(service.name.clone()),
            Target::Workload(..) | Target::External => None,
        };
        let to = Reached::unbounded(far);
        joined(&self.data, &self.carry, near, to, report, place);
    }

    /// Begins a request's span, where it is to have one; gives the context that goes on in its headers.
    fn trace(
        &self,
        parts: &Parts,
        (mesh, own): (&Mesh, &Workload),
        addressed: &Addressed,
        guard: &mut RequestGuard,
    ) -> Option<Mark> {
        let rules = &mesh.config()?.tracing;
        let (service, namespace) = (addressed.service(), addressed.namespace());
        let rule = tracing_of(rules, (service, namespace), own)?;
        let spans = &self.data.shared.spans;
        let (mark, span) = spans.begin(rule, &parts.headers, || addressed.name());
        guard.span = span;
        mark
    }

    /// Begins to report a request.
    fn begin(&self, parts: &Parts, grpc: bool) -> RequestGuard {
        let flow = self.report_flow();
        let mut guard = self.data.shared.observer.request(flow.record().clone());
        flow.forget();
        let text = |name: &str| {
            let value = parts.headers.get(name)?;
            Some(String::from_utf8_lossy(value.as_bytes()).into_owned())
        };
        let record = &mut guard.record;
        record.method = parts.method.to_string();
        record.path = parts
            .uri
            .path_and_query()
            .map_or_else(String::new, ToString::to_string);
        record.authority = head::authority(parts).unwrap_or_default().to_owned();
        record.protocol = match parts.version {
            Version::HTTP_10 => "HTTP/1.0",
            Version::HTTP_2 => "HTTP/2",
            _ => "HTTP/1.1",
        };
        record.grpc = grpc;
        record.id = text("x-request-id");
        record.agent = text("user-agent");
        guard
    }
}
