//! Ending a TCP connection from outside, by SOCK_DESTROY.
//!
//! Invariants: runs inside the namespace of the socket; says whether there was such a socket; never touches a
//! listener: the kernel's search falls back to listeners and through `sk_lookup` even to the proxy's own, so
//! the socket is asked for first and then destroyed by its cookie.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsRawFd, OwnedFd};

use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, socket,
};

const SOCK_DIAG_BY_FAMILY: u16 = 20;
const SOCK_DESTROY: u16 = 21;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const NLMSG_ERROR: u16 = 2;
const TCP_LISTEN: u8 = 10;
/// Header of a netlink message.
const HEADER: usize = 16;
/// The header and `inet_diag_req_v2`.
const REQUEST: usize = HEADER + 56;
/// Where `inet_diag_sockid` begins in a request and in an answer.
const ID_ASKED: usize = HEADER + 8;
const ID_ANSWERED: usize = HEADER + 4;
/// The peer's port and the socket's cookie within `inet_diag_sockid`.
const PEER_PORT: usize = 2;
const COOKIE: usize = 40;

/// Destroys the socket that has `local` and `remote` in the calling thread's namespace; false: no such socket.
pub fn destroy(local: SocketAddr, remote: SocketAddr) -> io::Result<bool> {
    let s = socket(
        AddressFamily::Netlink,
        SockType::Datagram,
        SockFlag::SOCK_CLOEXEC,
        SockProtocol::NetlinkSockDiag,
    )?;
    let mut answer = [0u8; 1024];
    let any = [0xff; 8];
    if !talk(
        &s,
        &request(SOCK_DIAG_BY_FAMILY, 0, local, remote, any),
        &mut answer,
    )? {
        return Ok(false);
    }
    let id = &answer[ID_ANSWERED..];
    if answer[HEADER + 1] == TCP_LISTEN
        || id[PEER_PORT..PEER_PORT + 2] != remote.port().to_be_bytes()
    {
        return Ok(false);
    }
    let cookie: [u8; 8] = id[COOKIE..COOKIE + 8].try_into().expect("eight bytes");
    talk(
        &s,
        &request(SOCK_DESTROY, NLM_F_ACK, local, remote, cookie),
        &mut answer,
    )
}

/// Sends a request and reads one answer; false: the kernel knows no such socket.
fn talk(s: &OwnedFd, request: &[u8], answer: &mut [u8]) -> io::Result<bool> {
    send(s.as_raw_fd(), request, MsgFlags::empty())?;
    let n = recv(s.as_raw_fd(), answer, MsgFlags::empty())?;
    if n < HEADER + 4 {
        return Err(io::Error::other("an answer of sock_diag that is too short"));
    }
    match u16::from_ne_bytes([answer[4], answer[5]]) {
        SOCK_DIAG_BY_FAMILY if n >= ID_ANSWERED + 48 => Ok(true),
        NLMSG_ERROR => match i32::from_ne_bytes([answer[16], answer[17], answer[18], answer[19]]) {
            0 => Ok(true),
            e if -e == libc::ENOENT => Ok(false),
            e => Err(io::Error::from_raw_os_error(-e)),
        },
        other => Err(io::Error::other(format!(
            "an answer of sock_diag of type {other}"
        ))),
    }
}

fn request(
    kind: u16,
    flags: u16,
    local: SocketAddr,
    remote: SocketAddr,
    cookie: [u8; 8],
) -> [u8; REQUEST] {
    let mut m = [0u8; REQUEST];
    m[0..4].copy_from_slice(&(REQUEST as u32).to_ne_bytes());
    m[4..6].copy_from_slice(&kind.to_ne_bytes());
    m[6..8].copy_from_slice(&(NLM_F_REQUEST | flags).to_ne_bytes());
    m[16] = if local.is_ipv4() {
        libc::AF_INET as u8
    } else {
        libc::AF_INET6 as u8
    };
    m[17] = libc::IPPROTO_TCP as u8;
    m[20..24].copy_from_slice(&u32::MAX.to_ne_bytes());
    let id = &mut m[ID_ASKED..];
    id[0..2].copy_from_slice(&local.port().to_be_bytes());
    id[2..4].copy_from_slice(&remote.port().to_be_bytes());
    put(&mut id[4..20], local.ip());
    put(&mut id[20..36], remote.ip());
    id[COOKIE..COOKIE + 8].copy_from_slice(&cookie);
    m
}

fn put(to: &mut [u8], ip: IpAddr) {
    match ip {
        IpAddr::V4(a) => to[..4].copy_from_slice(&a.octets()),
        IpAddr::V6(a) => to.copy_from_slice(&a.octets()),
    }
}
