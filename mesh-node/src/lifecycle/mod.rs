//! The life of the process: when it is ready, how it ends, and how a successor takes over.
//!
//! Invariants: a part that dies takes readiness with it; a drain has a deadline and then ends by force; in a
//! hand-over the old process serves until the new one says that it does, and again when the new one dies before that.

mod drain;
mod handover;
mod readiness;
mod retirement;

pub use drain::{Ending, Lifecycle, Phase, end_of_signals};
pub use handover::{Blobs, HandoverError, HandoverServer, Predecessor, take_over};
pub use readiness::{Part, Readiness};
pub use retirement::{Call, Retirement};

#[cfg(test)]
mod handover_tests;
