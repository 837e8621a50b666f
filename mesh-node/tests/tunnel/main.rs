//! Tunnels over loopback, as the node uses them.

#![allow(clippy::unwrap_used)]

mod cost;
mod fair;
mod flows;
mod hostile;
mod interop;
mod life;
mod pool;
mod support;
