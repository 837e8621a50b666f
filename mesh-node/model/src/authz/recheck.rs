//! Which live flows a change can affect, and which policies govern a workload.
//!
//! Invariant: a flow whose decision could come out otherwise is named; one too many costs only a decision.

use std::sync::Arc;

use super::inbound::governs_by_scope;
use crate::{
    mesh::{Diff, Mesh, Policy, Workload},
    name::PolicyName,
};

/// Whether a live flow to this workload must be decided again after a change.
pub fn recheck(diff: &Diff, destination: &Workload) -> bool {
    let governs =
        |p: &PolicyName| p.namespace == destination.namespace || destination.policies.contains(p);
    diff.config
        || diff.everyone
        || diff.workloads.contains(&destination.uid)
        || diff.policies.iter().any(governs)
}

/// The policies that govern a workload, by name; those it lists but that are missing come without a policy.
/// Looks at every policy: for explanations, not for decisions.
pub fn governing<'a>(
    mesh: &'a Mesh,
    workload: &'a Workload,
) -> Vec<(&'a PolicyName, Option<&'a Arc<Policy>>)> {
    let mut all: Vec<_> = mesh
        .policies()
        .filter(|p| governs_by_scope(p, workload))
        .map(|p| (&p.name, Some(p)))
        .collect();
    all.extend(
        workload
            .policies
            .iter()
            .map(|name| (name, mesh.policy(name))),
    );
    all.sort_unstable_by_key(|(name, _)| *name);
    all.dedup_by_key(|(name, _)| *name);
    all
}
