//! Whether one rule matches one connection.
//!
//! Invariants: an absent value satisfies no positive field and every not-form; an empty field is satisfied;
//! text is compared byte for byte, without patterns.

use std::net::IpAddr;

use ipnet::IpNet;

use super::Conn;
use crate::{
    mesh::{
        Action,
        policy::{Clause, Match, Rule, ServiceAccountMatch, StringMatch},
    },
    name::Identity,
};

/// What a connection shows to a rule.
pub(crate) struct Facts<'a> {
    pub identity: Option<&'a Identity>,
    /// The principal as policies write it: the identity without `spiffe://`.
    pub principal: Option<String>,
    pub source: IpAddr,
    pub destination: IpAddr,
    pub port: u16,
}

impl<'a> Facts<'a> {
    pub fn of(conn: &'a Conn) -> Self {
        let identity = conn.transport.identity();
        Self {
            identity,
            principal: identity.map(principal),
            source: conn.source_ip.to_canonical(),
            destination: conn.destination.ip().to_canonical(),
            port: conn.destination.port(),
        }
    }

    pub fn namespace(&self) -> Option<&'a str> {
        self.identity.map(|i| i.namespace.as_str())
    }
}

/// The principal of an identity, as policies write it.
fn principal(id: &Identity) -> String {
    let (td, ns, sa) = (
        id.trust_domain.as_str(),
        id.namespace.as_str(),
        id.service_account.as_str(),
    );
    let mut text = String::with_capacity(td.len() + ns.len() + sa.len() + 8);
    for part in [td, "/ns/", ns, "/sa/", sa] {
        text.push_str(part);
    }
    text
}

/// All clauses match.
pub(crate) fn rule(rule: &Rule, action: Action, facts: &Facts<'_>) -> bool {
    rule.clauses.iter().all(|c| clause(c, action, facts))
}

fn clause(clause: &Clause, action: Action, facts: &Facts<'_>) -> bool {
    clause.matches.is_empty() || clause.matches.iter().any(|m| one(m, action, facts))
}

fn one(m: &Match, action: Action, facts: &Facts<'_>) -> bool {
    let Match {
        namespaces,
        not_namespaces,
        principals,
        not_principals,
        source_ips,
        not_source_ips,
        destination_ips,
        not_destination_ips,
        destination_ports,
        not_destination_ports,
        service_accounts,
        not_service_accounts,
        beyond_l4,
    } = m;
    // What L4 cannot see must not permit; a DENY holds on the rest alone.
    if *beyond_l4 && action != Action::Deny {
        return false;
    }
    let text = |value: Option<&str>, list: &[StringMatch]| {
        value.is_some_and(|v| list.iter().any(|s| s.matches(v)))
    };
    let ip = |ip: &IpAddr, list: &[IpNet]| list.iter().any(|net| holds(net, ip));
    let account = |list: &[ServiceAccountMatch]| {
        facts.identity.is_some_and(|id| {
            list.iter()
                .any(|a| a.namespace == id.namespace && a.service_account == id.service_account)
        })
    };
    let principal = facts.principal.as_deref();
    (destination_ports.is_empty() || destination_ports.contains(&facts.port))
        && !not_destination_ports.contains(&facts.port)
        && (principals.is_empty() || text(principal, principals))
        && !text(principal, not_principals)
        && (namespaces.is_empty() || text(facts.namespace(), namespaces))
        && !text(facts.namespace(), not_namespaces)
        && (service_accounts.is_empty() || account(service_accounts))
        && !account(not_service_accounts)
        && (source_ips.is_empty() || ip(&facts.source, source_ips))
        && !ip(&facts.source, not_source_ips)
        && (destination_ips.is_empty() || ip(&facts.destination, destination_ips))
        && !ip(&facts.destination, not_destination_ips)
}

/// Whether a range holds an address; a range of IPv4-mapped addresses means the IPv4 addresses in it.
pub(crate) fn holds(net: &IpNet, ip: &IpAddr) -> bool {
    unmapped(*net).contains(ip)
}

/// A range of IPv4-mapped addresses as the IPv4 range it stands for.
pub(crate) fn unmapped(net: IpNet) -> IpNet {
    match (net.addr().to_canonical(), net.prefix_len()) {
        (IpAddr::V4(v4), len @ 96..) if net.addr().is_ipv6() => {
            IpNet::new(v4.into(), len - 96).expect("at most 32 bits are left")
        }
        _ => net,
    }
}

impl StringMatch {
    /// Whether a present value matches.
    pub fn matches(&self, value: &str) -> bool {
        match self {
            StringMatch::Exact(text) => **text == *value,
            StringMatch::Prefix(text) => value.starts_with(&**text),
            StringMatch::Suffix(text) => value.ends_with(&**text),
            StringMatch::Presence => !value.is_empty(),
        }
    }
}
