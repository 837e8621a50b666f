//! Kinds of Istio's telemetry group.

mod telemetry_kind;

pub use telemetry_kind::{
    CustomTag, HeaderTag, LiteralTag, ProviderRef, Telemetry, TelemetrySpec, Tracing, TracingMatch,
};
