//! Our own kinds.

mod crd;
mod mesh_config;

pub use crd::crds;
pub use mesh_config::{
    DefaultConfig, DefaultProviders, DefaultTracing, ExtensionProvider, HonourIstioLabels,
    MeshConfig, MeshConfigSpec, OpenTelemetryProvider, OtlpHttp,
};
