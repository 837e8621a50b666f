//! Our own kinds.

mod mesh_config;

pub use mesh_config::{HonourIstioLabels, MeshConfig, MeshConfigSpec};
