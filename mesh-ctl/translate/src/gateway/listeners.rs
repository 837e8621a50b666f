//! What is said of the listeners of a waypoint.
//!
//! Invariant: a waypoint listens for tunnels on HBONE's port and for nothing else; any other listener is refused by name.
//! Routes are attached to services, never to a listener. Source: Gateway API v1, ListenerStatus.

use mesh_k8s::gateway::Listener;

use super::waypoint::HBONE_PORT;
use crate::status::{Condition, ConditionKind, InForce, ListenerStatus};

/// The statuses of a waypoint's listeners, of which it is known how far the waypoint is in force.
pub(super) fn statuses(listeners: &[Listener], in_force: &InForce) -> Vec<ListenerStatus> {
    let one = |listener: &Listener| {
        let refused = refused(listener);
        let accepted = match &refused {
            None => Condition::yes(ConditionKind::Accepted, "Accepted"),
            Some((reason, text)) => Condition::no(ConditionKind::Accepted, reason, text),
        };
        let programmed = match (&refused, in_force) {
            (Some((_, text)), _) => Condition::no(ConditionKind::Programmed, "Invalid", text),
            (None, InForce::Not(_, text)) => {
                Condition::no(ConditionKind::Programmed, "Pending", text)
            }
            (None, InForce::Wholly | InForce::By(_) | InForce::Partly) => {
                Condition::yes(ConditionKind::Programmed, "Programmed")
            }
        };
        let resolved = Condition::yes(ConditionKind::ResolvedRefs, "ResolvedRefs");
        ListenerStatus {
            name: listener.name.clone(),
            conditions: vec![accepted, resolved, programmed],
        }
    };
    listeners.iter().map(one).collect()
}

fn refused(listener: &Listener) -> Option<(&'static str, String)> {
    if listener.protocol != "HBONE" {
        let text = format!(
            "{:?} is not spoken by a waypoint, which takes HBONE",
            listener.protocol
        );
        return Some(("UnsupportedProtocol", text));
    }
    (listener.port != HBONE_PORT).then(|| {
        let text = format!(
            "a waypoint listens on port {HBONE_PORT}, not {}",
            listener.port
        );
        ("PortUnavailable", text)
    })
}
