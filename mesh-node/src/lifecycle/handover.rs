//! The hand-over of a node's pods from a running process to its successor, through `handover.sock`.
//!
//! One connection, packets of JSON, descriptors beside them:
//! `take` -> `pod`* `blob`* `end` -> `ready` -> `paused` -> `done`.
//! Invariants: peers are root; the old process accepts connections until `ready`, the new one from before
//! `ready` on, so that there is no moment when nobody does; until `done` the old one takes everything up again
//! when the connection ends or a step takes too long.

use std::{
    collections::HashMap,
    fs::File,
    io::{self, Read, Seek, Write},
    net::UdpSocket,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::Path,
    sync::Arc,
    time::Duration,
};

use nix::{
    fcntl::{FcntlArg, SealFlag, fcntl},
    sys::memfd::{MFdFlags, memfd_create},
};
use serde::{Deserialize, Serialize};
use tokio::time::timeout;

use super::{Ending, Lifecycle};
use crate::{
    accept::{Family, Kind},
    capture::{
        Capture, CaptureGone, Doors, HandedPod, Listening, SavedPod,
        packets::{Packet, PacketListener, PacketStream},
    },
};

/// What both sides speak. A successor of another version is told so and starts over from the disk.
const VERSION: u32 = 1;
/// How long one step may take.
const STEP: Duration = Duration::from_secs(10);
/// How long the successor may take to serve what it was given.
const ADOPTION: Duration = Duration::from_secs(60);
/// The longest packet.
const PACKET: usize = 64 << 10;
/// The most pods and blobs that are taken.
const MOST: usize = 8192;
/// The largest blob.
const BLOB: u64 = 64 << 20;

/// Named secrets that are handed over in sealed memory: certificates and keys.
pub type Blobs = HashMap<String, Vec<u8>>;

/// Why a hand-over failed.
#[derive(Debug, thiserror::Error)]
pub enum HandoverError {
    /// The socket failed or the other side ended.
    #[error("the hand-over socket: {0}")]
    Io(#[from] io::Error),
    /// The other side took too long.
    #[error("the other process took too long")]
    Late(#[from] tokio::time::error::Elapsed),
    /// The other side ended.
    #[error("the other process ended the hand-over")]
    Ended,
    /// The other side said something else than expected.
    #[error("the other process said something unexpected: {0}")]
    Unexpected(String),
    /// The registry has ended.
    #[error(transparent)]
    Gone(#[from] CaptureGone),
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "camelCase")]
enum Say {
    Take {
        version: u32,
    },
    Pod {
        saved: Box<SavedPod>,
        netns: bool,
        tcp: Vec<Door>,
        udp: usize,
    },
    Blob {
        name: String,
    },
    End {
        pods: usize,
    },
    Ready,
    Paused,
    Done,
    No {
        why: String,
    },
}

#[derive(Debug, Serialize, Deserialize)]
struct Door {
    kind: String,
    six: bool,
    port: u16,
}

impl Door {
    fn of(door: &Listening) -> Self {
        let kind = match door.kind {
            Some(Kind::Outbound) => "outbound",
            Some(Kind::Plaintext) => "plaintext",
            Some(Kind::Hbone) => "hbone",
            // Not handed over today: a waypoint is replaced by another pod.
            Some(Kind::Waypoint) => "waypoint",
            None => "dns",
        };
        Self {
            kind: kind.to_owned(),
            six: door.family == Family::V6,
            port: door.port,
        }
    }

    fn with(self, socket: OwnedFd) -> Result<Listening, HandoverError> {
        let kind = match self.kind.as_str() {
            "outbound" => Some(Kind::Outbound),
            "plaintext" => Some(Kind::Plaintext),
            "hbone" => Some(Kind::Hbone),
            "waypoint" => Some(Kind::Waypoint),
            "dns" => None,
            other => {
                return Err(HandoverError::Unexpected(format!(
                    "a listener for {other:?}"
                )));
            }
        };
        let family = if self.six { Family::V6 } else { Family::V4 };
        Ok(Listening {
            kind,
            family,
            port: self.port,
            socket: socket.into(),
        })
    }
}

async fn say(
    stream: &PacketStream,
    what: &Say,
    descriptors: &[BorrowedFd<'_>],
) -> Result<(), HandoverError> {
    let bytes = serde_json::to_vec(what).map_err(io::Error::from)?;
    Ok(timeout(STEP, stream.send(&bytes, descriptors)).await??)
}

async fn hear(
    stream: &PacketStream,
    patience: Duration,
) -> Result<(Say, Vec<OwnedFd>), HandoverError> {
    let Packet { bytes, descriptors } = timeout(patience, stream.receive(PACKET))
        .await??
        .ok_or(HandoverError::Ended)?;
    let said =
        serde_json::from_slice(&bytes).map_err(|e| HandoverError::Unexpected(e.to_string()))?;
    Ok((said, descriptors))
}

fn unexpected<T>(said: &Say) -> Result<T, HandoverError> {
    Err(HandoverError::Unexpected(match said {
        Say::No { why } => why.clone(),
        other => format!("{other:?}"),
    }))
}

/// The running process's side.
pub struct HandoverServer {
    listener: PacketListener,
    capture: Capture,
    lifecycle: Lifecycle,
    blobs: Arc<dyn Fn() -> Blobs + Send + Sync>,
    grace: Duration,
}

impl std::fmt::Debug for HandoverServer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("HandoverServer")
            .field("listener", &self.listener)
            .finish_non_exhaustive()
    }
}

impl HandoverServer {
    /// Listens on `<run dir>/handover.sock`. `blobs` gives the secrets at the time of asking; `grace` is how
    /// long flows may go on here afterwards.
    pub fn bind(
        path: &Path,
        admitted: u32,
        capture: Capture,
        lifecycle: Lifecycle,
        blobs: Arc<dyn Fn() -> Blobs + Send + Sync>,
        grace: Duration,
    ) -> io::Result<Self> {
        Ok(Self {
            listener: PacketListener::bind(path, admitted)?,
            capture,
            lifecycle,
            blobs,
            grace,
        })
    }

