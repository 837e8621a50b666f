//! Keys and values of the kernel maps.
//!
//! Invariant: a change here changes the layout hash, hence the pin path; the first word of `State` is the
//! retired flag in every layout, for ever, because a newer agent sets it without knowing the rest.

use crate::addr::Addr;
use crate::plain::plain;

/// Pods on one node, and the size of every array indexed by pod.
pub const MAX_PODS: u32 = 1024;
/// The entry of `USES` that adds up all pods.
pub const EVERYBODY: u32 = MAX_PODS;
/// Slots of a VIP; weights become repetitions.
pub const MAX_SLOTS: usize = 32;
/// Ports of one pod that kubelet probes.
pub const MAX_PROBES: usize = 16;
/// Buckets of epochs; a power of two.
pub const EPOCH_BUCKETS: u32 = 4096;
/// Bytes of the event ring.
pub const RING_BYTES: u32 = 512 * 1024;
/// The longest pod uid that is kept.
pub const MAX_UID: usize = 64;

/// `Sock::kind`: nothing is remembered any more.
pub const SOCK_NONE: u16 = 0;
/// The proxy's own; the address is the client to show to the application, if any.
pub const SOCK_OWN: u16 = 1;
/// Sent to the proxy; the address is what the application dialed.
pub const SOCK_CAPTURED: u16 = 2;
/// Authorised direct; the address is what the application dialed.
pub const SOCK_DIRECT: u16 = 3;
/// Accepted by an application; the address is the real client.
pub const SOCK_SHOWN: u16 = 4;
/// A UDP socket that asked a resolver; the address is the resolver.
pub const SOCK_DNS: u16 = 5;

/// `Pod::flags`: outbound TCP is captured.
pub const POD_CAPTURE: u32 = 1;
/// `Pod::flags`: DNS is captured.
pub const POD_DNS: u32 = 2;
/// `Pod::flags`: the direct path may be used from this pod.
pub const POD_DIRECT: u32 = 4;

/// `Iface::flags`: the pod behind it is enrolled: guard as well as anchor.
pub const IFACE_ENROLLED: u32 = 1;

/// `State::flags`: the guard counts and lets pass.
pub const STATE_AUDIT: u32 = 1;
/// `State::flags`: `guard` or `anchor` is in its place on every interface, so that connections may go direct.
pub const STATE_ANCHORED: u32 = 2;
/// `State::flags`: the mesh leaves the cluster, and clients of other nodes may be out of it already: what comes in
/// goes to the application as it is. What goes out is still captured.
pub const STATE_OPEN: u32 = 4;

/// `Verdict::action`: native TCP to the pod.
pub const VERDICT_DIRECT: u16 = 1;
/// `Verdict::action`: through the proxy.
pub const VERDICT_PROXY: u16 = 2;
/// `Verdict::action`: `connect` fails.
pub const VERDICT_REFUSE: u16 = 3;

/// `Event::kind`: something was dropped.
pub const EVENT_DROP: u16 = 1;
/// `Event::kind`: a direct flow began.
pub const EVENT_DIRECT_OPEN: u16 = 2;
/// `Event::kind`: a direct flow ended.
pub const EVENT_DIRECT_CLOSE: u16 = 3;
/// `Event::kind`: a `connect` was refused.
pub const EVENT_REFUSED: u16 = 4;

plain! {
    /// The one entry of `STATE`.
    State[40] {
        /// Not zero: take no new flow, because a newer layout does, or because the mesh leaves the node.
        retired: u32,
        /// `STATE_*`.
        flags: u32,
        /// The proxy's last sign of life, CLOCK_MONOTONIC.
        heartbeat_ns: u64,
        /// How old it may be; 0: it is not looked at.
        stale_ns: u64,
        /// Raised when everything decided before is void; part of every epoch.
        generation: u64,
        /// Which program set wrote this (hash of the object), for people.
        object: u64,
    } zero {}
}

plain! {
    /// A pod, keyed by its namespace's cookie.
    Pod[48] {
        /// Index into the per-pod arrays.
        index: u32,
        /// `POD_*`.
        flags: u32,
        /// Its IPv4 address or `NONE`.
        addr4: Addr,
        /// Its IPv6 address or `NONE`.
        addr6: Addr,
        /// Outbound listeners it has, from `ports::OUTBOUND` upwards.
        outbound: u32,
    } zero { spare: u32 = 0, }
}

