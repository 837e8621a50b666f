//! Istio's kinds, as far as layer 4 knows them.

pub(crate) mod authorization;
pub(crate) mod automatic;
pub(crate) mod entry_endpoints;
pub(crate) mod matches;
pub(crate) mod peer_authentication;
pub(crate) mod presence;
pub(crate) mod service_entry;
pub(crate) mod workload_entry;
