//! Addresses in the contexts of the socket hooks, and what `getpeername` and `accept` show.

use aya_ebpf::helpers::generated::{bpf_get_netns_cookie, bpf_sk_storage_get};
use aya_ebpf::programs::SockAddrContext;
use mesh_abi::{Addr, Endpoint, SOCK_CAPTURED, SOCK_DIRECT, SOCK_DNS, SOCK_SHOWN, Sock};

use crate::maps::SOCKS;

/// The namespace of the socket.
#[inline(always)]
pub fn cookie(ctx: &SockAddrContext) -> u64 {
    // SAFETY: the context of this program.
    unsafe { bpf_get_netns_cookie(ctx.sock_addr.cast()) }
}

/// The address in the call.
#[inline(always)]
pub fn read(ctx: &SockAddrContext, v4: bool) -> Endpoint {
    let c = ctx.sock_addr;
    // SAFETY: the context is readable at these fields; the verifier checks each access.
    unsafe {
        let port = u16::from_be((*c).user_port as u16);
        let addr = if v4 {
            Addr::from_v4_word((*c).user_ip4)
        } else {
            let at = core::ptr::addr_of!((*c).user_ip6).cast::<u32>();
            Addr::new([word(at, 0), word(at, 1), word(at, 2), word(at, 3)])
        };
        Endpoint::new(addr, port)
    }
}

/// One word of the context. Volatile: joined or split accesses are refused by the verifier.
///
/// # Safety
/// `at + i` must be a readable word of the context.
#[inline(always)]
unsafe fn word(at: *const u32, i: usize) -> u32 {
    // SAFETY: by the caller.
    unsafe { core::ptr::read_volatile(at.add(i)) }
}

/// Writes the address of the call.
#[inline(always)]
pub fn write(ctx: &SockAddrContext, v4: bool, addr: &Addr, port: u16) {
    let c = ctx.sock_addr;
    // SAFETY: the context is writable at these fields in the hooks that use this; the verifier checks.
    unsafe {
        if v4 {
            core::ptr::write_volatile(core::ptr::addr_of_mut!((*c).user_ip4), addr.v4_word());
        } else {
            let at = core::ptr::addr_of_mut!((*c).user_ip6).cast::<u32>();
            let w = addr.words();
            core::ptr::write_volatile(at, w[0]);
            core::ptr::write_volatile(at.add(1), w[1]);
            core::ptr::write_volatile(at.add(2), w[2]);
            core::ptr::write_volatile(at.add(3), w[3]);
        }
        core::ptr::write_volatile(
            core::ptr::addr_of_mut!((*c).user_port),
            u32::from(port.to_be()),
        );
    }
}

/// What is remembered with the socket of a call.
#[inline(always)]
pub fn storage(ctx: &SockAddrContext) -> Option<&'static mut Sock> {
    // SAFETY: the socket of the context; the map returns null or a value that lives as long as the program runs.
    unsafe { SOCKS.get_ptr_mut(ctx).as_mut() }
}

/// Remembers something with the socket of a call.
#[inline(always)]
pub fn remember(ctx: &SockAddrContext, value: &mut Sock) -> bool {
    let copy = *value;
    // SAFETY: as above.
    match unsafe { SOCKS.get_or_insert_ptr_mut(ctx, Some(value)).as_mut() } {
        Some(kept) => {
            *kept = copy;
            true
        }
        None => false,
    }
}

/// What is remembered with any socket that a helper takes.
#[inline(always)]
pub fn storage_of(sk: *mut core::ffi::c_void) -> Option<&'static mut Sock> {
    let map = core::ptr::addr_of!(SOCKS).cast_mut().cast();
    // SAFETY: the caller checked `sk` for null; the helper returns null or a value of the map.
    unsafe {
        bpf_sk_storage_get(map, sk, core::ptr::null_mut(), 0)
            .cast::<Sock>()
            .as_mut()
    }
}

/// Remembers something with any socket that a helper takes.
#[inline(always)]
pub fn remember_of(sk: *mut core::ffi::c_void, value: &mut Sock) -> bool {
    let map = core::ptr::addr_of!(SOCKS).cast_mut().cast();
    let copy = *value;
    // SAFETY: as above.
    match unsafe {
        bpf_sk_storage_get(map, sk, core::ptr::from_mut(value).cast(), 1)
            .cast::<Sock>()
            .as_mut()
    } {
        Some(kept) => {
            *kept = copy;
            true
        }
        None => false,
    }
}

/// Shows the address that was dialed, or the real client.
#[inline(always)]
pub fn getpeername(ctx: &SockAddrContext, v4: bool) {
    let Some(s) = storage(ctx) else { return };
    if !matches!(
        s.kind(),
        SOCK_CAPTURED | SOCK_DIRECT | SOCK_SHOWN | SOCK_DNS
    ) || s.port() == 0
    {
        return;
    }
    let addr = s.addr();
    if v4 && !addr.is_v4() {
        return;
    }
    write(ctx, v4, &addr, s.port());
}
