//! Tunnel handshakes: mutual TLS 1.3 and the first HTTP/2 frame back, then close; full or resumed.
//!
//! Invariant: a handshake of the other kind than asked for is a failure. The client checks the server's
//! signature, but not its chain: it is the server that is measured.

use std::{
    io,
    net::SocketAddr,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use rustls::{ClientConfig, HandshakeKind, client::Resumption};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    task::JoinSet,
};
use tokio_rustls::TlsConnector;

use super::Report;
use crate::peers::anyone;

/// The HTTP/2 client preface and an empty SETTINGS frame.
const HELLO: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
/// The longest a handshake may take before it counts as failed.
const LIMIT: Duration = Duration::from_secs(20);

/// Whose certificate is shown, and whether sessions are resumed.
#[derive(Clone, Debug)]
pub struct Client {
    chain: Vec<CertificateDer<'static>>,
    key: Arc<PrivateKeyDer<'static>>,
    resume: bool,
}

impl Client {
    /// Reads a file that holds the chain, leaf first, and the key.
    pub fn read(bundle: &Path, resume: bool) -> Result<Self> {
        let of = || format!("reading {}", bundle.display());
        let chain = CertificateDer::pem_file_iter(bundle)
            .with_context(of)?
            .collect::<Result<_, _>>()
            .with_context(of)?;
        let key = PrivateKeyDer::from_pem_file(bundle).with_context(of)?;
        Ok(Self {
            chain,
            key: Arc::new(key),
            resume,
        })
    }

    fn config(&self) -> Result<ClientConfig> {
        let mut config =
            anyone::client()?.with_client_auth_cert(self.chain.clone(), self.key.clone_key())?;
        config.alpn_protocols = vec![b"h2".to_vec()];
        config.enable_sni = false;
        if !self.resume {
            config.resumption = Resumption::disabled();
        }
        Ok(config)
    }
}

/// Handshakes as fast as `clients` clients can make them, one after another each.
pub async fn run(
    to: SocketAddr,
    client: &Client,
    clients: usize,
    warm_up: Duration,
    time: Duration,
) -> Result<Report> {
    let mut workers = JoinSet::new();
    let begin = Instant::now();
    for _ in 0..clients {
        let connector = TlsConnector::from(Arc::new(client.config()?));
        let resume = client.resume;
        workers.spawn(async move {
            let mut report = Report::default();
            while begin.elapsed() < warm_up + time {
                let start = Instant::now();
                let done = tokio::time::timeout(LIMIT, once(to, &connector)).await;
                let measured = start.duration_since(begin) >= warm_up;
                match done.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())) {
                    Ok(_) if !measured => report.warm += 1,
                    Ok(kind) if (kind == HandshakeKind::Resumed) == resume => {
                        report.succeed(start.elapsed(), 0)
                    }
                    Ok(kind) => report.fail(&io::Error::other(format!("a {kind:?} handshake"))),
                    Err(e) => report.fail(&e),
                }
            }
            report
        });
    }
    let mut report = Report::default();
    while let Some(worker) = workers.join_next().await {
        report.merge(worker.context("a worker does not panic")?);
    }
    report.elapsed = begin.elapsed().saturating_sub(warm_up);
    Ok(report)
}

async fn once(to: SocketAddr, connector: &TlsConnector) -> io::Result<HandshakeKind> {
    let stream = TcpStream::connect(to).await?;
    stream.set_nodelay(true)?;
    let mut tls = connector.connect(ServerName::from(to.ip()), stream).await?;
    tls.write_all(HELLO).await?;
    // Only now the server has verified us, and its tickets have come along.
    let mut first = [0; 9];
    tls.read_exact(&mut first).await?;
    tls.get_ref()
        .1
        .handshake_kind()
        .ok_or_else(|| io::Error::other("no handshake"))
}
