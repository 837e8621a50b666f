//! The contract between the kernel programs and user space: ports, map layouts, flags, counters and
//! the decisions themselves.
//!
//! Invariants: no dependency, no std, no I/O. Every type that crosses the border is `repr(C)` without
//! padding, `bool` or enum, and has private fields. Both sides decide with the functions in `decide` and
//! `packet`, so a host test of those functions tests what the kernel does.
#![no_std]
#![allow(unsafe_code)] // `unsafe impl Plain` beside the assertion that justifies it
#![deny(unsafe_op_in_unsafe_fn)]

pub mod addr;
pub mod counters;
pub mod decide;
pub mod layout;
pub mod maps;
pub mod packet;
pub mod plain;
pub mod ports;
pub mod reason;
pub mod trial;

pub use addr::Addr;
pub use counters::Counter;
pub use layout::*;
pub use maps::{MAPS, MapRow, layout_hash};
pub use plain::Plain;
