//! Foreign programs that the tests talk to or compare with.

pub mod envoy;
