//! The authority of a CONNECT, as a node takes it: an address and a port, nothing else.
//!
//! Invariant: what is accepted has exactly one reading; IPv4-mapped IPv6, zones, leading zeros and names are refused.

use std::net::{Ipv6Addr, SocketAddr, SocketAddrV6};

/// Parses `1.2.3.4:80` or `[fd00::1]:80`.
pub fn parse(authority: &str) -> Option<SocketAddr> {
    let (host, port) = authority.rsplit_once(':')?;
    let port = port_number(port)?;
    if let Some(inner) = host.strip_prefix('[') {
        let ip: Ipv6Addr = inner.strip_suffix(']')?.parse().ok()?;
        return ip
            .to_ipv4_mapped()
            .is_none()
            .then(|| SocketAddrV6::new(ip, port, 0, 0).into());
    }
    Some(SocketAddr::new(
        host.parse::<std::net::Ipv4Addr>().ok()?.into(),
        port,
    ))
}

fn port_number(text: &str) -> Option<u16> {
    let digits =
        !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()) && !text.starts_with('0');
    digits.then(|| text.parse().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_address_with_a_port_is_taken() {
        let check = |text: &str, expect: Option<&str>| {
            assert_eq!(
                parse(text).map(|a| a.to_string()).as_deref(),
                expect,
                "{text:?}"
            )
        };
        check("10.0.0.1:80", Some("10.0.0.1:80"));
        check("[fd00::1]:8080", Some("[fd00::1]:8080"));
        check("[::1]:80", Some("[::1]:80"));
        for bad in [
            "",
            ":",
            "10.0.0.1",
            "10.0.0.1:",
            "10.0.0.1:0",
            "10.0.0.1:080",
            "10.0.0.1:+80",
            "10.0.0.1:65536",
            "10.0.0.01:80",
            "010.0.0.1:80",
            "10.1:80",
            "0x0a.0.0.1:80",
            "fd00::1:80",
            "[fd00::1]",
            "[fd00::1%eth0]:80",
            "[::ffff:10.0.0.1]:80",
            "[10.0.0.1]:80",
            "web.shop:80",
            "user@10.0.0.1:80",
            "10.0.0.1:80/",
            " 10.0.0.1:80",
            "10.0.0.1:80 ",
            "10.0.0.1:8\x000",
        ] {
            check(bad, None);
        }
    }
}
