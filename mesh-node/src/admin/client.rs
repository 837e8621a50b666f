//! One request to a running node's admin socket, for `mesh-node admin <path>`.

use std::{io, path::Path, time::Duration};

use bytes::Bytes;
use http::{Method, Request, header};
use http_body_util::{BodyExt, Empty};
use hyper_util::rt::TokioIo;
use tokio::{net::UnixStream, time::timeout};

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// Calls the socket; gives the status and the body.
pub async fn call(socket: &Path, method: Method, path: &str) -> io::Result<(u16, String)> {
    timeout(PATIENCE, exchange(socket, method, path)).await?
}

async fn exchange(socket: &Path, method: Method, path: &str) -> io::Result<(u16, String)> {
    let absent = |e: io::Error| {
        io::Error::new(
            e.kind(),
            format!(
                "{}: {e}; is a node proxy running with this instance name?",
                socket.display()
            ),
        )
    };
    let stream = UnixStream::connect(socket).await.map_err(absent)?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(io::Error::other)?;
    let driver = tokio::spawn(connection);
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header(header::HOST, "admin")
        .body(Empty::<Bytes>::new());
    let request = request.map_err(|e| io::Error::new(io::ErrorKind::InvalidInput, e))?;
    let response = sender
        .send_request(request)
        .await
        .map_err(io::Error::other)?;
    let status = response.status().as_u16();
    let body = response
        .into_body()
        .collect()
        .await
        .map_err(io::Error::other)?
        .to_bytes();
    driver.abort();
    Ok((status, String::from_utf8_lossy(&body).into_owned()))
}
