//! What a pod's node proves for it: the certificates at its tunnels' port, as anybody outside sees them.

use std::{
    net::{IpAddr, SocketAddr, TcpStream},
    path::Path,
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, Result};
use rustls_pki_types::{CertificateDer, ServerName};
use tokio_rustls::TlsConnector;

use super::{Cluster, api::NETWORK};
use crate::{lab::enter::in_netns, peers::anyone};

/// HBONE.
const PORT: u16 = 15008;
/// How long a handshake may take.
const LIMIT: Duration = Duration::from_secs(5);

impl Cluster {
    /// The chain that is shown for the pod of this address, leaf first. Who asks proves nothing itself, and gets no
    /// further.
    pub async fn proof_of(&self, address: IpAddr) -> Result<Vec<CertificateDer<'static>>> {
        let to = SocketAddr::new(address, PORT);
        let stream = in_netns(Path::new(NETWORK), move || {
            let stream = TcpStream::connect_timeout(&to, LIMIT).with_context(|| to.to_string())?;
            stream.set_nonblocking(true)?;
            Ok(stream)
        })?;
        let stream = tokio::net::TcpStream::from_std(stream)?;
        let mut config = anyone::client()?.with_no_client_auth();
        config.alpn_protocols = vec![b"h2".to_vec()];
        let connector = TlsConnector::from(Arc::new(config));
        let shake = connector.connect(ServerName::from(address), stream);
        let shaken = tokio::time::timeout(LIMIT, shake).await;
        let shaken = shaken.with_context(|| format!("TLS with {to}"))??;
        let (_, tls) = shaken.get_ref();
        let chain = tls.peer_certificates().context("no certificates")?;
        Ok(chain
            .iter()
            .cloned()
            .map(CertificateDer::into_owned)
            .collect())
    }
}
