//! Peers of other make that the tests and the benchmark put beside our node proxy.

pub mod anyone;
pub mod ca;
pub mod envoy;
pub mod python;
