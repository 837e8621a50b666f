//! What things cost in memory, counted byte by byte in a process of its own.

#![allow(clippy::unwrap_used)]
#![allow(unsafe_code)] // an allocator that counts

use std::{
    alloc::{GlobalAlloc, Layout, System},
    sync::atomic::{AtomicUsize, Ordering::Relaxed},
};

use tokio::sync::Mutex;

mod idle;
mod known;

/// One test at a time: what another allocates would be counted too.
static ALONE: Mutex<()> = Mutex::const_new(());

/// Bytes that the process holds.
fn held() -> usize {
    HELD.load(Relaxed)
}

/// The system's allocator, which also counts the bytes that are held.
struct Counting;

static HELD: AtomicUsize = AtomicUsize::new(0);

#[global_allocator]
static ALLOCATOR: Counting = Counting;

// SAFETY: every call is handed to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        HELD.fetch_add(layout.size(), Relaxed);
        // SAFETY: the caller's promise is the same.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        HELD.fetch_sub(layout.size(), Relaxed);
        // SAFETY: the caller's promise is the same.
        unsafe { System.dealloc(at, layout) }
    }
}
