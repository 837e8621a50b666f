//! A certificate that the CA issued to us, with its key.
//!
//! Invariants: key and leaf belong together; a workload's leaf names exactly the identity it was asked for
//! and chains to the roots that came with it.

use std::{
    fmt, io,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use mesh_model::name::{Identity, NodeIdentity};
use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256, SanType};
use rustls::{
    pki_types::{CertificateDer, PrivateKeyDer, UnixTime, pem::PemObject},
    sign::CertifiedKey,
};
use x509_parser::prelude::{FromDer, X509Certificate};

use super::{
    PeerError, Trust,
    tls::provider,
    verify::{Usage, node_of, verify},
};

/// Why an issued certificate cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum IssuedError {
    /// The answer is not PEM, or holds no certificate.
    #[error("the issued chain cannot be read: {0}")]
    Pem(String),
    /// The chain has no root that everyone could chain to.
    #[error("the issued chain has no self-signed root at its end")]
    NoRoot,
    /// Key and certificate do not belong together, or the key cannot be used.
    #[error("the issued certificate does not fit its key: {0}")]
    Key(#[from] rustls::Error),
    /// Making the key or the request failed.
    #[error("a certificate request could not be made: {0}")]
    Request(#[from] rcgen::Error),
    /// The certificate does not prove what was asked for.
    #[error("the issued certificate does not prove what was asked for: {0}")]
    Proof(#[from] PeerError),
    /// Another identity than the one asked for.
    #[error("asked for {asked}, was issued {issued}")]
    Other {
        /// What was asked for.
        asked: Identity,
        /// What came.
        issued: Identity,
    },
}

/// A key that waits for its certificate.
pub struct Request {
    key_pem: String,
    /// The request to send.
    pub csr_pem: String,
}

impl Request {
    /// Makes a key and a request for one URI. The CA decides what it signs; the URI only says what we expect.
    pub fn new(uri: &str) -> Result<Self, IssuedError> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.subject_alt_names = vec![SanType::URI(uri.try_into()?)];
        let csr_pem = params.serialize_request(&key)?.pem()?;
        Ok(Self {
            key_pem: key.serialize_pem(),
            csr_pem,
        })
    }

    /// Puts key and chain together as one bundle of PEM; `now` is when the chain came.
    pub fn bundle(self, chain: &[String], now: SystemTime) -> Bundle {
        let mut pem = self.key_pem;
        for part in chain {
            pem.push_str(part.trim());
            pem.push('\n');
        }
        Bundle { pem, since: now }
    }
}

/// A key and its chain as PEM, the way it is kept on tmpfs.
#[derive(Clone)]
pub struct Bundle {
    pem: String,
    since: SystemTime,
}

impl Bundle {
    /// Wraps text that was read from the key directory, where it has been since then.
    pub fn from_pem(pem: String, since: SystemTime) -> Self {
        Self { pem, since }
    }

    /// Since when it has been there.
    pub fn since(&self) -> SystemTime {
        self.since
    }

    /// The text to keep.
    pub fn pem(&self) -> &str {
        &self.pem
    }

    fn read(&self) -> Result<Material, IssuedError> {
        let pem = |e: rustls::pki_types::pem::Error| IssuedError::Pem(e.to_string());
        let key = PrivateKeyDer::from_pem_slice(self.pem.as_bytes()).map_err(pem)?;
        let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(self.pem.as_bytes()).collect();
        let (roots, chain): (Vec<_>, Vec<_>) = all
            .map_err(pem)?
            .into_iter()
            .enumerate()
            .partition(|(i, c)| *i > 0 && self_signed(c));
        let strip = |v: Vec<(usize, CertificateDer<'static>)>| {
            v.into_iter().map(|(_, c)| c).collect::<Vec<_>>()
        };
        let (roots, chain) = (strip(roots), strip(chain));
        if roots.is_empty() {
            return Err(IssuedError::NoRoot);
        }
        let leaf = chain
            .first()
            .ok_or_else(|| IssuedError::Pem("no certificate".into()))?;
        let (not_before, not_after) = validity(leaf)?;
        let since = self.since.max(not_before);
        let key = CertifiedKey::new(chain, provider().key_provider.load_private_key(key)?);
        key.keys_match()?;
        Ok(Material {
            key,
            trust: Trust::new(roots)?,
            since,
            not_after,
        })
    }
}

struct Material {
    key: CertifiedKey,
    trust: Trust,
    since: SystemTime,
    not_after: SystemTime,
}

/// A workload's certificate.
#[derive(Clone)]
pub struct Issued {
    /// The workload's identity.
    pub identity: Identity,
    pub(super) key: Arc<CertifiedKey>,
    /// Key and chain as PEM, for a successor.
    pub(super) bundle: Bundle,
    /// The roots that came with it.
    pub trust: Trust,
    /// Since when we have had it: CAs date certificates back, so that `not_before` tells nothing of its age.
    pub since: SystemTime,
    /// Until when it holds.
    pub not_after: SystemTime,
}

impl Issued {
    /// Checks a bundle against the identity it should prove.
    pub fn from_bundle(
        bundle: &Bundle,
        asked: &Identity,
        now: SystemTime,
    ) -> Result<Self, IssuedError> {
        let Material {
            key,
            trust,
            since,
            not_after,
        } = bundle.read()?;
        let algorithms = provider().signature_verification_algorithms.all;
        let now =
            UnixTime::since_unix_epoch(now.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO));
        for usage in [Usage::Client, Usage::Server] {
            let issued = verify(
                &key.cert,
                &trust,
                &asked.trust_domain,
                usage,
                algorithms,
                now,
            )?;
            if issued != *asked {
                return Err(IssuedError::Other {
                    asked: asked.clone(),
                    issued,
                });
            }
        }
        Ok(Self {
            identity: asked.clone(),
            key: Arc::new(key),
            bundle: bundle.clone(),
            trust,
            since,
            not_after,
        })
    }
}

