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

use crate::ca::{Authority, BACKDATE, Grant};

/// Pauses between two looks at whether the certificate is due: the first is at least between two renewals, and within the
/// second a clock that was set is noticed.
const LOOK: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(30)];

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
        })
    }
}

/// Renews the certificate at half its life, whenever the roots change, and when the clock was set so that it is none for
/// now. Never ends.
pub async fn keep_fresh(
    authority: Arc<Authority>,
    names: Names,
    clients: Clients,
    issued: SystemTime,
    config: Arc<ArcSwap<ServerConfig>>,
) {
    let look = (LOOK, SystemTime::now);
    keep_fresh_by(authority, names, clients, (issued, config), look).await
}

async fn keep_fresh_by(
    authority: Arc<Authority>,
    names: Names,
    clients: Clients,
    (mut issued, config): (SystemTime, Arc<ArcSwap<ServerConfig>>),
    ([least, most], clock): ([Duration; 2], impl Fn() -> SystemTime),
) {
    let mut trust = authority.watch();
    loop {
        let wait = until_due(issued, names.ttl, clock());
        tokio::select! {
            () = sleep(wait.clamp(least, most)) => {
                if !until_due(issued, names.ttl, clock()).is_zero() {
                    continue;
                }
            }
            changed = trust.changed() => if changed.is_err() { return },
        }
        let now = clock();
        match Credentials::issue(&authority, &names, clients, now) {
            Ok(new) => {
                config.store(new.config);
                issued = now;
                info!("renewed the controller's certificate");
            }
            Err(e) => error!(
                error = format!("{e:#}"),
                "the controller's certificate could not be renewed; the old one stays in use"
            ),
        }
    }
}

/// How long until a certificate of that life is renewed.
fn until_due(issued: SystemTime, life: Duration, now: SystemTime) -> Duration {
    match now.duration_since(issued) {
        Ok(age) => (life / 2).saturating_sub(age),
        // Made when the clock was ahead, it is nobody's yet, but for what is dated back.
        Err(ahead) if ahead.duration() > BACKDATE / 2 => Duration::ZERO,
        Err(ahead) => life / 2 + ahead.duration(),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicI64, Ordering::SeqCst};

    use super::*;

    #[test]
    fn a_certificate_is_due_at_half_its_life_and_when_it_is_not_valid_yet() {
        let issued = SystemTime::UNIX_EPOCH + Duration::from_secs(1 << 30);
        let life = Duration::from_secs(3600);
        let at = |seconds: i64| {
            let by = Duration::from_secs(seconds.unsigned_abs());
            let now = if seconds < 0 {
                issued - by
            } else {
                issued + by
            };
            until_due(issued, life, now).as_secs()
        };
        assert_eq!((at(0), at(600), at(1800)), (1800, 1200, 0));
        assert_eq!(at(2 * 86_400), 0, "the clock was set ahead");
        assert_eq!(at(-1), 1801, "the clock is being corrected");
        assert_eq!(at(-86_400), 0, "the clock was set back");
    }

    #[tokio::test]
    async fn a_clock_that_is_set_is_noticed_at_the_next_look() {
        static AHEAD: AtomicI64 = AtomicI64::new(0);
        let begun = SystemTime::now();
        let clock = move || {
            let ahead = Duration::from_secs(AHEAD.load(SeqCst).unsigned_abs());
            if AHEAD.load(SeqCst) < 0 {
                begun - ahead
            } else {
                begun + ahead
            }
        };
        let dir = tempfile::tempdir().expect("a directory");
        let authority = Authority::open(dir.path(), None, "cluster.local".into());
        let authority = Arc::new(authority.expect("opens"));
        let names = Names {
            dns: vec!["controller".to_owned()],
            addresses: Vec::new(),
            ttl: Duration::from_secs(86_400),
        };
        let first =
            Credentials::issue(&authority, &names, Clients::Nodes, clock()).expect("issued");
        let config = Arc::new(ArcSwap::new(first.config));
        let shown = config.clone();
        let pause = Duration::from_millis(5);
        let look = ([pause; 2], clock);
        let task = tokio::spawn(keep_fresh_by(
            authority,
            names,
            Clients::Nodes,
            (clock(), config),
            look,
        ));
        for (ahead, renewed) in [
            (0, false),
            (3600, false),
            (2 * 86_400, true),
            (0, true),
            (0, false),
            (-86_400, true),
        ] {
            let before = shown.load_full();
            AHEAD.store(ahead, SeqCst);
            tokio::time::sleep(pause * 40).await;
            let other = !Arc::ptr_eq(&before, &shown.load_full());
            assert_eq!(other, renewed, "with the clock {ahead} s ahead");
        }
        task.abort();
    }
}
