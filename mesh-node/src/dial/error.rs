//! Why a dial failed.
//!
//! Invariant: every failure has one reason; only a failure after which another candidate may do better is not final.

use std::{io, rc::Rc};

use mesh_model::{reason::Reason, route::http::NoWay};

use super::OriginError;
use crate::{
    accept::Family,
    dns::NameError,
    tunnel::{OpenError, TunnelError},
};

/// Why a dial failed.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// There was nothing to dial.
    #[error("there is no candidate to dial")]
    NoCandidate,
    /// Nobody answered in time.
    #[error("no answer in time; a NetworkPolicy that blocks port 15008 looks like this")]
    Timeout,
    /// The pod has no address to dial from.
    #[error("the pod has no {0:?} address to dial from")]
    NoAddress(Family),
    /// TCP failed.
    #[error("connecting failed: {0}")]
    Tcp(#[source] io::Error),
    /// No socket could be made inside the pod.
    #[error("no socket could be made inside the pod: {0}")]
    Socket(#[source] io::Error),
    /// There is no certificate to show.
    #[error("there is no valid certificate for the source workload")]
    NoCertificate,
    /// The tunnel failed.
    #[error("{0}")]
    Tunnel(#[from] TunnelError),
    /// The stream was not opened.
    #[error("{0}")]
    Open(#[from] OpenError),
    /// The candidate's host name could not be turned into an address.
    #[error(transparent)]
    Name(#[from] NameError),
    /// Too many flows or tunnels to one destination.
    #[error("too many flows need a tunnel to this destination")]
    Overloaded,
    /// TLS to a server outside the mesh failed.
    #[error("TLS to the server: {0}")]
    Origin(#[from] OriginError),
    /// What the destination's rule says of TLS leaves no way.
    #[error(transparent)]
    NoWay(#[from] NoWay),
    /// A client that proved nothing would come to the endpoint with the waypoint's name.
    #[error("a client outside the mesh reaches this endpoint by a waypoint of its own only")]
    Unproven,
    /// The tunnel that several flows waited for failed.
    #[error("{0}")]
    Shared(Rc<DialError>),
}

impl DialError {
    /// The reason that the flow ends with.
    pub fn reason(&self) -> Reason {
        match self {
            Self::NoCandidate => Reason::NoEndpoints,
            Self::Timeout => Reason::ConnectTimeout,
            Self::NoAddress(_) => Reason::ConnectRefused,
            Self::Tcp(e) => match e.raw_os_error() {
                Some(libc::ETIMEDOUT | libc::EHOSTUNREACH | libc::ENETUNREACH) => {
                    Reason::ConnectTimeout
                }
                _ => Reason::ConnectRefused,
            },
            Self::Socket(_) | Self::Overloaded => Reason::Overloaded,
            Self::NoCertificate => Reason::NoCertificate,
            Self::Tunnel(e) => e.reason(),
            Self::Open(e) => e.reason(),
            Self::Name(_) => Reason::NameUnresolved,
            Self::Origin(_) => Reason::TlsFailure,
            Self::NoWay(e) => e.reason(),
            Self::Unproven => Reason::NotWaypoint,
            Self::Shared(e) => e.reason(),
        }
    }

    /// Whether the destination or the way to it failed, rather than something of this node.
    pub fn is_of_the_far_side(&self) -> bool {
        match self {
            Self::Timeout
            | Self::NoAddress(_)
            | Self::Tcp(_)
            | Self::Tunnel(_)
            | Self::Open(_)
            | Self::Origin(_)
            | Self::Name(_) => true,
            Self::Shared(e) => e.is_of_the_far_side(),
            Self::NoCandidate
            | Self::Socket(_)
            | Self::NoCertificate
            | Self::NoWay(_)
            | Self::Unproven
            | Self::Overloaded => false,
        }
    }

    /// Whether no connection came about: nobody answered, or somebody on the way refused it, as a firewall may.
    pub fn is_unconnected(&self) -> bool {
        match self {
            Self::Timeout | Self::Tcp(_) => true,
            Self::Tunnel(e) => e.reason() == Reason::ConnectTimeout,
            Self::Shared(e) => e.is_unconnected(),
            Self::NoCandidate
            | Self::NoAddress(_)
            | Self::Socket(_)
            | Self::NoCertificate
            | Self::Open(_)
            | Self::Overloaded
            | Self::Name(_)
            | Self::Origin(_)
            | Self::NoWay(_)
            | Self::Unproven => false,
        }
    }

    /// Whether another candidate would certainly do no better.
    pub fn is_final(&self) -> bool {
        match self {
            Self::Open(e) => e.reason() == Reason::PeerDenied,
            Self::Shared(e) => e.is_final(),
            Self::NoCertificate | Self::Socket(_) => true,
            Self::NoCandidate
            | Self::Timeout
            | Self::NoAddress(_)
            | Self::Tcp(_)
            | Self::Tunnel(_)
            | Self::Name(_)
            | Self::Origin(_)
            | Self::NoWay(_)
            | Self::Unproven
            | Self::Overloaded => false,
        }
    }
}
