//! Spans: one for each traced request at a waypoint, and the trace context that goes along with it.
//!
//! Invariants: a decision that a request brings is kept; a request that is not traced costs no more than its headers do;
//! what is finished goes into a bounded queue without waiting, and is counted when that is full.

mod context;
mod span;

pub use context::{Decision, Mark, decide};
pub use span::{Finished, Span, Spans};
