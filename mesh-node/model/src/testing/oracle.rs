//! A naive authorization: every policy, every rule, every field, one after the other.
//!
//! Invariant: written from the meaning in `mesh::policy`, not from `authz`; it shares no code with it.

use std::{collections::BTreeSet, net::IpAddr};

use ipnet::IpNet;

use super::world::World;
use crate::{
    authn::Transport,
    authz::Conn,
    mesh::{
        Action, MtlsMode, Policy, PolicyScope, Validity,
        policy::{Match, StringMatch},
    },
    name::PolicyName,
    reason::Reason,
};

/// What a decision must come out as.
#[derive(Debug, PartialEq, Eq)]
pub struct Expected {
    /// Pass or the reason.
    pub outcome: Result<(), Reason>,
    /// The policy that must be named.
    pub policy: Option<PolicyName>,
    /// AUDIT policies that match.
    pub audited: BTreeSet<PolicyName>,
    /// Dry-run policies that would refuse.
    pub dry_run: BTreeSet<PolicyName>,
}

/// Decides a connection.
pub fn decide(world: &World, conn: &Conn) -> Expected {
    let nothing = |outcome| Expected {
        outcome,
        policy: None,
        audited: BTreeSet::new(),
        dry_run: BTreeSet::new(),
    };
    let Some(extra) = world.extras.get(&conn.workload.uid) else {
        return nothing(Err(Reason::NotReady));
    };
    if !world.complete {
        return nothing(Err(Reason::NotReady));
    }
    if extra.features.iter().any(|f| &**f != "l4") {
        return nothing(Err(Reason::PolicyInvalid));
    }
    let port = conn.destination.port();
    let mut mode = extra.mtls;
    for (p, m) in extra.mtls_ports.iter().rev() {
        if *p == port {
            mode = *m;
        }
    }
    let proven = matches!(conn.transport, Transport::Mtls(_) | Transport::Kernel(_));
    let probe = conn.transport == Transport::Probe && extra.probe_ports.contains(&port);
    if probe {
        return nothing(Ok(()));
    }
    if !proven && mode == MtlsMode::Strict {
        return nothing(Err(Reason::StrictRequired));
    }
    policies(world, conn)
}

fn policies(world: &World, conn: &Conn) -> Expected {
    let workload = &world.workloads[&conn.workload.uid];
    let in_scope: Vec<&Policy> = world
        .policies
        .values()
        .filter(|p| match p.scope {
            PolicyScope::Global => true,
            PolicyScope::Namespace if p.name.namespace == workload.namespace => true,
            PolicyScope::Namespace | PolicyScope::Selector => workload.policies.contains(&p.name),
        })
        .collect();
    let invalid = |p: &Policy| p.validity != Validity::Valid;
    let hit = |p: &Policy| any_rule(p, conn);
    let audited = in_scope
        .iter()
        .filter(|p| p.action == Action::Audit && (invalid(p) || hit(p)))
        .map(|p| p.name.clone())
        .collect();

    let allows: Vec<&&Policy> = in_scope
        .iter()
        .filter(|p| p.action == Action::Allow && !invalid(p))
        .collect();
    let any_allow = allows.iter().any(|p| hit(p));
    let mut dry_run = BTreeSet::new();
    for p in in_scope.iter().filter(|p| p.dry_run) {
        let would_refuse = match p.action {
            Action::Audit => false,
            _ if invalid(p) => true,
            Action::Deny => hit(p),
            Action::Allow => !any_allow,
        };
        if would_refuse {
            dry_run.insert(p.name.clone());
        }
    }

    let enforced: Vec<&&Policy> = in_scope
        .iter()
        .filter(|p| !p.dry_run && p.action != Action::Audit)
        .collect();
    let missing = workload
        .policies
        .iter()
        .filter(|n| !world.policies.contains_key(*n))
        .min();
    let first = |wanted: &dyn Fn(&Policy) -> bool| {
        enforced
            .iter()
            .filter(|p| wanted(p))
            .map(|p| p.name.clone())
            .min()
    };
    let (outcome, policy) = if let Some(name) = missing {
        (Err(Reason::NotReady), Some(name.clone()))
    } else if let Some(name) = first(&|p| invalid(p)) {
        (Err(Reason::PolicyInvalid), Some(name))
    } else if let Some(name) = first(&|p| p.action == Action::Deny && hit(p)) {
        (Err(Reason::PolicyDenied), Some(name))
    } else if let Some(name) = first(&|p| p.action == Action::Allow && hit(p)) {
        (Ok(()), Some(name))
    } else if enforced.iter().any(|p| p.action == Action::Allow) {
        (Err(Reason::NotAllowed), None)
    } else {
        (Ok(()), None)
    };
    Expected {
        outcome,
        policy,
        audited,
        dry_run,
    }
}

