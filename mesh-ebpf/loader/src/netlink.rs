//! Netlink, as far as interfaces, classifiers and sockets need it: messages, one talk, one dump, and news.
//!
//! Invariants: speaks of the calling thread's namespace; an error of the kernel's is returned as it is; an
//! attribute that does not fit its message is the end of the message.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, send,
    setsockopt, socket, sockopt,
};
use nix::sys::time::TimeVal;

pub const NLM_F_REQUEST: u16 = 1;
pub const NLM_F_ACK: u16 = 4;
pub const NLM_F_DUMP: u16 = 0x300;
pub const NLM_F_EXCL: u16 = 0x200;
pub const NLM_F_CREATE: u16 = 0x400;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
/// Header of a message.
const HEADER: usize = 16;
/// Set on an attribute that holds others.
const NESTED: u16 = 0x8000;
const RTM_NEWLINK: u16 = 16;
const RTM_GETLINK: u16 = 18;
const IFLA_IFNAME: u16 = 3;
const IFLA_LINK: u16 = 5;
const IFLA_MASTER: u16 = 10;
const IFLA_LINKINFO: u16 = 18;
const IFLA_EXT_MASK: u16 = 29;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_SLAVE_KIND: u16 = 4;
const RTEXT_FILTER_SKIP_STATS: u32 = 8;
/// Length of `ifinfomsg`.
const IFINFO: usize = 16;
/// The multicast group of changes to interfaces.
const RTMGRP_LINK: u32 = 1;
/// How many datagrams of news are read before others get their turn.
const BATCH: usize = 256;

/// An interface of the namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    /// Its index.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// The bridge that it is a port of, or 0.
    pub bridge: u32,
    /// What it is: `veth`, `ipvlan`, `bridge` and so on; empty for a device.
    pub kind: String,
    /// The interface that it belongs to: a veth's other side, in whatever namespace, or what an ipvlan is made of; 0
    /// when there is none.
    pub link: u32,
}

/// A message being built.
pub struct Message(Vec<u8>);

impl Message {
    /// Begins with a fixed part.
    pub fn new(kind: u16, flags: u16, fixed: &[u8]) -> Self {
        let mut m = vec![0u8; HEADER];
        m[4..6].copy_from_slice(&kind.to_ne_bytes());
        m[6..8].copy_from_slice(&(NLM_F_REQUEST | flags).to_ne_bytes());
        m.extend(fixed);
        Self(m)
    }

    /// Adds an attribute.
    pub fn attr(&mut self, kind: u16, value: &[u8]) {
        let len = 4 + value.len();
        self.0.extend((len as u16).to_ne_bytes());
        self.0.extend(kind.to_ne_bytes());
        self.0.extend(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
    }

    /// Adds an attribute of attributes.
    pub fn nested(&mut self, kind: u16, fill: impl FnOnce(&mut Message)) {
        let mut inner = Message(Vec::new());
        fill(&mut inner);
        self.attr(kind | NESTED, &inner.0);
    }

    fn finish(mut self) -> Vec<u8> {
        let len = self.0.len() as u32;
        self.0[0..4].copy_from_slice(&len.to_ne_bytes());
        self.0
    }
}

fn open(protocol: SockProtocol) -> io::Result<OwnedFd> {
    let s = socket(
        AddressFamily::Netlink,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC,
        protocol,
    )?;
    setsockopt(&s, sockopt::ReceiveTimeout, &TimeVal::new(5, 0))?;
    Ok(s)
}

/// Sends a request and waits for the kernel's yes or no.
pub fn talk(message: Message) -> io::Result<()> {
    let s = open(SockProtocol::NetlinkRoute)?;
    send(s.as_raw_fd(), &message.finish(), MsgFlags::empty())?;
    let mut buf = [0u8; 8192];
    let n = recv(s.as_raw_fd(), &mut buf, MsgFlags::empty())?;
    match each(&buf[..n], &mut |_, _| {})? {
        true => Ok(()),
        false => Err(io::Error::other("netlink: no acknowledgement came")),
    }
}

/// Asks route netlink for a list; `item` gets the type and the body of every message of it.
pub fn dump(message: Message, item: impl FnMut(u16, &[u8])) -> io::Result<()> {
    dump_of(SockProtocol::NetlinkRoute, message, item)
}

/// The same of another part of netlink.
pub fn dump_of(
    protocol: SockProtocol,
    message: Message,
    mut item: impl FnMut(u16, &[u8]),
) -> io::Result<()> {
    let s = open(protocol)?;
    send(s.as_raw_fd(), &message.finish(), MsgFlags::empty())?;
    let mut buf = vec![0u8; 64 * 1024];
    loop {
        let n = recv(s.as_raw_fd(), &mut buf, MsgFlags::empty())?;
        if each(&buf[..n], &mut item)? {
            return Ok(());
        }
    }
}

/// Goes through what was received; true: it was the end.
fn each(mut rest: &[u8], item: &mut dyn FnMut(u16, &[u8])) -> io::Result<bool> {
    while rest.len() >= HEADER {
        let len = u32_at(rest, 0) as usize;
        if len < HEADER || len > rest.len() {
            return Err(io::Error::other("netlink: a message that is cut off"));
        }
        match u16::from_ne_bytes([rest[4], rest[5]]) {
            NLMSG_DONE => return Ok(true),
            NLMSG_ERROR if len >= HEADER + 4 => match u32_at(rest, HEADER) as i32 {
                0 => return Ok(true),
                e => return Err(io::Error::from_raw_os_error(-e)),
            },
            kind => item(kind, &rest[HEADER..len]),
        }
        rest = &rest[len.next_multiple_of(4).min(rest.len())..];
    }
    Ok(false)
}

/// A word of a message.
pub fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes
        .get(at..at + 4)
        .map_or(0, |b| u32::from_ne_bytes(b.try_into().expect("four bytes")))
}

