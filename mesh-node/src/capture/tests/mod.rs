//! Registration and enrolment through the socket, in real network namespaces with a fake kernel.
//!
//! Invariant: needs root for the namespaces; without it each test says so and ends.

mod barring;
mod enrolment;
mod real;
pub(crate) mod world;
