//! The tunnel's wire: HTTP/2 CONNECT (HBONE) and its TLS record layer, without any I/O.
//!
//! Invariants: complete towards foreign peers whatever our own side sends; every buffer, table and queue
//! is bounded by [`limits::Limits`]; a peer's mistake becomes an HTTP/2 error code, never a panic.

pub mod abuse;
pub mod conn;
pub mod error;
pub mod frame;
pub mod headers;
pub mod hpack;
pub mod limits;
pub mod out;
pub mod tls;

pub use headers::Headers;
pub use limits::Limits;
