//! The controller and command line of Warren: objects in, resources, certificates and statuses out.
//!
//! Invariants: `app` is the only file that wires parts together; decisions are `mesh-translate`'s and `mesh-model`'s.

#![forbid(unsafe_code)]

pub mod admin;
#[cfg(test)]
mod apiserver;
pub mod app;
pub mod ca;
pub mod cli;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzz;
pub mod install;
pub mod leader;
pub mod listen;
pub mod monitor;
pub mod provision;
pub mod publish;
pub mod status;
mod taint;
pub mod token;
pub mod view;
pub mod watch;
pub mod webhook;

/// Under this name the controller writes to a cluster.
const FIELD_MANAGER: &str = "warren-controller";
