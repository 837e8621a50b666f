//! The node proxy's registration socket, from the other side (CONTRACTS.md section 4).
//!
//! Invariants: every wait has a bound; who listens must run as the same user as we do, which is root; an answer
//! that is cut short or not understood is none.

use std::{
    collections::BTreeSet,
    fs::File,
    io::{self, IoSlice},
    net::IpAddr,
    os::fd::{AsRawFd, OwnedFd},
    path::Path,
    time::Duration,
};

use nix::{
    sys::{
        socket::{
            AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, UnixAddr, connect,
            getsockopt, recv, sendmsg, setsockopt, socket, sockopt,
        },
        time::TimeVal,
    },
    unistd::geteuid,
};
use serde::{Deserialize, Serialize};

/// The longest packet.
const PACKET: usize = 64 << 10;

/// A request.
#[derive(Debug, Serialize)]
#[serde(tag = "op", rename_all = "camelCase")]
pub enum Request<'a> {
    /// Register a pod.
    #[serde(rename_all = "camelCase")]
    Add {
        /// The pod.
        pod: Registration<'a>,
        /// How long to wait for configuration, in milliseconds.
        timeout_ms: u64,
    },
    /// A pod is being deleted.
    Del {
        /// Its uid.
        uid: &'a str,
    },
    /// Show pods in the order of their uids, as many as fit into an answer.
    List {
        /// Only those behind this uid.
        #[serde(skip_serializing_if = "Option::is_none")]
        after: Option<String>,
    },
}

/// A pod to be registered. Its service account is left out: no runtime tells it, and the configuration knows it.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Registration<'a> {
    /// Its uid.
    pub uid: &'a str,
    /// Its namespace.
    pub namespace: &'a str,
    /// Its name.
    pub name: &'a str,
    /// Its addresses.
    pub addresses: &'a BTreeSet<IpAddr>,
    /// The host's side of its veth; 0 when it has none.
    pub veth_ifindex: u32,
}

/// What became of a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum PodState {
    /// Waits for configuration.
    Waiting,
    /// Captured.
    Captured,
    /// Left alone, as it should be.
    Out,
    /// To be captured, but it cannot be.
    Refused,
    /// Deleted.
    Gone,
}

/// A pod that is registered.
#[derive(Debug, Deserialize)]
pub struct Pod {
    /// Its uid.
    pub uid: String,
    /// Its addresses.
    pub addresses: BTreeSet<IpAddr>,
    /// What became of it.
    pub state: PodState,
    /// Why.
    #[serde(default)]
    pub reason: Option<String>,
}

/// An answer.
#[derive(Debug, Deserialize)]
pub struct Reply {
    /// Whether it was done.
    pub ok: bool,
    /// To add and del.
    #[serde(default)]
    pub state: Option<PodState>,
    /// Why.
    #[serde(default)]
    pub reason: Option<String>,
    /// To list.
    #[serde(default)]
    pub pods: Vec<Pod>,
    /// To list, when there are more: what to ask for next, as `after`.
    #[serde(default)]
    pub next: Option<String>,
    /// What went wrong.
    #[serde(default)]
    pub error: Option<String>,
}

/// Asks once, on a connection of its own. `netns` goes along with a registration.
pub fn ask(
    path: &Path,
    request: &Request<'_>,
    netns: Option<&File>,
    patience: Duration,
) -> io::Result<Reply> {
    let socket = open(path, patience)?;
    let bytes = serde_json::to_vec(request)?;
    let descriptors = netns.map(|n| [n.as_raw_fd()]);
    let rights = descriptors.as_ref().map(|d| [ControlMessage::ScmRights(d)]);
    let messages = rights.as_ref().map_or(&[][..], |r| &r[..]);
    let (fd, flags) = (socket.as_raw_fd(), MsgFlags::MSG_NOSIGNAL);
    let sent = sendmsg::<()>(fd, &[IoSlice::new(&bytes)], messages, flags, None)?;
    if sent != bytes.len() {
        return Err(io::ErrorKind::WriteZero.into());
    }
    let mut answer = vec![0; PACKET + 1];
    let length = recv(fd, &mut answer, MsgFlags::empty()).map_err(|e| match e {
        nix::Error::EAGAIN => io::ErrorKind::TimedOut.into(),
        other => io::Error::from(other),
    })?;
    match length {
        0 => Err(io::ErrorKind::UnexpectedEof.into()),
        l if l > PACKET => Err(io::ErrorKind::InvalidData.into()),
        l => Ok(serde_json::from_slice(&answer[..l])?),
    }
}

fn open(path: &Path, patience: Duration) -> io::Result<OwnedFd> {
    let socket = socket(
        AddressFamily::Unix,
        SockType::SeqPacket,
        SockFlag::SOCK_CLOEXEC,
        None,
    )?;
    let bound = TimeVal::new(
        patience.as_secs().try_into().unwrap_or(i64::MAX),
        patience.subsec_micros().into(),
    );
    setsockopt(&socket, sockopt::SendTimeout, &bound)?;
    setsockopt(&socket, sockopt::ReceiveTimeout, &bound)?;
    connect(socket.as_raw_fd(), &UnixAddr::new(path)?)?;
    let peer = getsockopt(&socket, sockopt::PeerCredentials)?;
    if peer.uid() != geteuid().as_raw() {
        let text = format!("uid {} listens on it, which is not ours", peer.uid());
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, text));
    }
    Ok(socket)
}
