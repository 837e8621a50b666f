//! Receiving configuration from the controller.

/// Placeholder.
#[derive(Debug)]
pub struct XdsClient;
/// Placeholder.
#[derive(Debug)]
pub struct XdsStatus;
