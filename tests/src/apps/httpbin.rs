//! An httpbin-like echo: headers, status, delay, bytes, stream and WebSocket.

use std::{convert::Infallible, net::SocketAddr, time::Duration};

use anyhow::Result;
use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use http::{HeaderMap, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper_util::rt::TokioIo;
use serde_json::{Map, Value, json};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{handshake::derive_accept_key, protocol::Role},
};

use super::web::{self, Body};

/// The port of the image it stands in for.
pub const PORT: u16 = 80;

/// Limits of one request: bytes, lines and seconds.
const MAX_BYTES: usize = 1 << 30;
const MAX_LINES: usize = 100_000;
const MAX_DELAY: f64 = 3600.0;

/// Serves until SIGTERM.
pub async fn httpbin(port: u16, version: String) -> Result<()> {
    web::serve(port, move |req, peer| {
        let version = version.clone();
        async move { route(req, peer, &version).await }
    })
    .await
}

async fn route(req: Request<Incoming>, peer: SocketAddr, version: &str) -> Response<Body> {
    let path = req.uri().path().to_owned();
    let (head, tail) = path
        .trim_start_matches('/')
        .split_once('/')
        .unwrap_or((path.trim_start_matches('/'), ""));
    match head {
        "" | "health" | "healthz" => web::text(
            StatusCode::OK,
            format!("hello from {} {version}\n", web::pod_name()),
        ),
        "headers" => web::json(StatusCode::OK, &json!({"headers": headers(req.headers())})),
        "ip" => web::json(
            StatusCode::OK,
            &json!({"origin": peer.ip().to_canonical().to_string(), "port": peer.port()}),
        ),
        "user-agent" => web::json(
            StatusCode::OK,
            &json!({"user-agent": headers(req.headers()).get("user-agent")}),
        ),
        "status" => match tail
            .parse::<u16>()
            .ok()
            .and_then(|s| StatusCode::from_u16(s).ok())
        {
            Some(status) => web::text(status, ""),
            None => web::text(StatusCode::BAD_REQUEST, "not a status\n"),
        },
        "delay" => match tail.parse::<f64>() {
            Ok(s) if (0.0..=MAX_DELAY).contains(&s) => {
                tokio::time::sleep(Duration::from_secs_f64(s)).await;
                echo(req, peer, version).await
            }
            _ => web::text(StatusCode::BAD_REQUEST, "not a number of seconds\n"),
        },
        "bytes" => match tail.parse::<usize>() {
            Ok(n) if n <= MAX_BYTES => bytes_of(n),
            _ => web::text(StatusCode::BAD_REQUEST, "not a number of bytes\n"),
        },
        "stream" => match tail.parse::<usize>() {
            Ok(n) if n <= MAX_LINES => lines(n),
            _ => web::text(StatusCode::BAD_REQUEST, "not a number of lines\n"),
        },
        "ws" | "websocket" => websocket(req),
        "get" | "post" | "put" | "delete" | "patch" | "anything" => echo(req, peer, version).await,
        _ => web::text(StatusCode::NOT_FOUND, "not found\n"),
    }
}

fn headers(map: &HeaderMap) -> Value {
    let mut out = Map::new();
    for name in map.keys() {
        let values: Vec<_> = map
            .get_all(name)
            .iter()
            .map(|v| String::from_utf8_lossy(v.as_bytes()).into_owned())
            .collect();
        out.insert(name.to_string(), json!(values.join(",")));
    }
    Value::Object(out)
}

async fn echo(req: Request<Incoming>, peer: SocketAddr, version: &str) -> Response<Body> {
    let (parts, body) = req.into_parts();
    let data = match http_body_util::Limited::new(body, 16 << 20).collect().await {
        Ok(body) => body.to_bytes(),
        Err(_) => return web::text(StatusCode::PAYLOAD_TOO_LARGE, "more than 16 MiB\n"),
    };
    web::json(
        StatusCode::OK,
        &json!({
            "method": parts.method.as_str(), "url": parts.uri.to_string(), "headers": headers(&parts.headers),
            "data": String::from_utf8_lossy(&data), "origin": peer.ip().to_canonical().to_string(),
            "pod": web::pod_name(), "version": version,
        }),
    )
}

/// A body of `n` bytes in chunks, each byte its position modulo 251, so that a reader can check every one.
fn bytes_of(n: usize) -> Response<Body> {
    let chunks = futures_util::stream::unfold(0usize, move |at| async move {
        (at < n).then(|| {
            let end = n.min(at + 65_536);
            let chunk: Bytes = (at..end).map(|i| (i % 251) as u8).collect();
            (Ok::<_, Infallible>(Frame::data(chunk)), end)
        })
    });
    let mut answer = Response::new(BodyExt::boxed(StreamBody::new(SyncStream(Box::pin(
        chunks,
    )))));
    answer.headers_mut().insert(
        header::CONTENT_TYPE,
        header::HeaderValue::from_static("application/octet-stream"),
    );
    answer
}

fn lines(n: usize) -> Response<Body> {
    let lines = futures_util::stream::iter(
        (0..n).map(|i| Ok::<_, Infallible>(Frame::data(Bytes::from(format!("{{\"id\": {i}}}\n"))))),
    );
    let mut answer = Response::new(BodyExt::boxed(StreamBody::new(lines)));
    answer.headers_mut().insert(
        header::CONTENT_TYPE,
        header::HeaderValue::from_static("application/json"),
    );
    answer
}

/// Makes a stream usable in a `Sync` body: it is only ever polled through `&mut`.
struct SyncStream<T>(std::pin::Pin<Box<dyn futures_util::Stream<Item = T> + Send + Sync>>);

impl<T> futures_util::Stream for SyncStream<T> {
    type Item = T;

    fn poll_next(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<T>> {
        self.0.as_mut().poll_next(cx)
    }
}

/// Echoes every WebSocket message (RFC 6455) until the peer closes.
fn websocket(mut req: Request<Incoming>) -> Response<Body> {
    let Some(key) = req.headers().get(header::SEC_WEBSOCKET_KEY).cloned() else {
        return web::text(StatusCode::UPGRADE_REQUIRED, "this path speaks WebSocket\n");
    };
    tokio::spawn(async move {
        let Ok(upgraded) = hyper::upgrade::on(&mut req).await else {
            return;
        };
        let mut ws =
            WebSocketStream::from_raw_socket(TokioIo::new(upgraded), Role::Server, None).await;
        while let Some(Ok(message)) = ws.next().await {
            if (message.is_text() || message.is_binary()) && ws.send(message).await.is_err() {
                return;
            }
        }
    });
    let mut answer = web::text(StatusCode::SWITCHING_PROTOCOLS, "");
    let headers = answer.headers_mut();
    headers.remove(header::CONTENT_TYPE);
    headers.insert(
        header::UPGRADE,
        header::HeaderValue::from_static("websocket"),
    );
    headers.insert(
        header::CONNECTION,
        header::HeaderValue::from_static("upgrade"),
    );
    if let Ok(accept) = derive_accept_key(key.as_bytes()).parse() {
        headers.insert(header::SEC_WEBSOCKET_ACCEPT, accept);
    }
    answer
}
