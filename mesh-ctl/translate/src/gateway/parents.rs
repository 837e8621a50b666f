//! What becomes of a route at each of its parents, in the Gateway API's own words.
//!
//! Invariant: a route that is refused somewhere says so there, and nowhere else. Source: Gateway API v1,
//! RouteParentStatus and RouteConditionReason; `Programmed` is ours.

use super::{fate::Fate, routes::Read};
use crate::{
    core::way::{self, Served},
    status::{Condition, ConditionKind, ParentStatus},
    traffic::hosts::Hosts,
};

/// The statuses of a route's parents that are services, whose fates are in the same order.
pub(super) fn statuses(
    hosts: &Hosts<'_, '_>,
    route: &Read<'_>,
    fates: &[Fate],
) -> Vec<ParentStatus> {
    let strangers = route.strangers.iter().map(|(parent, why)| ParentStatus {
        parent: parent.clone(),
        conditions: vec![
            Condition::no(ConditionKind::Accepted, "NoMatchingParent", why),
            resolved(route),
        ],
    });
    let attached = route.parents.iter().zip(fates).map(|(parent, fate)| {
        let accepted = match fate {
            Fate::Everywhere => Condition::yes(ConditionKind::Accepted, "Accepted"),
            Fate::Partly(text) => Condition {
                message: text.clone(),
                ..Condition::yes(ConditionKind::Accepted, "Accepted")
            },
            Fate::Nowhere(text) => Condition::no(ConditionKind::Accepted, "Conflicted", text),
        };
        let draft = hosts.get(parent.service);
        let not = |reason, text: &str| Condition::no(ConditionKind::Programmed, reason, text);
        let found = way::served(draft, route.class.is_by_request());
        let programmed = match (fate, found) {
            (Fate::Nowhere(text), _) => not("Conflicted", text),
            (_, Served::Pending(text)) => not("Pending", text),
            (_, Served::Refused(text)) => not(way::UNUSABLE, &text),
            (_, Served::Not(text)) => not("NoWaypoint", &text),
            (Fate::Partly(text), Served::Chosen | Served::Made(_)) => Condition {
                message: text.clone(),
                ..Condition::yes(ConditionKind::Programmed, "PartlyProgrammed")
            },
            (Fate::Everywhere, Served::Chosen | Served::Made(_)) => {
                Condition::yes(ConditionKind::Programmed, "Programmed")
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
