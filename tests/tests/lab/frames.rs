//! Frames that a program with CAP_NET_RAW sends past its own network stack.
//!
//! Invariant: sent from inside a pod's network namespace, out of its own interface.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::fd::AsRawFd,
    path::Path,
};

use anyhow::{Context, Result};
use mesh_tests::lab::{control::PodStatus, enter::in_netns};
use nix::{
    ifaddrs::getifaddrs,
    sys::socket::{AddressFamily, LinkAddr, MsgFlags, SockFlag, SockType, bind, send, socket},
};

/// The hardware address of everybody.
const EVERYBODY: [u8; 6] = [0xff; 6];
const IPV4: u16 = 0x0800;
const ARP: u16 = 0x0806;
const IPV6: u16 = 0x86dd;

/// A pod's interface, as itself sees it.
pub fn interface(netns: &Path) -> Result<LinkAddr> {
    in_netns(netns, || {
        let mut all = getifaddrs().context("listing interfaces")?;
        all.find_map(|i| {
            let link = i.address.as_ref()?.as_link_addr().copied()?;
            (i.interface_name == "eth0").then_some(link)
        })
        .context("the pod has no eth0")
    })
}

/// Sends frames out of a pod's interface.
pub fn send_from(netns: &Path, frames: Vec<Vec<u8>>) -> Result<()> {
    let link = interface(netns)?;
    in_netns(netns, move || {
        let s = socket(
            AddressFamily::Packet,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC,
            None,
        )
        .context("opening a packet socket")?;
        bind(s.as_raw_fd(), &link).context("binding it to eth0")?;
        for frame in frames {
            send(s.as_raw_fd(), &frame, MsgFlags::empty()).context("sending a frame")?;
        }
        Ok(())
    })
}

/// What an impostor at `from` sends to be taken for `victim` by `peer`: ARP, NDP, and segments that open a
/// connection, in both families.
pub fn claims(from: &LinkAddr, victim: &PodStatus, peer: &PodStatus, port: u16) -> Vec<Vec<u8>> {
    let mac = from.addr().unwrap_or_default();
    let head = |kind: u16| [&EVERYBODY[..], &mac, &kind.to_be_bytes()].concat();
    let arp = [
        &[0, 1, 8, 0, 6, 4, 0, 2][..],
        &mac,
        &victim.ip.octets(),
        &EVERYBODY,
        &peer.ip.octets(),
    ]
    .concat();
    let advert = [
        &[136, 0, 0, 0, 0x60, 0, 0, 0][..],
        &victim.ip6.octets(),
        &[2, 1],
        &mac,
    ]
    .concat();
    vec![
        [head(ARP), arp].concat(),
        [head(IPV6), ipv6(victim.ip6, peer.ip6, 58, &advert)].concat(),
        [head(IPV4), ipv4(victim.ip, peer.ip, &syn(port))].concat(),
        [head(IPV6), ipv6(victim.ip6, peer.ip6, 6, &syn(port))].concat(),
    ]
}

/// What a pod sends to open a connection past its own stack, and so past its proxy.
pub fn opening(from: &LinkAddr, pod: &PodStatus, to: &PodStatus, port: u16) -> Vec<u8> {
    let mac = from.addr().unwrap_or_default();
    let head = [&EVERYBODY[..], &mac, &IPV4.to_be_bytes()].concat();
    [head, ipv4(pod.ip, to.ip, &syn(port))].concat()
}

/// A segment that opens a connection; nobody looks at its checksum before it is dropped.
fn syn(port: u16) -> Vec<u8> {
    let mut h = vec![
        0x9c, 0x40, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0x50, 2, 0xff, 0xff, 0, 0, 0, 0,
    ];
    h[2..4].copy_from_slice(&port.to_be_bytes());
    h
}

fn ipv4(src: Ipv4Addr, dst: Ipv4Addr, payload: &[u8]) -> Vec<u8> {
    let mut h = vec![0x45, 0, 0, 0, 0, 1, 0, 0, 64, 6, 0, 0];
    h[2..4].copy_from_slice(&(20 + payload.len() as u16).to_be_bytes());
    h.extend(src.octets());
    h.extend(dst.octets());
    let sum: u32 = h
        .chunks(2)
        .map(|c| u32::from(u16::from_be_bytes([c[0], c[1]])))
        .sum();
    let sum = !((sum & 0xffff) + (sum >> 16)) as u16;
    h[10..12].copy_from_slice(&sum.to_be_bytes());
    h.extend(payload);
    h
}

fn ipv6(src: Ipv6Addr, dst: Ipv6Addr, next: u8, payload: &[u8]) -> Vec<u8> {
    let mut h = vec![0x60, 0, 0, 0, 0, 0, next, 255];
    h[4..6].copy_from_slice(&(payload.len() as u16).to_be_bytes());
    h.extend(src.octets());
    h.extend(dst.octets());
    h.extend(payload);
    h
}

/// The pod's addresses, as its configuration has them.
pub fn addresses(pod: &PodStatus) -> [IpAddr; 2] {
    [pod.ip.into(), pod.ip6.into()]
}
