//! The certificate authority: who may get which certificate, and the signing itself.
//!
//! Invariants: what a request asks for is ignored; a certificate says exactly what was granted. A node gets its
//! own identity by a token and workload identities only for pods that run on it, a waypoint its own only. Keys at rest are 0600, or in one Secret.

mod authority;
pub mod bundle;
mod chain;
mod grant;
mod keep;
mod replaced;
mod review;
mod rotation;
mod secret;
mod service;
mod tokens;

pub use authority::{Authority, BACKDATE, CaError, Given, Held, Phase, Signed, Step, Usage};
pub use grant::{Grant, Member, Waypoint, is_node_name, member_of};
pub use keep::{Kept, lock, write_private};
pub use review::Reviews;
pub use rotation::{Answers, Replicas, Rotation};
pub use secret::SecretStore;
pub use service::{CertificateService, GATEWAY, Hosted, Policy};
pub use tokens::{MemberTokenError, MemberTokens};
