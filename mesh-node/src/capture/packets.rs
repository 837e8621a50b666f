//! Unix sockets of packets with descriptors, for root peers only.
//!
//! Invariants: the kernel says who the peer is before a byte is read; a packet that was cut short, or whose
//! descriptors were, is an error; descriptors that nobody takes are closed.

use std::{
    fs,
    io::{self, IoSlice, IoSliceMut},
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd},
        unix::fs::PermissionsExt,
    },
    path::Path,
};

use nix::{
    cmsg_space,
    sys::socket::{ControlMessage, MsgFlags, getsockopt, recvmsg, sendmsg, sockopt},
};
use socket2::{Domain, SockAddr, Socket, Type};
use tokio::io::unix::AsyncFd;

use super::sys;

/// How many descriptors one packet may carry; the kernel's own limit is 253.
pub const DESCRIPTORS: usize = 200;

/// A listening socket of packets.
#[derive(Debug)]
pub struct PacketListener {
    socket: AsyncFd<Socket>,
    admitted: u32,
}

/// A connection of packets.
#[derive(Debug)]
pub struct PacketStream {
    socket: AsyncFd<Socket>,
}

/// One packet.
#[derive(Debug, Default)]
pub struct Packet {
    /// Its bytes.
    pub bytes: Vec<u8>,
    /// Its descriptors.
    pub descriptors: Vec<OwnedFd>,
}

impl PacketListener {
    /// Listens on a path that only root can reach. What is left of an earlier process there is replaced.
    /// `admitted` is the uid that peers must have: 0, except in tests without root.
    pub fn bind(path: &Path, admitted: u32) -> io::Result<Self> {
        let socket = Socket::new(Domain::UNIX, Type::SEQPACKET.nonblocking(), None)?;
        // Bound beside its place and moved there, so that nobody meets a socket that does not answer yet.
        let next = path.with_extension("next");
        remove(&next)?;
        socket.bind(&SockAddr::unix(&next)?)?;
        fs::set_permissions(&next, fs::Permissions::from_mode(0o600))?;
        socket.listen(128)?;
        fs::rename(&next, path)?;
        Ok(Self {
            socket: sys::watch(socket)?,
            admitted,
        })
    }

    /// The next connection of an admitted peer; others are told nothing and closed.
    pub async fn accept(&self) -> io::Result<PacketStream> {
        loop {
            let (socket, _) = self
                .socket
                .async_io(tokio::io::Interest::READABLE, |s| s.accept())
                .await?;
            socket.set_nonblocking(true)?;
            let peer = getsockopt(&socket, sockopt::PeerCredentials)?;
            if peer.uid() == self.admitted {
                return Ok(PacketStream {
                    socket: sys::watch(socket)?,
                });
            }
            tracing::warn!(
                uid = peer.uid(),
                pid = peer.pid(),
                "a peer that is not root was turned away"
            );
        }
    }
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}

impl PacketStream {
    /// Connects to a path, and insists that root (or, in tests, `admitted`) listens there.
    pub fn connect(path: &Path, admitted: u32) -> io::Result<Self> {
        let socket = Socket::new(Domain::UNIX, Type::SEQPACKET, None)?;
        socket.connect(&SockAddr::unix(path)?)?;
        let peer = getsockopt(&socket, sockopt::PeerCredentials)?;
        if peer.uid() != admitted {
            return Err(io::Error::new(
                io::ErrorKind::PermissionDenied,
                format!("uid {} listens on {}", peer.uid(), path.display()),
            ));
        }
        socket.set_nonblocking(true)?;
        Ok(Self {
            socket: sys::watch(socket)?,
        })
    }

    /// Two connected ends.
    pub fn pair() -> io::Result<(Self, Self)> {
        let (a, b) = Socket::pair(Domain::UNIX, Type::SEQPACKET.nonblocking(), None)?;
        Ok((
            Self {
                socket: sys::watch(a)?,
            },
            Self {
                socket: sys::watch(b)?,
            },
        ))
    }

    /// Sends one packet.
    pub async fn send(&self, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
        let raw: Vec<RawFd> = descriptors.iter().map(|d| d.as_raw_fd()).collect();
        let rights = [ControlMessage::ScmRights(&raw)];
        let messages = if raw.is_empty() { &[][..] } else { &rights[..] };
        let sent = self
            .socket
            .async_io(tokio::io::Interest::WRITABLE, |s| {
                Ok(sendmsg::<()>(
                    s.as_raw_fd(),
                    &[IoSlice::new(bytes)],
                    messages,
                    MsgFlags::MSG_NOSIGNAL,
                    None,
                )?)
            })
            .await?;
        if sent == bytes.len() {
            Ok(())
        } else {
            Err(io::ErrorKind::WriteZero.into())
        }
    }

    /// The next packet of at most `most` bytes; `None` when the peer has closed.
    pub async fn receive(&self, most: usize) -> io::Result<Option<Packet>> {
        self.socket
            .async_io(tokio::io::Interest::READABLE, |s| receive(s.as_fd(), most))
            .await
    }
}

fn receive(socket: BorrowedFd<'_>, most: usize) -> io::Result<Option<Packet>> {
    let mut bytes = vec![0; most];
    let mut space = cmsg_space!([RawFd; DESCRIPTORS]);
    let mut slices = [IoSliceMut::new(&mut bytes)];
    let got = recvmsg::<()>(
        socket.as_raw_fd(),
        &mut slices,
        Some(&mut space),
        MsgFlags::MSG_CMSG_CLOEXEC,
    )?;
    let (length, flags) = (got.bytes, got.flags);
    let descriptors = sys::take(got.cmsgs()?);
    if flags.intersects(MsgFlags::MSG_TRUNC | MsgFlags::MSG_CTRUNC) {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!("a packet of more than {most} bytes or {DESCRIPTORS} descriptors"),
        ));
    }
    if length == 0 && descriptors.is_empty() {
        return Ok(None);
    }
    bytes.truncate(length);
    Ok(Some(Packet { bytes, descriptors }))
}
