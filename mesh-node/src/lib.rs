//! The node proxy, told as the story of a connection:
//! capture -> accept -> identify -> authorize -> route -> dial -> relay -> observe.
//!
//! Invariants: start reading in `serve/tcp.rs`; a step never imports a later step; `app` is the only
//! module that wires parts together; nothing outside `mesh-model` decides who may talk to whom.

pub mod accept;
pub mod admin;
pub mod app;
pub mod authorize;
pub mod capture;
pub mod cni;
pub mod config;
pub mod dial;
pub mod dns;
pub mod exchange;
pub mod export;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzz;
pub mod identify;
pub mod lifecycle;
pub mod observe;
pub mod relay;
pub mod role;
pub mod route;
pub mod scan;
pub mod serve;
pub mod state;
pub mod tunnel;
pub mod watch;
pub mod wire;
