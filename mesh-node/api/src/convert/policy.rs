//! Authorization policies, as Istio's `Authorization` with our extensions carries them.
//!
//! Invariants: a policy is never dropped and never narrowed: one that cannot be understood whole becomes an
//! invalid policy, which denies. Unknown fields and unknown extensions count as not understood.

use std::sync::Arc;

use ipnet::IpNet;
use mesh_model::{
    mesh::{
        Action, Policy, PolicyScope, Validity,
        policy::{Clause, Match, Rule, ServiceAccountMatch, StringMatch},
    },
    name::{PolicyName, ServiceAccount},
};
use prost::Message;

use super::field::{Bad, Problem, all, ip_bytes, known, label, namespace, net, policy_name, port};
use crate::{any::Any, security as wire, warren};

const AUDIT: &str = "warren.dev/audit";
const INVALID: &str = "warren.dev/invalid";
const BEYOND_L4: &str = "warren.dev/beyond-l4";

/// More values than this in one policy are an attack or an accident.
const MAX_VALUES: usize = 200_000;

pub(super) fn encode(p: &Policy) -> wire::Authorization {
    let mut extensions = Vec::new();
    if p.action == Action::Audit {
        extensions.push(extension(AUDIT, "Audit", &warren::Audit {}));
    }
    if let Validity::Invalid(reason) = &p.validity {
        extensions.push(extension(
            INVALID,
            "Invalid",
            &warren::Invalid {
                reason: reason.to_string(),
            },
        ));
    }
    wire::Authorization {
        name: p.name.name.to_string(),
        namespace: p.name.namespace.to_string(),
        scope: match p.scope {
            PolicyScope::Global => wire::Scope::Global,
            PolicyScope::Namespace => wire::Scope::Namespace,
            PolicyScope::Selector => wire::Scope::WorkloadSelector,
        }
        .into(),
        // For a reader that does not know our extensions AUDIT would be DENY; none such is ever sent one.
        action: match p.action {
            Action::Allow => wire::Action::Allow,
            Action::Deny | Action::Audit => wire::Action::Deny,
        }
        .into(),
        rules: p.rules.iter().map(rule_wire).collect(),
        dry_run: p.dry_run,
        extensions,
    }
}

fn extension(name: &str, message: &str, content: &impl Message) -> wire::Extension {
    let config = Any::pack(&format!("type.googleapis.com/warren.v1.{message}"), content);
    wire::Extension {
        name: name.to_owned(),
        config: Some(config),
    }
}

fn rule_wire(rule: &Rule) -> wire::Rule {
    let clause = |c: &Clause| wire::Clause {
        matches: c.matches.iter().map(match_wire).collect(),
    };
    wire::Rule {
        clauses: rule.clauses.iter().map(clause).collect(),
    }
}

fn match_wire(m: &Match) -> wire::Match {
    let texts = |list: &[StringMatch]| list.iter().map(string_wire).collect();
    let nets = |list: &[IpNet]| list.iter().map(net_wire).collect();
    let ports = |list: &[u16]| list.iter().map(|p| u32::from(*p)).collect();
    let accounts = |list: &[ServiceAccountMatch]| list.iter().map(account_wire).collect();
    wire::Match {
        namespaces: texts(&m.namespaces),
        not_namespaces: texts(&m.not_namespaces),
        principals: texts(&m.principals),
        not_principals: texts(&m.not_principals),
        source_ips: nets(&m.source_ips),
        not_source_ips: nets(&m.not_source_ips),
        destination_ips: nets(&m.destination_ips),
        not_destination_ips: nets(&m.not_destination_ips),
        destination_ports: ports(&m.destination_ports),
        not_destination_ports: ports(&m.not_destination_ports),
        service_accounts: accounts(&m.service_accounts),
        not_service_accounts: accounts(&m.not_service_accounts),
        extensions: if m.beyond_l4 {
            vec![extension(BEYOND_L4, "BeyondL4", &warren::BeyondL4 {})]
        } else {
            Vec::new()
        },
    }
}