fn any_rule(policy: &Policy, conn: &Conn) -> bool {
    for rule in &policy.rules {
        let mut all = true;
        for clause in &rule.clauses {
            let mut any = clause.matches.is_empty();
            for m in &clause.matches {
                any |= one(m, policy.action, conn);
            }
            all &= any;
        }
        if all {
            return true;
        }
    }
    false
}

fn one(m: &Match, action: Action, conn: &Conn) -> bool {
    let id = match &conn.transport {
        Transport::Mtls(id) | Transport::Kernel(id) => Some(id),
        Transport::Plain | Transport::Probe => None,
    };
    let principal = id.map(|i| i.to_string().replacen("spiffe://", "", 1));
    let namespace = id.map(|i| i.namespace.to_string());
    let accounts = |list: &[crate::mesh::policy::ServiceAccountMatch]| {
        list.iter().any(|a| {
            id.is_some_and(|i| {
                (&i.namespace, &i.service_account) == (&a.namespace, &a.service_account)
            })
        })
    };
    let port = conn.destination.port();
    let checks = [
        m.namespaces.is_empty() || texts(&m.namespaces, &namespace),
        !texts(&m.not_namespaces, &namespace),
        m.principals.is_empty() || texts(&m.principals, &principal),
        !texts(&m.not_principals, &principal),
        m.source_ips.is_empty() || ips(&m.source_ips, conn.source_ip),
        !ips(&m.not_source_ips, conn.source_ip),
        m.destination_ips.is_empty() || ips(&m.destination_ips, conn.destination.ip()),
        !ips(&m.not_destination_ips, conn.destination.ip()),
        m.destination_ports.is_empty() || m.destination_ports.contains(&port),
        !m.not_destination_ports.contains(&port),
        m.service_accounts.is_empty() || accounts(&m.service_accounts),
        !accounts(&m.not_service_accounts),
        !m.beyond_l4 || action == Action::Deny,
    ];
    checks.iter().all(|c| *c)
}

fn texts(list: &[StringMatch], value: &Option<String>) -> bool {
    let Some(value) = value else { return false };
    list.iter().any(|s| match s {
        StringMatch::Exact(t) => value == &**t,
        StringMatch::Prefix(t) => value.len() >= t.len() && value[..t.len()] == **t,
        StringMatch::Suffix(t) => value.len() >= t.len() && value[value.len() - t.len()..] == **t,
        StringMatch::Presence => !value.is_empty(),
    })
}

/// Compares bit by bit. An IPv4-mapped address is the IPv4 address; a range of at least 96 bits within the
/// mapped addresses is a range of IPv4 addresses.
fn ips(list: &[IpNet], ip: IpAddr) -> bool {
    let bits = |ip: IpAddr| -> Vec<bool> {
        let octets = match ip {
            IpAddr::V4(v4) => v4.octets().to_vec(),
            IpAddr::V6(v6) => v6.octets().to_vec(),
        };
        octets
            .iter()
            .flat_map(|o| (0..8).rev().map(move |b| o >> b & 1 == 1))
            .collect()
    };
    let mapped =
        |b: &[bool]| b.len() == 128 && b[..80].iter().all(|b| !b) && b[80..96].iter().all(|b| *b);
    let mut value = bits(ip);
    if mapped(&value) {
        value.drain(..96);
    }
    list.iter().any(|net| {
        let (mut range, mut len) = (bits(net.addr()), usize::from(net.prefix_len()));
        if mapped(&range) && len >= 96 {
            range.drain(..96);
            len -= 96;
        }
        range.len() == value.len() && range[..len] == value[..len]
    })
}
