//! Who is asking, and may they ask this way: transport security demanded by PeerAuthentication.

use crate::{
    mesh::{MtlsMode, WorkloadExtra},
    name::Identity,
    reason::Reason,
};

/// How a connection reached the place that decides.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Transport {
    /// Mutual TLS; the peer proved this identity.
    Mtls(Identity),
    /// Both ends on this node; the kernel proves this identity, and no TLS is involved.
    Kernel(Identity),
    /// Plain TCP; nobody proved anything.
    Plain,
    /// A kubelet probe, recognised by the kernel, to a port that the pod declares.
    Probe,
}

impl Transport {
    /// The proven identity, if any.
    pub fn identity(&self) -> Option<&Identity> {
        match self {
            Transport::Mtls(id) | Transport::Kernel(id) => Some(id),
            Transport::Plain | Transport::Probe => None,
        }
    }
}

/// Checks the transport against what the destination accepts on the port. A probe passes to a probe port only.
pub fn admit(extra: &WorkloadExtra, port: u16, transport: &Transport) -> Result<(), Reason> {
    match (transport, extra.mtls_for(port)) {
        (Transport::Mtls(_) | Transport::Kernel(_), _) => Ok(()),
        (Transport::Probe, _) if extra.probe_ports.contains(&port) => Ok(()),
        (Transport::Plain | Transport::Probe, MtlsMode::Strict) => Err(Reason::StrictRequired),
        (Transport::Plain | Transport::Probe, MtlsMode::Permissive | MtlsMode::Disable) => Ok(()),
    }
}
