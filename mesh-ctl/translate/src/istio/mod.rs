//! Istio's kinds.

pub(crate) mod authorization;
pub(crate) mod automatic;
mod connections;
pub(crate) mod delegate;
pub(crate) mod destination_rule;
pub(crate) mod entry_endpoints;
mod http_filter;
pub(crate) mod http_match;
pub(crate) mod http_rule;
mod in_force;
pub(crate) mod matches;
pub(crate) mod peer_authentication;
pub(crate) mod presence;
pub(crate) mod providers;
pub(crate) mod service_entry;
mod stream_rule;
pub(crate) mod telemetry;
mod traffic_policy;
mod upstream_tls;
pub(crate) mod virtual_service;
pub(crate) mod workload_entry;
