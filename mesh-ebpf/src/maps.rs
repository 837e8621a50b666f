//! The maps, as declared to the kernel: names, types and capacities are those of `mesh_abi::MAPS`, which the
//! loader compares with what the kernel made of them.

use aya_ebpf::bindings::{BPF_F_MMAPABLE, BPF_F_NO_PREALLOC};
use aya_ebpf::btf_maps::{Array, HashMap, PerCpuArray, RingBuf, SkStorage, SockHash};
use aya_ebpf::macros::btf_map;
use mesh_abi::maps::size;
use mesh_abi::*;

const SHARED: usize = BPF_F_MMAPABLE as usize;
const LAZY: usize = BPF_F_NO_PREALLOC as usize;
const PODS_MAX: usize = MAX_PODS as usize;

#[btf_map]
pub static STATE: Array<State, 1, SHARED> = Array::new();
#[btf_map]
pub static PODS: HashMap<u64, Pod, PODS_MAX, LAZY> = HashMap::new();
#[btf_map]
pub static METAS: HashMap<u32, Meta, PODS_MAX, LAZY> = HashMap::new();
#[btf_map]
pub static ADDRS: HashMap<Addr, Owner, { size::ADDRS as usize }, LAZY> = HashMap::new();
#[btf_map]
pub static IFACES: HashMap<u32, Iface, { size::IFACES as usize }, LAZY> = HashMap::new();
#[btf_map]
pub static PROBE_PORTS: HashMap<ListenerKey, u32, { size::PROBE_PORTS as usize }, LAZY> =
    HashMap::new();
#[btf_map]
pub static USES: Array<Use, { size::USES as usize }, SHARED> = Array::new();
#[btf_map]
pub static EPOCHS: Array<u64, { EPOCH_BUCKETS as usize }, SHARED> = Array::new();
#[btf_map]
pub static SOCKS: SkStorage<Sock> = SkStorage::new();
#[btf_map]
pub static ORIGINALS: HashMap<Tuple, Original, { size::ORIGINALS as usize }, LAZY> = HashMap::new();
#[btf_map]
pub static DIRECT: HashMap<Tuple, Authorised, { size::DIRECT as usize }, LAZY> = HashMap::new();
#[btf_map]
pub static CLIENTS: HashMap<Tuple, Endpoint, { size::CLIENTS as usize }, LAZY> = HashMap::new();
#[btf_map]
pub static PROBES: HashMap<Tuple, u64, { size::PROBES as usize }, LAZY> = HashMap::new();
#[btf_map]
pub static ASKED: HashMap<Endpoint, Asked, { size::ASKED as usize }, LAZY> = HashMap::new();
#[btf_map]
pub static VERDICTS: HashMap<VerdictKey, Verdict, { size::VERDICTS as usize }, LAZY> =
    HashMap::new();
#[btf_map]
pub static VIPS: HashMap<Endpoint, Vip, { size::VIPS as usize }, LAZY> = HashMap::new();
#[btf_map]
pub static LISTENERS: SockHash<ListenerKey, { size::LISTENERS as usize }> = SockHash::new();
#[btf_map]
pub static COUNTERS: PerCpuArray<u64, { counters::SLOTS as usize }> = PerCpuArray::new();
#[btf_map]
pub static LIMITS: PerCpuArray<Limit, 1> = PerCpuArray::new();
#[btf_map]
pub static EVENTS: RingBuf<Event, { RING_BYTES as usize }> = RingBuf::new();

/// The state; the map has one entry, always.
#[inline(always)]
pub fn state() -> Option<&'static State> {
    STATE.get(0)
}

/// What a pod uses.
#[inline(always)]
pub fn used(index: u32) -> Option<*mut Use> {
    USES.get_ptr_mut(index)
}

/// A counter of one pod's entries.
#[derive(Clone, Copy)]
pub enum Share {
    Originals = 0,
    Direct = 8,
    Dns = 16,
}

/// Counts an entry made (`1`) or deleted (`-1`).
#[inline(always)]
pub fn charge(index: u32, share: Share, by: i64) {
    let Some(entry) = USES.get_ptr_mut(index) else {
        return;
    };
    // SAFETY: the offset is that of one of the counters of the entry; the addition is atomic.
    unsafe { add(entry.cast::<u8>().add(share as usize).cast(), by) };
}

/// An atomic 64-bit addition. The intrinsic for it changes with every compiler; the instruction does not.
///
/// # Safety
/// `at` must point to eight bytes of a map value, aligned.
#[inline(always)]
unsafe fn add(at: *mut u64, by: i64) {
    #[cfg(target_arch = "bpf")]
    // SAFETY: by the caller.
    unsafe {
        core::arch::asm!("lock *(u64 *)({at} + 0) += {by}", at = in(reg) at, by = in(reg) by)
    };
    #[cfg(not(target_arch = "bpf"))]
    // SAFETY: by the caller; only for checks on the host.
    unsafe {
        *at = (*at).wrapping_add(by as u64)
    };
}