/// The attributes behind a fixed part.
pub fn attrs(mut rest: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let len = usize::from(u16::from_ne_bytes([*rest.first()?, *rest.get(1)?]));
        let kind = u16::from_ne_bytes([*rest.get(2)?, *rest.get(3)?]) & !NESTED;
        let value = rest.get(4..len)?;
        rest = &rest[len.next_multiple_of(4).min(rest.len())..];
        Some((kind, value))
    })
}

/// A text that ends with a zero byte.
pub fn text(value: &[u8]) -> String {
    let end = value.iter().position(|b| *b == 0).unwrap_or(value.len());
    String::from_utf8_lossy(&value[..end]).into_owned()
}

/// The interfaces of the calling thread's namespace.
pub fn interfaces() -> io::Result<Vec<Interface>> {
    let mut m = Message::new(RTM_GETLINK, NLM_F_DUMP, &[0; IFINFO]);
    m.attr(IFLA_EXT_MASK, &RTEXT_FILTER_SKIP_STATS.to_ne_bytes());
    let mut all = Vec::new();
    dump(m, |kind, body| {
        if kind == RTM_NEWLINK && body.len() >= IFINFO {
            all.push(interface(body));
        }
    })?;
    Ok(all)
}

/// Hears of changes to the interfaces of a namespace.
#[derive(Debug)]
pub struct News(OwnedFd);

/// What was heard.
#[derive(Debug, Default)]
pub struct Told {
    /// Interfaces that are new or have changed, each as it is then, in order.
    pub changed: Vec<Interface>,
    /// Something was missed: the kernel had more to say than it could keep, or it was not understood.
    pub missed: bool,
    /// There may be more to hear.
    pub more: bool,
}

impl News {
    /// Listens in the calling thread's namespace from now on.
    pub fn open() -> io::Result<Self> {
        let s = socket(
            AddressFamily::Netlink,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK,
            SockProtocol::NetlinkRoute,
        )?;
        bind(s.as_raw_fd(), &NetlinkAddr::new(0, RTMGRP_LINK))?;
        Ok(Self(s))
    }

    /// What was heard since the last call; does not wait.
    pub fn take(&self) -> io::Result<Told> {
        let mut told = Told::default();
        let mut buf = vec![0u8; 64 * 1024];
        for _ in 0..BATCH {
            match recv(self.0.as_raw_fd(), &mut buf, MsgFlags::empty()) {
                Ok(n) => {
                    let read = each(&buf[..n], &mut |kind, body| {
                        if kind == RTM_NEWLINK && body.len() >= IFINFO {
                            told.changed.push(interface(body));
                        }
                    });
                    told.missed |= read.is_err();
                }
                Err(Errno::EAGAIN) => return Ok(told),
                Err(Errno::ENOBUFS) => told.missed = true,
                Err(Errno::EINTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        told.more = true;
        Ok(told)
    }
}

impl AsFd for News {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

fn interface(body: &[u8]) -> Interface {
    // What a bridge itself tells of its ports does not say of what kind they are.
    let told_by_bridge = i32::from(body[0]) == libc::AF_BRIDGE;
    let (mut name, mut master, mut port) = (String::new(), 0, told_by_bridge);
    let (mut of_kind, mut link) = (String::new(), 0);
    for (kind, value) in attrs(&body[IFINFO..]) {
        match kind {
            IFLA_IFNAME => name = text(value),
            IFLA_MASTER => master = u32_at(value, 0),
            IFLA_LINK => link = u32_at(value, 0),
            IFLA_LINKINFO => {
                for (kind, value) in attrs(value) {
                    match kind {
                        IFLA_INFO_KIND => of_kind = text(value),
                        IFLA_INFO_SLAVE_KIND => port = text(value) == "bridge",
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    let index = u32_at(body, 4);
    Interface {
        index,
        name,
        // A bridge tells of itself as if it were its own port.
        bridge: if port && master != index { master } else { 0 },
        kind: of_kind,
        link,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_padded_nested_and_read_back() {
        let mut m = Message::new(44, NLM_F_ACK, &[7; 20]);
        m.attr(1, b"bpf\0");
        m.nested(2, |n| {
            n.attr(7, b"name\0");
            n.attr(8, &1u32.to_ne_bytes());
        });
        let bytes = m.finish();
        assert_eq!(u32_at(&bytes, 0) as usize, bytes.len());
        let all: Vec<_> = attrs(&bytes[HEADER + 20..]).collect();
        assert_eq!(
            (all.len(), all[0].0, text(all[0].1)),
            (2, 1, "bpf".to_owned())
        );
        let inner: Vec<_> = attrs(all[1].1).collect();
        assert_eq!(text(inner[0].1), "name");
        assert_eq!(u32_at(inner[1].1, 0), 1);
    }

    #[test]
    fn what_is_cut_off_ends_the_list() {
        assert_eq!(attrs(&[9, 0, 1, 0, 1]).count(), 0);
        assert_eq!(attrs(&[3, 0, 1, 0]).count(), 0, "shorter than its header");
        assert!(
            each(
                &[200, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
                &mut |_, _| {}
            )
            .is_err()
        );
    }

    #[test]
    fn the_loopback_interface_is_listed() {
        let all = interfaces().expect("no privilege is needed");
        assert!(
            all.iter()
                .any(|i| i.name == "lo" && i.index == 1 && i.bridge == 0)
        );
    }
}