fn string_wire(m: &StringMatch) -> wire::StringMatch {
    use wire::string_match::MatchType;
    let kind = match m {
        StringMatch::Exact(t) => MatchType::Exact(t.to_string()),
        StringMatch::Prefix(t) => MatchType::Prefix(t.to_string()),
        StringMatch::Suffix(t) => MatchType::Suffix(t.to_string()),
        StringMatch::Presence => MatchType::Presence(()),
    };
    wire::StringMatch {
        match_type: Some(kind),
    }
}

fn net_wire(net: &IpNet) -> wire::Address {
    wire::Address {
        address: ip_bytes(net.addr()),
        length: net.prefix_len().into(),
    }
}

fn account_wire(m: &ServiceAccountMatch) -> wire::ServiceAccountMatch {
    wire::ServiceAccountMatch {
        namespace: m.namespace.to_string(),
        service_account: m.service_account.to_string(),
    }
}

/// The policy, and what was not understood of it. Fails only when the resource's name is not a policy's name.
pub(super) fn decode(resource: &str, body: &[u8]) -> Result<(Policy, Option<Bad>), Bad> {
    let name = policy_name("", resource)?;
    let wire = match wire::Authorization::decode(body) {
        Ok(wire) => wire,
        Err(e) => {
            let bad = Bad::new("", Problem::Malformed(e.to_string()));
            return Ok((
                invalid(name, PolicyScope::Namespace, Action::Deny, false, &bad),
                Some(bad),
            ));
        }
    };
    // Without a known scope the namespace is what the policy is known to govern.
    let scope = known("scope", wire.scope).map(|s| match s {
        wire::Scope::Global => PolicyScope::Global,
        wire::Scope::Namespace => PolicyScope::Namespace,
        wire::Scope::WorkloadSelector => PolicyScope::Selector,
    });
    let known_scope = *scope.as_ref().unwrap_or(&PolicyScope::Namespace);
    let dry_run = wire.dry_run;
    let audit = wire.extensions.iter().any(|e| e.name == AUDIT);
    // prost leaves out fields it does not know; in a policy that would widen it.
    let whole = if wire.encoded_len() == body.len() {
        Ok(())
    } else {
        Err(Bad::new("", Problem::UnknownFields))
    };
    match whole.and_then(|()| understood(&name, wire, scope)) {
        Ok(policy) => Ok((policy, None)),
        Err(bad) => {
            let action = if audit { Action::Audit } else { Action::Deny };
            Ok((invalid(name, known_scope, action, dry_run, &bad), Some(bad)))
        }
    }
}

fn invalid(
    name: PolicyName,
    scope: PolicyScope,
    action: Action,
    dry_run: bool,
    bad: &Bad,
) -> Policy {
    let field = if bad.field.is_empty() {
        String::new()
    } else {
        format!("{}: ", bad.field)
    };
    let reason: Arc<str> = format!("{field}{}", bad.problem).into();
    Policy {
        name,
        scope,
        action,
        rules: Box::default(),
        dry_run,
        validity: Validity::Invalid(reason),
    }
}

fn understood(
    name: &PolicyName,
    wire: wire::Authorization,
    scope: Result<PolicyScope, Bad>,
) -> Result<Policy, Bad> {
    let own = format!("{}/{}", wire.namespace, wire.name);
    if own != name.to_string() {
        return Err(Bad::new("name", Problem::NameMismatch(own)));
    }
    let mut action = match known("action", wire.action)? {
        wire::Action::Allow => Action::Allow,
        wire::Action::Deny => Action::Deny,
    };
    let mut validity = Validity::Valid;
    for (i, e) in wire.extensions.iter().enumerate() {
        match e.name.as_str() {
            AUDIT => action = Action::Audit,
            INVALID => {
                validity = Validity::Invalid(
                    invalid_reason(e).map_err(|b| b.within(format_args!("extensions[{i}]")))?,
                )
            }
            other => {
                return Err(Bad::new(
                    format!("extensions[{i}]"),
                    Problem::Extension(other.to_owned()),
                ));
            }
        }
    }
    let values = wire
        .rules
        .iter()
        .flat_map(|r| &r.clauses)
        .flat_map(|c| &c.matches)
        .map(values)
        .sum::<usize>();
    if values > MAX_VALUES {
        return Err(Bad::new("rules", Problem::TooMany(MAX_VALUES)));
    }
    let rules = all("rules", wire.rules, rule)?;
    Ok(Policy {
        name: name.clone(),
        scope: scope?,
        action,
        rules,
        dry_run: wire.dry_run,
        validity,
    })
}

