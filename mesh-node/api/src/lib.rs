//! Wire types of the mesh and their conversion: the only place where protobuf and the model meet.
//!
//! Invariants: no I/O here. Wire types stop at `convert`; what cannot be understood is an error that names the
//! field, or a policy that denies, never a value with a part left out.

#![forbid(unsafe_code)]

pub mod any;
pub mod convert;
pub mod delta;
pub mod resource;
#[cfg(test)]
mod sample;

macro_rules! generated {
    ($($(#[$doc:meta])* $name:ident = $file:literal),+ $(,)?) => {$(
        $(#[$doc])*
        #[allow(clippy::all, clippy::unwrap_used, missing_docs, rust_2018_idioms, rustdoc::all)]
        #[path = $file]
        pub mod $name;
    )+};
}

generated! {
    /// Envoy's delta discovery.
    discovery = "gen/envoy_service_discovery_v3.rs",
    /// Istio's authorization policies.
    security = "gen/istio_security.rs",
    /// Istio's certificate service.
    auth = "gen/istio_v1_auth.rs",
    /// Istio's workloads and services.
    workload = "gen/istio_workload.rs",
    /// Our companions.
    warren = "gen/warren_v1.rs",
}
