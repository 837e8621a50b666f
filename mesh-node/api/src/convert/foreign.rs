//! What our policies look like to data planes that speak Istio's types only.
//!
//! Invariant: a foreign peer admits nothing that our own node would refuse at L4. AUDIT decides nothing and is left
//! out; what Istio's types cannot say is said by something at least as strict.

use std::sync::Arc;

use mesh_model::{
    mesh::{
        Action, MtlsMode, Policy, PolicyScope, Validity, WorkloadExtra,
        policy::{Clause, Match, Rule, StringMatch},
    },
    name::{Namespace, PolicyName},
};

/// The name under which Istio's own data plane knows plain STRICT.
const STATIC_STRICT: &str = "istio_converted_static_strict";

/// The policy for a foreign peer; `None` for one that decides nothing.
pub fn policy(policy: &Policy) -> Option<Policy> {
    let mut out = Policy {
        validity: Validity::Valid,
        ..policy.clone()
    };
    match (policy.action, &policy.validity) {
        (Action::Audit, _) => return None,
        (Action::Allow | Action::Deny, Validity::Invalid(_)) => {
            out.action = Action::Deny;
            out.rules = [everything()].into();
        }
        (Action::Deny, Validity::Valid) => {
            out.rules = policy.rules.iter().map(on_the_rest).collect()
        }
        (Action::Allow, Validity::Valid) => {
            out.rules = policy.rules.iter().filter_map(knowable).collect()
        }
    }
    Some(out)
}

/// The policy that refuses plaintext where PeerAuthentication does; `None` where all of it is accepted.
pub fn mtls_policy(root: &Namespace, extra: &WorkloadExtra) -> Option<Policy> {
    let strict = |mode| mode == MtlsMode::Strict;
    let mut ports: Vec<u16> = extra
        .mtls_ports
        .iter()
        .filter(|(_, m)| strict(*m) != strict(extra.mtls))
        .map(|(p, _)| *p)
        .collect();
    ports.sort_unstable();
    ports.dedup();
    if !strict(extra.mtls) && ports.is_empty() {
        return None;
    }
    let listed = ports
        .iter()
        .map(u16::to_string)
        .collect::<Vec<_>>()
        .join("_");
    let name: Arc<str> = match (strict(extra.mtls), ports.is_empty()) {
        (true, true) => STATIC_STRICT.into(),
        (true, false) => format!("warren_strict_except_{listed}").into(),
        (false, _) => format!("warren_strict_on_{listed}").into(),
    };
    let mut plaintext = Match {
        not_principals: [StringMatch::Presence].into(),
        ..Match::default()
    };
    if strict(extra.mtls) {
        plaintext.not_destination_ports = ports.into();
    } else {
        plaintext.destination_ports = ports.into();
    }
    Some(Policy {
        name: PolicyName {
            namespace: root.clone(),
            name,
        },
        scope: PolicyScope::Selector,
        action: Action::Deny,
        rules: [Rule {
            clauses: [Clause {
                matches: [plaintext].into(),
            }]
            .into(),
        }]
        .into(),
        dry_run: false,
        validity: Validity::Valid,
    })
}

/// A rule that matches every connection.
fn everything() -> Rule {
    Rule {
        clauses: [Clause {
            matches: [Match::default()].into(),
        }]
        .into(),
    }
}

/// DENY matches on what L4 can know of the rule.
fn on_the_rest(rule: &Rule) -> Rule {
    let plain = |m: &Match| Match {
        beyond_l4: false,
        ..m.clone()
    };
    let clause = |c: &Clause| Clause {
        matches: c.matches.iter().map(plain).collect(),
    };
    Rule {
        clauses: rule.clauses.iter().map(clause).collect(),
    }
}

/// ALLOW without the matches that L4 can never satisfy; a clause of nothing else makes the rule unsatisfiable.
fn knowable(rule: &Rule) -> Option<Rule> {
    let clause = |c: &Clause| {
        let matches: Box<[Match]> = c.matches.iter().filter(|m| !m.beyond_l4).cloned().collect();
        (c.matches.is_empty() || !matches.is_empty()).then_some(Clause { matches })
    };
    Some(Rule {
        clauses: rule.clauses.iter().map(clause).collect::<Option<_>>()?,
    })
}
