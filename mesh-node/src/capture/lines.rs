//! Lines of kernel programs that were compiled to write some, passed to the log: target `kernel`, level DEBUG.
//!
//! Invariant: programs as they are shipped have none, and nothing runs for them.

use std::{io, os::fd::AsFd};

use mesh_loader::Lines;

use super::sys;

/// Passes lines on until the future is dropped.
pub async fn pass_on(mut lines: Lines) -> io::Result<()> {
    let ring = sys::watch_input(lines.as_fd().try_clone_to_owned()?)?;
    loop {
        let mut ready = ring.readable().await?;
        ready.clear_ready();
        for line in lines.drain() {
            tracing::debug!(target: "kernel", "{line}");
        }
    }
}
