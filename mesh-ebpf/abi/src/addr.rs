//! An IP address in 16 bytes, as it stands in a packet; an IPv4 address is v4-mapped.
//!
//! Invariant: the family follows from the address, so a key with an `Addr` needs no family beside it.

use crate::plain::plain;

plain! {
    /// Sixteen bytes in network order, kept as four words as the hooks hand them over.
    Addr[16] {
        /// The words in memory order.
        words: [u32; 4],
    } zero {}
}

/// The third word of every v4-mapped address.
const MAPPED: u32 = 0xffff_u32.to_be();

impl Addr {
    /// No address.
    pub const NONE: Addr = Addr::new([0; 4]);

    /// From an IPv4 word in network order, as the hooks have it.
    #[inline(always)]
    pub const fn from_v4_word(word: u32) -> Self {
        Self::new([0, 0, MAPPED, word])
    }

    /// From four octets.
    pub const fn v4(o: [u8; 4]) -> Self {
        Self::from_v4_word(u32::from_ne_bytes(o))
    }

    /// From sixteen octets; what is v4-mapped stays v4-mapped.
    pub const fn v6(o: [u8; 16]) -> Self {
        Self::new([
            u32::from_ne_bytes([o[0], o[1], o[2], o[3]]),
            u32::from_ne_bytes([o[4], o[5], o[6], o[7]]),
            u32::from_ne_bytes([o[8], o[9], o[10], o[11]]),
            u32::from_ne_bytes([o[12], o[13], o[14], o[15]]),
        ])
    }

    /// The sixteen octets.
    pub const fn octets(&self) -> [u8; 16] {
        let w = self.words();
        let (a, b, c, d) = (
            w[0].to_ne_bytes(),
            w[1].to_ne_bytes(),
            w[2].to_ne_bytes(),
            w[3].to_ne_bytes(),
        );
        [
            a[0], a[1], a[2], a[3], b[0], b[1], b[2], b[3], c[0], c[1], c[2], c[3], d[0], d[1],
            d[2], d[3],
        ]
    }

    /// Whether it is an IPv4 address.
    #[inline(always)]
    pub const fn is_v4(&self) -> bool {
        let w = self.words();
        w[0] == 0 && w[1] == 0 && w[2] == MAPPED
    }

    /// The IPv4 word in network order; meaningful only when `is_v4`.
    #[inline(always)]
    pub const fn v4_word(&self) -> u32 {
        self.words()[3]
    }

    /// All zero: no address, or `::`.
    #[inline(always)]
    pub const fn is_none(&self) -> bool {
        let w = self.words();
        (w[0] | w[1] | w[2] | w[3]) == 0
    }

    /// `::`, `0.0.0.0`, `::1` or 127/8.
    #[inline(always)]
    pub const fn is_this_host(&self) -> bool {
        let w = self.words();
        if self.is_v4() {
            return w[3] == 0 || (u32::from_be(w[3]) >> 24) == 127;
        }
        w[0] == 0 && w[1] == 0 && w[2] == 0 && u32::from_be(w[3]) <= 1
    }

    /// Multicast or, for IPv4, the limited broadcast address.
    #[inline(always)]
    pub const fn is_many(&self) -> bool {
        let w = self.words();
        if self.is_v4() {
            let ip = u32::from_be(w[3]);
            // The rest of the highest sixteenth is reserved, and service entries get their addresses from it.
            (ip >> 28) == 14 || ip == u32::MAX
        } else {
            (u32::from_be(w[0]) >> 24) == 0xff
        }
    }

    /// A cheap hash, the same in the kernel and outside.
    #[inline(always)]
    pub const fn hash(&self, salt: u32) -> u32 {
        let w = self.words();
        let mut h = salt ^ 0x9e37_79b9;
        h = (h ^ w[0]).wrapping_mul(0x85eb_ca6b);
        h = (h ^ (h >> 13) ^ w[1]).wrapping_mul(0xc2b2_ae35);
        h = (h ^ (h >> 15) ^ w[2]).wrapping_mul(0x27d4_eb2f);
        h = (h ^ (h >> 13) ^ w[3]).wrapping_mul(0x1656_67b1);
        h ^ (h >> 16)
    }
}

impl From<core::net::IpAddr> for Addr {
    fn from(ip: core::net::IpAddr) -> Self {
        match ip {
            core::net::IpAddr::V4(a) => Addr::v4(a.octets()),
            core::net::IpAddr::V6(a) => Addr::v6(a.octets()),
        }
    }
}

impl From<Addr> for core::net::IpAddr {
    /// A v4-mapped address becomes IPv4.
    fn from(a: Addr) -> Self {
        core::net::Ipv6Addr::from(a.octets()).to_canonical()
    }
}
