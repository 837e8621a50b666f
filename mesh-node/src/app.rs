//! The one place that wires parts together.
