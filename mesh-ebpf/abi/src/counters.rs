//! What the kernel programs count, one per-CPU slot each: decisions first, then refusals at `connect` and
//! drops of packets by reason.

/// How many slots there are.
pub const SLOTS: u32 = 160;
/// Refusals at `connect`: this plus the number of the reason.
pub const REFUSED: u32 = 32;
/// Packets and connections dropped: this plus the number of the reason.
pub const DROPPED: u32 = 96;
/// Reasons counted each by its own slot.
pub const REASONS: u32 = 64;

macro_rules! counters { ($($name:ident = $n:literal, $key:literal;)*) => {
    /// A decision that is counted.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    #[repr(u32)]
    pub enum Counter { $(#[doc = $key] $name = $n),* }
    /// Slot and name of each decision.
    pub const NAMES: &[(u32, &str)] = &[$(($n, $key)),*];
} }

counters! {
    Captured = 0, "connect_captured";
    Direct = 1, "connect_direct";
    Left = 2, "connect_left_alone";
    DnsCaptured = 3, "dns_captured";
    InboundSteered = 4, "inbound_steered";
    InboundLocal = 5, "inbound_local";
    InboundDirect = 6, "inbound_direct";
    InboundProbe = 7, "inbound_probe";
    InboundTunnel = 8, "inbound_tunnel";
    GuardSyn = 9, "guard_syn_passed";
    GuardAudited = 10, "guard_would_drop";
    OriginalLost = 11, "originals_full";
    DirectLost = 12, "direct_full";
    DnsLost = 13, "dns_full";
    EventsLost = 14, "events_lost";
    ProbeLost = 15, "probes_full";
    ClientLost = 16, "clients_full";
    ClientShown = 17, "client_shown";
    UdpPassed = 18, "udp_passed";
    OtherPassed = 19, "other_passed";
    StorageFailed = 20, "storage_failed";
    DnsUnbound = 21, "dns_source_port_unknown";
    DirectDiverted = 22, "direct_diverted";
}

const _: () = assert!(
    NAMES.len() as u32 <= REFUSED && REFUSED + REASONS == DROPPED && DROPPED + REASONS == SLOTS
);

/// The slot of a refusal at `connect`.
#[inline(always)]
pub const fn refused(reason: u16) -> u32 {
    REFUSED + (reason as u32 & (REASONS - 1))
}

/// The slot of a drop.
#[inline(always)]
pub const fn dropped(reason: u16) -> u32 {
    DROPPED + (reason as u32 & (REASONS - 1))
}
