//! Who is who: certificates of this node's pods, and what a peer proved to be.
//!
//! Invariants: an identity is taken from exactly one URI SAN, parsed strictly; a certificate that cannot be
//! understood proves nothing; without a valid certificate of our own nothing is dialed or accepted.

mod handed;
mod handshakes;
mod issued;
mod keys;
mod renew;
mod report;
mod signer;
mod store;
mod tls;
mod verify;

#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;

pub use handed::{HANDED, hand_over, receive};
pub use handshakes::{HandshakeSlot, Handshakes};
pub use issued::{Issued, IssuedError, NodeCertificate};
pub use keys::KeyDir;
pub use renew::Renewer;
pub use report::{describe, show, stand};
pub use signer::{CaClient, Controller, Credential, SignError, Signer};
pub use store::{CertificateStatus, Certificates, Held};
pub use tls::peer_error;
pub use verify::{Admits, Peer, PeerError, Proven, Trust, Usage, peer};
