//! The decisions about packets that leave a pod: `guard` (nothing past the mesh) and `anchor` (nobody in
//! another's name), as functions over values taken from the headers.
//!
//! Invariant: what cannot be read is dropped for an enrolled pod; nothing is accepted, it is only passed on.

use crate::decide::proto;
use crate::layout::{IFACE_ENROLLED, Iface, Owner};
use crate::reason;

/// Ethernet types.
pub mod ether {
    /// IPv4.
    pub const IPV4: u16 = 0x0800;
    /// ARP.
    pub const ARP: u16 = 0x0806;
    /// IPv6.
    pub const IPV6: u16 = 0x86dd;
    /// A VLAN tag left after the kernel took one off.
    pub const VLAN: u16 = 0x8100;
    /// The same, outer tag.
    pub const QINQ: u16 = 0x88a8;
}

/// What follows an IP header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Upper {
    /// TCP right behind it.
    Tcp,
    /// UDP.
    Udp,
    /// ICMPv6 right behind it.
    Icmp6,
    /// An IPv6 extension header: walk on.
    Walk,
    /// An IPv6 fragment header.
    Fragment,
    /// TCP that cannot be read.
    Hidden,
    /// Something else.
    Other,
}

/// IPv4: the protocol and the word with flags and fragment offset, in host order.
#[inline(always)]
pub fn upper_v4(protocol: u8, fragment: u16) -> Upper {
    let is_fragment = fragment & 0x3fff != 0;
    match protocol as u32 {
        proto::TCP if is_fragment => Upper::Hidden,
        proto::TCP => Upper::Tcp,
        proto::UDP => Upper::Udp,
        _ => Upper::Other,
    }
}

/// IPv6: a next-header value, and whether extension headers came before it.
#[inline(always)]
pub fn upper_v6(next: u8, behind: bool) -> Upper {
    match next {
        6 if behind => Upper::Hidden,
        6 => Upper::Tcp,
        17 => Upper::Udp,
        proto::ICMPV6 => Upper::Icmp6,
        44 => Upper::Fragment,
        // Hop-by-hop, routing, destination options, authentication, mobility, host identity, shim6.
        0 | 43 | 60 | 51 | 135 | 139 | 140 => Upper::Walk,
        _ => Upper::Other,
    }
}

/// What becomes of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Packet {
    /// On to the next program.
    Next,
    /// Dropped, with this reason.
    Drop(u16),
}

/// Whether a source address may come in by this interface. `owner`: the enrolled pod that has the address.
#[inline(always)]
pub fn anchor(ifindex: u32, owner: Option<&Owner>) -> Packet {
    match owner {
        // A pod without a veth cannot be guarded here; whoever claims its address is not it.
        Some(o) if o.ifindex() != ifindex => Packet::Drop(reason::ADDRESS_CLAIMED),
        _ => Packet::Next,
    }
}

/// TCP flags that make a segment the begin of a connection: SYN without ACK.
#[inline(always)]
pub fn is_opening(flags: u8) -> bool {
    flags & 0x12 == 0x02
}

/// Whether TCP may leave an enrolled pod. `own`: by the proxy's socket; `authorised`: exactly this
/// connection may go direct, and it is this pod's.
#[inline(always)]
pub fn guard_tcp(flags: u8, own: bool, authorised: bool) -> Packet {
    if !is_opening(flags) || own || authorised {
        Packet::Next
    } else {
        Packet::Drop(reason::BYPASS)
    }
}

/// Whether the guard, and not only the anchor, looks at an interface.
#[inline(always)]
pub fn is_guarded(iface: &Iface) -> bool {
    iface.flags() & IFACE_ENROLLED != 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fragments_and_hidden_tcp_are_named() {
        assert_eq!(upper_v4(6, 0x4000), Upper::Tcp);
        assert_eq!(upper_v4(6, 0x2000), Upper::Hidden);
        assert_eq!(upper_v4(6, 0x0001), Upper::Hidden);
        assert_eq!(upper_v4(17, 0x2000), Upper::Udp);
        assert_eq!(upper_v6(6, false), Upper::Tcp);
        assert_eq!(upper_v6(6, true), Upper::Hidden);
        assert_eq!(upper_v6(60, false), Upper::Walk);
        assert_eq!(upper_v6(44, false), Upper::Fragment);
        assert_eq!(upper_v6(59, false), Upper::Other);
    }

    #[test]
    fn only_an_opening_segment_needs_leave() {
        for flags in 0..=255u8 {
            let opening = flags & 0x02 != 0 && flags & 0x10 == 0;
            for (own, authorised) in [(false, false), (true, false), (false, true), (true, true)] {
                let expect = if opening && !own && !authorised {
                    Packet::Drop(reason::BYPASS)
                } else {
                    Packet::Next
                };
                assert_eq!(
                    guard_tcp(flags, own, authorised),
                    expect,
                    "flags {flags:#x} own {own} authorised {authorised}"
                );
            }
        }
    }

    #[test]
    fn an_address_belongs_to_one_interface() {
        let owner = Owner::new(1, 7, 99);
        assert_eq!(anchor(7, Some(&owner)), Packet::Next);
        assert_eq!(
            anchor(8, Some(&owner)),
            Packet::Drop(reason::ADDRESS_CLAIMED)
        );
        assert_eq!(anchor(8, None), Packet::Next);
        assert_eq!(
            anchor(8, Some(&Owner::new(1, 0, 99))),
            Packet::Drop(reason::ADDRESS_CLAIMED)
        );
    }
}
