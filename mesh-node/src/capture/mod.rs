//! Capture: what the kernel does for the data path, and which pods it does it for.
//!
//! Invariants: a pod is announced to the data threads only when its sockets, programs and entries are all
//! there; what is not known yet is captured and refused rather than let through.

pub mod datapath;
mod diag;
mod enrol;
pub mod fake;
mod judge;
pub mod kernel;
mod loader;
mod netns;
pub mod registration;
mod registry;
mod saved;
mod sockets;
mod wanted;

pub use datapath::{Datapath, Outcome, Verdict, VipSlot};
pub use enrol::Enroller;
pub use fake::FakeDatapath;
pub use kernel::{DirectEnd, DirectFlow, Kernel, KernelEvent, KnownPod, ListenerEntry, PodEntry};
pub use loader::LoadedDatapath;
pub use netns::{Finder, Netns};
pub use registration::{PodReport, PodState, Registration};
pub use registry::{Capture, CaptureGone, CaptureParts, CaptureTask, HandedPod};
pub use saved::{SavedPod, SavedPods};
pub use sockets::{Doors, Listening, Refiller, SocketStock};
pub use wanted::{Wanted, wanted};
