//! What becomes of requests: rules and destinations of services, below the kinds that say so.
//!
//! Invariants: what is made of a service belongs to the service, whoever says it. A rule that could not be understood
//! keeps its place and refuses.

pub(crate) mod export;
pub(crate) mod groups;
pub(crate) mod hosts;
pub(crate) mod reader;
pub(crate) mod routes;
pub(crate) mod values;
