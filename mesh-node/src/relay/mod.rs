//! Moving bytes: tunnels over sockets, and the two relays (TCP to tunnel stream, TCP to TCP).
//!
//! Invariants: everything here lives on one thread (`LocalSet`); half-close travels as half-close and a
//! reset as a reset; memory per direction is bounded; every flow ends in exactly one [`End`].

mod copy;
mod driver;
pub mod error;
pub mod flow;
mod shared;
mod spin;
mod splice;
pub mod tunnel;

pub use copy::copy;
pub use driver::open_tunnels;
pub use flow::{CutSignal, Cutter, End, Meter, Side};
pub use splice::splice;
pub use tunnel::{
    ClientTunnel, ConnectRequest, Incoming, OpenError, ServerTunnel, Stream, TunnelError,
};
