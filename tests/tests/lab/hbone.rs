//! A client of the HBONE wire with certificates of a test's own making, to do what no proxy of ours would do.
//!
//! Invariant: it verifies nothing of its peer; what is tested is what the peer makes of it.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use anyhow::{Context, Result, anyhow};
use bytes::Bytes;
use h2::client::SendRequest;
use mesh_tests::{
    lab::{enter::in_netns, suite, supervisor::Spec},
    peers::anyone,
};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, SanType,
};
use rustls::{
    ClientConfig,
    pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName},
};
use tokio::{net::TcpStream, task::spawn_blocking, time::timeout};
use tokio_rustls::TlsConnector;

/// The longest that a peer may take for anything.
const LIMIT: Duration = Duration::from_secs(10);

/// A root that a lab's controller signs with, and a test too.
pub struct Root {
    issuer: CertifiedIssuer<'static, KeyPair>,
    dir: tempfile::TempDir,
}

/// A chain and its key, to be shown to a peer.
pub struct Shown {
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
}

impl Root {
    /// A new root.
    pub fn new() -> Result<Self> {
        let key = key()?;
        let dir = tempfile::tempdir()?;
        std::fs::write(dir.path().join("key.pem"), key.serialize_pem())?;
        let issuer = CertifiedIssuer::self_signed(authority("root of a test"), key)?;
        std::fs::write(dir.path().join("cert.pem"), issuer.pem())?;
        Ok(Self { issuer, dir })
    }

    /// A lab whose controller signs with this root.
    pub fn spec(&self) -> Spec {
        let path = |name: &str| self.dir.path().join(name).display().to_string();
        Spec {
            controller_args: vec![
                "--ca-cert".into(),
                path("cert.pem"),
                "--ca-key".into(),
                path("key.pem"),
            ],
            ..suite::spec()
        }
    }

    /// A certificate that this root signed.
    pub fn signs(&self, leaf: CertificateParams) -> Result<Shown> {
        self.signs_below(leaf, 0)
    }

    /// The same below so many intermediates.
    pub fn signs_below(&self, leaf: CertificateParams, depth: usize) -> Result<Shown> {
        let mut chain = Vec::new();
        let mut parent: Option<CertifiedIssuer<'static, KeyPair>> = None;
        for n in 0..depth {
            let above = parent.as_ref().unwrap_or(&self.issuer);
            let next = CertifiedIssuer::signed_by(authority(&format!("below {n}")), key()?, above)?;
            chain.insert(0, next.der().clone());
            parent = Some(next);
        }
        let key = key()?;
        let leaf = leaf.signed_by(&key, parent.as_ref().unwrap_or(&self.issuer))?;
        chain.insert(0, leaf.der().clone());
        Ok(Shown::new(chain, &key))
    }
}

impl Shown {
    fn new(chain: Vec<CertificateDer<'static>>, key: &KeyPair) -> Self {
        let key = PrivatePkcs8KeyDer::from(key.serialize_der()).into();
        Self { chain, key }
    }

    /// A certificate that nobody signed but itself.
    pub fn self_signed(leaf: CertificateParams) -> Result<Self> {
        let key = key()?;
        let certificate = leaf.self_signed(&key)?;
        Ok(Self::new(vec![certificate.der().clone()], &key))
    }
}

/// An ordinary leaf with these URIs.
pub fn leaf(uris: &[&str]) -> Result<CertificateParams> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    for uri in uris {
        params
            .subject_alt_names
            .push(SanType::URI((*uri).try_into()?));
    }
    params.extended_key_usages = vec![
        ExtendedKeyUsagePurpose::ClientAuth,
        ExtendedKeyUsagePurpose::ServerAuth,
    ];
    Ok(params)
}

fn key() -> Result<KeyPair> {
    Ok(KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?)
}

