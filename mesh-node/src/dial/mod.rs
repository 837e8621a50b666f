//! Dialing: turning a plan into a connected upstream, one candidate after another.
//!
//! Invariants: no byte of the application has been read while this goes on, so trying another candidate
//! is safe; all attempts together are bounded in time; a refusal by the destination's policy is final.

mod app;
mod error;
mod hbone;
mod headers;
pub mod pool;
mod tcp;

pub use app::to_application;
pub use error::DialError;
pub use hbone::Tunnels;
pub use headers::baggage;

use std::{net::SocketAddr, rc::Rc, sync::Arc, time::Duration};

use mesh_model::{
    authz::{Egress, Permit},
    route::{Candidate, Plan, Via},
};
use tokio::{
    net::TcpStream,
    time::{Instant, timeout_at},
};

use crate::{accept::Pod, tunnel::Stream};

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
    /// The client's address within the pod.
    pub client: SocketAddr,
    /// How long all attempts may take together.
    pub timeout: Duration,
}

/// Dials the candidates in order; gives the one that answered.
pub async fn outbound<'p>(
    tunnels: &Rc<Tunnels>,
    request: &Request<'_>,
    plan: &'p Plan,
) -> Result<(Upstream, &'p Candidate), DialError> {
    let deadline = Instant::now() + request.timeout;
    let mut last = DialError::NoCandidate;
    for (tried, candidate) in plan.candidates.iter().enumerate() {
        let left = plan.candidates.len() - tried;
        // Each candidate gets its share of what is left, so that a dead one cannot use it all up.
        let share = deadline.saturating_duration_since(Instant::now())
            / u32::try_from(left.min(3)).unwrap_or(1);
        let attempt = timeout_at(
            Instant::now() + share,
            one(tunnels, request, plan, candidate),
        );
        match attempt.await.unwrap_or(Err(DialError::Timeout)) {
            Ok(upstream) => return Ok((upstream, candidate)),
            Err(error) if error.is_final() => return Err(error),
            Err(error) => {
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

async fn one(
    tunnels: &Rc<Tunnels>,
    request: &Request<'_>,
    plan: &Plan,
    candidate: &Candidate,
) -> Result<Upstream, DialError> {
    match &candidate.via {
        Via::Hbone {
            tunnel,
            authority,
            identities,
        } => {
            let to = hbone::Target {
                tunnel: *tunnel,
                authority,
                identities,
            };
            let headers = headers::outbound(
                request.permit.subject(),
                request.client,
                plan.service.as_ref(),
            );
            tunnels
                .open(
                    request.pod,
                    &request.permit.subject().source.identity,
                    to,
                    headers,
                )
                .await
                .map(Upstream::Tunnel)
        }
        Via::Plain(address) => tcp::connect(request.pod, *address, None)
            .await
            .map(Upstream::Plain),
    }
}
