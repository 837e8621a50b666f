//! Capture: what the kernel does for the data path, and which pods it does it for.
//!
//! Invariants: a pod is announced to the data threads only when its sockets, programs and entries are all
//! there; what is not known yet is captured and refused rather than let through.

mod barred;
pub mod datapath;
mod diag;
mod enrol;
mod events;
pub mod fake;
mod forwarding;
mod gone;
mod guards;
mod handle;
mod heart;
mod judge;
pub mod kernel;
mod kubelet;
mod lines;
mod loader;
mod netns;
pub mod packets;
pub mod registration;
mod registry;
mod renew;
mod saved;
mod server;
mod sockets;
mod sys;
mod takeup;
mod veth;
mod wanted;

pub use datapath::{Datapath, FailedDial, NoDatapath, Outcome, Verdict, VipSlot};
pub use enrol::Enroller;
pub use events::KernelReporter;
pub use fake::FakeDatapath;
pub use guards::Guards;
pub use handle::{Capture, CaptureGone, HandedPod};
pub use heart::{KernelMetrics, beat, follow_leaving};
pub(crate) use judge::BARRED;
pub use kernel::{DirectEnd, DirectFlow, Kernel, KernelEvent, KnownPod, ListenerEntry, PodEntry};
pub use kubelet::Kubelet;
pub use lines::pass_on as pass_on_kernel_lines;
pub use loader::LoadedDatapath;
pub use netns::{Finder, Found, Netns};
pub use registration::{PodReport, PodState, Registration};
pub use registry::{CaptureParts, CaptureTask};
pub use saved::{SavedPod, SavedPods};
pub use server::RegistrationServer;
pub use sockets::{Doors, Listening, Refiller, SocketStock};
pub(crate) use sys::{return_memory, watch_input};
pub use wanted::{Wanted, wanted};

#[cfg(test)]
pub(crate) mod tests;
