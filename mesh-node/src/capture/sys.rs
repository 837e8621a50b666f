//! The unsafe steps of the node's edges: taking ownership of descriptors that came in a packet, watching
//! descriptors, and giving memory back.
//!
//! Invariant: what is safe to call here is sound whatever it is called with.
#![allow(unsafe_code)]

use std::{
    io,
    os::fd::{FromRawFd, OwnedFd, RawFd},
};

use nix::sys::socket::ControlMessageOwned;
use socket2::Socket;
use tokio::io::{Interest, unix::AsyncFd};

/// Watches a socket for input and output.
pub(super) fn watch(socket: Socket) -> io::Result<AsyncFd<Socket>> {
    // SAFETY: a socket owns its descriptor, always reports the same one, and lives in the AsyncFd from here on;
    // code of this crate never takes it out by a shared reference.
    Ok(unsafe { AsyncFd::register(socket) }?)
}

/// Watches a descriptor for input.
pub(crate) fn watch_input(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: as above: owned, constant, and kept.
    Ok(unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) }?)
}

/// The descriptors of a packet's control messages.
pub(super) fn take(messages: impl Iterator<Item = ControlMessageOwned>) -> Vec<OwnedFd> {
    let rights = messages.filter_map(|m| match m {
        ControlMessageOwned::ScmRights(fds) => Some(fds),
        _ => None,
    });
    rights.flatten().map(own).collect()
}

/// Gives memory that was freed back to the system. Takes milliseconds: for once, after the process was large.
pub(crate) fn return_memory() {
    #[cfg(target_env = "gnu")]
    // SAFETY: the allocator takes its own locks, and only pages that nothing lives in are given back.
    unsafe {
        libc::malloc_trim(0);
    }
}

fn own(fd: RawFd) -> OwnedFd {
    // SAFETY: the kernel made this descriptor for this process when the packet was received, and `take`
    // is the only one that sees it: nobody else closes it.
    unsafe { OwnedFd::from_raw_fd(fd) }
}
