//! Capture: what the kernel does for the data path, and which pods it does it for.
//!
//! Invariants: a pod is announced to the data threads only when its sockets, programs and entries are all
//! there; what is not known yet is captured and refused rather than let through.

pub mod datapath;
pub mod fake;
pub mod kernel;

pub use datapath::{Datapath, Outcome, Verdict, VipSlot};
pub use fake::FakeDatapath;
pub use kernel::{DirectEnd, DirectFlow, Kernel, KernelEvent, KnownPod, ListenerEntry, PodEntry};
