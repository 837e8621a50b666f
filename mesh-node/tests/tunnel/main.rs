//! Tunnels over loopback, as the node uses them.

mod cost;
mod flows;
mod interop;
mod life;
mod pool;
mod support;
