//! Builders for tests, a generator of random cases, a naive oracle to compare with, and noise for parsers.
//!
//! Invariant: nothing here is used by a decision; the oracle shares no code with `authz`.

pub mod cast;
pub mod noise;
pub mod oracle;
pub mod world;

pub use fastrand::Rng;
