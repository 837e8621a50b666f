//! What a service's destination says of its connections, kept to by a node proxy where no waypoint is on the way: how many
//! there may be, how long they may take and live, which endpoints are left out.
//!
//! Invariants: bounds are those of this node's proxy, over all its pods and threads; a connection that was refused because
//! of what changes by itself (too many of them, endpoints left out) is never taken for a lasting failure.

use std::{sync::Arc, time::Instant};

use mesh_model::{
    authz::{Denial, Egress, Target},
    balance::Viewpoint,
    name::WorkloadUid,
    reason::Reason,
    resilience::TrafficPolicy,
    route::{self, Candidate},
};

use super::{Shared, stopped::Stopped};
use crate::{
    authorize::Permitted,
    dial::DialError,
    exchange::{Cluster, ClusterKey, Joined},
};

/// The bounds that hold for a flow.
pub(super) struct Bounded {
    cluster: Arc<Cluster>,
    /// The policy.
    pub policy: Arc<TrafficPolicy>,
    /// Endpoints that are left out now.
    pub ejected: Vec<WorkloadUid>,
}

impl Bounded {
    /// What bounds a flow; nothing where nobody says anything, or a waypoint keeps to it.
    pub fn of(shared: &Shared, permitted: &Permitted<Egress>) -> Result<Option<Self>, Denial> {
        let subject = permitted.permit.subject();
        let Target::Service(service, port) = &subject.target else {
            return Ok(None);
        };
        let (snapshot, source) = (&permitted.snapshot, &subject.source);
        let bounds = route::bounds(&snapshot.mesh, source, service, *port);
        if bounds.map_err(Denial::new)?.is_none() {
            return Ok(None);
        }
        let key = ClusterKey::of(&service.name, *port, None);
        let cluster = shared.clusters.get(&key);
        let from = Viewpoint::of(&snapshot.mesh, &shared.node, source);
        let view = (&snapshot.mesh, snapshot.generation, from);
        let (policy, ejected) = cluster.ejected(view, Instant::now());
        Ok(Some(Self {
            cluster,
            policy,
            ejected,
        }))
    }

    /// One more connection, unless there are as many as there may be.
    pub fn begin(&self) -> Result<Joined, Stopped> {
        let most = self.policy.pool.max_connections;
        let counted = self.cluster.connections.take(most);
        let counted = counted.ok_or(Stopped::Failed(DialError::Overloaded))?;
        Ok(Joined::new(self.cluster.clone(), counted, None))
    }

    /// Learns whether an endpoint answered.
    pub fn note(&self, candidate: &Candidate, answered: bool) {
        let Some(workload) = &candidate.workload else {
            return;
        };
        if answered {
            self.cluster.connected(&workload.uid);
        } else if self.cluster.unreached(&workload.uid, Instant::now()) {
            tracing::info!(cluster = %self.cluster.key, workload = %workload.uid, "an endpoint could not be connected to too often and is left out for a while");
        }
    }
}

/// Why there is no way; where endpoints are left out they may be the reason, which then does not last.
pub(super) fn unplanned(denial: Denial, ejected: &[WorkloadUid]) -> Stopped {
    match denial.reason {
        Reason::NoEndpoints | Reason::WaypointGone if !ejected.is_empty() => {
            Stopped::Failed(DialError::NoCandidate)
        }
        _ => Stopped::Denied(denial),
    }
}
