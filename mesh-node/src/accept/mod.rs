//! Accepting: the listeners inside the pods, shared out to the data threads, and what arrives on them.
//!
//! Invariants: every data thread accepts on every listener (a duplicate of one descriptor); the thread
//! that accepts a connection owns it until it ends; a full process backs off instead of spinning.

mod accepted;
pub mod authority;
mod listeners;
pub mod origin;
mod pod;

pub use accepted::{Accepted, canonical, next, reset};
pub use listeners::{Kind, ListenError, ListenerEvent, Listeners};
pub use pod::{Family, Pod, PodSockets, PodUid};
