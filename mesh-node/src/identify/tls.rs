//! TLS as the mesh speaks it: 1.3 only, mutual, `h2`, post-quantum key exchange preferred.
//!
//! Invariants: each configuration belongs to one identity of ours, one set of roots and, when dialing, one
//! set of accepted peers; sessions resume only within the configuration that made them, so resumption
//! never outlives a certificate, a root, or an expectation.

use std::sync::{Arc, OnceLock};

use mesh_model::name::{Identity, TrustDomain};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, Error, OtherError,
    ServerConfig, SignatureScheme,
    client::{
        ClientSessionMemoryCache, Resumption,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{CryptoProvider, aws_lc_rs as suite, verify_tls13_signature},
    pki_types::{CertificateDer, ServerName, UnixTime},
    server::danger::{ClientCertVerified, ClientCertVerifier},
    sign::{CertifiedKey, SingleCertAndKey},
};

use super::{
    Admits, Issued, PeerError, Trust,
    verify::{Usage, verify, verify_peer},
};

/// Sessions kept for resumption per configuration: destinations behind one expectation.
const SESSIONS: usize = 64;

/// The cryptography of the mesh.
pub(super) fn provider() -> Arc<CryptoProvider> {
    static PROVIDER: OnceLock<Arc<CryptoProvider>> = OnceLock::new();
    let make = || {
        Arc::new(CryptoProvider {
            cipher_suites: vec![
                suite::cipher_suite::TLS13_AES_256_GCM_SHA384,
                suite::cipher_suite::TLS13_AES_128_GCM_SHA256,
            ],
            kx_groups: vec![
                suite::kx_group::X25519MLKEM768,
                suite::kx_group::X25519,
                suite::kx_group::SECP256R1,
            ],
            ..suite::default_provider()
        })
    };
    PROVIDER.get_or_init(make).clone()
}

/// The configuration with which a pod's listener accepts: shows the pod's certificate, demands one.
pub(super) fn server(
    own: &Issued,
    trust: &Trust,
    admits: Admits,
) -> Result<Arc<ServerConfig>, Error> {
    let verifier = Clients {
        trust: trust.clone(),
        domain: own.identity.trust_domain.clone(),
        admits,
    };
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(Arc::new(verifier))
        .with_cert_resolver(Arc::new(SingleCertAndKey::from((*own.key).clone())));
    config.alpn_protocols = vec![b"h2".to_vec()];
    config.ticketer = suite::Ticketer::new()?;
    config.send_tls13_tickets = 1;
    Ok(Arc::new(config))
}

/// The configuration with which somebody of this trust domain, who has this key, dials peers that must prove one of
/// `expected`.
pub(super) fn client(
    (key, domain): (&CertifiedKey, &TrustDomain),
    trust: &Trust,
    expected: &[Identity],
) -> Result<Arc<ClientConfig>, Error> {
    let verifier = Servers {
        trust: trust.clone(),
        domain: domain.clone(),
        expected: expected.into(),
    };
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_client_cert_resolver(Arc::new(SingleCertAndKey::from(key.clone())));
    config.alpn_protocols = vec![b"h2".to_vec()];
    config.enable_sni = false;
    config.resumption = Resumption::store(Arc::new(ClientSessionMemoryCache::new(SESSIONS)));
    Ok(Arc::new(config))
}

/// Verifies whoever dials, against roots and trust domain.
#[derive(Debug)]
struct Clients {
    trust: Trust,
    domain: TrustDomain,
    admits: Admits,
}

/// Verifies whoever is dialed, against roots, trust domain and an expected set.
#[derive(Debug)]
struct Servers {
    trust: Trust,
    domain: TrustDomain,
    expected: Box<[Identity]>,
}

fn chain(leaf: &CertificateDer<'_>, rest: &[CertificateDer<'_>]) -> Vec<CertificateDer<'static>> {
    let all = std::iter::once(leaf).chain(rest);
    all.map(|c| c.clone().into_owned()).collect()
}

impl Clients {
    fn check(
        &self,
        leaf: &CertificateDer<'_>,
        rest: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(), PeerError> {
        let algorithms = provider().signature_verification_algorithms.all;
        let who = (Usage::Client, self.admits);
        verify_peer(
            &chain(leaf, rest),
            &self.trust,
            &self.domain,
            who,
            algorithms,
            now,
        )
        .map(drop)
    }
}

impl Servers {
    fn check(
        &self,
        leaf: &CertificateDer<'_>,
        rest: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(), PeerError> {
        let algorithms = provider().signature_verification_algorithms.all;
        let identity = verify(
            &chain(leaf, rest),
            &self.trust,
            &self.domain,
            Usage::Server,
            algorithms,
            now,
        )?;
        match self.expected.contains(&identity) {
            true => Ok(()),
            false => Err(PeerError::Unexpected(identity, self.expected.clone())),
        }
    }
}

fn signature(
    message: &[u8],
    cert: &CertificateDer<'_>,
    dss: &DigitallySignedStruct,
) -> Result<HandshakeSignatureValid, Error> {
    verify_tls13_signature(
        message,
        cert,
        dss,
        &provider().signature_verification_algorithms,
    )
}

fn refused(error: PeerError) -> Error {
    Error::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(error))))
}

/// TLS 1.2 is never negotiated; its signatures are refused all the same.
fn no_tls12() -> Result<HandshakeSignatureValid, Error> {
    Err(Error::General("TLS 1.2 is not spoken in the mesh".into()))
}

impl ServerCertVerifier for Servers {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        rest: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.check(leaf, rest, now).map_err(refused)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        no_tls12()
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider()
            .signature_verification_algorithms
            .supported_schemes()
    }
}

impl ClientCertVerifier for Clients {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        rest: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.check(leaf, rest, now).map_err(refused)?;
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        no_tls12()
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider()
            .signature_verification_algorithms
            .supported_schemes()
    }
}

/// What our own verification found wrong with the peer, when that is why a handshake failed.
pub fn peer_error(error: &Error) -> Option<&PeerError> {
    match error {
        Error::InvalidCertificate(CertificateError::Other(OtherError(inner))) => {
            inner.downcast_ref()
        }
        _ => None,
    }
}
