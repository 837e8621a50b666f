//! The user side of the kernel programs: loads, attaches and pins them, and offers their maps as typed calls.
//!
//! Invariants: the only user of aya and of the bpf system call; no call waits for the network; what is
//! pinned outlives the process, so that a dead proxy means refused connections and never plaintext; an
//! agent that starts over adopts what is pinned.
#![allow(unsafe_code)] // the bpf system call, setns and a few shared pages: sys.rs, maps.rs, netns.rs, pins.rs, trial.rs

mod attach;
mod clsact;
mod datapath;
mod diag;
mod elders;
mod error;
mod events;
mod iface;
mod lines;
mod links;
mod maps;
mod netlink;
mod netns;
mod object;
mod pins;
mod pods;
mod sockets;
mod sys;
mod trial;
mod verdicts;

pub use datapath::{BPFFS, Config, Datapath, Flow, Original, Usage};
pub use error::LoadError;
pub use events::{Event, EventKind, Events};
pub use iface::{Finding, Heard, Looked, Tc};
pub use lines::Lines;
pub use mesh_abi::{self as abi, ports};
pub use netlink::{Interface, attrs, interfaces};
pub use netns::{cookie as netns_cookie, inside as in_netns};
pub use object::{embedded, statistics};
pub use pins::Leave;
pub use pods::{Family, PodId, PodInfo, PodSpec};
pub use sockets::tcp_sockets;
pub use trial::Compiled;
pub use verdicts::{Outcome, VipSlot};
