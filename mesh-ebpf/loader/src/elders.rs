//! What programs of earlier layouts still serve: TCP sockets of captured pods that are older than the moment at
//! which those programs were retired.
//!
//! Invariants: a socket counts until it is gone, whoever made it, unless it can only be loopback's or a tunnel's; what
//! cannot be seen counts as there. The storage of sockets itself cannot be listed, and no counter outlives an agent.

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsFd, OwnedFd};

use mesh_abi::ports;

use crate::datapath::Datapath;
use crate::sockets::tcp_sockets;
use crate::{LoadError, netns};

/// Every state but LISTEN, TIME_WAIT and CLOSE.
const STATES: u32 = 1 << 1 | 1 << 2 | 1 << 3 | 1 << 4 | 1 << 5 | 1 << 8 | 1 << 9 | 1 << 11;
/// Where `inet_diag_sockid` is in an answer, and its parts: ports, addresses, the socket's cookie.
const ID: usize = 4;
const PORTS: usize = ID;
const ADDRESSES: usize = ID + 4;
const COOKIE: usize = ID + 40;

/// What is known of the sockets that earlier layouts may serve.
#[derive(Debug, Default)]
pub(crate) enum Elders {
    /// Those layouts were not retired: they are what keeps the pods captured.
    #[default]
    Serving,
    /// They were, and what sockets there were could not be seen.
    Unseen,
    /// The cookies of those that were there and are not known to be gone.
    Seen(BTreeSet<u64>),
}

impl Elders {
    /// Compares with what is there now; says how many are left.
    pub(crate) fn left(&mut self, now: BTreeSet<u64>) -> usize {
        match self {
            Elders::Seen(old) => old.retain(|cookie| now.contains(cookie)),
            Elders::Serving | Elders::Unseen => *self = Elders::Seen(now),
        }
        match self {
            Elders::Seen(old) => old.len(),
            Elders::Serving | Elders::Unseen => 0,
        }
    }
}

impl Datapath {
    /// The cookies of the sockets in the pods that programs may serve.
    pub(crate) fn sockets(&self) -> Result<BTreeSet<u64>, LoadError> {
        let pods: io::Result<Vec<OwnedFd>> = (self.lock().values())
            .filter_map(|k| k.netns.as_ref().map(OwnedFd::try_clone))
            .collect();
        let mut all = BTreeSet::new();
        for pod in pods.map_err(LoadError::io("hold the pods' namespaces"))? {
            let found = netns::inside(pod.as_fd(), sockets_here);
            all.extend(found.map_err(LoadError::io("list the sockets of a pod"))?);
        }
        Ok(all)
    }
}

/// The same in the calling thread's namespace.
fn sockets_here() -> io::Result<Vec<u64>> {
    let mut all = Vec::new();
    tcp_sockets(STATES, |socket| all.extend(counted(socket)))?;
    Ok(all)
}

/// The cookie of a socket, if programs of ours may serve it.
fn counted(body: &[u8]) -> Option<u64> {
    let cookie = body.get(COOKIE..COOKIE + 8)?.try_into().ok()?;
    let port = |at: usize| u16::from_be_bytes([body[PORTS + at], body[PORTS + at + 1]]);
    let (own, peer) = (port(0), port(2));
    let loopback = address(body[0], &body[ADDRESSES..]).is_loopback();
    // The proxy's side of a captured connection, and tunnels, which live for as long as they are used.
    let proxy = ports::is_private(own) || own == ports::HBONE || peer == ports::HBONE;
    (!loopback && !proxy).then_some(u64::from_ne_bytes(cookie))
}

fn address(family: u8, octets: &[u8]) -> IpAddr {
    let mut all = [0; 16];
    all.copy_from_slice(&octets[..16]);
    if i32::from(family) == libc::AF_INET {
        return Ipv4Addr::new(all[0], all[1], all[2], all[3]).into();
    }
    IpAddr::from(Ipv6Addr::from(all)).to_canonical()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn socket(family: i32, own: u16, peer: u16, ip: &[u8]) -> Vec<u8> {
        let mut body = vec![0; 72];
        body[0] = family as u8;
        body[PORTS..PORTS + 2].copy_from_slice(&own.to_be_bytes());
        body[PORTS + 2..PORTS + 4].copy_from_slice(&peer.to_be_bytes());
        body[ADDRESSES..ADDRESSES + ip.len()].copy_from_slice(ip);
        body[COOKIE..COOKIE + 8].copy_from_slice(&77u64.to_ne_bytes());
        body
    }

    #[test]
    fn what_no_program_serves_does_not_count() {
        let (v4, v6) = (libc::AF_INET, libc::AF_INET6);
        let mapped = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 127, 0, 0, 1];
        for (body, expect) in [
            (socket(v4, 40000, 15001, &[10, 1, 1, 5]), Some(77)),
            (socket(v4, 40000, 8080, &[10, 1, 1, 5]), Some(77)),
            (socket(v6, 40000, 8080, &[0xfd, 0, 1]), Some(77)),
            (socket(v4, 15001, 40000, &[10, 1, 1, 5]), None),
            (socket(v4, 15008, 40000, &[10, 1, 1, 5]), None),
            (socket(v4, 40000, 15008, &[10, 1, 1, 5]), None),
            (socket(v4, 40000, 8080, &[127, 0, 0, 1]), None),
            (socket(v6, 40000, 8080, &mapped), None),
            (vec![0; 8], None),
        ] {
            assert_eq!(counted(&body), expect, "{body:?}");
        }
    }

    #[test]
    fn only_what_was_there_is_waited_for() {
        let mut elders = Elders::Seen([1, 2, 3].into());
        assert_eq!(elders.left([2, 3, 4].into()), 2);
        assert_eq!(elders.left([1, 3, 4].into()), 1, "1 had gone");
        assert_eq!(elders.left([4].into()), 0);
        let mut unseen = Elders::Unseen;
        assert_eq!(unseen.left([4].into()), 1, "it may be an old one");
        assert_eq!(unseen.left([5].into()), 0);
    }
}
