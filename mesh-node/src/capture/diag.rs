//! Connections that are older than a pod's enrolment: counted, and ended where that is wanted.
//!
//! Invariants: runs on a thread that is inside the pod's namespace; reads at most `MOST` connections; a
//! kernel without SOCK_DESTROY cuts nothing and says so.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::fd::{AsRawFd, OwnedFd},
};

use nix::sys::{
    socket::{
        AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, setsockopt, socket,
        sockopt,
    },
    time::TimeVal,
};

/// How many connections are listed at most.
const MOST: usize = 65_536;
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const SOCK_DESTROY: u16 = 21;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const NLM_F_DUMP: u16 = 0x300;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
/// Header of a netlink message.
const HEADER: usize = 16;
/// `inet_diag_sockid`.
const ID: usize = 48;
/// TCP_ESTABLISHED, SYN_SENT, SYN_RECV, FIN_WAIT1, FIN_WAIT2 and CLOSE_WAIT.
const STATES: u32 = 1 << 1 | 1 << 2 | 1 << 3 | 1 << 4 | 1 << 5 | 1 << 8;

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
    let netlink = open()?;
    let mut found = Vec::new();
    for family in [libc::AF_INET as u8, libc::AF_INET6 as u8] {
        let mut request = message(
            SOCK_DIAG_BY_FAMILY,
            NLM_F_REQUEST | NLM_F_DUMP,
            family,
            STATES,
            None,
        );
        request[HEADER + 3] = 0;
        send(netlink.as_raw_fd(), &request, MsgFlags::empty())?;
        dump(&netlink, &mut found)?;
    }
    found.retain(|c| !c.is_inner());
    Ok(found)
}

/// Ends connections of the namespace that this thread is in; says how many are gone.
pub fn cut(connections: &[Existing]) -> usize {
    let Ok(netlink) = open() else { return 0 };
    let ended = |c: &Existing| -> io::Result<()> {
        let request = message(
            SOCK_DESTROY,
            NLM_F_REQUEST | NLM_F_ACK,
            c.family,
            u32::MAX,
            Some(&c.id),
        );
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

fn message(kind: u16, flags: u16, family: u8, states: u32, id: Option<&[u8; ID]>) -> Vec<u8> {
    let length = HEADER + 8 + ID;
    let mut m = vec![0u8; length];
    m[0..4].copy_from_slice(
        &u32::try_from(length)
            .expect("a short message")
            .to_ne_bytes(),
    );
    m[4..6].copy_from_slice(&kind.to_ne_bytes());
    m[6..8].copy_from_slice(&flags.to_ne_bytes());
    m[HEADER] = family;
    m[HEADER + 1] = libc::IPPROTO_TCP as u8;
    m[HEADER + 4..HEADER + 8].copy_from_slice(&states.to_ne_bytes());
    match id {
        Some(id) => m[HEADER + 8..].copy_from_slice(id),
        // No cookie: all ones.
        None => m[HEADER + 8 + 40..].fill(0xff),
    }
    m
}

fn dump(netlink: &OwnedFd, found: &mut Vec<Existing>) -> io::Result<()> {
    let mut buffer = vec![0u8; 32 << 10];
    loop {
        let n = recv(netlink.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
        let mut rest = &buffer[..n];
        while rest.len() >= HEADER {
            let length = u32::from_ne_bytes([rest[0], rest[1], rest[2], rest[3]]) as usize;
            let kind = u16::from_ne_bytes([rest[4], rest[5]]);
            if kind == NLMSG_DONE {
                return Ok(());
            }
            if let Some(e) = errno(rest) {
                return if e == 0 {
                    Ok(())
                } else {
                    Err(io::Error::from_raw_os_error(e))
                };
            }
            // `inet_diag_msg`: family, state, timer, retransmissions, then the id.
            if let Some(body) = rest
                .get(HEADER..length.min(rest.len()))
                .filter(|b| b.len() >= 4 + ID)
                && found.len() < MOST
            {
                let id = body[4..4 + ID].try_into().expect("a slice of that length");
                found.push(Existing {
                    family: body[0],
                    id,
                });
            }
            rest = rest
                .get(length.next_multiple_of(4).max(HEADER)..)
                .unwrap_or_default();
        }
    }
}

/// The error number of an error message, which is 0 for success.
fn errno(message: &[u8]) -> Option<i32> {
    let kind = u16::from_ne_bytes([*message.get(4)?, *message.get(5)?]);
    let code = message.get(HEADER..HEADER + 4)?;
    (kind == NLMSG_ERROR).then(|| -i32::from_ne_bytes([code[0], code[1], code[2], code[3]]))
}
