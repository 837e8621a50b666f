//! Kinds of the Gateway API: waypoints.

mod allowed;
pub(crate) mod waypoint;
