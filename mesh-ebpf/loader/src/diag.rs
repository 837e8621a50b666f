//! Ending a TCP connection from outside, by SOCK_DESTROY.
//!
//! Invariant: runs inside the namespace of the socket; says whether there was such a socket.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsRawFd;

use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, socket,
};

const SOCK_DESTROY: u16 = 21;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const NLMSG_ERROR: u16 = 2;
/// Header of a netlink message, and `inet_diag_req_v2`.
const HEADER: usize = 16;
const LENGTH: usize = HEADER + 56;

/// Destroys the socket that has `local` and `remote` in the calling thread's namespace; false: no such socket.
pub fn destroy(local: SocketAddr, remote: SocketAddr) -> io::Result<bool> {
    let s = socket(
        AddressFamily::Netlink,
        SockType::Datagram,
        SockFlag::SOCK_CLOEXEC,
        SockProtocol::NetlinkSockDiag,
    )?;
    send(s.as_raw_fd(), &request(local, remote), MsgFlags::empty())?;
    let mut answer = [0u8; 256];
    let n = recv(s.as_raw_fd(), &mut answer, MsgFlags::empty())?;
    if n < HEADER + 4 || u16::from_ne_bytes([answer[4], answer[5]]) != NLMSG_ERROR {
        return Err(io::Error::other("an answer to SOCK_DESTROY that is none"));
    }
    match i32::from_ne_bytes([answer[16], answer[17], answer[18], answer[19]]) {
        0 => Ok(true),
        e if -e == libc::ENOENT => Ok(false),
        e => Err(io::Error::from_raw_os_error(-e)),
    }
}

fn request(local: SocketAddr, remote: SocketAddr) -> [u8; LENGTH] {
    let mut m = [0u8; LENGTH];
    m[0..4].copy_from_slice(&(LENGTH as u32).to_ne_bytes());
    m[4..6].copy_from_slice(&SOCK_DESTROY.to_ne_bytes());
    m[6..8].copy_from_slice(&(NLM_F_REQUEST | NLM_F_ACK).to_ne_bytes());
    m[16] = if local.is_ipv4() {
        libc::AF_INET as u8
    } else {
        libc::AF_INET6 as u8
    };
    m[17] = libc::IPPROTO_TCP as u8;
    m[20..24].copy_from_slice(&u32::MAX.to_ne_bytes());
    m[24..26].copy_from_slice(&local.port().to_be_bytes());
    m[26..28].copy_from_slice(&remote.port().to_be_bytes());
    put(&mut m[28..44], local.ip());
    put(&mut m[44..60], remote.ip());
    // Any interface, and no cookie: all ones.
    m[64..72].fill(0xff);
    m
}

fn put(to: &mut [u8], ip: IpAddr) {
    match ip {
        IpAddr::V4(a) => to[..4].copy_from_slice(&a.octets()),
        IpAddr::V6(a) => to.copy_from_slice(&a.octets()),
    }
}
