//! Typed Kubernetes, Istio and Warren objects, and the one way to read them: [`read`].
//!
//! Invariants: one file per kind. A field that a type does not know is reported by its path, never dropped in
//! silence and never fatal; a field of the wrong type makes the whole object an error that names the path.
//! Types say what was written, not what it means: meaning is `mesh-translate`'s.

#![forbid(unsafe_code)]

pub mod apps;
pub mod core;
pub mod definition;
pub mod gateway;
pub mod meta;
pub mod network;
pub mod networking;
pub mod object;
mod path;
mod read;
pub mod security;
pub mod telemetry;
pub mod text;
pub mod warren;

pub use meta::{LabelSelector, ObjectMeta};
pub use object::{KINDS, Kind, KindInfo, Object, ObjectRef, Other, UNHONOURED, kind_of};
pub use read::{Parsed, ReadError, is_name, read, reference};
