//! The server on `pods.sock`: whoever runs pods registers them here.
//!
//! Invariants: peers are root; connections are bounded in number; a request that is not understood is
//! answered with what is wrong, and the connection goes on.

use std::{io, path::Path, sync::Arc, time::Duration};

use tokio::sync::Semaphore;

use super::{
    Capture,
    packets::{Packet, PacketListener, PacketStream},
    registration::{PACKET, Reply, Request, parse, patience},
};

/// How many connections are served at a time.
const CONNECTIONS: usize = 256;
/// How long an answer may take to be read.
const SEND: Duration = Duration::from_secs(10);

/// The server.
#[derive(Debug)]
pub struct RegistrationServer {
    listener: PacketListener,
    capture: Capture,
}

impl RegistrationServer {
    /// Listens on `<run dir>/pods.sock`.
    pub fn bind(path: &Path, admitted: u32, capture: Capture) -> io::Result<Self> {
        Ok(Self {
            listener: PacketListener::bind(path, admitted)?,
            capture,
        })
    }

    /// Serves until the future is dropped.
    pub async fn run(self) {
        let room = Arc::new(Semaphore::new(CONNECTIONS));
        loop {
            let Ok(permit) = room.clone().acquire_owned().await else {
                return;
            };
            match self.listener.accept().await {
                Ok(stream) => {
                    let capture = self.capture.clone();
                    tokio::spawn(async move {
                        if let Err(error) = serve(&stream, &capture).await {
                            tracing::debug!(%error, "a registration connection ended");
                        }
                        drop(permit);
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "pods.sock could not accept; trying again in a second");
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
            }
        }
    }
}

async fn serve(stream: &PacketStream, capture: &Capture) -> io::Result<()> {
    loop {
        let reply = match stream.receive(PACKET).await {
            Ok(None) => return Ok(()),
            Ok(Some(packet)) => answer(packet, capture).await,
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                Reply::error(error.to_string())
            }
            Err(error) => return Err(error),
        };
        let bytes = fit(&reply)?;
        tokio::time::timeout(SEND, stream.send(&bytes, &[])).await??;
    }
}

/// A reply fits into one packet; a list that does not is cut, and says so.
fn fit(reply: &Reply) -> io::Result<Vec<u8>> {
    let bytes = serde_json::to_vec(reply)?;
    if bytes.len() <= PACKET {
        return Ok(bytes);
    }
    let mut short = reply.clone();
    let pods = short.pods.get_or_insert_default();
    let all = pods.len();
    pods.truncate(all * (PACKET - 1024) / bytes.len());
    short.reason = Some(format!(
        "{} of {all} pods; the admin socket's /pods shows all",
        pods.len()
    ));
    let bytes = serde_json::to_vec(&short)?;
    if bytes.len() <= PACKET {
        Ok(bytes)
    } else {
        Ok(serde_json::to_vec(&Reply::error(
            "the list is too long; ask the admin socket for /pods",
        ))?)
    }
}

async fn answer(packet: Packet, capture: &Capture) -> Reply {
    let request = match parse(&packet.bytes) {
        Ok(request) => request,
        Err(why) => return Reply::error(why),
    };
    let answered = match request {
        Request::Add { pod, timeout_ms } => {
            let Ok([netns]) = <[_; 1]>::try_from(packet.descriptors) else {
                return Reply::error(format!(
                    "pod {}: exactly one descriptor, of its network namespace, must come with the request",
                    pod.title()
                ));
            };
            capture.add(pod, netns, patience(timeout_ms)).await
        }
        Request::Del { uid } => capture.del(uid).await,
        Request::List => capture.list().await.map(|pods| Reply {
            ok: true,
            pods: Some(pods),
            ..Reply::default()
        }),
    };
    answered.unwrap_or_else(|gone| Reply::error(gone.to_string()))
}
