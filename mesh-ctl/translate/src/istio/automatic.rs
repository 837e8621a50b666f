//! Virtual addresses for services that are known by name only: clients need an address to dial by which the service
//! is found again. Taken from the blocks that Istio takes them from.
//!
//! Invariant: an address follows from the service's name; only where that one is taken, the next one is tried.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// How many IPv4 addresses are tried.
const TRIES: u64 = 8;

/// The IPv4 addresses to try in order, then the one of IPv6, whose block is large enough for one.
pub(crate) fn candidates(namespace: &str, host: &str) -> (Vec<IpAddr>, IpAddr) {
    let name = [namespace.as_bytes(), b"/", host.as_bytes()].concat();
    let seed = name.iter().fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    });
    let v4 = |n: u64| {
        let [.., low, high] = mix(seed.wrapping_add(n)).to_be_bytes();
        // Neither the first nor the last address of anything.
        IpAddr::V4(Ipv4Addr::new(240, 240, high, 1 + low % 254))
    };
    let (front, back) = (mix(!seed), mix(seed.rotate_left(32)));
    let word = |bits: u64, at: u32| u16::try_from(bits >> (16 * at) & 0xffff).expect("16 bits fit");
    let v6 = Ipv6Addr::new(
        0x2001,
        0x2,
        0,
        word(front, 0),
        word(front, 1),
        word(back, 0),
        word(back, 1),
        word(back, 2) | 1,
    );
    ((0..TRIES).map(v4).collect(), IpAddr::V6(v6))
}

/// The finalizer of SplitMix64.
fn mix(seed: u64) -> u64 {
    let mut z = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_follow_from_names_and_stay_within_their_blocks() {
        let (v4, v6) = candidates("shop", "api.example.com");
        assert_eq!((v4.clone(), v6), candidates("shop", "api.example.com"));
        assert_ne!(v4[0], candidates("bank", "api.example.com").0[0]);
        for ip in v4 {
            assert!(
                matches!(ip, IpAddr::V4(ip) if ip.octets()[..2] == [240, 240] && !matches!(ip.octets()[3], 0 | 255)),
                "{ip}"
            );
        }
        assert!(
            v6.to_string().starts_with("2001:2:0:") || v6.to_string().starts_with("2001:2::"),
            "{v6}"
        );
    }
}
