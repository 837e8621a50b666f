//! One request to a running node's admin socket.

use std::{fs, io, path::Path, time::Duration};

use bytes::Bytes;
use http::{Method, Request, header};
use http_body_util::{BodyExt, Empty};
use hyper_util::rt::TokioIo;
use tokio::{net::UnixStream, time::timeout};

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// Calls the socket; gives the status and the body.
pub async fn call(socket: &Path, method: Method, path: &str) -> io::Result<(u16, String)> {
    timeout(PATIENCE, async {
        exchange(connect(socket).await?, method, path).await
    })
    .await?
}

/// Asks whether the node proxy of this very container is ready; the error says what it waits for. While an upgrade
/// runs, the socket is an earlier process's until its successor has taken over: that one's answer does not count.
pub async fn ready(socket: &Path) -> io::Result<()> {
    let asked = async {
        let stream = connect(socket).await?;
        if !beside(&stream)? {
            return Err(io::Error::other(
                "another container's process serves: this one has not taken over yet, or has handed over",
            ));
        }
        match exchange(stream, Method::GET, "/readyz").await? {
            (200, _) => Ok(()),
            (_, why) => Err(io::Error::other(why.trim_end().to_owned())),
        }
    };
    timeout(PATIENCE, asked).await?
}

/// Whether whoever listens is in this process's container: shares its mount namespace.
fn beside(stream: &UnixStream) -> io::Result<bool> {
    // A process of a pid namespace that is not visible from here has no number.
    let Some(pid) = stream.peer_cred()?.pid().filter(|pid| *pid > 0) else {
        return Ok(false);
    };
    let theirs = fs::read_link(format!("/proc/{pid}/ns/mnt"))?;
    Ok(theirs == fs::read_link("/proc/thread-self/ns/mnt")?)
}

async fn connect(socket: &Path) -> io::Result<UnixStream> {
    let absent = |e: io::Error| {
        io::Error::new(
            e.kind(),
            format!(
                "{}: {e}; is a node proxy running with this instance name?",
                socket.display()
            ),
        )
    };
    UnixStream::connect(socket).await.map_err(absent)
}

async fn exchange(stream: UnixStream, method: Method, path: &str) -> io::Result<(u16, String)> {
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