fn invalid_reason(e: &wire::Extension) -> Result<Arc<str>, Bad> {
    let config = e
        .config
        .as_ref()
        .ok_or_else(|| Bad::new("config", Problem::Missing))?;
    let content = warren::Invalid::decode(config.value.clone())
        .map_err(|e| Bad::new("config", Problem::Malformed(e.to_string())))?;
    Ok(content.reason.into())
}

fn values(m: &wire::Match) -> usize {
    1 + m.namespaces.len()
        + m.not_namespaces.len()
        + m.principals.len()
        + m.not_principals.len()
        + m.source_ips.len()
        + m.not_source_ips.len()
        + m.destination_ips.len()
        + m.not_destination_ips.len()
        + m.destination_ports.len()
        + m.not_destination_ports.len()
        + m.service_accounts.len()
        + m.not_service_accounts.len()
}

fn rule(rule: wire::Rule) -> Result<Rule, Bad> {
    let clause = |c: wire::Clause| {
        Ok(Clause {
            matches: all("matches", c.matches, one_match)?,
        })
    };
    Ok(Rule {
        clauses: all("clauses", rule.clauses, clause)?,
    })
}

fn one_match(m: wire::Match) -> Result<Match, Bad> {
    let mut beyond_l4 = false;
    for (i, e) in m.extensions.iter().enumerate() {
        match e.name.as_str() {
            BEYOND_L4 => beyond_l4 = true,
            other => {
                return Err(Bad::new(
                    format!("extensions[{i}]"),
                    Problem::Extension(other.to_owned()),
                ));
            }
        }
    }
    Ok(Match {
        namespaces: all("namespaces", m.namespaces, string)?,
        not_namespaces: all("not_namespaces", m.not_namespaces, string)?,
        principals: all("principals", m.principals, string)?,
        not_principals: all("not_principals", m.not_principals, string)?,
        source_ips: all("source_ips", m.source_ips, |a| net(&a.address, a.length))?,
        not_source_ips: all("not_source_ips", m.not_source_ips, |a| {
            net(&a.address, a.length)
        })?,
        destination_ips: all("destination_ips", m.destination_ips, |a| {
            net(&a.address, a.length)
        })?,
        not_destination_ips: all("not_destination_ips", m.not_destination_ips, |a| {
            net(&a.address, a.length)
        })?,
        destination_ports: all("destination_ports", m.destination_ports, |p| port("", p))?,
        not_destination_ports: all("not_destination_ports", m.not_destination_ports, |p| {
            port("", p)
        })?,
        service_accounts: all("service_accounts", m.service_accounts, account)?,
        not_service_accounts: all("not_service_accounts", m.not_service_accounts, account)?,
        beyond_l4,
    })
}

fn string(m: wire::StringMatch) -> Result<StringMatch, Bad> {
    use wire::string_match::MatchType;
    Ok(
        match m
            .match_type
            .ok_or_else(|| Bad::new("match_type", Problem::Missing))?
        {
            MatchType::Exact(t) => StringMatch::Exact(t.into()),
            MatchType::Prefix(t) => StringMatch::Prefix(t.into()),
            MatchType::Suffix(t) => StringMatch::Suffix(t.into()),
            MatchType::Presence(()) => StringMatch::Presence,
        },
    )
}

fn account(m: wire::ServiceAccountMatch) -> Result<ServiceAccountMatch, Bad> {
    Ok(ServiceAccountMatch {
        namespace: namespace("namespace", &m.namespace)?,
        service_account: ServiceAccount::from(label("service_account", &m.service_account)?),
    })
}
