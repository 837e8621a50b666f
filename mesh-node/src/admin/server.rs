//! The server on `admin.sock`.
//!
//! Invariants: the kernel says that a peer is root before anything is read; connections are bounded in
//! number and time; an unknown path or method is told what there is.

use std::{
    convert::Infallible, fmt, fs, io, os::unix::fs::PermissionsExt, path::Path, sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::{Value, json};
use tokio::{
    net::{UnixListener, UnixStream},
    sync::Semaphore,
};

use super::dump;
use crate::{
    capture::{Capture, CaptureGone},
    cni::Cni,
    lifecycle::{Ending, Lifecycle},
    observe::{LogControl, Observer, ReadyCheck, reply},
    state::MeshState,
};

/// How many connections are served at a time.
const CONNECTIONS: usize = 16;
/// How long a connection may live.
const CONNECTION_TIME: Duration = Duration::from_secs(120);

/// A part of a dump that another part of the node knows.
pub type Section = Arc<dyn Fn() -> Value + Send + Sync>;

/// What the server shows and changes.
#[derive(Clone)]
pub struct AdminParts {
    /// The configuration from the controller.
    pub state: MeshState,
    /// The pods; absent where none are captured.
    pub capture: Option<Capture>,
    /// The log; absent where the process did not set it up.
    pub log: Option<LogControl>,
    /// The access log.
    pub observer: Observer,
    /// Ends the process.
    pub lifecycle: Lifecycle,
    /// How long a drain may take.
    pub drain: Duration,
    /// Whether the process is ready.
    pub ready: ReadyCheck,
    /// The process's own settings.
    pub config: Value,
    /// Certificates, without keys.
    pub certificates: Section,
    /// Interfaces that are guarded, and whether connections may go direct.
    pub guards: Section,
    /// The CNI plugin, when it is kept here.
    pub cni: Option<Cni>,
    /// Flows and tunnels.
    pub sessions: Section,
}

impl fmt::Debug for AdminParts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AdminParts")
            .field("config", &self.config)
            .finish_non_exhaustive()
    }
}

/// The server.
#[derive(Debug)]
pub struct AdminServer {
    listener: UnixListener,
    parts: AdminParts,
    admitted: u32,
}

impl AdminServer {
    /// Listens on `<run dir>/admin.sock`. `admitted` is the uid that peers must have: 0, except in tests.
    pub fn bind(path: &Path, admitted: u32, parts: AdminParts) -> io::Result<Self> {
        let next = path.with_extension("next");
        match fs::remove_file(&next) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        let listener = UnixListener::bind(&next)?;
        fs::set_permissions(&next, fs::Permissions::from_mode(0o600))?;
        fs::rename(&next, path)?;
        Ok(Self {
            listener,
            parts,
            admitted,
        })
    }

    /// Serves until the future is dropped.
    pub async fn run(self) {
        let room = Arc::new(Semaphore::new(CONNECTIONS));
        loop {
            let Ok(permit) = room.clone().acquire_owned().await else {
                return;
            };
            let stream = match self.listener.accept().await {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::warn!(%error, "admin.sock could not accept; trying again in a second");
                    tokio::time::sleep(Duration::from_secs(1)).await;
                    continue;
                }
            };
            match stream.peer_cred() {
                Ok(peer) if peer.uid() == self.admitted => {
                    let parts = self.parts.clone();
                    tokio::spawn(async move {
                        serve(stream, parts).await;
                        drop(permit);
                    });
                }
                Ok(peer) => tracing::warn!(
                    uid = peer.uid(),
                    pid = peer.pid(),
                    "a peer that is not root was turned away from admin.sock"
                ),
                Err(error) => {
                    tracing::warn!(%error, "a peer of admin.sock that cannot be identified was turned away")
                }
            }
        }
    }
}

