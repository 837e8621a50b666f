//! Relaying: the step that moves a flow's bytes, between sockets and streams of tunnels.
//!
//! Invariants: half-close travels as half-close and a reset as a reset; every flow ends in exactly one [`End`].
//! The work is done in `tunnel`, where data meets the records it travels in.

mod bounded;

pub use crate::tunnel::{CutSignal, Cutter, End, Hand, Meter, Side, copy, join, splice};
pub use bounded::{Bounds, bounded};