impl fmt::Debug for Issued {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Issued({} until {:?})", self.identity, self.not_after)
    }
}

/// The node's own certificate, with which it speaks to the controller, and to waypoints for whoever is outside the mesh.
#[derive(Clone)]
pub struct NodeCertificate {
    /// Key and chain as PEM.
    pub bundle: Bundle,
    pub(super) key: Arc<CertifiedKey>,
    /// The node that it names; none when it is a waypoint's.
    pub identity: Option<NodeIdentity>,
    /// The roots that came with it.
    pub trust: Trust,
    /// Since when we have had it.
    pub since: SystemTime,
    /// Until when it holds.
    pub not_after: SystemTime,
}

impl NodeCertificate {
    /// Checks a bundle: key and leaf belong together, and it is valid now.
    pub fn from_bundle(bundle: Bundle, now: SystemTime) -> Result<Self, IssuedError> {
        let Material {
            key,
            trust,
            since,
            not_after,
        } = bundle.read()?;
        if now > not_after {
            return Err(PeerError::Validity.into());
        }
        Ok(Self {
            bundle,
            identity: node_of(&key.cert),
            key: Arc::new(key),
            trust,
            since,
            not_after,
        })
    }
}

impl fmt::Debug for NodeCertificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NodeCertificate(until {:?})", self.not_after)
    }
}

fn self_signed(der: &CertificateDer<'_>) -> bool {
    X509Certificate::from_der(der).is_ok_and(|(_, c)| c.subject().as_raw() == c.issuer().as_raw())
}

fn validity(der: &CertificateDer<'_>) -> Result<(SystemTime, SystemTime), IssuedError> {
    let (_, certificate) =
        X509Certificate::from_der(der).map_err(|e| IssuedError::Pem(e.to_string()))?;
    let at = |seconds: i64| UNIX_EPOCH + Duration::from_secs(u64::try_from(seconds).unwrap_or(0));
    let v = certificate.validity();
    Ok((at(v.not_before.timestamp()), at(v.not_after.timestamp())))
}

impl From<io::Error> for IssuedError {
    fn from(e: io::Error) -> Self {
        Self::Pem(e.to_string())
    }
}
