//! Listing the TCP sockets of a namespace, by sock_diag.
//!
//! Invariant: speaks of the calling thread's namespace; a list that cannot be read whole is an error.

use std::io;

use nix::sys::socket::SockProtocol;

use crate::netlink::{Message, NLM_F_DUMP, dump_of};

const SOCK_DIAG_BY_FAMILY: u16 = 20;
/// Length of `inet_diag_req_v2`, and where its states are.
const REQUEST: usize = 56;
const WANTED: usize = 4;

/// Gives each TCP socket of both families that is in one of the `states` (a bit for each, by the kernel's numbers) as an
/// `inet_diag_msg` with the attributes behind it.
pub fn tcp_sockets(states: u32, mut each: impl FnMut(&[u8])) -> io::Result<()> {
    for family in [libc::AF_INET as u8, libc::AF_INET6 as u8] {
        let mut fixed = [0u8; REQUEST];
        fixed[0] = family;
        fixed[1] = libc::IPPROTO_TCP as u8;
        fixed[WANTED..WANTED + 4].copy_from_slice(&states.to_ne_bytes());
        let request = Message::new(SOCK_DIAG_BY_FAMILY, NLM_F_DUMP, &fixed);
        dump_of(SockProtocol::NetlinkSockDiag, request, |kind, body| {
            if kind == SOCK_DIAG_BY_FAMILY {
                each(body);
            }
        })?;
    }
    Ok(())
}
