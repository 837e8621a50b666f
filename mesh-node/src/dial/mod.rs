//! Dialing: turning a plan into a connected upstream, one candidate after another.
//!
//! Invariants: no byte of the application has been read while this goes on, so trying another candidate
//! is safe; all attempts together are bounded in time; a refusal by the destination's policy is final.

mod app;
mod error;
mod handed;
mod hbone;
mod headers;
mod origin;
pub mod pool;
pub mod proxy_protocol;
mod tcp;

pub use app::to_application;
pub use error::DialError;
pub use handed::{Handing, hand_over};
pub use hbone::Tunnels;
pub use headers::{Behalf, baggage};
pub use origin::{OriginError, originate};

use std::{
    borrow::Cow,
    net::{IpAddr, SocketAddr},
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use mesh_model::{
    authz::{Egress, Permit},
    resilience::Keepalive,
    route::{Candidate, Named, Plan, Via},
};
use tokio::{
    net::TcpStream,
    time::{Instant, timeout_at},
};

use crate::{accept::Pod, dns::Names, tunnel::Stream};

/// Addresses of one host name that are tried.
const ADDRESSES: usize = 3;

/// A connected upstream.
#[derive(Debug)]
pub enum Upstream {
    /// A stream of a tunnel.
    Tunnel(Stream),
    /// A plain connection.
    Plain(TcpStream),
}

/// What is dialed for whom.
#[derive(Clone, Debug)]
pub struct Request<'a> {
    /// The pod that dials.
    pub pod: &'a Arc<Pod>,
    /// Why it may.
    pub permit: &'a Permit<Egress>,
    /// The client's address within the pod, or of the original client.
    pub client: SocketAddr,
    /// The original client, when a waypoint dials.
    pub behalf: Option<Behalf<'a>>,
    /// How long all attempts may take together.
    pub timeout: Duration,
    /// Where hosts are that are known by name only.
    pub names: &'a Names,
    /// Keepalive of the connection that is made; of a tunnel it is that of the tunnel's.
    pub keepalive: Option<Keepalive>,
}

/// Dials the candidates in order; gives the one that answered.
pub async fn outbound<'p>(
    tunnels: &Rc<Tunnels>,
    request: &Request<'_>,
    plan: &'p Plan,
) -> Result<(Upstream, Cow<'p, Candidate>), DialError> {
    noting(tunnels, request, plan, |_, _| ()).await
}

/// As `outbound`; `note` is told of each candidate that was tried and whether it answered.
pub async fn noting<'p>(
    tunnels: &Rc<Tunnels>,
    request: &Request<'_>,
    plan: &'p Plan,
    mut note: impl FnMut(&Candidate, bool),
) -> Result<(Upstream, Cow<'p, Candidate>), DialError> {
    let deadline = Instant::now() + request.timeout;
    let mut last = DialError::NoCandidate;
    for (tried, candidate) in plan.candidates.iter().enumerate() {
        let attempt = async {
            match &candidate.via {
                Via::Named(named) => by_name(tunnels, request, plan, candidate, named)
                    .await
                    .map(|(upstream, found)| (upstream, Cow::Owned(found))),
                via @ (Via::Hbone { .. } | Via::Plain(_)) => one(tunnels, request, plan, via)
                    .await
                    .map(|upstream| (upstream, Cow::Borrowed(candidate))),
            }
        };
        let share = share(deadline, plan.candidates.len() - tried);
        match timeout_at(share, attempt)
            .await
            .unwrap_or(Err(DialError::Timeout))
        {
            Ok(reached) => {
                note(candidate, true);
                return Ok(reached);
            }
            Err(error) if error.is_final() => return Err(error),
            Err(error) => {
                note(candidate, false);
                tracing::debug!(pod = %request.pod.workload, via = ?candidate.via, %error, "a candidate could not be reached");
                last = error;
            }
        }
        if Instant::now() >= deadline {
            break;
        }
    }
    Err(last)
}

/// When one of `left` attempts must be over: each gets its share, so that a dead one cannot use all of the time up.
fn share(deadline: Instant, left: usize) -> Instant {
    let now = Instant::now();
    now + deadline.saturating_duration_since(now) / u32::try_from(left.min(3)).unwrap_or(1)
}

/// Resolves a candidate's name and dials its addresses, those of the client's family first.
async fn by_name(
    tunnels: &Rc<Tunnels>,
    request: &Request<'_>,
    plan: &Plan,
    candidate: &Candidate,
    named: &Named,
) -> Result<(Upstream, Candidate), DialError> {
    let deadline = Instant::now() + request.timeout;
    let known = request.names.lookup(&named.host).await?;
    let mut addresses: Vec<IpAddr> = known.to_vec();
    // One host's addresses share its connections, whatever the order of its resolver's answers.
    let turn = fastrand::usize(..addresses.len().max(1));
    addresses.rotate_left(turn);
    addresses.sort_by_key(|ip| ip.is_ipv6() != named.v6);
    addresses.truncate(ADDRESSES);
    let mut last = DialError::NoCandidate;
    for (tried, ip) in addresses.iter().enumerate() {
        let via = named.at(*ip);
        let attempt = one(tunnels, request, plan, &via);
        let attempt = timeout_at(share(deadline, addresses.len() - tried), attempt);
        match attempt.await.unwrap_or(Err(DialError::Timeout)) {
            Ok(upstream) => {
                let found = Candidate {
                    workload: candidate.workload.clone(),
                    via,
                };
                return Ok((upstream, found));
            }
            Err(error) if error.is_final() => return Err(error),
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// Goes one way.
async fn one(
    tunnels: &Rc<Tunnels>,
    request: &Request<'_>,
    plan: &Plan,
    via: &Via,
) -> Result<Upstream, DialError> {
    match via {
        Via::Hbone {
            tunnel,
            authority,
            identities,
        } => {
            let to = hbone::Target {
                tunnel: *tunnel,
                authority,
                identities,
                keepalive: request.keepalive,
            };
            let headers = headers::outbound(
                request.permit.subject(),
                request.client,
                request.behalf,
                plan.service.as_ref(),
            );
            let source = request.permit.subject().source.identity.clone();
            tunnels
                .open(request.pod, &source.into(), to, headers)
                .await
                .map(Upstream::Tunnel)
        }
        Via::Plain(address) => tcp::connect(request.pod, *address, None, request.keepalive)
            .await
            .map(Upstream::Plain),
        // A name leads to addresses, never to another name.
        Via::Named(_) => Err(DialError::NoCandidate),
    }
}
