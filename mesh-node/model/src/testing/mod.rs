//! Builders for tests, a generator of random cases, and a naive oracle to compare with.
//!
//! Invariant: nothing here is used by a decision; the oracle shares no code with `authz`.

pub mod cast;
pub mod oracle;
pub mod world;

pub use fastrand::Rng;
