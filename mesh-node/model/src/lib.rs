//! The pure mesh: names, one immutable snapshot, and every decision taken from it.
//!
//! Invariants: no tokio, no sockets, no clock, no dice, no wire types. Time and randomness are
//! arguments. What cannot be understood is a value that denies, never a value that is skipped.

#![forbid(unsafe_code)]

pub mod authn;
pub mod authz;
pub mod balance;
pub mod explain;
pub mod mesh;
pub mod name;
pub mod reason;
pub mod resilience;
pub mod route;
#[cfg(feature = "testing")]
pub mod testing;
