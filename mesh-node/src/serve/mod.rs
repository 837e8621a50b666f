//! The data threads, and the story of each connection on them. Start with `tcp`.
//!
//! Invariants: everything of a connection happens on the thread that accepted it; every flow holds one of a
//! bounded number of places; a pod that goes takes its listeners and flows with it.

mod bounded;
mod http;
mod parties;
mod plaintext;
mod reach;
mod sessions;
mod stopped;
mod streams;
pub mod tcp;
mod thread;
mod waypoint;

#[cfg(test)]
mod tests;

pub use sessions::{Flow, Registered, Reviewed, Sessions};
pub use thread::{Data, DataThreads, Shared};
