//! Kubernetes' own kinds: pods to workloads, services, and which workload serves which service.

pub(crate) mod draft;
pub(crate) mod endpoints;
pub(crate) mod enrolment;
pub(crate) mod network_policy;
pub(crate) mod pod;
pub(crate) mod probes;
pub(crate) mod protocol;
pub(crate) mod service;
pub(crate) mod visibility;
pub(crate) mod way;
