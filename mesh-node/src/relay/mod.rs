//! Moving bytes: tunnels over sockets, and the two relays (TCP to tunnel stream, TCP to TCP).
//!
//! Invariants: everything here lives on one thread (`LocalSet`); half-close travels as half-close and a
//! reset as a reset; memory per direction is bounded; every flow ends in exactly one [`End`].

pub mod error;
pub mod flow;
pub mod splice;
pub mod tunnel;

pub use flow::{CutSignal, Cutter, End, Meter, Side};
pub use splice::{copy, splice};
pub use tunnel::{ClientTunnel, ConnectRequest, Incoming, OpenError, ServerTunnel, Stream, TunnelError};
