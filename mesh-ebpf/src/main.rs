//! The kernel programs: one shim per hook; what they decide is in `mesh_abi::decide` and `mesh_abi::packet`.
//!
//! Invariants: a program leaves at once when the namespace or interface is not ours; what is ours and cannot
//! be decided is refused or sent to the proxy, never let through.
#![no_std]
#![no_main]
#![feature(asm_experimental_arch)]

mod connect;
mod count;
mod dns;
mod guard;
mod log;
mod lookup;
mod maps;
mod peer;
mod sockops;

use aya_ebpf::macros::{cgroup_sock, cgroup_sock_addr, classifier, sk_lookup, sock_ops};
use aya_ebpf::programs::{
    SkLookupContext, SockAddrContext, SockContext, SockOpsContext, TcContext,
};

/// A hook on a call lets it go on.
const GO: i32 = 1;

#[cgroup_sock_addr(connect4)]
pub fn connect4(ctx: SockAddrContext) -> i32 {
    connect::connect(&ctx, true)
}

#[cgroup_sock_addr(connect6)]
pub fn connect6(ctx: SockAddrContext) -> i32 {
    connect::connect(&ctx, false)
}

#[cgroup_sock_addr(getpeername4)]
pub fn getpeername4(ctx: SockAddrContext) -> i32 {
    peer::getpeername(&ctx, true);
    GO
}

#[cgroup_sock_addr(getpeername6)]
pub fn getpeername6(ctx: SockAddrContext) -> i32 {
    peer::getpeername(&ctx, false);
    GO
}

#[cgroup_sock_addr(sendmsg4)]
pub fn sendmsg4(ctx: SockAddrContext) -> i32 {
    dns::sendmsg(&ctx, true);
    GO
}

#[cgroup_sock_addr(sendmsg6)]
pub fn sendmsg6(ctx: SockAddrContext) -> i32 {
    dns::sendmsg(&ctx, false);
    GO
}

#[cgroup_sock_addr(recvmsg4)]
pub fn recvmsg4(ctx: SockAddrContext) -> i32 {
    dns::recvmsg(&ctx, true);
    GO
}

#[cgroup_sock_addr(recvmsg6)]
pub fn recvmsg6(ctx: SockAddrContext) -> i32 {
    dns::recvmsg(&ctx, false);
    GO
}

#[cgroup_sock(sock_release)]
pub fn release(ctx: SockContext) -> i32 {
    dns::release(&ctx);
    GO
}

#[sock_ops]
pub fn flows(ctx: SockOpsContext) -> u32 {
    sockops::pods(&ctx);
    1
}

#[sock_ops]
pub fn node(ctx: SockOpsContext) -> u32 {
    sockops::node(&ctx);
    1
}

#[sock_ops]
pub fn probe(ctx: SockOpsContext) -> u32 {
    sockops::probe(&ctx);
    1
}

#[sk_lookup]
pub fn lookup(ctx: SkLookupContext) -> u32 {
    lookup::lookup(&ctx)
}

#[classifier]
pub fn guard(ctx: TcContext) -> i32 {
    guard::run(&ctx, true)
}

#[classifier]
pub fn anchor(ctx: TcContext) -> i32 {
    guard::run(&ctx, false)
}

/// Attached nowhere: asked by tests, one case behind the Ethernet header of a packet that never was.
#[classifier]
pub fn trial(ctx: TcContext) -> i32 {
    match ctx.load::<mesh_abi::trial::Trial>(14) {
        Ok(case) => mesh_abi::trial::answer(&case) as i32,
        Err(_) => -1,
    }
}

#[cfg(not(test))]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
