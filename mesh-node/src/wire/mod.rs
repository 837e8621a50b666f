//! The tunnel's wire: HTTP/2 CONNECT (HBONE) and its TLS record layer, without any I/O.
//!
//! Invariants: complete towards foreign peers whatever our own side sends; every buffer, table and queue
//! is bounded by [`limits::Limits`]; a peer's mistake becomes an HTTP/2 error code, never a panic.

pub mod headers;
pub mod limits;

pub use headers::Headers;
pub use limits::Limits;
