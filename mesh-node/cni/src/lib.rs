//! The chained CNI plugin: a new pod's network is ready only when its capture is.
//!
//! Invariants: the runtime never reads a configuration that is half written, nor one that names a program that is
//! not there; what others wrote in it stays as it was.

pub mod agent;
pub mod call;
pub mod conflist;
pub mod distribution;
pub mod failure;
pub mod install;
pub mod network;
pub mod plugin;

/// The plugin's name: its `type` in a configuration, and its program's file name.
pub const PLUGIN: &str = "warren-cni";
