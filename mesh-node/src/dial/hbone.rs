//! Streams to peers: a tunnel for the source pod's identity, or the node's own, and one CONNECT in it per flow.
//!
//! Invariants: a tunnel is used only for the identity that opened it, from the same pod, to the same address,
//! under the same expectation, and with the keepalive that is asked for; when the source's certificate or the
//! roots change, and in any case after a while, further flows get new tunnels; without a certificate nothing is dialed.

use std::{
    cell::RefCell,
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use mesh_model::{name::Identity, resilience::Keepalive, route::Authority};
use tokio::time::timeout;

use super::{
    DialError,
    pool::{Key, Pool, PoolError, Speaker},
    tcp,
};
use crate::{
    accept::{Family, Pod},
    identify::Certificates,
    tunnel::{self, ConnectRequest, Stream},
    wire::{Headers, Limits},
};

/// How long a flow waits for its workload's first certificate.
const CERTIFICATE_PATIENCE: Duration = Duration::from_secs(3);

/// How long a tunnel takes new flows. Who keeps NetworkPolicies lets connections go on that are there, so that a new flow in
/// an old tunnel would not meet the policies that came since; one connection of its own would.
const AGE: Duration = Duration::from_secs(20);

/// The tunnels of one data thread.
#[derive(Debug)]
pub struct Tunnels {
    certificates: Certificates,
    limits: Limits,
    pool: Pool<DialError>,
    /// Which certificate each source's tunnels were made with.
    made_with: RefCell<HashMap<Speaker, u64>>,
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
    /// Keepalive of the tunnel's connection, where it is not the proxy's own.
    pub keepalive: Option<Keepalive>,
}

impl Tunnels {
    /// No tunnels yet; making one may take `patience`.
    pub fn new(certificates: Certificates, limits: Limits, patience: Duration) -> Self {
        Self {
            certificates,
            limits,
            pool: Pool::new(patience, AGE),
            made_with: RefCell::default(),
        }
    }

    /// Opens a stream to `to` from a pod, as `source`.
    pub async fn open(
        &self,
        pod: &Arc<Pod>,
        source: &Speaker,
        to: Target<'_>,
        headers: Headers,
    ) -> Result<Stream, DialError> {
        let family = Family::of(to.tunnel.ip());
        let own = pod
            .addresses
            .iter()
            .find(|ip| Family::of(**ip) == family)
            .ok_or(DialError::NoAddress(family))?;
        let key = Key::new(source.clone(), *own, to.tunnel, to.identities);
        let key = key.kept_alive_by(to.keepalive);
        let config = async {
            match source {
                Speaker::Workload(identity) => {
                    self.certificates.client(identity, key.identities()).await
                }
                Speaker::Node => self.certificates.node_client(key.identities()).await,
            }
        };
        let config = timeout(CERTIFICATE_PATIENCE, config).await;
        let config = config.map_err(|_| DialError::NoCertificate)?;
        self.renew(source);
        let authority = match to.authority {
            Authority::Address(address) => address.to_string(),
            Authority::Host(host, port) => format!("{host}:{port}"),
        };
        let connect = || {
            let (pod, config, limits, address) =
                (pod.clone(), config.clone(), self.limits.clone(), to.tunnel);
            async move {
                let tcp = tcp::connect(&pod, address, None, to.keepalive).await?;
                Ok(tunnel::connect(tcp, config, limits).await?)
            }
        };
        self.pool
            .open(key, connect, ConnectRequest { authority, headers })
            .await
            .map_err(DialError::from)
    }

    /// Lets go of a pod's tunnels.
    pub fn retire_pod(&self, addresses: &[IpAddr]) {
        self.pool.retire(|key| addresses.contains(&key.pod));
    }

    /// Lets go of all tunnels: they end with the flows they have.
    pub fn retire_all(&self) {
        self.pool.retire(|_| true);
    }

    /// How many tunnels there are.
    pub fn len(&self) -> usize {
        self.pool.tunnels()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Lets go of a source's tunnels when they were made with an older certificate or other roots.
    fn renew(&self, source: &Speaker) {
        let now = match source {
            Speaker::Workload(identity) => self.certificates.generation(identity),
            Speaker::Node => self.certificates.node_generation(),
        };
        let mut made_with = self.made_with.borrow_mut();
        let before = made_with.get(source).copied();
        if before == Some(now) {
            return;
        }
        made_with.insert(source.clone(), now);
        if before.is_some() {
            self.pool.retire(|key| key.source == *source);
        }
    }
}

impl From<PoolError<DialError>> for DialError {
    fn from(error: PoolError<DialError>) -> Self {
        match error {
            PoolError::Connect(shared) => Self::Shared(shared),
            PoolError::Timeout(_) => Self::Timeout,
            PoolError::Overloaded => Self::Overloaded,
            PoolError::Open(error) => Self::Open(error),
        }
    }
}