    /// Waits for a successor and hands over to it; returns when one has taken over. The process drains then.
    pub async fn run(self) {
        loop {
            let stream = match self.listener.accept().await {
                Ok(stream) => stream,
                Err(error) => {
                    tracing::warn!(%error, "handover.sock could not accept; trying again in a second");
                    tokio::time::sleep(Duration::from_secs(1)).await;
                    continue;
                }
            };
            match self.hand_over(&stream).await {
                Ok(pods) => {
                    tracing::info!(pods, grace = ?self.grace, "a successor has taken over; only flows under way go on here");
                    self.lifecycle.drain(self.grace, Ending::HandedOver);
                    return;
                }
                Err(error) => {
                    tracing::error!(%error, "a hand-over did not come about; this process goes on");
                    if let Err(error) = self.capture.resume().await {
                        tracing::error!(%error, "the pods could not be taken up again");
                    }
                }
            }
        }
    }

    async fn hand_over(&self, stream: &PacketStream) -> Result<usize, HandoverError> {
        match hear(stream, STEP).await?.0 {
            Say::Take { version: VERSION } => {}
            Say::Take { version } => {
                let why = format!("this process hands over in version {VERSION}, not {version}");
                say(stream, &Say::No { why: why.clone() }, &[]).await?;
                return Err(HandoverError::Unexpected(why));
            }
            other => return unexpected(&other),
        }
        let pods = self.capture.export().await?;
        for pod in &pods {
            send_pod(stream, pod).await?;
        }
        for (name, content) in (self.blobs)() {
            let sealed = seal(&content)?;
            say(stream, &Say::Blob { name }, &[sealed.as_fd()]).await?;
        }
        say(stream, &Say::End { pods: pods.len() }, &[]).await?;
        match hear(stream, ADOPTION).await?.0 {
            Say::Ready => {}
            other => return unexpected(&other),
        }
        self.capture.pause().await?;
        say(stream, &Say::Paused, &[]).await?;
        match hear(stream, STEP).await?.0 {
            Say::Done => Ok(pods.len()),
            other => unexpected(&other),
        }
    }
}

async fn send_pod(stream: &PacketStream, pod: &HandedPod) -> Result<(), HandoverError> {
    let what = Say::Pod {
        saved: Box::new(pod.saved.clone()),
        netns: pod.netns.is_some(),
        tcp: pod.doors.tcp.iter().map(Door::of).collect(),
        udp: pod.doors.udp.len(),
    };
    let netns = pod.netns.iter().map(|n| n.as_fd());
    let tcp = pod.doors.tcp.iter().map(|d| d.socket.as_fd());
    let udp = pod.doors.udp.iter().map(|u| u.as_fd());
    let descriptors: Vec<_> = netns.chain(tcp).chain(udp).collect();
    say(stream, &what, &descriptors).await
}

/// The successor's side, after it was given everything: the pods are served by the old process until `ready`.
#[derive(Debug)]
pub struct Predecessor {
    stream: PacketStream,
    /// What to give to `Capture::adopt`.
    pub pods: Vec<HandedPod>,
    /// Secrets.
    pub blobs: Blobs,
}

/// Asks a running process to hand over; `None` when there is none.
pub async fn take_over(path: &Path, admitted: u32) -> Result<Option<Predecessor>, HandoverError> {
    let stream = match PacketStream::connect(path, admitted) {
        Ok(stream) => stream,
        Err(e)
            if matches!(
                e.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused
            ) =>
        {
            return Ok(None);
        }
        Err(e) => return Err(e.into()),
    };
    say(&stream, &Say::Take { version: VERSION }, &[]).await?;
    let (mut pods, mut blobs) = (Vec::new(), Blobs::new());
    loop {
        let (said, descriptors) = hear(&stream, STEP).await?;
        match said {
            Say::Pod {
                saved,
                netns,
                tcp,
                udp,
            } if pods.len() < MOST => pods.push(pod(*saved, netns, tcp, udp, descriptors)?),
            Say::Blob { name } if blobs.len() < MOST => {
                let [sealed] = <[_; 1]>::try_from(descriptors)
                    .map_err(|_| HandoverError::Unexpected("a blob without its memory".into()))?;
                blobs.insert(name, unseal(sealed)?);
            }
            Say::End { pods: count } if count == pods.len() => {
                return Ok(Some(Predecessor {
                    stream,
                    pods,
                    blobs,
                }));
            }
            other => return unexpected(&other),
        }
    }
}

fn pod(
    saved: SavedPod,
    netns: bool,
    tcp: Vec<Door>,
    udp: usize,
    descriptors: Vec<OwnedFd>,
) -> Result<HandedPod, HandoverError> {
    if descriptors.len() != usize::from(netns) + tcp.len() + udp {
        return Err(HandoverError::Unexpected(format!(
            "{} descriptors for a pod of other size",
            descriptors.len()
        )));
    }
    let mut descriptors = descriptors.into_iter();
    let netns = if netns { descriptors.next() } else { None };
    let tcp: Vec<Listening> = tcp
        .into_iter()
        .zip(descriptors.by_ref())
        .map(|(door, fd)| door.with(fd))
        .collect::<Result<_, _>>()?;
    let udp: Vec<UdpSocket> = descriptors.map(UdpSocket::from).collect();
    Ok(HandedPod {
        saved,
        netns,
        doors: Doors { tcp, udp },
    })
}

impl Predecessor {
    /// Says that this process accepts on every listener now; returns when the old one accepts no more.
    pub async fn ready(&self) -> Result<(), HandoverError> {
        say(&self.stream, &Say::Ready, &[]).await?;
        match hear(&self.stream, STEP).await?.0 {
            Say::Paused => Ok(()),
            other => unexpected(&other),
        }
    }

