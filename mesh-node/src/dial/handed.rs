//! To the waypoint that guards a pod, for a client outside the mesh.
//!
//! Invariants: it is the node that dials, never the pod, whose identity policies may trust; only a tunnel will do; the
//! waypoint is told where the connection arrived and from whom.

use std::{net::SocketAddr, rc::Rc, sync::Arc, time::Duration};

use mesh_model::{
    authz::{Handed, Permit},
    route::{Candidate, Plan, Via},
};
use tokio::time::{Instant, timeout_at};

use super::{DialError, Tunnels, hbone, headers, pool::Speaker, share};
use crate::{accept::Pod, tunnel::Stream};

/// What is handed over.
#[derive(Clone, Copy, Debug)]
pub struct Handing<'a> {
    /// The pod where the connection arrived, from which the waypoint is dialed.
    pub pod: &'a Arc<Pod>,
    /// Why it may go there.
    pub permit: &'a Permit<Handed>,
    /// The client.
    pub client: SocketAddr,
    /// How long all attempts may take together.
    pub timeout: Duration,
}

/// Dials the replicas of the waypoint in order; gives the one that took the connection.
pub async fn hand_over<'p>(
    tunnels: &Rc<Tunnels>,
    handing: Handing<'_>,
    plan: &'p Plan,
) -> Result<(Stream, &'p Candidate), DialError> {
    let deadline = Instant::now() + handing.timeout;
    let mut last = DialError::NoCandidate;
    for (tried, candidate) in plan.candidates.iter().enumerate() {
        let Via::Hbone {
            tunnel,
            authority,
            identities,
        } = &candidate.via
        else {
            continue;
        };
        let to = hbone::Target {
            tunnel: *tunnel,
            authority,
            identities,
            keepalive: None,
        };
        let headers = headers::handed(handing.permit.subject(), handing.client);
        let attempt = tunnels.open(handing.pod, &Speaker::Node, to, headers);
        let share = share(deadline, plan.candidates.len() - tried);
        match timeout_at(share, attempt)
            .await
            .unwrap_or(Err(DialError::Timeout))
        {
            Ok(stream) => return Ok((stream, candidate)),
            Err(error) if error.is_final() => return Err(error),
            Err(error) => {
                tracing::debug!(pod = %handing.pod.workload, via = ?candidate.via, %error, "a waypoint could not be reached");
                last = error;
            }
        }
        if Instant::now() >= deadline {
            break;
        }
    }
    Err(last)
}
