//! The node's administration, on a Unix socket that only root reaches.
//!
//! Invariants: whatever changes anything is a POST and comes through here, never through the network;
//! answers never contain a key.

pub mod client;
mod dump;
mod server;

pub use server::{AdminParts, AdminServer};
