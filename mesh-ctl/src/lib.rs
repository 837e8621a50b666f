//! The controller and command line of Warren.

#![forbid(unsafe_code)]

pub mod ca;
pub mod token;
