//! Asking the model for permission, with one snapshot per flow.
//!
//! Invariants: nothing goes on without a `Permit`, which only the model makes; what is merely not there yet
//! is waited for a short while and then refused; a denial is reported with the policy that decided.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use mesh_model::{
    authn::Transport,
    authz::{self, Arrival, Bringer, Conn, Decision, Denial, Egress, Permit, Target},
    mesh::Workload,
    name::{Identity, ServiceName},
    reason::Reason,
    route::http::{self, Endpoint},
};

use crate::{
    accept::Pod,
    state::{MeshState, Snapshot},
};

/// How long a flow waits for configuration that has not come yet.
const PATIENCE: Duration = Duration::from_secs(3);
/// How long a flow waits for somebody at an unknown address among pods. The configuration is there within 30 ms; an
/// address that is nobody's, as a bridge's own, must not be slow to reach for ever.
const ARRIVAL: Duration = Duration::from_millis(500);

/// A permitted flow, with the snapshot that permitted it and what is to be reported besides.
#[derive(Clone, Debug)]
pub struct Permitted<T> {
    /// The permit.
    pub permit: Permit<T>,
    /// The snapshot it was taken from.
    pub snapshot: Arc<Snapshot>,
    /// Whether an AUDIT policy matched.
    pub audited: bool,
}

impl Permitted<Egress> {
    /// The endpoint that the flow goes back to, when it goes to a port of the service of which that is one.
    pub fn pinned(&self, to: &ServiceName, port: u16) -> Result<Option<Endpoint>, Reason> {
        let pinned = self.permit.subject().pinned.as_ref();
        let Some(pinned) = pinned.filter(|p| p.service == *to) else {
            return Ok(None);
        };
        let mesh = &self.snapshot.mesh;
        let service = mesh.service(to).ok_or(Reason::NoEndpoints)?;
        http::pinned(mesh, pinned, service, port).map(Some)
    }
}

/// Whether a pod may dial `original`.
pub async fn outbound(
    state: &MeshState,
    pod: &Pod,
    original: SocketAddr,
) -> Result<Permitted<Egress>, Denial> {
    // A pod that has not been heard of yet would be dialed like somebody outside the mesh, in the clear.
    let network = state
        .load()
        .mesh
        .workload(&pod.workload)
        .map(|w| w.network.clone());
    if let Some(network) = network {
        state.hear_of(&network, original.ip(), ARRIVAL).await;
    }
    settled(state, &NOT_YET, |snapshot| {
        let source = own(snapshot, pod)?;
        let target = authz::target(&snapshot.mesh, &source, original);
        if matches!(target, Target::External) {
            let (network, ip) = (&source.network, original.ip());
            if !snapshot.mesh.is_known(network, ip) && state.is_vacant(network, ip) {
                return Err(Denial::new(Reason::WorkloadGone));
            }
        }
        Ok(authz::egress(
            &snapshot.mesh,
            Egress {
                source,
                target,
                original,
                pinned: None,
            },
        ))
    })
    .await
}

/// Whether a waypoint may carry a connection that `bringer` brings on to `original`.
pub async fn through(
    state: &MeshState,
    waypoint: &Pod,
    bringer: &Bringer,
    original: SocketAddr,
) -> Result<Permitted<Egress>, Denial> {
    settled(state, &UNHEARD, |snapshot| {
        let own = own(snapshot, waypoint)?;
        Ok(authz::through(&snapshot.mesh, own, bringer, original))
    })
    .await
}

/// Whether a connection that arrived for a pod may go on to its application. With `via` it is that peer, a waypoint,
/// which says who the client is.
pub async fn inbound(
    state: &MeshState,
    pod: &Pod,
    transport: &Transport,
    via: Option<&Identity>,
    source: SocketAddr,
    destination: SocketAddr,
) -> Result<Permitted<Conn>, Denial> {
    settled(state, &NOT_YET, |snapshot| {
        let conn = Conn {
            transport: transport.clone(),
            via: via.cloned().map(Box::new),
            source_ip: source.ip(),
            workload: own(snapshot, pod)?,
            destination,
        };
        Ok(authz::ingress(&snapshot.mesh, conn))
    })
    .await
}

/// What becomes of a connection that arrived for a pod without the mesh: it goes on to its application, or by way of
/// the waypoint that guards the pod.
pub async fn arrived(
    state: &MeshState,
    pod: &Pod,
    transport: &Transport,
    source: SocketAddr,
    destination: SocketAddr,
) -> Result<Permitted<Arrival>, Denial> {
    settled(state, &NOT_YET, |snapshot| {
        let conn = Conn {
            transport: transport.clone(),
            via: None,
            source_ip: source.ip(),
            workload: own(snapshot, pod)?,
            destination,
        };
        Ok(authz::arrive(&snapshot.mesh, conn))
    })
    .await
}

/// The workload that the mesh knows as this pod, unless the pod is barred. Its identity comes from the
/// configuration, never from the pod's registration, which may be older.
fn own(snapshot: &Snapshot, pod: &Pod) -> Result<Arc<Workload>, Denial> {
    if let Some(reason) = pod.barred {
        return Err(Denial::new(reason));
    }
    let workload = snapshot
        .mesh
        .workload(&pod.workload)
        .ok_or(Denial::new(Reason::NotReady))?;
    let same = workload.namespace == pod.namespace
        && workload.identity.service_account == pod.service_account;
    if !same {
        // A pod that was replaced by another of the same name is not served with the new one's identity.
        return Err(Denial::new(Reason::UnknownWorkload));
    }
    Ok(workload.clone())
}

/// Reasons that may go away by themselves: that a peer is a waypoint may just not be known here yet.
const NOT_YET: [Reason; 2] = [Reason::NotReady, Reason::NotWaypoint];
/// The same at a waypoint: whoever brings a connection may have heard a moment earlier that it goes through here, or of
/// the pod.
const UNHEARD: [Reason; 3] = [Reason::NotReady, Reason::BadAuthority, Reason::NotItsNode];

/// Decides, and while the outcome is for one of these reasons decides again with every snapshot until patience ends.
async fn settled<T>(
    state: &MeshState,
    passing: &[Reason],
    decide: impl Fn(&Snapshot) -> Result<Decision<T>, Denial>,
) -> Result<Permitted<T>, Denial> {
    let settle = |snapshot: Arc<Snapshot>| {
        let Decision {
            outcome,
            audited,
            dry_run,
        } = decide(&snapshot)?;
        for policy in &dry_run {
            tracing::debug!(%policy, "a dry-run policy would have refused the connection");
        }
        Ok(Permitted {
            permit: outcome?,
            snapshot,
            audited: !audited.is_empty(),
        })
    };
    let not_yet = |outcome: &Result<Permitted<T>, Denial>| matches!(outcome, Err(denial) if passing.contains(&denial.reason));
    let first = settle(state.load());
    if !not_yet(&first) {
        return first;
    }
    let later = state
        .wait_for(PATIENCE, |_| {
            Some(settle(state.load())).filter(|outcome| !not_yet(outcome))
        })
        .await;
    later.unwrap_or(first)
}
