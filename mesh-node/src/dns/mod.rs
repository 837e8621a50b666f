//! DNS for pods: names of the mesh are answered, everything else goes on to the resolver that was asked. And the
//! node's own questions, for endpoints that are known by host name only.
//!
//! Invariants: what the mesh does not know it never denies; every query is answered or passed on within a
//! bounded time, and a pod can neither exhaust nor crash the server.

mod answer;
mod forward;
mod handle;
pub(crate) mod message;
mod names;
mod resolve;
mod server;

pub use handle::{DnsEvent, DnsGone, DnsHandle, PodDns};
pub use names::{NameError, NameTask, Names, TtlBounds};
pub use resolve::{Found, ResolveError, Resolvers};
pub use server::{DnsParts, DnsServer};
