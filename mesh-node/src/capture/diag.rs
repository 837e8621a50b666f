//! What the kernel tells of sockets: connections that are older than a pod's enrolment, counted, and ended where that is
//! wanted; and the cgroup of whoever listens on a port.
//!
//! Invariants: speaks of the namespace that the calling thread is in; reads at most `MOST` connections; a kernel
//! without SOCK_DESTROY cuts nothing and says so.

use std::{
    collections::BTreeSet,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::fd::{AsRawFd, OwnedFd},
};

use mesh_loader::{attrs, tcp_sockets};
use nix::sys::{
    socket::{
        AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, setsockopt, socket,
        sockopt,
    },
    time::TimeVal,
};

/// How many connections are listed at most.
const MOST: usize = 65_536;
const SOCK_DESTROY: u16 = 21;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const NLMSG_ERROR: u16 = 2;
/// Header of a netlink message.
const HEADER: usize = 16;
/// `inet_diag_sockid`.
const ID: usize = 48;
/// TCP_ESTABLISHED, SYN_SENT, SYN_RECV, FIN_WAIT1, FIN_WAIT2 and CLOSE_WAIT.
const STATES: u32 = 1 << 1 | 1 << 2 | 1 << 3 | 1 << 4 | 1 << 5 | 1 << 8;

/// TCP_LISTEN.
const LISTENING: u32 = 1 << 10;
/// Length of `inet_diag_msg`; attributes follow.
const DIAG: usize = 72;
/// INET_DIAG_CGROUP_ID, since Linux 5.9.
const CGROUP_ID: u16 = 21;

/// A connection of a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Existing {
    family: u8,
    id: [u8; ID],
}

impl Existing {
    fn address(&self, at: usize) -> IpAddr {
        let mut octets = [0u8; 16];
        octets.copy_from_slice(&self.id[at..at + 16]);
        if i32::from(self.family) == libc::AF_INET {
            return Ipv4Addr::new(octets[0], octets[1], octets[2], octets[3]).into();
        }
        IpAddr::from(Ipv6Addr::from(octets)).to_canonical()
    }

    /// Within the pod, where nothing is ever captured.
    fn is_inner(&self) -> bool {
        let (here, there) = (self.address(4), self.address(20));
        here == there || here.is_loopback()
    }
}

/// The TCP connections of the namespace that this thread is in, without those from the pod to itself.
pub fn established() -> io::Result<Vec<Existing>> {
    let mut found = Vec::new();
    tcp_sockets(STATES, |socket| {
        if let Some(id) = socket.get(4..4 + ID)
            && found.len() < MOST
        {
            let id = id.try_into().expect("a slice of that length");
            let family = socket[0];
            found.push(Existing { family, id });
        }
    })?;
    found.retain(|c| !c.is_inner());
    Ok(found)
}

/// The cgroups (version 2, by id) of the sockets that listen on a TCP port in the namespace that this thread is in,
/// each once. An older kernel tells none.
pub fn listeners(port: u16) -> io::Result<BTreeSet<u64>> {
    let mut found = BTreeSet::new();
    tcp_sockets(LISTENING, |socket| {
        if socket.get(4..6) == Some(&port.to_be_bytes()) {
            found.extend(attribute(socket.get(DIAG..).unwrap_or_default(), CGROUP_ID));
        }
    })?;
    Ok(found)
}

/// An attribute of eight bytes.
fn attribute(rest: &[u8], wanted: u16) -> Option<u64> {
    let (_, value) = attrs(rest).find(|(kind, _)| *kind == wanted)?;
    Some(u64::from_ne_bytes(value.try_into().ok()?))
}

/// Ends connections of the namespace that this thread is in; says how many are gone.
pub fn cut(connections: &[Existing]) -> usize {
    let Ok(netlink) = open() else { return 0 };
    let ended = |c: &Existing| -> io::Result<()> {
        let request = destroy(c.family, &c.id);
        send(netlink.as_raw_fd(), &request, MsgFlags::empty())?;
        let mut answer = [0u8; 512];
        let n = recv(netlink.as_raw_fd(), &mut answer, MsgFlags::empty())?;
        match errno(&answer[..n]) {
            // A connection that ended by itself is gone too.
            Some(0) | Some(libc::ENOENT) => Ok(()),
            Some(e) => Err(io::Error::from_raw_os_error(e)),
            None => Err(io::ErrorKind::InvalidData.into()),
        }
    };
    let results: Vec<_> = connections.iter().map(ended).collect();
    if let Some(Err(error)) = results.iter().find(|r| r.is_err()) {
        tracing::warn!(%error, "some connections older than the enrolment could not be ended");
    }
    results.iter().filter(|r| r.is_ok()).count()
}

fn open() -> io::Result<OwnedFd> {
    let netlink = socket(
        AddressFamily::Netlink,
        SockType::Datagram,
        SockFlag::SOCK_CLOEXEC,
        SockProtocol::NetlinkSockDiag,
    )?;
    setsockopt(&netlink, sockopt::ReceiveTimeout, &TimeVal::new(1, 0))?;
    Ok(netlink)
}

/// The request to end a connection.
fn destroy(family: u8, id: &[u8; ID]) -> Vec<u8> {
    let length = HEADER + 8 + ID;
    let mut m = vec![0u8; length];
    m[0..4].copy_from_slice(
        &u32::try_from(length)
            .expect("a short message")
            .to_ne_bytes(),
    );
    m[4..6].copy_from_slice(&SOCK_DESTROY.to_ne_bytes());
    m[6..8].copy_from_slice(&(NLM_F_REQUEST | NLM_F_ACK).to_ne_bytes());
    m[HEADER] = family;
    m[HEADER + 1] = libc::IPPROTO_TCP as u8;
    m[HEADER + 4..HEADER + 8].copy_from_slice(&u32::MAX.to_ne_bytes());
    m[HEADER + 8..].copy_from_slice(id);
    m
}

/// The error number of an error message, which is 0 for success.
fn errno(message: &[u8]) -> Option<i32> {
    let kind = u16::from_ne_bytes([*message.get(4)?, *message.get(5)?]);
    let code = message.get(HEADER..HEADER + 4)?;
    (kind == NLMSG_ERROR).then(|| -i32::from_ne_bytes([code[0], code[1], code[2], code[3]]))
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn who_listens_is_known_by_its_cgroup() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let found = listeners(port).unwrap();
        assert_eq!(found.len(), 1, "one socket, and Linux 5.9 at least");
        drop(listener);
        assert!(listeners(port).unwrap().is_empty());
    }

    #[test]
    fn attributes_that_are_cut_off_are_none() {
        let mut bytes = vec![6, 0, 8, 0, 1, 1, 0, 0, 12, 0, 21, 0];
        bytes.extend(7u64.to_ne_bytes());
        assert_eq!(attribute(&bytes, 21), Some(7));
        assert_eq!(attribute(&bytes, 22), None);
        assert_eq!(attribute(&bytes[..16], 21), None);
        assert_eq!(attribute(&[0, 0, 1, 0], 21), None);
    }
}
