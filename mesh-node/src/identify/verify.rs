//! What a certificate chain proves: chain, usage, validity, and exactly one SPIFFE identity.
//!
//! Invariants: nothing here panics on any input; the cheap checks come before any signature is verified;
//! the whole chain is bounded before it is looked at.

use std::{fmt, sync::Arc};

use mesh_model::{
    name::{Identity, IdentityError, NodeIdentity, TrustDomain},
    reason::Reason,
};
use rustls::pki_types::{CertificateDer, SignatureVerificationAlgorithm, TrustAnchor, UnixTime};
use webpki::{EndEntityCert, KeyUsage};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

/// Certificates in a chain, the leaf included. Deeper chains cost work and serve nobody.
const MAX_CHAIN: usize = 5;
/// Bytes of one certificate.
const MAX_CERTIFICATE: usize = 16 * 1024;

/// The roots that peers must chain to. Never changed; a rotation makes another one.
#[derive(Clone, Debug, Default)]
pub struct Trust {
    anchors: Arc<[TrustAnchor<'static>]>,
    roots: Arc<[CertificateDer<'static>]>,
}

impl Trust {
    /// Trusts exactly these roots.
    pub fn new(roots: Vec<CertificateDer<'static>>) -> Result<Self, PeerError> {
        let anchor =
            |der: &CertificateDer<'_>| webpki::anchor_from_trusted_cert(der).map(|a| a.to_owned());
        let anchors: Result<Vec<_>, _> = roots.iter().map(anchor).collect();
        Ok(Self {
            anchors: anchors.map_err(PeerError::Chain)?.into(),
            roots: roots.into(),
        })
    }

    /// The roots as certificates.
    pub fn roots(&self) -> &[CertificateDer<'static>] {
        &self.roots
    }

    /// The root by which certificates are signed now, of roots that a controller publishes: it comes first there.
    pub fn signer(&self) -> Option<&CertificateDer<'static>> {
        self.roots.first()
    }

    /// The root of the certificate that these came with, which its issuer puts last.
    pub fn signed_by(&self) -> Option<&CertificateDer<'static>> {
        self.roots.last()
    }

    /// Whether both trust the same roots, in whatever order.
    pub fn same(&self, other: &Trust) -> bool {
        self.roots.len() == other.roots.len() && self.roots.iter().all(|r| other.roots.contains(r))
    }
}

/// What a certificate is used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Usage {
    /// By the side that dials.
    Client,
    /// By the side that accepts.
    Server,
}

/// Whom a listener takes in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admits {
    /// Workloads.
    Workloads,
    /// Node proxies as well, which hand over to a waypoint what came from outside the mesh.
    Nodes,
}

/// Who a peer proved to be.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Peer {
    /// A workload.
    Workload(Identity),
    /// A node proxy.
    Node(NodeIdentity),
}

impl Peer {
    /// The workload, when it is one.
    pub fn workload(&self) -> Option<&Identity> {
        match self {
            Self::Workload(identity) => Some(identity),
            Self::Node(_) => None,
        }
    }

    fn trust_domain(&self) -> &TrustDomain {
        match self {
            Self::Workload(identity) => &identity.trust_domain,
            Self::Node(node) => &node.trust_domain,
        }
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Workload(identity) => identity.fmt(f),
            Self::Node(node) => node.fmt(f),
        }
    }
}

/// Why a chain proves nothing.
#[derive(Debug, thiserror::Error)]
pub enum PeerError {
    /// No certificate was shown.
    #[error("the peer showed no certificate")]
    Missing,
    /// The chain is too long, or a certificate in it too large.
    #[error("the peer's certificate chain has {0} certificates or one that is too large")]
    Oversized(usize),
    /// The leaf is not a certificate that can be read.
    #[error("the peer's certificate cannot be read")]
    Unreadable,
    /// Not exactly one URI SAN.
    #[error("the peer's certificate has {0} URI SANs; exactly one is required")]
    UriCount(usize),
    /// The SAN is not a workload identity.
    #[error("the peer's certificate: {0}")]
    Identity(#[from] IdentityError),
    /// Another trust domain.
    #[error("the peer is {0}, which is not of trust domain {1}")]
    TrustDomain(Peer, TrustDomain),
    /// A node, where only workloads are spoken to.
    #[error("the peer is {0}; only workloads are spoken to here")]
    Node(NodeIdentity),
    /// Outside its validity.
    #[error("the peer's certificate is not valid at this time")]
    Validity,
    /// The leaf is not for this side of a connection.
    #[error("the peer's certificate is not meant for the {0:?} side of a connection")]
    Usage(Usage),
    /// The chain does not lead to a root, or a certificate in it may not be used this way.
    #[error("the peer's certificate chain: {0}")]
    Chain(webpki::Error),
    /// The peer proved an identity that was not expected.
    #[error("the peer is {0}; expected {1:?}")]
    Unexpected(Identity, Box<[Identity]>),
}

impl PeerError {
    /// The reason that a flow ends with.
    pub fn reason(&self) -> Reason {
        match self {
            Self::Unexpected(..)
            | Self::TrustDomain(..)
            | Self::Node(_)
            | Self::Identity(_)
            | Self::UriCount(_) => Reason::IdentityMismatch,
            Self::Missing
            | Self::Oversized(_)
            | Self::Unreadable
            | Self::Validity
            | Self::Usage(_)
            | Self::Chain(_) => Reason::TlsFailure,
        }
    }
}

/// What a peer proved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proven {
    /// Who it is.
    pub peer: Peer,
    /// Until when, in seconds since 1970.
    pub until: u64,
}