plain! {
    /// Who owns an address.
    Owner[16] {
        /// Index of the pod.
        index: u32,
        /// The host side of its veth, or 0 when there is none.
        ifindex: u32,
        /// Its namespace's cookie.
        cookie: u64,
    } zero {}
}

plain! {
    /// What is behind an interface of the node.
    Iface[40] {
        /// Index of the pod, when enrolled.
        index: u32,
        /// `IFACE_*`.
        flags: u32,
        /// The pod's IPv4 address or `NONE`: what comes from it needs no search.
        addr4: Addr,
        /// Its IPv6 address or `NONE`.
        addr6: Addr,
    } zero {}
}

plain! {
    /// What one pod uses of the maps that it can fill.
    Use[32] {
        /// Entries in `ORIGINALS`.
        originals: u64,
        /// Entries in `DIRECT`.
        direct: u64,
        /// Entries in `DNS`.
        dns: u64,
    } zero { spare: u64 = 0, }
}

plain! {
    /// What is remembered with a socket.
    Sock[48] {
        /// `SOCK_*`.
        kind: u16,
        /// Port of the address.
        port: u16,
        /// The pod.
        index: u32,
        /// The address; its meaning follows from the kind.
        addr: Addr,
        /// For DNS, the local address that it is published under.
        local: Addr,
        /// For DNS, the local port.
        local_port: u16,
    } zero { spare: u16 = 0, spare2: u32 = 0, }
}

plain! {
    /// A connection, from the client's view; the family follows from the addresses.
    Tuple[36] {
        /// Client address.
        client: Addr,
        /// Server address.
        server: Addr,
        /// Client port.
        client_port: u16,
        /// Server port.
        server_port: u16,
    } zero {}
}

plain! {
    /// The original destination of a captured connection.
    Original[40] {
        /// Address that the application dialed.
        addr: Addr,
        /// The namespace cookie of the pod that dialed.
        cookie: u64,
        /// When, CLOCK_MONOTONIC.
        at_ns: u64,
        /// The pod that dialed.
        index: u32,
        /// Port that it dialed.
        port: u16,
    } zero { spare: u16 = 0, }
}

plain! {
    /// A direct connection that may pass.
    Authorised[56] {
        /// The client's pod.
        client: u32,
        /// The server's pod.
        server: u32,
        /// The client's namespace cookie.
        cookie: u64,
        /// When `connect` was called.
        opened_ns: u64,
        /// What was dialed: a VIP or the pod.
        dialed: Addr,
        /// Port that was dialed.
        dialed_port: u16,
        /// Whether the connection was established.
        established: u16,
        /// Nothing.
        spare: u32,
        /// What the client had received when its own FIN was acknowledged.
        half_received: u64,
    } zero {}
}

plain! {
    /// An address and a port.
    Endpoint[20] {
        /// Address.
        addr: Addr,
        /// Port.
        port: u16,
    } zero { spare: u16 = 0, }
}

plain! {
    /// The resolver that a pod's UDP socket asked.
    Asked[24] {
        /// The resolver.
        resolver: Endpoint,
        /// The pod.
        index: u32,
    } zero {}
}

plain! {
    /// Who dials what.
    VerdictKey[32] {
        /// The source's namespace cookie.
        cookie: u64,
        /// Destination address.
        addr: Addr,
        /// Destination port.
        port: u16,
    } zero { spare: u16 = 0, spare2: u32 = 0, }
}

plain! {
    /// A decision of the proxy's, good while nothing changed.
    Verdict[16] {
        /// 0, or when it ends, CLOCK_MONOTONIC.
        until_ns: u64,
        /// The destination's epoch when it was decided.
        epoch: u32,
        /// `VERDICT_*`.
        action: u16,
        /// Why, when refused.
        reason: u16,
    } zero {}
}

plain! {
    /// One endpoint of a VIP.
    Slot[20] {
        /// Address of the pod.
        addr: Addr,
        /// Port of the pod.
        port: u16,
        /// 1: on this node. 0: elsewhere, the proxy chooses.
        local: u16,
    } zero {}
}

