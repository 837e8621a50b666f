//! What captured packets are: tunnel or clear, and whose.

use std::net::{IpAddr, Ipv6Addr};

use anyhow::Result;
use mesh_tests::lab::{Lab, boot::CONTROLLER_PORT, capture::Packet, net::FABRIC};

/// The port that tunnels go to.
const TUNNEL: u16 = 15008;

/// A TCP segment's addresses and ports.
#[derive(Clone, Copy, Debug)]
pub struct Segment {
    source: (IpAddr, u16),
    destination: (IpAddr, u16),
}

impl Segment {
    /// The segment in an Ethernet frame, if it is TCP over IPv4 or plain IPv6.
    fn of(packet: &Packet) -> Option<Self> {
        let frame = &packet.bytes;
        let (addresses, protocol, tcp) = match frame.get(12..14)? {
            [0x08, 0x00] => {
                let ip = |at| IpAddr::from(<[u8; 4]>::try_from(&frame[at..at + 4]).expect("four"));
                let length = usize::from(frame.get(14)? & 15) * 4;
                frame.get(33)?;
                ((ip(26), ip(30)), frame[23], 14 + length)
            }
            [0x86, 0xdd] => {
                let ip = |at| {
                    let bytes = <[u8; 16]>::try_from(&frame[at..at + 16]).expect("sixteen");
                    IpAddr::from(Ipv6Addr::from(bytes))
                };
                frame.get(53)?;
                ((ip(22), ip(38)), frame[20], 54)
            }
            _ => return None,
        };
        let ports = frame.get(tcp..tcp + 4)?;
        let port = |at: usize| u16::from_be_bytes([ports[at], ports[at + 1]]);
        (protocol == 6).then_some(Self {
            source: (addresses.0, port(0)),
            destination: (addresses.1, port(2)),
        })
    }

    fn is_tunnel(&self) -> bool {
        self.source.1 == TUNNEL || self.destination.1 == TUNNEL
    }

    /// A waypoint's own stream from the controller, which is TLS.
    fn is_control(&self) -> bool {
        let controller = (IpAddr::V4(FABRIC), CONTROLLER_PORT);
        self.source == controller || self.destination == controller
    }

    fn touches(&self, whose: impl Fn(IpAddr) -> bool) -> bool {
        whose(self.source.0) || whose(self.destination.0)
    }
}

/// Whether an address is one that the lab gives to pods.
fn is_pod(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => ip.octets()[..2] == [10, 244],
        IpAddr::V6(ip) => ip.segments()[..2] == [0xfd00, 0x244],
    }
}

/// How many TCP segments belong to tunnels.
pub fn tunnelled(packets: &[Packet]) -> usize {
    let segments = packets.iter().filter_map(Segment::of);
    segments.filter(Segment::is_tunnel).count()
}

/// TCP segments from or to any pod but those at `others`, outside of any tunnel: a SYN or a RST as much as data.
pub fn in_the_clear(packets: &[Packet], others: &[IpAddr]) -> Vec<Segment> {
    let segments = packets.iter().filter_map(Segment::of);
    segments
        .filter(|s| {
            s.touches(|ip| is_pod(ip) && !others.contains(&ip)) && !s.is_tunnel() && !s.is_control()
        })
        .collect()
}

/// The addresses of the pods outside the mesh.
pub async fn outsiders(lab: &Lab) -> Result<Vec<IpAddr>> {
    let pods = lab.status().await?.pods.into_iter();
    let outside = pods.filter(|p| p.namespace == "outside");
    Ok(outside
        .flat_map(|p| [IpAddr::V4(p.ip), IpAddr::V6(p.ip6)])
        .collect())
}
