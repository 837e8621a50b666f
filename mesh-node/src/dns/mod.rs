//! DNS for pods: names of the mesh are answered, everything else goes on to the resolver that was asked.
//!
//! Invariants: what the mesh does not know it never denies; every query is answered or passed on within a
//! bounded time, and a pod can neither exhaust nor crash the server.

mod answer;
mod forward;
mod handle;
mod message;
mod server;

pub use handle::{DnsEvent, DnsGone, DnsHandle, PodDns};
pub use server::{DnsParts, DnsServer};
