//! TLS to a server that is no part of the mesh, over a connection that is there (a destination's `tls: SIMPLE | MUTUAL`).
//!
//! Invariants: a server is believed only when its chain leads to the roots that were named, nothing of it was revoked by
//! lists that were named, and it proves one of the names that were asked for, unless the policy says not to check; what
//! cannot be read is a failure, never a lesser check; nothing is cached, so that a file that was renewed counts from the
//! next connection on.

use std::{io::Read, path::Path, sync::Arc};

use mesh_model::resilience::{TlsFiles, UpstreamTls};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature},
    pki_types::{
        CertificateDer, CertificateRevocationListDer, InvalidDnsNameError, PrivateKeyDer,
        ServerName, UnixTime,
        pem::{self, PemObject},
    },
};
use webpki::{
    CertRevocationList, EndEntityCert, ExpirationPolicy, KeyUsage, OwnedCertRevocationList,
    RevocationCheckDepth, RevocationOptionsBuilder, UnknownStatusPolicy,
};

use crate::tunnel::Link;

/// The largest file that is read, in bytes.
const LARGEST: u64 = 4 << 20;
/// Where systems keep their roots, the first that is there.
const SYSTEM_ROOTS: [&str; 4] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

/// Why there is no TLS.
#[derive(Debug, thiserror::Error)]
pub enum OriginError {
    /// The policy is about no such server, or names what cannot be had here.
    #[error("{0}")]
    Unsupported(&'static str),
    /// A file cannot be used.
    #[error("{file}: {why}")]
    File {
        /// The file.
        file: String,
        /// Why not.
        why: String,
    },
    /// None of the places where systems keep roots has any.
    #[error("this system has no roots to trust")]
    NoRoots,
    /// The name that is to be asked for is none.
    #[error("{0:?} is no name to ask for: {1}")]
    Name(String, InvalidDnsNameError),
    /// The certificate or key cannot be used.
    #[error("{0}")]
    Tls(#[from] Error),
    /// The handshake failed.
    #[error("{0}")]
    Handshake(std::io::Error),
    /// The server does not speak HTTP/2.
    #[error("the server does not speak HTTP/2")]
    NotHttp2,
}

/// Speaks TLS on a connection to a server, which is asked for by the policy's name, else by `host`. `alpn` is what will be
/// spoken then, if that is known.
pub async fn originate(
    link: Link,
    tls: &UpstreamTls,
    host: &str,
    alpn: Option<&'static str>,
) -> Result<Link, OriginError> {
    let (tls, name) = (tls.clone(), host.to_owned());
    // Files are read beside the data threads.
    let made = tokio::task::spawn_blocking(move || config(&tls, &name, alpn)).await;
    let made = made.map_err(|e| OriginError::Handshake(std::io::Error::other(e)))?;
    let (config, name) = made?;
    let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
    let stream = connector.connect(name, link).await;
    let stream = stream.map_err(OriginError::Handshake)?;
    let agreed = stream.get_ref().1.alpn_protocol();
    if alpn == Some("h2") && agreed != Some(b"h2") {
        return Err(OriginError::NotHttp2);
    }
    Ok(Link::Tls(Box::new(stream), bytes::Bytes::new()))
}

fn config(
    tls: &UpstreamTls,
    host: &str,
    alpn: Option<&str>,
) -> Result<(ClientConfig, ServerName<'static>), OriginError> {
    let UpstreamTls::Origin {
        sni,
        names,
        roots,
        credential,
        files,
        insecure,
    } = tls
    else {
        return Err(OriginError::Unsupported("no TLS to a server is wanted"));
    };
    if credential.is_some() {
        let text = "certificates by the name of a secret are not given to waypoints";
        return Err(OriginError::Unsupported(text));
    }
    let name = sni.as_deref().unwrap_or(host).to_owned();
    let name = ServerName::try_from(name.clone()).map_err(|e| OriginError::Name(name, e))?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let trust = match (insecure, roots.as_deref(), files.roots.as_deref()) {
        (true, ..) => None,
        (false, Some(pem), _) => Some(store("roots", pem.as_bytes())?),
        (false, None, Some(file)) => Some(store(file, &read(file)?)?),
        (false, None, None) => Some(system()?),
    };
    let revoked = files.revoked.as_deref().map(revocations).transpose()?;
    let verifier = Verifier {
        provider: provider.clone(),
        trust,
        revoked: revoked.unwrap_or_default(),
        names: names.clone(),
    };
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier));
    let mut config = match own(files)? {
        Some((chain, key)) => builder.with_client_auth_cert(chain, key)?,
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = alpn.iter().map(|p| p.as_bytes().to_vec()).collect();
    Ok((config, name))
}

type Own = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

/// The client's certificate; half of one is an error.
fn own(files: &TlsFiles) -> Result<Option<Own>, OriginError> {
    let (chain, key) = match (files.chain.as_deref(), files.key.as_deref()) {
        (None, None) => return Ok(None),
        (Some(chain), Some(key)) => (chain, key),
        (Some(_), None) | (None, Some(_)) => {
            let text = "a client needs both a certificate and its key";
            return Err(OriginError::Unsupported(text));
        }
    };
    let certificates = certificates(chain, &read(chain)?)?;
    let parsed = PrivateKeyDer::from_pem_slice(&read(key)?);
    Ok(Some((certificates, parsed.map_err(|e| bad(key, e))?)))
}

fn bad(file: &str, why: impl std::fmt::Display) -> OriginError {
    OriginError::File {
        file: file.to_owned(),
        why: why.to_string(),
    }
}

fn read(file: &str) -> Result<Vec<u8>, OriginError> {
    let mut all = Vec::new();
    let opened = std::fs::File::open(file).map_err(|e| bad(file, e))?;
    let read = opened.take(LARGEST + 1).read_to_end(&mut all);
    match read.map_err(|e| bad(file, e))? as u64 {
        0..=LARGEST => Ok(all),
        _ => Err(bad(file, format!("has more than {LARGEST} bytes"))),
    }
}

fn certificates(from: &str, text: &[u8]) -> Result<Vec<CertificateDer<'static>>, OriginError> {
    let all: Result<Vec<_>, pem::Error> = CertificateDer::pem_slice_iter(text).collect();
    let all = all.map_err(|e| bad(from, e))?;
    match all.is_empty() {
        true => Err(bad(from, "has no certificate")),
        false => Ok(all),
    }
}

