//! What the HTTP samples share: one server loop (HTTP/1.1 and h2c), one small client, JSON answers.
//!
//! Invariant: a server listens on IPv6 and IPv4 alike when the pod has both, and ends on SIGTERM.

use std::{convert::Infallible, future::Future, net::SocketAddr, time::Duration};

use anyhow::{Context, Result};
use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full, combinators::BoxBody};
use hyper::body::{Body as _, Incoming};
use hyper_util::rt::{TokioExecutor, TokioIo};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::{TcpListener, TcpStream};

/// A body of any kind that cannot fail.
pub type Body = BoxBody<Bytes, Infallible>;

/// Headers that a service passes on so that traces and user-based routing hold together.
const FORWARDED: &[&str] = &[
    "x-request-id",
    "traceparent",
    "tracestate",
    "b3",
    "x-b3-traceid",
    "x-b3-spanid",
    "x-b3-parentspanid",
    "x-b3-sampled",
    "x-b3-flags",
    "end-user",
    "user-agent",
    "cookie",
    "authorization",
];

/// A listener on `port` for both address families where the host has both, else for IPv4.
pub fn listen(port: u16) -> Result<TcpListener> {
    let bind = |addr: SocketAddr| -> std::io::Result<Socket> {
        let socket = Socket::new(Domain::for_address(addr), Type::STREAM, Some(Protocol::TCP))?;
        if addr.is_ipv6() {
            socket.set_only_v6(false)?;
        }
        socket.set_reuse_address(true)?;
        socket.set_nonblocking(true)?;
        socket.bind(&addr.into())?;
        socket.listen(4096)?;
        Ok(socket)
    };
    let socket = bind(SocketAddr::from((std::net::Ipv6Addr::UNSPECIFIED, port)))
        .or_else(|_| bind(SocketAddr::from((std::net::Ipv4Addr::UNSPECIFIED, port))))
        .with_context(|| format!("cannot listen on port {port}"))?;
    Ok(TcpListener::from_std(socket.into())?)
}

/// Serves `handler` on `port` until SIGTERM or SIGINT.
pub async fn serve<H, F>(port: u16, handler: H) -> Result<()>
where
    H: Fn(Request<Incoming>, SocketAddr) -> F + Clone + Send + 'static,
    F: Future<Output = Response<Body>> + Send + 'static,
{
    let listener = listen(port)?;
    println!("listening on port {port}");
    let mut stop = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    loop {
        let (stream, peer) = tokio::select! {
            _ = stop.recv() => return Ok(()),
            _ = tokio::signal::ctrl_c() => return Ok(()),
            accepted = listener.accept() => match accepted {
                Ok(pair) => pair,
                Err(e) => { eprintln!("accept: {e}"); tokio::time::sleep(Duration::from_millis(50)).await; continue; }
            },
        };
        let handler = handler.clone();
        tokio::spawn(async move {
            let _ = stream.set_nodelay(true);
            let service = hyper::service::service_fn(move |req: Request<Incoming>| {
                let head = req.method() == Method::HEAD;
                let answer = handler(req, peer);
                async move {
                    let answer = answer.await;
                    Ok::<_, Infallible>(if head {
                        without_content(answer)
                    } else {
                        answer
                    })
                }
            });
            // A client that goes away mid-request is its own affair.
            let _ = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new())
                .serve_connection_with_upgrades(TokioIo::new(stream), service)
                .await;
        });
    }
}

/// An answer to `HEAD`: it tells the length of the content that `GET` would have brought.
fn without_content(mut answer: Response<Body>) -> Response<Body> {
    if let Some(length) = answer.body().size_hint().exact() {
        answer
            .headers_mut()
            .insert(header::CONTENT_LENGTH, length.into());
    }
    answer.map(|_| Full::default().boxed())
}

/// An answer with a status, a content type and a whole body.
pub fn answer(status: StatusCode, content_type: &str, body: impl Into<Bytes>) -> Response<Body> {
    Response::builder()
        .status(status)
        .header(header::CONTENT_TYPE, content_type)
        .body(Full::new(body.into()).boxed())
        .expect("a static content type is a valid header")
}

/// A JSON answer.
pub fn json(status: StatusCode, value: &serde_json::Value) -> Response<Body> {
    answer(status, "application/json", value.to_string())
}

/// A plain text answer.
pub fn text(status: StatusCode, body: impl Into<Bytes>) -> Response<Body> {
    answer(status, "text/plain; charset=utf-8", body)
}

/// The headers of `from` that are passed on to the next service.
pub fn forwarded(from: &HeaderMap) -> HeaderMap {
    let mut out = HeaderMap::new();
    for name in FORWARDED {
        for value in from.get_all(*name) {
            out.append(*name, value.clone());
        }
    }
    out
}

/// One GET over a connection of its own, within ten seconds.
pub async fn get(
    host: &str,
    port: u16,
    path: &str,
    headers: HeaderMap,
) -> Result<(StatusCode, Bytes)> {
    let call = async {
        let stream = TcpStream::connect((host, port))
            .await
            .with_context(|| format!("cannot connect to {host}:{port}"))?;
        let (mut send, conn) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        let driver = tokio::spawn(conn);
        let mut request = Request::get(path)
            .header(header::HOST, format!("{host}:{port}"))
            .body(Full::<Bytes>::default())?;
        request.headers_mut().extend(headers);
        let answer = send.send_request(request).await?;
        let status = answer.status();
        let body = answer.into_body().collect().await?.to_bytes();
        driver.abort();
        Ok((status, body))
    };
    tokio::time::timeout(Duration::from_secs(10), call)
        .await
        .with_context(|| format!("{host}:{port} did not answer within 10 s"))?
}

/// The host name that a service is reached by, from the environment or its usual name.
pub fn host(variable: &str, usual: &str) -> String {
    std::env::var(variable)
        .ok()
        .filter(|v| !v.is_empty())
        .unwrap_or_else(|| usual.to_owned())
}

/// This pod's name.
pub fn pod_name() -> String {
    std::env::var("HOSTNAME")
        .ok()
        .or_else(|| nix::unistd::gethostname().ok()?.into_string().ok())
        .unwrap_or_else(|| "unknown".into())
}
