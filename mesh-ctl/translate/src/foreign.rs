//! PeerAuthentication for data planes that only know AuthorizationPolicy: what is accepted, as DENY policies.
//!
//! Invariant: a workload's name for its policy follows from what it accepts alone, so that the policy list and
//! the workloads can be published apart.

use std::collections::BTreeMap;

use mesh_model::{
    mesh::{
        Action, Change, MtlsMode, Policy, PolicyScope, Validity, WorkloadExtra,
        policy::{Clause, Match, Rule, StringMatch},
    },
    name::{Namespace, PolicyName},
};

use crate::{Settings, translate, view::ClusterView};

/// The policies that say to foreign data planes what is accepted, ordered by name.
pub fn foreign_policies(view: &ClusterView) -> Vec<Policy> {
    let root = Settings::of(view).mesh.root_namespace;
    let mut policies = BTreeMap::new();
    for change in translate(view).changes {
        if let Change::WorkloadExtra(_, extra) = change
            && let Some(policy) = policy(&root, &extra)
        {
            policies.insert(policy.name.clone(), policy);
        }
    }
    policies.into_values().collect()
}

/// The name of the policy that a foreign data plane must apply to a workload, beside those it is selected by.
pub fn foreign_policy_of(root: &Namespace, extra: &WorkloadExtra) -> Option<PolicyName> {
    policy(root, extra).map(|policy| policy.name)
}

fn policy(root: &Namespace, extra: &WorkloadExtra) -> Option<Policy> {
    let strict = extra.mtls == MtlsMode::Strict;
    let other = extra
        .mtls_ports
        .iter()
        .filter(|(_, mode)| (*mode == MtlsMode::Strict) != strict);
    let ports: Box<[u16]> = other.map(|(port, _)| *port).collect();
    if !strict && ports.is_empty() {
        return None;
    }
    let listed = ports
        .iter()
        .map(u16::to_string)
        .collect::<Vec<_>>()
        .join("-");
    let name = match (strict, ports.is_empty()) {
        (true, true) => "istio_converted_static_strict".to_owned(),
        (true, false) => format!("converted_peer_authentication_strict_except_{listed}"),
        (false, _) => format!("converted_peer_authentication_strict_on_{listed}"),
    };
    let (on, except) = if strict {
        ([].into(), ports)
    } else {
        (ports, [].into())
    };
    let no_principal = Match {
        not_principals: [StringMatch::Presence].into(),
        destination_ports: on,
        not_destination_ports: except,
        ..Match::default()
    };
    Some(Policy {
        name: PolicyName {
            namespace: root.clone(),
            name: name.into(),
        },
        scope: PolicyScope::Selector,
        action: Action::Deny,
        rules: [Rule {
            clauses: [Clause {
                matches: [no_principal].into(),
            }]
            .into(),
        }]
        .into(),
        dry_run: false,
        validity: Validity::Valid,
    })
}
