//! Kinds of the Gateway API: waypoints, and routes for services.

mod allowed;
pub(crate) mod classes;
mod fate;
mod filters;
mod listeners;
pub(crate) mod needs;
mod parents;
pub(crate) mod routes;
pub(crate) mod rules;
mod session;
mod stream_rules;
pub(crate) mod waypoint;
