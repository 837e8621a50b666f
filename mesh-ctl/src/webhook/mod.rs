//! The validating webhook on port 15017: what the translation would say about an object, before it is written.
//!
//! Invariants: it is the same translation that objects go through later, beside everything that is known at present.
//! It never writes, and it fails open everywhere: without it objects are written unchecked, and their statuses say
//! the same. Whoever can reach the port can ask; what is told is about the object that was sent.

mod config;
mod review;
mod serve;

pub use config::{NAME, keep, registration};
pub use review::{GroupKind, Request, Verdict, review};
pub use serve::{Reviewer, serve};

/// Where reviews are sent.
const PATH: &str = "/validate";
/// How long the API server waits for a review before it goes on without.
const TIMEOUT_SECONDS: u64 = 2;
