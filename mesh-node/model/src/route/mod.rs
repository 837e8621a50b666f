//! Which way a permitted flow goes: the plan with its candidates, best first.
//!
//! Invariant: a plan is made only from a permit.

use std::{net::{IpAddr, SocketAddr}, sync::Arc};

use crate::{authz::{Conn, Egress, Permit}, mesh::{Mesh, Workload}, name::{Identity, NodeName, ServiceName}, reason::Reason};

/// How a flow goes on.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The service, when one was addressed (for logs and metrics).
    pub service: Option<ServiceName>,
    /// Where it may go, in the order of trying. Never empty.
    pub candidates: Vec<Candidate>,
}

/// One place to go.
#[derive(Clone, Debug)]
pub struct Candidate {
    /// The workload behind it, when it is one.
    pub workload: Option<Arc<Workload>>,
    /// How to get there.
    pub via: Via,
}

/// How to get to a candidate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Via {
    /// An HBONE tunnel.
    Hbone {
        /// Where the tunnel goes (pod IP or waypoint, usually port 15008).
        tunnel: SocketAddr,
        /// The CONNECT authority.
        authority: Authority,
        /// Identities the peer may prove; exactly one must be proven.
        identities: Box<[Identity]>,
    },
    /// Plain TCP to an address.
    Plain(SocketAddr),
}

/// The authority of a CONNECT.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Authority {
    /// An address and a port.
    Address(SocketAddr),
    /// A host name and a port.
    Host(Arc<str>, u16),
}

/// What `plan` needs to know besides the snapshot.
#[derive(Clone, Copy, Debug)]
pub struct Chooser<'a> {
    /// The node that chooses.
    pub node: &'a NodeName,
    /// Randomness.
    pub seed: u64,
    /// The client's address (session affinity).
    pub client: IpAddr,
}

/// Plans an outbound flow.
pub fn outbound(mesh: &Mesh, permit: &Permit<Egress>, chooser: Chooser<'_>) -> Result<Plan, Reason> {
    let _ = (mesh, permit, chooser);
    Err(Reason::NotReady)
}

/// Plans an inbound flow: straight to the application.
pub fn inbound(permit: &Permit<Conn>) -> SocketAddr {
    permit.subject().destination
}

/// What the kernel may do by itself with a connection between two pods of this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Shortcut {
    /// Connect natively; policy allows it.
    Direct,
    /// Send it to the proxy.
    Proxy,
    /// Refuse it in `connect()`.
    Refuse(Reason),
}

/// Decides the short path between a local source and a local destination workload.
/// `Direct` only if policy allows it with the kernel-proven identity, the mode of the mesh and of the
/// destination's port permit it, and no waypoint is wanted.
pub fn shortcut(mesh: &Mesh, source: &Arc<Workload>, destination: &Arc<Workload>, address: SocketAddr) -> Shortcut {
    let _ = (mesh, source, destination, address);
    Shortcut::Proxy
}
