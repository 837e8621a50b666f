//! A waypoint's way to one endpoint: dialed with its own certificate, for the client where the endpoint's node takes its
//! word, else as itself; what the destination's policy wants
//! to be said or proven comes before the first byte of the application.
//!
//! Invariants: TLS that a policy demands is never left out; who proved nothing never goes by the waypoint's name; all of it
//! together is bounded in time.

use mesh_model::{
    authz::Egress,
    mesh::Workload,
    name::ServiceName,
    resilience::{TrafficPolicy, UpstreamTls},
    route::{Plan, http::Endpoint},
};
use tokio::{io::AsyncWriteExt, time::timeout};

use super::{Data, waypoint::Carry};
use crate::{
    authorize::Permitted,
    dial::{self, Behalf, DialError, Upstream, proxy_protocol},
    tunnel::{Io, Link},
};

/// What is reached for whom.
pub(super) struct Reaching<'a> {
    pub data: &'a Data,
    pub carry: &'a Carry,
    pub permitted: &'a Permitted<Egress>,
    /// The client, where the mesh knows it.
    pub client: Option<&'a Workload>,
    /// The service whose endpoint it is; none of a workload that was addressed itself.
    pub service: Option<&'a ServiceName>,
    /// How its endpoints are used.
    pub policy: &'a TrafficPolicy,
}

impl Reaching<'_> {
    /// Connects to an endpoint. `alpn` is what will be spoken, if that is known.
    pub async fn link(
        &self,
        endpoint: &Endpoint,
        alpn: Option<&'static str>,
    ) -> Result<Link, DialError> {
        let connected = async {
            let mut link = self.dial(endpoint).await?;
            if let Some(version) = self.policy.proxy_protocol {
                let server = self.permitted.permit.subject().original;
                let header = proxy_protocol::header(version, self.carry.client, server);
                link.write_all(&header).await.map_err(DialError::Tcp)?;
            }
            match &self.policy.tls {
                Some(tls @ UpstreamTls::Origin { .. }) => {
                    // Only a service's destination asks for it; no name at all could be proven.
                    let host = self.service.map_or("", |s| s.hostname.as_str());
                    Ok(dial::originate(link, tls, host, alpn).await?)
                }
                Some(UpstreamTls::Disable | UpstreamTls::Mesh(_)) | None => Ok(link),
            }
        };
        let connected = timeout(self.policy.pool.connect_timeout, connected).await;
        connected.unwrap_or(Err(DialError::Timeout))
    }

    async fn dial(&self, endpoint: &Endpoint) -> Result<Link, DialError> {
        let Self { data, carry, .. } = self;
        // What came to a pod in the clear goes back by a tunnel, or its node would hand it over again.
        let pinned = self.permitted.permit.subject().pinned.as_ref();
        let back = pinned.is_some_and(|p| p.workload.uid == endpoint.workload.uid);
        let tls = self.policy.tls.as_ref();
        let candidate = endpoint.way(tls.filter(|tls| !back || **tls != UpstreamTls::Disable))?;
        let identity = carry.identity();
        if !endpoint.vouched && identity.is_none() && candidate.via.is_tunnelled() {
            return Err(DialError::Unproven);
        }
        let plan = Plan {
            service: self.service.cloned(),
            candidates: vec![candidate],
        };
        let request = dial::Request {
            pod: &carry.arrived.pod,
            permit: &self.permitted.permit,
            client: carry.client,
            behalf: endpoint.vouched.then(|| Behalf {
                identity,
                workload: self.client.filter(|_| identity.is_some()),
            }),
            timeout: self.policy.pool.connect_timeout,
            names: &data.shared.names,
            keepalive: self.policy.pool.keepalive,
        };
        let dialed = dial::outbound(&data.tunnels, &request, &plan).await;
        Ok(match dialed?.0 {
            Upstream::Tunnel(stream) => Link::Tunnel(Io::new(stream)),
            Upstream::Plain(tcp) => Link::Plain(tcp, Default::default()),
        })
    }
}
