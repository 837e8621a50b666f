//! What things cost in memory, counted byte by byte in a process of its own.

#![allow(clippy::unwrap_used)]
#![allow(unsafe_code)] // an allocator that counts

use std::{
    alloc::{GlobalAlloc, Layout, System},
    sync::atomic::{AtomicIsize, AtomicUsize, Ordering::Relaxed},
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
/// How many there are of each size, in steps of `STEP` bytes; larger ones are counted with the largest.
static SIZES: [AtomicIsize; 512] = [const { AtomicIsize::new(0) }; 512];
const STEP: usize = 8;

fn count(size: usize, by: isize) {
    if by > 0 {
        HELD.fetch_add(size, Relaxed);
    } else {
        HELD.fetch_sub(size, Relaxed);
    }
    SIZES[(size / STEP).min(SIZES.len() - 1)].fetch_add(by, Relaxed);
}

/// How many allocations of each size the process holds.
fn sizes() -> Vec<isize> {
    SIZES.iter().map(|n| n.load(Relaxed)).collect()
}

/// Prints what each of `count` things holds, by size: where to look when it is too much.
fn explain(before: &[isize], count: usize) {
    for (step, (now, then)) in sizes().iter().zip(before).enumerate() {
        let each = (now - then) as f64 / count as f64;
        if each.abs() >= 0.05 {
            println!("  {each:.2} of {} bytes", step * STEP);
        }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

// SAFETY: every call is handed to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size(), 1);
        // SAFETY: the caller's promise is the same.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        count(layout.size(), -1);
        // SAFETY: the caller's promise is the same.
        unsafe { System.dealloc(at, layout) }
    }
}
