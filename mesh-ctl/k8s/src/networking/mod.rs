//! Kinds of Istio's networking group that L4 knows.

mod service_entry;
mod workload_entry;

pub use service_entry::{EntryPort, EntrySelector, ServiceEntry, ServiceEntrySpec};
pub use workload_entry::{WorkloadEntry, WorkloadEntrySpec};
