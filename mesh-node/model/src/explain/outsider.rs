//! Why a connection from outside the mesh passes or not: what whoever is not enrolled dials goes in the clear, to an
//! endpoint that others choose.
//!
//! Invariant: an explanation asks the very functions that decide; it decides nothing by itself.

use std::{net::SocketAddr, sync::Arc};

use super::{Explanation, HandedTo, Verdict, Way, conn, name_of};
use crate::{
    authn::Transport,
    authz::{self, Arrived, Target},
    mesh::{Mesh, Workload},
    reason::Reason,
    route::{self, Chooser, Via},
};

/// Explains a connection of a workload that is not enrolled: one way for each endpoint where it may arrive.
pub fn outsider(mesh: &Mesh, source: &Arc<Workload>, dialed: SocketAddr) -> Explanation {
    let target = authz::target(mesh, source, dialed);
    let mut explanation = Explanation {
        source: source.uid.to_string(),
        identity: String::new(),
        dialed,
        target: name_of(mesh, source, &target, dialed),
        refused: None,
        ways: Vec::new(),
    };
    let plain = |workload: Option<&Arc<Workload>>, at: SocketAddr| {
        let mut way = Way {
            workload: workload.map(|w| w.uid.to_string()),
            node: workload.map(|w| w.node.to_string()),
            path: "plain",
            address: at.to_string(),
            authority: None,
            expects: Vec::new(),
            mtls: None,
            policies: Vec::new(),
            handed: None,
            decision: None,
        };
        if let Some(workload) = workload {
            super::judge(mesh, source, workload, at, &mut way);
        }
        way
    };
    explanation.ways = match &target {
        Target::External => vec![plain(None, dialed)],
        Target::Workload(workload, _) => vec![plain(Some(workload), dialed)],
        Target::Service(service, port) => {
            let mut all: Vec<_> = mesh.endpoints(&service.name).iter().collect();
            all.sort_by(|a, b| a.uid.cmp(&b.uid));
            let healthy = |w: &&Arc<Workload>| w.healthy || service.balancing.allow_unhealthy;
            let places = all.into_iter().filter(healthy).filter_map(|w| {
                let at = route::place(mesh, w, service, *port, dialed.is_ipv6())?;
                Some(plain(Some(w), at))
            });
            places.collect()
        }
    };
    if explanation.ways.is_empty() {
        explanation.refused = Some(Reason::NoEndpoints.into());
    }
    explanation
}

/// Adds what the destination's node says to a connection that arrives in the clear.
pub(super) fn judge(
    mesh: &Mesh,
    source: &Workload,
    workload: &Arc<Workload>,
    at: SocketAddr,
    way: &mut Way,
) {
    let decision = authz::arrive(mesh, conn(source, Transport::Plain, workload, at));
    let mut verdict = Verdict::of(&decision);
    if let Ok(Arrived::Handed(permit)) = decision.outcome.map(Arrived::from) {
        let chooser = Chooser {
            node: &workload.node,
            seed: 0,
            client: permit.subject().conn.source_ip,
            ejected: &[],
        };
        match route::handed(mesh, &permit, chooser) {
            Ok(plan) => {
                let waypoints = plan.candidates.iter().filter_map(|c| match &c.via {
                    Via::Hbone { tunnel, .. } => Some(*tunnel),
                    Via::Plain(_) | Via::Named(_) => None,
                });
                let handed = permit.subject();
                way.handed = Some(HandedTo {
                    service: handed.service.name.to_string(),
                    asked: handed.asked,
                    waypoints: waypoints.collect(),
                });
            }
            Err(reason) => {
                verdict.allowed = false;
                verdict.why = Some(reason.into());
            }
        }
    }
    way.decision = Some(verdict);
}
