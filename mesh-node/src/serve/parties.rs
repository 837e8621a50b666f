//! Who and what is at the ends of a flow, for its report only: nothing here decides.
//!
//! Invariant: a workload is named only where its identity was proven or nobody claimed one.

use std::{
    net::{IpAddr, SocketAddr},
    rc::Rc,
};

use mesh_model::{
    authn::Transport,
    authz::Egress,
    name::Identity,
    route::{Authority, Candidate, Named, Via},
};

use super::Data;
use crate::{
    accept::Pod,
    authorize::Permitted,
    observe::{FlowGuard, FlowRecord, Path},
};

/// Says in the report where a flow went.
pub(super) fn went_to(candidate: &Candidate, report: &mut FlowGuard) {
    chosen(candidate, report.record_mut());
}

/// Says in a record where its flow goes.
pub(super) fn chosen(candidate: &Candidate, record: &mut FlowRecord) {
    record.destination.workload = candidate.workload.clone();
    let sole = |identities: &[Identity]| match identities {
        [only] => Some(only.clone()),
        _ => None,
    };
    match &candidate.via {
        Via::Hbone {
            tunnel,
            authority,
            identities,
        } => {
            record.path = Some(Path::Hbone);
            record.hbone_addr = Some(*tunnel);
            if let Authority::Address(address) = authority {
                record.destination.addr = Some(*address);
            }
            record.destination.identity = sole(identities);
        }
        Via::Plain(address) => {
            record.path = Some(Path::Plain);
            record.destination.addr = Some(*address);
        }
        // It was not resolved or not reached, so that its address is not known.
        Via::Named(Named {
            identities: Some(identities),
            ..
        }) => {
            record.path = Some(Path::Hbone);
            record.destination.identity = sole(identities);
        }
        Via::Named(_) => record.path = Some(Path::Plain),
    }
}

/// Names the workloads at both ends, for the report only.
pub(super) fn identify(
    data: &Rc<Data>,
    pod: &Pod,
    transport: &Transport,
    peer: SocketAddr,
    report: &mut FlowGuard,
) {
    let snapshot = data.shared.state.load();
    let Some(own) = snapshot.mesh.workload(&pod.workload) else {
        return;
    };
    let source = snapshot.mesh.workload_at(&own.network, peer.ip());
    // An address alone proves nothing: with a proven identity, only a workload of that identity is named.
    let source = source.filter(|w| {
        transport
            .identity()
            .is_none_or(|proven| *proven == w.identity)
    });
    report.record_mut().destination.workload = Some(own.clone());
    report.record_mut().source.workload = source.cloned();
}

/// Names the workload that a waypoint's client is, for the report only.
pub(super) fn client(
    permitted: &Permitted<Egress>,
    ip: IpAddr,
    identity: Option<&Identity>,
    report: &mut FlowGuard,
) {
    let network = &permitted.permit.subject().source.network;
    let found = permitted.snapshot.mesh.workload_at(network, ip);
    let found = found.filter(|w| identity.is_none_or(|proven| w.identity == *proven));
    report.record_mut().source.workload = found.cloned();
}