fn authority(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

/// A tunnel to a pod.
pub struct Tunnel(SendRequest<Bytes>);

impl Tunnel {
    /// Connects from a network namespace, showing a certificate or none.
    pub async fn open(netns: &Path, to: SocketAddr, shown: Option<&Shown>) -> Result<Self> {
        let netns = netns.to_owned();
        let connect = move || {
            in_netns(&netns, move || {
                Ok(std::net::TcpStream::connect_timeout(&to, LIMIT)?)
            })
        };
        let tcp = spawn_blocking(connect).await??;
        tcp.set_nonblocking(true)?;
        let tls = TlsConnector::from(Arc::new(config(shown)?));
        let name = ServerName::IpAddress(to.ip().into());
        let tls = timeout(LIMIT, tls.connect(name, TcpStream::from_std(tcp)?)).await??;
        let (send, connection) = timeout(LIMIT, h2::client::handshake(tls)).await??;
        // How it ends shows in what is asked of it.
        tokio::spawn(connection);
        Ok(Self(send))
    }

    /// Sends a CONNECT and with it, before any answer, `early`; gives the status of the answer.
    pub async fn ask(&mut self, authority: &str, early: &[u8]) -> Result<u16> {
        self.ask_with(authority, &[], early).await
    }

    /// The same with headers.
    pub async fn ask_with(
        &mut self,
        authority: &str,
        headers: &[(&str, String)],
        early: &[u8],
    ) -> Result<u16> {
        let mut request = http::Request::builder()
            .method(http::Method::CONNECT)
            .uri(authority)
            .version(http::Version::HTTP_2);
        for (name, value) in headers {
            request = request.header(*name, value);
        }
        let request = request
            .body(())
            .with_context(|| format!("{authority:?} cannot be written as an authority"))?;
        let exchange = async {
            let mut send = self.0.clone().ready().await?;
            let (answer, mut body) = send.send_request(request, early.is_empty())?;
            if !early.is_empty() {
                body.send_data(Bytes::copy_from_slice(early), true)?;
            }
            Ok::<_, h2::Error>(answer.await?.status().as_u16())
        };
        timeout(LIMIT, exchange)
            .await
            .map_err(|_| anyhow!("no answer within {LIMIT:?}"))?
            .map_err(Into::into)
    }
}

fn config(shown: Option<&Shown>) -> Result<ClientConfig> {
    let builder = anyone::client()?;
    let mut config = match shown {
        Some(shown) => builder.with_client_auth_cert(shown.chain.clone(), shown.key.clone_key())?,
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(config)
}

/// A listener inside a namespace that counts who comes and what they bring.
pub struct Trap {
    /// Connections that were accepted.
    pub accepted: Arc<AtomicUsize>,
    /// Bytes that were read from them.
    pub bytes: Arc<AtomicUsize>,
    end: Arc<AtomicBool>,
}

impl Trap {
    /// Listens on these addresses of a namespace until it is dropped.
    pub fn set(netns: &Path, at: Vec<SocketAddr>) -> Result<Self> {
        let trap = Self {
            accepted: Arc::default(),
            bytes: Arc::default(),
            end: Arc::default(),
        };
        let (accepted, bytes, end) = (trap.accepted.clone(), trap.bytes.clone(), trap.end.clone());
        let netns: PathBuf = netns.to_owned();
        let bind = move || {
            let listen = |at: &SocketAddr| {
                let listener = std::net::TcpListener::bind(at)
                    .with_context(|| format!("setting a trap at {at}"))?;
                listener.set_nonblocking(true)?;
                Ok(listener)
            };
            at.iter().map(listen).collect::<Result<Vec<_>>>()
        };
        let listeners = in_netns(&netns, bind)?;
        for listener in listeners {
            let (accepted, bytes, end) = (accepted.clone(), bytes.clone(), end.clone());
            tokio::spawn(async move {
                let Ok(listener) = tokio::net::TcpListener::from_std(listener) else {
                    return;
                };
                while !end.load(SeqCst) {
                    let Ok(Ok((mut tcp, _))) =
                        timeout(Duration::from_millis(100), listener.accept()).await
                    else {
                        continue;
                    };
                    accepted.fetch_add(1, SeqCst);
                    let bytes = bytes.clone();
                    tokio::spawn(async move {
                        let mut block = vec![0; 64 << 10];
                        loop {
                            match tokio::io::AsyncReadExt::read(&mut tcp, &mut block).await {
                                Ok(0) | Err(_) => return,
                                Ok(n) => drop(bytes.fetch_add(n, SeqCst)),
                            }
                        }
                    });
                }
            });
        }
        Ok(trap)
    }

    /// Connections and bytes so far.
    pub fn caught(&self) -> (usize, usize) {
        (self.accepted.load(SeqCst), self.bytes.load(SeqCst))
    }
}

impl Drop for Trap {
    fn drop(&mut self) {
        self.end.store(true, SeqCst);
    }
}
