//! Delta xDS as two state machines without I/O: `Client` holds what a node was told, `Server` brings one subscriber
//! to the newest `View`.
//!
//! Invariants: a client removes nothing before the kind has been sent completely on that stream; a server sends
//! nothing that the subscriber is known to hold, keeps per subscriber only a bounded window and two shared views,
//! and never mixes two views in one pass over the kinds.

mod batch;
mod client;
mod outside;
mod server;
#[cfg(test)]
mod tests;
mod view;

pub use client::{Client, Received};
pub use outside::{MAX_OUTSIDE, NOT_CAPTURED, Outcome, Outside, tell_outside};
pub use server::{Event, Peer, Rejection, Server};
pub use view::View;

/// A message that breaks the protocol; the stream is to be closed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// A response for a type that was not asked for.
    #[error("a response of type {0:?}, which was not asked for")]
    UnexpectedType(String),
    /// More subscription changes than can wait for a pass to end.
    #[error("more than {0} subscription changes while a list was being sent")]
    TooManyRequests(usize),
    /// More names than a subscriber may ask for.
    #[error("more than {0} names subscribed")]
    TooManyNames(usize),
}

/// The key of a node's metadata that marks a subscriber as one of ours, and its value.
pub const MARK: (&str, &str) = ("WARREN", "1");

/// In a subscription: everything.
pub const WILDCARD: &str = "*";
