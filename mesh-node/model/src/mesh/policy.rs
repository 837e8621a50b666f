//! Authorization policies as data. Evaluation is in `authz`.
//!
//! Meaning: policies OR, rules OR, clauses AND, matches OR, fields within a match AND, values within a
//! field OR; an empty rule list matches nothing. An invalid policy is a value that denies.

use std::sync::Arc;

use ipnet::IpNet;

use crate::name::{Namespace, PolicyName, ServiceAccount};

/// An authorization policy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Its name.
    pub name: PolicyName,
    /// Which workloads it governs.
    pub scope: PolicyScope,
    /// What a match means.
    pub action: Action,
    /// Its rules.
    pub rules: Box<[Rule]>,
    /// Whether it is only reported (`istio.io/dry-run`).
    pub dry_run: bool,
    /// Whether it could be understood whole.
    pub validity: Validity,
}

/// Which workloads a policy governs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PolicyScope {
    /// All of the mesh.
    Global,
    /// Its namespace.
    Namespace,
    /// Workloads that list it in `Workload::policies`.
    Selector,
}

/// What a match means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Permits; with any ALLOW policy in scope, what none permits is refused.
    Allow,
    /// Refuses, before any ALLOW.
    Deny,
    /// Is written to the log, and decides nothing.
    Audit,
}

/// Whether a policy could be understood.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Validity {
    /// Wholly.
    Valid,
    /// No; whatever its action, it refuses every connection to what it governs (dry-run and AUDIT only report).
    Invalid(Arc<str>),
}

/// A rule: all clauses must match.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rule {
    /// The clauses.
    pub clauses: Box<[Clause]>,
}

/// A clause: any match suffices; a clause without matches matches everything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Clause {
    /// The matches.
    pub matches: Box<[Match]>,
}

/// A match: every field that is not empty must match; a match without fields matches everything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Match {
    /// Source namespace.
    pub namespaces: Box<[StringMatch]>,
    /// Not these source namespaces.
    pub not_namespaces: Box<[StringMatch]>,
    /// Source principal, without `spiffe://`.
    pub principals: Box<[StringMatch]>,
    /// Not these principals.
    pub not_principals: Box<[StringMatch]>,
    /// Source address.
    pub source_ips: Box<[IpNet]>,
    /// Not these source addresses.
    pub not_source_ips: Box<[IpNet]>,
    /// Destination address.
    pub destination_ips: Box<[IpNet]>,
    /// Not these destination addresses.
    pub not_destination_ips: Box<[IpNet]>,
    /// Destination port, as the workload sees it.
    pub destination_ports: Box<[u16]>,
    /// Not these ports.
    pub not_destination_ports: Box<[u16]>,
    /// Source service account.
    pub service_accounts: Box<[ServiceAccountMatch]>,
    /// Not these service accounts.
    pub not_service_accounts: Box<[ServiceAccountMatch]>,
    /// True when the match also names something that L4 cannot know: in an ALLOW (or AUDIT) policy it never
    /// matches here; in a DENY policy it matches on the rest.
    pub beyond_l4: bool,
}

/// A text match on a value that may be absent. An absent value matches nothing here;
/// in a not-form therefore everything passes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StringMatch {
    /// The whole text.
    Exact(Arc<str>),
    /// Its beginning.
    Prefix(Arc<str>),
    /// Its end.
    Suffix(Arc<str>),
    /// Any text that is not empty.
    Presence,
}

/// A service account in a namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceAccountMatch {
    /// The namespace.
    pub namespace: Namespace,
    /// The service account.
    pub service_account: ServiceAccount,
}