plain! {
    /// The endpoints of a (VIP, port).
    Vip[648] {
        /// How many slots are used.
        count: u32,
        /// Not zero: refuse with this reason.
        refuse: u32,
        /// The slots.
        slots: [Slot; MAX_SLOTS],
    } zero {}
}

plain! {
    /// A port of a pod: a listener of the proxy's, or a port that kubelet probes.
    ListenerKey[8] {
        /// The pod.
        index: u32,
        /// Its port.
        port: u16,
        /// 4 or 6: the family of the connections that it takes. 0 for a probed port.
        family: u16,
    } zero {}
}

plain! {
    /// Who a pod is, for an agent that starts over.
    Meta[120] {
        /// The namespace's cookie.
        cookie: u64,
        /// The namespace's inode.
        netns: u64,
        /// Host side of the veth.
        ifindex: u32,
        /// Length of the uid.
        uid_len: u32,
        /// The pod's uid.
        uid: [u8; MAX_UID],
        /// Its IPv4 address or `NONE`.
        addr4: Addr,
        /// Its IPv6 address or `NONE`.
        addr6: Addr,
    } zero {}
}

plain! {
    /// What the kernel tells user space.
    Event[152] {
        /// `EVENT_*`.
        kind: u16,
        /// The reason, when there is one.
        reason: u16,
        /// The pod it is about.
        index: u32,
        /// When, CLOCK_MONOTONIC.
        time_ns: u64,
        /// The connection.
        tuple: Tuple,
        /// Interface, for packets.
        ifindex: u32,
        /// What was dialed.
        dialed: Addr,
        /// Its port.
        dialed_port: u16,
        /// IP protocol, for packets; 0 for ARP.
        protocol: u16,
        /// The server's pod.
        server: u32,
        /// Namespace cookie of the client.
        cookie: u64,
        /// Bytes that the client sent and that were acknowledged.
        sent: u64,
        /// Bytes that the client received.
        received: u64,
        /// Life of the flow.
        duration_ns: u64,
        /// Smoothed round trip.
        srtt_us: u32,
        /// Retransmitted segments.
        retransmits: u32,
        /// Segments sent.
        segments: u32,
        /// 1: it was established.
        established: u32,
    } zero { spare: u64 = 0, spare2: u64 = 0, spare3: u64 = 0, }
}

plain! {
    /// Limits how many drops are told, per CPU.
    Limit[16] {
        /// Begin of the window.
        since_ns: u64,
        /// Told within it.
        told: u64,
    } zero {}
}

impl Tuple {
    /// The same connection with the ends exchanged.
    #[inline(always)]
    pub const fn reversed(&self) -> Tuple {
        Tuple::new(self.server, self.client, self.server_port, self.client_port)
    }
}

impl Endpoint {
    /// The bucket of the destination's epoch.
    #[inline(always)]
    pub const fn epoch_bucket(addr: &Addr) -> u32 {
        addr.hash(0) & (EPOCH_BUCKETS - 1)
    }

    /// The epoch of a destination. Both parts only grow, so equal sums mean that neither has changed.
    #[inline(always)]
    pub const fn epoch(bucket: u64, generation: u64) -> u32 {
        bucket.wrapping_add(generation) as u32
    }
}

impl Authorised {
    /// The same, established.
    #[inline(always)]
    pub const fn into_established(mut self) -> Authorised {
        self.established = 1;
        self
    }

    /// The same, half closed by the client.
    #[inline(always)]
    pub const fn into_half_closed(mut self, received: u64) -> Authorised {
        self.half_received = received;
        self
    }
}

impl Pod {
    /// The pod's address in the family of `other`, or `NONE`.
    #[inline(always)]
    pub const fn addr_like(&self, other: &Addr) -> Addr {
        if other.is_v4() {
            self.addr4
        } else {
            self.addr6
        }
    }
}

impl Vip {
    /// One slot; the index is taken modulo the capacity. The compiler must not drop the mask although it
    /// knows better: the kernel's verifier does not.
    #[inline(always)]
    pub fn slot(&self, i: usize) -> &Slot {
        &self.slots[core::hint::black_box(i) & (MAX_SLOTS - 1)]
    }
}