/// What a chain proves that the handshake has verified. Validity is checked again, because a resumed
/// session shows the certificate of an earlier handshake.
pub fn peer(
    chain: &[CertificateDer<'_>],
    admits: Admits,
    now: UnixTime,
) -> Result<Proven, PeerError> {
    let leaf = read_leaf(chain)?;
    let now = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
    let validity = leaf.validity();
    if now < validity.not_before.timestamp() || now > validity.not_after.timestamp() {
        return Err(PeerError::Validity);
    }
    let until = u64::try_from(validity.not_after.timestamp()).unwrap_or(0);
    Ok(Proven {
        peer: sole_peer(&leaf, admits)?,
        until,
    })
}

/// Verifies a workload's whole chain, from scratch.
pub(super) fn verify(
    chain: &[CertificateDer<'_>],
    trust: &Trust,
    domain: &TrustDomain,
    usage: Usage,
    algorithms: &[&dyn SignatureVerificationAlgorithm],
    now: UnixTime,
) -> Result<Identity, PeerError> {
    let who = (usage, Admits::Workloads);
    match verify_peer(chain, trust, domain, who, algorithms, now)? {
        Peer::Workload(identity) => Ok(identity),
        Peer::Node(node) => Err(PeerError::Node(node)),
    }
}

/// Verifies the whole chain of whoever is admitted, from scratch.
pub(super) fn verify_peer(
    chain: &[CertificateDer<'_>],
    trust: &Trust,
    domain: &TrustDomain,
    (usage, admits): (Usage, Admits),
    algorithms: &[&dyn SignatureVerificationAlgorithm],
    now: UnixTime,
) -> Result<Peer, PeerError> {
    let peer = peer(chain, admits, now)?.peer;
    // In the leaf the usage must be there: a certificate without one could be for anything. An
    // intermediate without one passes it on, and one that has it must permit it.
    if !usage.is_named_by(&read_leaf(chain)?) {
        return Err(PeerError::Usage(usage));
    }
    if peer.trust_domain() != domain {
        return Err(PeerError::TrustDomain(peer, domain.clone()));
    }
    let (leaf, rest) = chain.split_first().ok_or(PeerError::Missing)?;
    let leaf = EndEntityCert::try_from(leaf).map_err(PeerError::Chain)?;
    leaf.verify_for_usage(
        algorithms,
        &trust.anchors,
        rest,
        now,
        usage.key_usage(),
        None,
        None,
    )
    .map_err(PeerError::Chain)?;
    Ok(peer)
}

/// The node that a certificate names, if it names one and nothing else.
pub(super) fn node_of(chain: &[CertificateDer<'_>]) -> Option<NodeIdentity> {
    match sole_peer(&read_leaf(chain).ok()?, Admits::Nodes).ok()? {
        Peer::Node(node) => Some(node),
        Peer::Workload(_) => None,
    }
}

impl Usage {
    fn key_usage(self) -> KeyUsage {
        match self {
            Usage::Client => KeyUsage::client_auth(),
            Usage::Server => KeyUsage::server_auth(),
        }
    }

    fn is_named_by(self, leaf: &X509Certificate<'_>) -> bool {
        let Ok(Some(usages)) = leaf.extended_key_usage() else {
            return false;
        };
        match self {
            Usage::Client => usages.value.client_auth,
            Usage::Server => usages.value.server_auth,
        }
    }
}

fn read_leaf<'a>(chain: &'a [CertificateDer<'_>]) -> Result<X509Certificate<'a>, PeerError> {
    let leaf = chain.first().ok_or(PeerError::Missing)?;
    if chain.len() > MAX_CHAIN || chain.iter().any(|c| c.len() > MAX_CERTIFICATE) {
        return Err(PeerError::Oversized(chain.len()));
    }
    match X509Certificate::from_der(leaf) {
        Ok(([], certificate)) => Ok(certificate),
        _ => Err(PeerError::Unreadable),
    }
}

fn sole_peer(leaf: &X509Certificate<'_>, admits: Admits) -> Result<Peer, PeerError> {
    let san = leaf
        .subject_alternative_name()
        .map_err(|_| PeerError::Unreadable)?
        .ok_or(PeerError::UriCount(0))?;
    let names = &san.value.general_names;
    // A name that cannot be read may hide what it says; it spoils the certificate.
    if names.iter().any(|n| matches!(n, GeneralName::Invalid(..))) {
        return Err(PeerError::Unreadable);
    }
    let uris: Vec<&str> = names
        .iter()
        .filter_map(|n| {
            if let GeneralName::URI(uri) = n {
                Some(*uri)
            } else {
                None
            }
        })
        .collect();
    let [uri] = uris[..] else {
        return Err(PeerError::UriCount(uris.len()));
    };
    match (uri.parse::<Identity>(), admits) {
        (Ok(identity), _) => Ok(Peer::Workload(identity)),
        (Err(error), Admits::Workloads) => Err(error.into()),
        (Err(error), Admits::Nodes) => uri.parse().map(Peer::Node).map_err(|_| error.into()),
    }
}