async fn serve(stream: UnixStream, parts: AdminParts) {
    let service = service_fn(move |request| {
        let parts = parts.clone();
        async move { Ok::<_, Infallible>(parts.answer(&request).await) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .serve_connection(TokioIo::new(stream), service);
    // A client that goes away or is too slow is its own problem.
    let _ = tokio::time::timeout(CONNECTION_TIME, connection).await;
}

const PATHS: &str = "GET /readyz  GET /config_dump  GET /pods  GET /sessions  GET /logging  POST /logging?level=FILTER&access=on|off  POST /drain  POST /cni/remove\n";

impl AdminParts {
    async fn answer(&self, request: &Request<Incoming>) -> Response<Full<Bytes>> {
        match (request.method(), request.uri().path()) {
            (&Method::GET, "/readyz") => match (self.ready)() {
                Ok(()) => reply(StatusCode::OK, "ready\n".into()),
                Err(why) => reply(StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n")),
            },
            (&Method::GET, "/config_dump") => self.config_dump().await,
            (&Method::GET, "/pods") => match self.pods().await {
                Ok(pods) => json_reply(&json!({"pods": pods})),
                Err(gone) => reply(StatusCode::SERVICE_UNAVAILABLE, format!("{gone}\n")),
            },
            (&Method::GET, "/sessions") => json_reply(&(self.sessions)()),
            (&Method::POST, "/cni/remove") => self.remove_cni().await,
            (&Method::GET, "/logging") => reply(StatusCode::OK, self.logging()),
            (&Method::POST, "/logging") => {
                self.set_logging(request.uri().query().unwrap_or_default())
            }
            (&Method::POST, "/drain") => match self.lifecycle.drain(self.drain, Ending::Stop) {
                true => reply(StatusCode::OK, "draining\n".into()),
                false => reply(StatusCode::CONFLICT, "it is draining already\n".into()),
            },
            (_, "/readyz" | "/config_dump" | "/pods" | "/sessions" | "/logging" | "/drain") => {
                reply(StatusCode::METHOD_NOT_ALLOWED, PATHS.into())
            }
            _ => reply(StatusCode::NOT_FOUND, PATHS.into()),
        }
    }

    async fn config_dump(&self) -> Response<Full<Bytes>> {
        let snapshot = self.state.load();
        let mut dump = dump::mesh(&snapshot.mesh);
        dump.insert("certificates".into(), (self.certificates)());
        dump.insert("guards".into(), (self.guards)());
        dump.insert("cni".into(), json!(self.cni.as_ref().map(Cni::describe)));
        let pods = self.pods().await.unwrap_or(Value::Null);
        dump.insert("pods".into(), pods);
        dump.insert("config".into(), self.config.clone());
        dump.insert(
            "version".into(),
            json!({
                "version": env!("CARGO_PKG_VERSION"),
                "generation": snapshot.generation,
                "complete": snapshot.mesh.is_complete(),
            }),
        );
        json_reply(&Value::Object(dump))
    }

    async fn pods(&self) -> Result<Value, CaptureGone> {
        match &self.capture {
            Some(capture) => Ok(json!(capture.list().await?)),
            None => Ok(json!([])),
        }
    }

    async fn remove_cni(&self) -> Response<Full<Bytes>> {
        let Some(cni) = &self.cni else {
            let text = "this node proxy does not keep the CNI plugin (--cni off)\n";
            return reply(StatusCode::CONFLICT, text.into());
        };
        match cni.remove().await {
            Ok(true) => reply(StatusCode::OK, "the CNI plugin is taken out\n".into()),
            Ok(false) => reply(StatusCode::OK, "the CNI plugin was not there\n".into()),
            Err(error) => reply(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
        }
    }

    fn logging(&self) -> String {
        self.log.as_ref().map_or_else(
            || "the log was not set up by this process\n".to_owned(),
            |l| format!("{}\n", l.current()),
        )
    }

    /// Changes the filter, the access log, or both; all of it is checked before any of it is done.
    fn set_logging(&self, query: &str) -> Response<Full<Bytes>> {
        let (mut level, mut access) = (None, None);
        for pair in query.split('&').filter(|p| !p.is_empty()) {
            match pair.split_once('=') {
                Some(("level", filter)) => level = Some(decode(filter)),
                Some(("access", "on")) => access = Some(true),
                Some(("access", "off")) => access = Some(false),
                _ => {
                    return reply(
                        StatusCode::BAD_REQUEST,
                        format!("{pair:?} is not understood\n{PATHS}"),
                    );
                }
            }
        }
        match (&level, &self.log) {
            (Some(filter), Some(log)) => {
                if let Err(error) = log.set(filter) {
                    return reply(StatusCode::BAD_REQUEST, format!("{error}\n"));
                }
                tracing::info!(filter, "the log's filter was changed");
            }
            (Some(_), None) => return reply(StatusCode::CONFLICT, self.logging()),
            (None, _) if access.is_none() => return reply(StatusCode::BAD_REQUEST, PATHS.into()),
            (None, _) => {}
        }
        if let Some(on) = access {
            self.observer.set_access_log(on);
            tracing::info!(on, "the access log was switched");
        }
        reply(StatusCode::OK, self.logging())
    }
}

/// Undoes percent-encoding, so that `mesh_node%3Ddebug%2Cinfo` works as well as the plain text.
fn decode(text: &str) -> String {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        let escaped = match (first, tail) {
            (b'%', [high, low, ..]) => {
                (char::from(*high).to_digit(16)).zip(char::from(*low).to_digit(16))
            }
            _ => None,
        };
        match escaped {
            Some((high, low)) => {
                out.push(u8::try_from(high * 16 + low).unwrap_or(b'?'));
                rest = &tail[2..];
            }
            None => {
                out.push(*first);
                rest = tail;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

fn json_reply(value: &Value) -> Response<Full<Bytes>> {
    let mut response = reply(StatusCode::OK, format!("{value:#}\n"));
    response.headers_mut().insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("application/json"),
    );
    response
}

#[cfg(test)]
#[path = "server_tests.rs"]
mod tests;