    /// Says that nothing is missing; the old process only finishes its flows from here on.
    pub async fn done(self) -> Result<(), HandoverError> {
        say(&self.stream, &Say::Done, &[]).await
    }
}

/// Memory that nobody can change any more.
fn seal(content: &[u8]) -> io::Result<File> {
    let mut file = File::from(memfd_create(
        "warren-handover",
        MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING,
    )?);
    file.write_all(content)?;
    let all = SealFlag::F_SEAL_SEAL
        | SealFlag::F_SEAL_SHRINK
        | SealFlag::F_SEAL_GROW
        | SealFlag::F_SEAL_WRITE;
    fcntl(&file, FcntlArg::F_ADD_SEALS(all))?;
    Ok(file)
}

/// Reads sealed memory; anything else is refused, because it could change while it is read.
fn unseal(fd: OwnedFd) -> Result<Vec<u8>, HandoverError> {
    let mut file = File::from(fd);
    let seals = fcntl(&file, FcntlArg::F_GET_SEALS).map_err(io::Error::from)?;
    let wanted = (SealFlag::F_SEAL_WRITE | SealFlag::F_SEAL_SHRINK).bits();
    if seals & wanted != wanted || file.metadata()?.len() > BLOB {
        return Err(HandoverError::Unexpected(
            "memory that is not sealed, or too much of it".into(),
        ));
    }
    let mut content = Vec::new();
    file.rewind()?;
    file.read_to_end(&mut content)?;
    Ok(content)
}
