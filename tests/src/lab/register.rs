//! The lab's end of the pod registration socket (CONTRACTS.md, 4).
//!
//! Invariant: every call ends within the time given to it, whatever the node proxy does.

use std::{
    fs::File,
    io::{IoSlice, IoSliceMut},
    net::IpAddr,
    os::fd::{AsRawFd, OwnedFd},
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, bail};
use nix::sys::{
    socket::{
        AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, UnixAddr, connect, recvmsg,
        sendmsg, setsockopt, socket, sockopt,
    },
    time::TimeVal,
};
use serde::Deserialize;
use serde_json::{Value, json};

/// A pod as the node proxy is told of it.
#[derive(Clone, Debug)]
pub struct Registration {
    /// The pod's uid.
    pub uid: String,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its service account.
    pub service_account: String,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// The interface on the node's side.
    pub veth_ifindex: u32,
    /// Its cgroup.
    pub cgroup: PathBuf,
    /// Ports of its probes.
    pub probe_ports: Vec<u16>,
    /// Its network namespace.
    pub netns: PathBuf,
}

/// What the node proxy says of a pod.
#[derive(Clone, Debug, Deserialize)]
pub struct Answer {
    ok: bool,
    /// `captured`, `out`, `refused` or `gone`.
    #[serde(default)]
    pub state: String,
    /// Why, where there is something to say.
    #[serde(default)]
    pub reason: String,
    #[serde(default)]
    error: String,
    #[serde(default)]
    pods: Vec<Listed>,
}

/// A pod in the node proxy's list.
#[derive(Clone, Debug, Deserialize)]
pub struct Listed {
    /// Its uid.
    pub uid: String,
    /// `captured`, `out` or `refused`.
    pub state: String,
    /// Why, where there is something to say.
    #[serde(default)]
    pub reason: String,
}

/// Announces a pod; answers when its capture is complete or is certain not to be.
pub fn add(socket: &Path, pod: &Registration, timeout: Duration) -> Result<Answer> {
    let netns =
        File::open(&pod.netns).with_context(|| format!("opening {}", pod.netns.display()))?;
    let request = json!({
        "op": "add",
        "pod": {
            "uid": pod.uid, "namespace": pod.namespace, "name": pod.name, "serviceAccount": pod.service_account,
            "addresses": pod.addresses, "vethIfindex": pod.veth_ifindex, "cgroup": pod.cgroup, "probePorts": pod.probe_ports,
        },
        "timeoutMs": u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX),
    });
    call(
        socket,
        &request,
        Some(&netns),
        timeout + Duration::from_secs(5),
    )
}

/// Takes a pod back.
pub fn del(socket: &Path, uid: &str, timeout: Duration) -> Result<Answer> {
    call(socket, &json!({"op": "del", "uid": uid}), None, timeout)
}

/// All pods that the node proxy has.
pub fn list(socket: &Path, timeout: Duration) -> Result<Vec<Listed>> {
    call(socket, &json!({"op": "list"}), None, timeout).map(|a| a.pods)
}

fn call(path: &Path, request: &Value, netns: Option<&File>, timeout: Duration) -> Result<Answer> {
    let fd = dial(path, timeout)?;
    let text = request.to_string();
    let fds: Vec<i32> = netns.iter().map(|f| f.as_raw_fd()).collect();
    let rights: &[ControlMessage<'_>] = if fds.is_empty() {
        &[]
    } else {
        &[ControlMessage::ScmRights(&fds)]
    };
    sendmsg::<UnixAddr>(
        fd.as_raw_fd(),
        &[IoSlice::new(text.as_bytes())],
        rights,
        MsgFlags::MSG_NOSIGNAL,
        None,
    )
    .with_context(|| format!("sending to {}", path.display()))?;
    let mut buffer = vec![0; 65536];
    let mut slices = [IoSliceMut::new(&mut buffer)];
    let message = recvmsg::<UnixAddr>(fd.as_raw_fd(), &mut slices, None, MsgFlags::empty())
        .with_context(|| format!("waiting {timeout:?} for an answer of {}", path.display()))?;
    let length = message.bytes;
    if length == 0 {
        bail!("the node proxy closed {} without an answer", path.display());
    }
    let answer: Answer =
        serde_json::from_slice(&buffer[..length]).context("reading the node proxy's answer")?;
    if !answer.ok {
        bail!("{}", answer.error);
    }
    Ok(answer)
}

fn dial(path: &Path, timeout: Duration) -> Result<OwnedFd> {
    let fd = socket(
        AddressFamily::Unix,
        SockType::SeqPacket,
        SockFlag::SOCK_CLOEXEC,
        None,
    )
    .context("making a socket")?;
    let limit = TimeVal::new(i64::try_from(timeout.as_secs()).unwrap_or(i64::MAX), 0);
    setsockopt(&fd, sockopt::ReceiveTimeout, &limit).context("limiting the wait for an answer")?;
    setsockopt(&fd, sockopt::SendTimeout, &limit).context("limiting the wait to send")?;
    connect(fd.as_raw_fd(), &UnixAddr::new(path)?)
        .with_context(|| format!("connecting to {}", path.display()))?;
    Ok(fd)
}
