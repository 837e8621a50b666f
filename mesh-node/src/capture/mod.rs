//! Capture: what the kernel does for the data path, and which pods it does it for.

pub mod datapath;
