//! Kinds of Istio's networking group.

pub mod destination_rule;
mod service_entry;
pub mod virtual_service;
mod workload_entry;

pub use destination_rule::{DestinationRule, DestinationRuleSpec};
pub use service_entry::{EntryPort, EntrySelector, ServiceEntry, ServiceEntrySpec};
pub use virtual_service::{Percent, PortSelector, VirtualService, VirtualServiceSpec};
pub use workload_entry::{WorkloadEntry, WorkloadEntrySpec};