/// What authorities have revoked, from a file of at least one list.
fn revocations(file: &str) -> Result<Vec<CertRevocationList<'static>>, OriginError> {
    let text = read(file)?;
    let lists = CertificateRevocationListDer::pem_slice_iter(&text).map(|der| {
        let der = der.map_err(|e| bad(file, e))?;
        let list = OwnedCertRevocationList::from_der(&der).map_err(|e| bad(file, e))?;
        Ok(CertRevocationList::Owned(list))
    });
    let lists = lists.collect::<Result<Vec<_>, OriginError>>()?;
    match lists.is_empty() {
        true => Err(bad(file, "has no list of revoked certificates")),
        false => Ok(lists),
    }
}

fn store(from: &str, text: &[u8]) -> Result<RootCertStore, OriginError> {
    let mut store = RootCertStore::empty();
    for root in certificates(from, text)? {
        store.add(root).map_err(|e| bad(from, e))?;
    }
    Ok(store)
}

/// What this system trusts. Of so many a few may be unreadable, which only means that they are not trusted.
fn system() -> Result<RootCertStore, OriginError> {
    let file = SYSTEM_ROOTS.iter().find(|file| Path::new(file).exists());
    let file = file.ok_or(OriginError::NoRoots)?;
    let mut store = RootCertStore::empty();
    store.add_parsable_certificates(certificates(file, &read(file)?)?);
    match store.is_empty() {
        true => Err(OriginError::NoRoots),
        false => Ok(store),
    }
}

/// Who is believed.
#[derive(Debug)]
struct Verifier {
    provider: Arc<CryptoProvider>,
    /// `None`: whoever has the key of the certificate that it shows.
    trust: Option<RootCertStore>,
    /// What has been revoked; nothing is looked up where there are no lists.
    revoked: Vec<CertRevocationList<'static>>,
    /// Names that will do beside the one that is asked for; when there are any, that one does not count.
    names: Box<[Arc<str>]>,
}

impl Verifier {
    fn proves(
        &self,
        leaf: &CertificateDer<'_>,
        rest: &[CertificateDer<'_>],
        asked: &ServerName<'_>,
        now: UnixTime,
    ) -> Result<(), Error> {
        let Some(trust) = &self.trust else {
            return Ok(());
        };
        let wrong = |error| Error::InvalidCertificate(certificate_error(error));
        let leaf = EndEntityCert::try_from(leaf).map_err(wrong)?;
        let algorithms = self.provider.signature_verification_algorithms.all;
        let usage = KeyUsage::server_auth();
        // As Envoy has it: a list of every authority in the chain is there and in date, or nobody is believed.
        let lists: Vec<_> = self.revoked.iter().collect();
        let revocation = RevocationOptionsBuilder::new(&lists).ok().map(|options| {
            options
                .with_depth(RevocationCheckDepth::Chain)
                .with_status_policy(UnknownStatusPolicy::Deny)
                .with_expiration_policy(ExpirationPolicy::Enforce)
                .build()
        });
        leaf.verify_for_usage(algorithms, &trust.roots, rest, now, usage, revocation, None)
            .map_err(wrong)?;
        let is = |name: &str| match name.contains("://") {
            true => leaf.valid_uri_names().any(|uri| uri == name),
            false => ServerName::try_from(name)
                .is_ok_and(|name| leaf.verify_is_valid_for_subject_name(&name).is_ok()),
        };
        let proven = match self.names.is_empty() {
            true => leaf.verify_is_valid_for_subject_name(asked).is_ok(),
            false => self.names.iter().any(|name| is(name)),
        };
        match proven {
            true => Ok(()),
            false => Err(CertificateError::NotValidForName.into()),
        }
    }
}

fn certificate_error(error: webpki::Error) -> CertificateError {
    match error {
        webpki::Error::CertExpired { .. } => CertificateError::Expired,
        webpki::Error::CertNotValidYet { .. } => CertificateError::NotValidYet,
        webpki::Error::UnknownIssuer => CertificateError::UnknownIssuer,
        webpki::Error::CertRevoked => CertificateError::Revoked,
        webpki::Error::UnknownRevocationStatus => CertificateError::UnknownRevocationStatus,
        webpki::Error::CrlExpired { time, next_update } => {
            CertificateError::ExpiredRevocationListContext { time, next_update }
        }
        other => CertificateError::Other(rustls::OtherError(Arc::new(other))),
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        rest: &[CertificateDer<'_>],
        asked: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.proves(leaf, rest, asked, now)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls12_signature(message, leaf, signed, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, leaf, signed, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        let algorithms = &self.provider.signature_verification_algorithms;
        algorithms.supported_schemes()
    }
}
