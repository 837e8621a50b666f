//! Tunnels over loopback, as the node uses them.

mod flows;
mod interop;
mod pool;
mod support;
