//! The PROXY protocol's header: who a connection is from, before its first byte (HAProxy's specification, versions 1 and 2).
//!
//! Invariant: both addresses are of one family; where they are not, IPv4 is written as IPv6.

use std::net::{IpAddr, SocketAddr};

use mesh_model::resilience::ProxyProtocol;

/// The signature of version 2.
const SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";
/// Version 2, and that this is no check of health.
const PROXY: u8 = 0x21;
/// TCP over IPv4 and IPv6.
const TCP4: u8 = 0x11;
const TCP6: u8 = 0x21;

/// The header for a connection from `client` to `server`.
pub fn header(version: ProxyProtocol, client: SocketAddr, server: SocketAddr) -> Vec<u8> {
    let (from, to) = match (client.ip().to_canonical(), server.ip().to_canonical()) {
        (from @ IpAddr::V4(_), to @ IpAddr::V4(_)) => (from, to),
        (from, to) => (v6(from), v6(to)),
    };
    let ports = (client.port(), server.port());
    match version {
        ProxyProtocol::V1 => {
            let family = if from.is_ipv4() { "TCP4" } else { "TCP6" };
            format!("PROXY {family} {from} {to} {} {}\r\n", ports.0, ports.1).into_bytes()
        }
        ProxyProtocol::V2 => {
            let mut addresses = Vec::with_capacity(36);
            for ip in [from, to] {
                match ip {
                    IpAddr::V4(ip) => addresses.extend_from_slice(&ip.octets()),
                    IpAddr::V6(ip) => addresses.extend_from_slice(&ip.octets()),
                }
            }
            addresses.extend_from_slice(&ports.0.to_be_bytes());
            addresses.extend_from_slice(&ports.1.to_be_bytes());
            let mut all = SIGNATURE.to_vec();
            all.extend_from_slice(&[PROXY, if from.is_ipv4() { TCP4 } else { TCP6 }]);
            let length = u16::try_from(addresses.len()).expect("at most 36");
            all.extend_from_slice(&length.to_be_bytes());
            all.extend_from_slice(&addresses);
            all
        }
    }
}

fn v6(ip: IpAddr) -> IpAddr {
    match ip {
        IpAddr::V4(ip) => ip.to_ipv6_mapped().into(),
        IpAddr::V6(_) => ip,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_versions_say_who_it_is() {
        let check = |version, client: &str, server: &str, expect: &[u8]| {
            let address = |text: &str| text.parse().expect("an address");
            let got = header(version, address(client), address(server));
            assert_eq!(got, expect, "{client} {server}: {}", got.escape_ascii());
        };
        use ProxyProtocol::{V1, V2};
        let (four, six) = ("10.0.0.1:4000", "[fd00::2]:80");
        check(
            V1,
            four,
            "10.0.0.2:80",
            b"PROXY TCP4 10.0.0.1 10.0.0.2 4000 80\r\n",
        );
        check(
            V1,
            "[fd00::1]:4000",
            six,
            b"PROXY TCP6 fd00::1 fd00::2 4000 80\r\n",
        );
        check(
            V1,
            four,
            six,
            b"PROXY TCP6 ::ffff:10.0.0.1 fd00::2 4000 80\r\n",
        );
        check(
            V2,
            four,
            "10.0.0.2:80",
            b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\x0a\0\0\x01\x0a\0\0\x02\x0f\xa0\0\x50",
        );
        let long = header(V2, four.parse().expect("one"), six.parse().expect("one"));
        assert_eq!((long.len(), long[13], long[15]), (16 + 36, TCP6, 36));
    }
}
