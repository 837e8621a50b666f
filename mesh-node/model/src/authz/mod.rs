//! May this connection pass: AuthorizationPolicy at L4.
//!
//! Invariants: `Permit` is made only here; any DENY match denies; with ALLOW policies in scope one must
//! match; an invalid or missing policy denies; an absent value never satisfies a positive match.

mod handed;
mod inbound;
pub(crate) mod matches;
mod outbound;
mod recheck;
pub(crate) mod rules;
mod through;

pub use handed::{Arrival, Arrived, Handed, arrive};
pub use inbound::{ingress, vouches, vouches_for};
pub use outbound::{egress, target};
pub use recheck::{governing, recheck};
pub use through::{Bringer, through};

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use crate::{
    authn::Transport,
    mesh::Workload,
    name::{Identity, PolicyName, ServiceName},
    reason::Reason,
};

/// A connection as seen where its destination decides.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conn {
    /// How it arrived and who proved to be behind it.
    pub transport: Transport,
    /// The peer that brought it and says who is behind it, when that is not the peer itself. `transport` and
    /// `source_ip` are then what it says of the original client; only a waypoint of the destination is believed.
    pub via: Option<Box<Identity>>,
    /// The original client's address.
    pub source_ip: IpAddr,
    /// The destination workload.
    pub workload: Arc<Workload>,
    /// The destination address and port, as the workload sees them.
    pub destination: SocketAddr,
}

/// Proof that a connection was authorized. Only this module makes one.
#[derive(Clone, Debug)]
pub struct Permit<T> {
    subject: T,
    by: Option<PolicyName>,
}

impl<T> Permit<T> {
    fn new(subject: T, by: Option<PolicyName>) -> Self {
        Self { subject, by }
    }

    /// What was permitted.
    pub fn subject(&self) -> &T {
        &self.subject
    }

    /// The ALLOW policy that permitted it; `None` when no ALLOW policy was in scope.
    pub fn by(&self) -> Option<&PolicyName> {
        self.by.as_ref()
    }
}

/// A refusal: the reason, and the policy where one decided.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}", self.text())]
pub struct Denial {
    /// Why.
    pub reason: Reason,
    /// The policy that decided.
    pub policy: Option<PolicyName>,
}

impl Denial {
    /// A refusal that no policy is to blame for.
    pub fn new(reason: Reason) -> Self {
        Self {
            reason,
            policy: None,
        }
    }

    fn text(&self) -> String {
        match &self.policy {
            Some(p) => format!("{} ({p})", self.reason.shown().text),
            None => self.reason.shown().text.to_owned(),
        }
    }
}

/// A decision with what is to be reported beside it.
#[derive(Clone, Debug)]
pub struct Decision<T> {
    /// The permit or the refusal.
    pub outcome: Result<Permit<T>, Denial>,
    /// AUDIT policies that matched.
    pub audited: Vec<PolicyName>,
    /// Dry-run policies that would have refused.
    pub dry_run: Vec<PolicyName>,
}

/// An outbound flow of an enrolled workload, before a destination endpoint is chosen.
#[derive(Clone, Debug)]
pub struct Egress {
    /// The workload that dials.
    pub source: Arc<Workload>,
    /// What it dials.
    pub target: Target,
    /// The address and port it dialed.
    pub original: SocketAddr,
    /// The endpoint that it goes back to, whichever of the target's own would be chosen otherwise: where it arrived
    /// before its node handed it to a waypoint.
    pub pinned: Option<Pinned>,
}

/// An endpoint that a connection arrived at already.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pinned {
    /// The workload.
    pub workload: Arc<Workload>,
    /// The service of which it is an endpoint.
    pub service: ServiceName,
    /// Its address that was dialed.
    pub ip: IpAddr,
}

/// What an outbound connection was found to be addressed to.
#[derive(Clone, Debug)]
pub enum Target {
    /// A port of a service.
    Service(Arc<crate::mesh::Service>, u16),
    /// A workload itself (pod IP, headless).
    Workload(Arc<Workload>, u16),
    /// Something outside the mesh.
    External,
}
