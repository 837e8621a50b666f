//! Streams to peers: a tunnel for the source pod's identity, and one CONNECT in it per flow.
//!
//! Invariants: a tunnel is used only for the identity that opened it, from the same pod, to the same address,
//! under the same expectation; without a certificate nothing is dialed.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use mesh_model::{name::Identity, route::Authority};
use tokio::time::timeout;

use super::{DialError, tcp};
use crate::{
    accept::Pod,
    identify::Certificates,
    relay::{ConnectRequest, Stream, tunnel},
    wire::{Headers, Limits},
};

/// How long a flow waits for its workload's first certificate.
const CERTIFICATE_PATIENCE: Duration = Duration::from_secs(3);

/// The tunnels of one data thread.
#[derive(Debug)]
pub struct Tunnels {
    certificates: Certificates,
    limits: Limits,
}

/// Where a stream goes.
#[derive(Clone, Copy, Debug)]
pub struct Target<'a> {
    /// The peer's address.
    pub tunnel: SocketAddr,
    /// What to ask it for.
    pub authority: &'a Authority,
    /// Whom it must prove to be.
    pub identities: &'a [Identity],
}

impl Tunnels {
    /// No tunnels yet.
    pub fn new(certificates: Certificates, limits: Limits) -> Self {
        Self { certificates, limits }
    }

    /// Opens a stream to `to` for a pod whose identity is `source`.
    pub async fn open(&self, pod: &Arc<Pod>, source: &Identity, to: Target<'_>, headers: Headers) -> Result<Stream, DialError> {
        let config = self.certificates.client(source, to.identities);
        let config = timeout(CERTIFICATE_PATIENCE, config).await.map_err(|_| DialError::NoCertificate)?;
        let tcp = tcp::connect(pod, to.tunnel, None).await?;
        let tunnel = tunnel::connect(tcp, config, self.limits.clone()).await?;
        let authority = match to.authority {
            Authority::Address(address) => address.to_string(),
            Authority::Host(host, port) => format!("{host}:{port}"),
        };
        Ok(tunnel.open(ConnectRequest { authority, headers }).await?)
    }
}
