//! Choosing the way: the model's plan, with this node's dice.
//!
//! Invariant: a plan is made from a permit and the snapshot that gave it.

mod direct;

pub use direct::{Director, learn};

use std::net::IpAddr;

use mesh_model::{
    authz::{Denial, Egress, Handed, Permit},
    name::{NodeName, WorkloadUid},
    route::{self, Chooser, Plan},
};

use crate::{authorize::Permitted, state::Snapshot};

/// The way of an outbound flow, to none of the endpoints that are `ejected`.
pub fn outbound(
    node: &NodeName,
    permitted: &Permitted<Egress>,
    client: IpAddr,
    ejected: &[WorkloadUid],
) -> Result<Plan, Denial> {
    let chooser = Chooser {
        node,
        seed: fastrand::u64(..),
        client,
        ejected,
    };
    route::outbound(&permitted.snapshot.mesh, &permitted.permit, chooser).map_err(Denial::new)
}

/// The way of a connection that is handed to a waypoint: to one of its replicas.
pub fn handed(
    node: &NodeName,
    snapshot: &Snapshot,
    permit: &Permit<Handed>,
    client: IpAddr,
) -> Result<Plan, Denial> {
    let chooser = Chooser {
        node,
        seed: fastrand::u64(..),
        client,
        ejected: &[],
    };
    route::handed(&snapshot.mesh, permit, chooser).map_err(Denial::new)
}
