//! Tunnels over sockets, and the ways a flow's bytes move: TCP to a tunnel's stream, TCP to TCP, stream to stream.
//!
//! Dialing opens tunnels, relaying moves bytes through them; both steps of the story rest on this folder.
//!
//! Invariants: everything here lives on one thread (`LocalSet`); half-close travels as half-close and a
//! reset as a reset; memory per direction is bounded; every flow ends in exactly one [`End`].

mod copy;
mod deliver;
mod driver;
mod ends;
pub mod error;
pub mod flow;
mod io;
mod join;
mod shared;
mod spin;
mod splice;

pub use copy::copy;
pub use driver::open_tunnels;
pub use ends::{
    ClientTunnel, ConnectRequest, Incoming, OpenError, ServerTunnel, Stream, TunnelError, accept,
    connect,
};
pub use flow::{CutSignal, Cutter, End, Hand, Meter, Side};
pub use io::{Io, Link};
pub use join::join;
pub use splice::splice;
