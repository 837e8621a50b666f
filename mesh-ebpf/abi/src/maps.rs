//! The table of kernel maps: the only place that names them and says how large they are.
//!
//! Invariant: the layout hash covers the table and every type in it; maps are pinned below that hash, so
//! programs and user space of different layouts never meet in one map.

use crate::layout::*;
use crate::plain::Plain;

/// What kind of kernel map a row is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MapKind {
    /// `BPF_MAP_TYPE_ARRAY`, mapped into user space: one store instead of a system call.
    SharedArray,
    /// `BPF_MAP_TYPE_PERCPU_ARRAY`.
    PerCpuArray,
    /// `BPF_MAP_TYPE_HASH`, allocated on demand.
    Hash,
    /// `BPF_MAP_TYPE_SOCKHASH`.
    SockHash,
    /// `BPF_MAP_TYPE_SK_STORAGE`.
    SkStorage,
    /// `BPF_MAP_TYPE_RINGBUF`.
    Ring,
}

/// One map.
#[derive(Clone, Copy, Debug)]
pub struct MapRow {
    /// The symbol in the object and the name of the pin below `<layout hash>/maps/`.
    pub name: &'static str,
    /// Its kind.
    pub kind: MapKind,
    /// The key's declaration.
    pub key: &'static str,
    /// Bytes of the key.
    pub key_size: usize,
    /// The value's declaration.
    pub value: &'static str,
    /// Bytes of the value.
    pub value_size: usize,
    /// Entries, or bytes for a ring.
    pub capacity: u32,
    /// Entries that one pod may hold; 0: pods cannot fill it.
    pub quota: u32,
}

const fn row<K: Plain, V: Plain>(
    name: &'static str,
    kind: MapKind,
    capacity: u32,
    quota: u32,
) -> MapRow {
    MapRow {
        name,
        kind,
        key: K::LAYOUT,
        key_size: size_of::<K>(),
        value: V::LAYOUT,
        value_size: size_of::<V>(),
        capacity,
        quota,
    }
}

/// Capacities and quotas, for the declarations in the kernel programs.
pub mod size {
    /// `ADDRS`.
    pub const ADDRS: u32 = 4 * crate::layout::MAX_PODS;
    /// `IFACES`.
    pub const IFACES: u32 = 2 * crate::layout::MAX_PODS;
    /// `LISTENERS`.
    pub const LISTENERS: u32 = 4 * crate::layout::MAX_PODS;
    /// `PROBE_PORTS`.
    pub const PROBE_PORTS: u32 = 16 * crate::layout::MAX_PODS;
    /// `ORIGINALS`.
    pub const ORIGINALS: u32 = 131_072;
    /// One pod's share of `ORIGINALS`: entries live from `connect` to the proxy's accept.
    pub const ORIGINALS_QUOTA: u32 = 16_384;
    /// `DIRECT`.
    pub const DIRECT: u32 = 262_144;
    /// One pod's share of `DIRECT`: entries live as long as the connection.
    pub const DIRECT_QUOTA: u32 = 32_768;
    /// Entries of `DIRECT`, and of a pod's share of it, that `connect` leaves free: for connections that were decided
    /// and whose entries are not there yet.
    pub const DIRECT_SLACK: u32 = 1_024;
    /// `USES`: one for each pod, and one for all.
    pub const USES: u32 = crate::layout::EVERYBODY + 1;
    /// `ASKED`.
    pub const ASKED: u32 = 65_536;
    /// One pod's share of `ASKED`: entries live as long as the UDP socket.
    pub const ASKED_QUOTA: u32 = 4_096;
    /// `CLIENTS`: from the proxy's dial to the application's accept queue.
    pub const CLIENTS: u32 = 65_536;
    /// `PROBES`: kubelet's connections.
    pub const PROBES: u32 = 16_384;
    /// `VERDICTS`.
    pub const VERDICTS: u32 = 262_144;
    /// One pod's share of `VERDICTS`; user space keeps it.
    pub const VERDICTS_QUOTA: u32 = 2_048;
    /// `VIPS`.
    pub const VIPS: u32 = 16_384;
}

/// Every kernel map.
pub const MAPS: &[MapRow] = &[
    row::<u32, State>("STATE", MapKind::SharedArray, 1, 0),
    row::<u64, Pod>("PODS", MapKind::Hash, MAX_PODS, 0),
    row::<u32, Meta>("METAS", MapKind::Hash, MAX_PODS, 0),
    row::<crate::Addr, Owner>("ADDRS", MapKind::Hash, size::ADDRS, 0),
    row::<u32, Iface>("IFACES", MapKind::Hash, size::IFACES, 0),
    row::<ListenerKey, u32>("PROBE_PORTS", MapKind::Hash, size::PROBE_PORTS, 0),
    row::<u32, Use>("USES", MapKind::SharedArray, size::USES, 0),
    row::<u32, u64>("EPOCHS", MapKind::SharedArray, EPOCH_BUCKETS, 0),
    row::<i32, Sock>("SOCKS", MapKind::SkStorage, 0, 0),
    row::<Tuple, Original>(
        "ORIGINALS",
        MapKind::Hash,
        size::ORIGINALS,
        size::ORIGINALS_QUOTA,
    ),
    row::<Tuple, Authorised>("DIRECT", MapKind::Hash, size::DIRECT, size::DIRECT_QUOTA),
    row::<Tuple, Endpoint>("CLIENTS", MapKind::Hash, size::CLIENTS, 0),
    row::<Tuple, u64>("PROBES", MapKind::Hash, size::PROBES, 0),
    row::<Endpoint, Asked>("ASKED", MapKind::Hash, size::ASKED, size::ASKED_QUOTA),
    row::<VerdictKey, Verdict>(
        "VERDICTS",
        MapKind::Hash,
        size::VERDICTS,
        size::VERDICTS_QUOTA,
    ),
    row::<Endpoint, Vip>("VIPS", MapKind::Hash, size::VIPS, 0),
    row::<ListenerKey, u32>("LISTENERS", MapKind::SockHash, size::LISTENERS, 0),
    row::<u32, u64>("COUNTERS", MapKind::PerCpuArray, crate::counters::SLOTS, 0),
    row::<u32, Limit>("LIMITS", MapKind::PerCpuArray, 1, 0),
    row::<u32, Event>("EVENTS", MapKind::Ring, RING_BYTES, 0),
];

/// Raised when programs of one layout must not share maps although the types are the same.
const REVISION: u32 = 1;

/// The first 32 bits of a hash over the table and the layouts of its types: the version of every pin.
pub const fn layout_hash() -> u32 {
    let mut h = fnv(0xcbf2_9ce4_8422_2325, &REVISION.to_be_bytes());
    let mut i = 0;
    while i < MAPS.len() {
        let r = &MAPS[i];
        h = fnv(h, r.name.as_bytes());
        h = fnv(h, &[r.kind as u8]);
        h = fnv(h, r.key.as_bytes());
        h = fnv(h, r.value.as_bytes());
        h = fnv(h, &(r.key_size as u32).to_be_bytes());
        h = fnv(h, &(r.value_size as u32).to_be_bytes());
        h = fnv(h, &r.capacity.to_be_bytes());
        i += 1;
    }
    (h >> 32) as u32
}

const fn fnv(mut h: u64, bytes: &[u8]) -> u64 {
    let mut i = 0;
    while i < bytes.len() {
        h = (h ^ bytes[i] as u64).wrapping_mul(0x0000_0100_0000_01b3);
        i += 1;
    }
    // A separator, so that neighbours cannot trade bytes.
    (h ^ 0xff).wrapping_mul(0x0000_0100_0000_01b3)
}
