//! What becomes of a route at each of its parents, in the Gateway API's own words.
//!
//! Invariant: a route that is refused somewhere says so there, and nowhere else. Source: Gateway API v1,
//! RouteParentStatus and RouteConditionReason; `Programmed` is ours.

use super::routes::Read;
use crate::{
    core::service::Way,
    istio::virtual_service::no_waypoint,
    status::{Condition, ConditionKind, ParentStatus},
    traffic::hosts::Hosts,
};

/// The statuses of a route's parents that are services; `lost` says at which a route of which kind keeps it out.
pub(super) fn statuses(
    hosts: &Hosts<'_, '_>,
    route: &Read<'_>,
    lost: impl Fn(usize) -> Option<&'static str>,
) -> Vec<ParentStatus> {
    let strangers = route.strangers.iter().map(|(parent, why)| ParentStatus {
        parent: parent.clone(),
        conditions: vec![
            Condition::no(ConditionKind::Accepted, "NoMatchingParent", why),
            resolved(route),
        ],
    });
    let attached = route.parents.iter().map(|parent| {
        let accepted = match lost(parent.service) {
            Some(kind) => Condition::no(
                ConditionKind::Accepted,
                "Conflicted",
                &format!("a {kind} of the same service and port keeps this route out"),
            ),
            None => Condition::yes(ConditionKind::Accepted, "Accepted"),
        };
        let draft = hosts.get(parent.service);
        let programmed = match (accepted.status, &draft.way, &draft.service.waypoint) {
            (false, ..) => {
                Condition::no(ConditionKind::Programmed, "Conflicted", &accepted.message)
            }
            (true, Way::Pending(text), _) => {
                Condition::no(ConditionKind::Programmed, "Pending", text)
            }
            (true, Way::Made(_), _) | (true, Way::AsChosen, Some(_)) => {
                Condition::yes(ConditionKind::Programmed, "Programmed")
            }
            (true, Way::AsChosen, None) => {
                let text = no_waypoint(&draft.object, draft.service.name.hostname.as_str());
                Condition::no(ConditionKind::Programmed, "NoWaypoint", &text)
            }
        };
        let mut conditions = vec![accepted, resolved(route)];
        conditions.extend(route.reader.first_invalid.as_ref().map(|why| Condition {
            message: why.clone(),
            ..Condition::yes(ConditionKind::PartiallyInvalid, "UnsupportedValue")
        }));
        conditions.push(programmed);
        ParentStatus {
            parent: parent.reference.clone(),
            conditions,
        }
    });
    attached.chain(strangers).collect()
}

fn resolved(route: &Read<'_>) -> Condition {
    match &route.reader.unresolved {
        Some((reason, text)) => Condition::no(ConditionKind::ResolvedRefs, reason, text),
        None => Condition::yes(ConditionKind::ResolvedRefs, "ResolvedRefs"),
    }
}
