//! The controller's own certificate and the roots it trusts, always fresh.
//!
//! Invariant: a change of the roots is in force for the next handshake.

use std::{
    net::IpAddr,
    sync::Arc,
    time::{Duration, SystemTime},
};

use anyhow::Context;
use arc_swap::ArcSwap;
use rcgen::KeyPair;
use rustls::{
    RootCertStore, ServerConfig,
    crypto::aws_lc_rs,
    server::{NoServerSessionStorage, WebPkiClientVerifier},
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, pem::PemObject};
use tokio::time::sleep;
use tracing::{error, info};

use crate::ca::{Authority, Grant};

/// After a failure, and at least between two renewals.
const AT_LEAST: Duration = Duration::from_secs(1);

/// What the controller is called in its certificate, and how long that lasts.
#[derive(Clone, Debug)]
pub struct Names {
    /// Host names.
    pub dns: Vec<String>,
    /// Addresses.
    pub addresses: Vec<IpAddr>,
    /// How long each certificate lives.
    pub ttl: Duration,
}

/// Who connects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Clients {
    /// Nodes, over HTTP/2; those that have joined prove who they are by a certificate.
    Nodes,
    /// The API server, which has no certificate of ours, over either HTTP.
    ApiServer,
}

/// What a handshake is made with.
pub struct Credentials {
    /// The configuration for handshakes.
    pub config: Arc<ServerConfig>,
    /// When the certificate expires.
    pub not_after: SystemTime,
}

impl Credentials {
    /// A new key and certificate for the controller under these names.
    pub fn issue(
        authority: &Authority,
        names: &Names,
        clients: Clients,
        now: SystemTime,
    ) -> anyhow::Result<Self> {
        let key = KeyPair::generate()?;
        let grant = Grant::Controller(
            authority.domain().clone(),
            names.dns.clone(),
            names.addresses.clone(),
        );
        let signed = authority.sign_key(&key, &grant, now, names.ttl)?;
        let trusted = authority.watch().borrow().roots().len();
        let der = |pem: &String| {
            CertificateDer::from_pem_slice(pem.as_bytes())
                .context("reading the certificate just signed")
        };
        // The roots come last in what is signed; peers have them.
        let chain = signed
            .iter()
            .take(signed.len() - trusted)
            .map(der)
            .collect::<Result<Vec<_>, _>>()?;
        let mut roots = RootCertStore::empty();
        for root in &signed[signed.len() - trusted..] {
            roots.add(der(root)?)?;
        }
        let provider = Arc::new(aws_lc_rs::default_provider());
        let builder = ServerConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(&[&rustls::version::TLS13])?;
        let (builder, alpn) = match clients {
            Clients::Nodes => {
                let verifier =
                    WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
                        .allow_unauthenticated()
                        .build()?;
                (
                    builder.with_client_cert_verifier(verifier),
                    vec![b"h2".to_vec()],
                )
            }
            Clients::ApiServer => (
                builder.with_no_client_auth(),
                vec![b"h2".to_vec(), b"http/1.1".to_vec()],
            ),
        };
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let mut config = builder.with_single_cert(chain, key)?;
        config.alpn_protocols = alpn;
        // A resumed session would outlive a root that is no longer trusted.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        Ok(Self {
            config: Arc::new(config),
            not_after: now + names.ttl,
        })
    }
}

/// Renews the certificate at half its life and whenever the roots change. Never ends.
pub async fn keep_fresh(
    authority: Arc<Authority>,
    names: Names,
    clients: Clients,
    first: SystemTime,
    config: Arc<ArcSwap<ServerConfig>>,
) {
    let mut trust = authority.watch();
    let mut not_after = first;
    loop {
        let left = not_after
            .duration_since(SystemTime::now())
            .unwrap_or_default();
        tokio::select! {
            () = sleep((left / 2).max(AT_LEAST)) => {}
            changed = trust.changed() => if changed.is_err() { return },
        }
        match Credentials::issue(&authority, &names, clients, SystemTime::now()) {
            Ok(new) => {
                config.store(new.config);
                not_after = new.not_after;
                info!("renewed the controller's certificate");
            }
            Err(e) => error!(
                error = format!("{e:#}"),
                "the controller's certificate could not be renewed; the old one stays in use"
            ),
        }
    }
}
