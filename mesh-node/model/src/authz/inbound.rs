//! May this connection enter: readiness, transport, guard, then policies.
//!
//! Invariants: what has not been received refuses; what cannot be understood refuses; a DENY match comes
//! before any ALLOW; AUDIT and dry-run policies are only reported. The outcome does not depend on the order of policies.

use super::{
    Conn, Decision, Denial, Permit,
    matches::{self, Facts},
    outbound::is_own_port,
    rules::{Rules, Scope},
};
use crate::{
    authn::{self, Transport},
    mesh::{Action, Mesh, Policy, PolicyScope, Validity, Workload, WorkloadExtra, knows_features},
    name::{Identity, NetworkId, PolicyName, ServiceName},
    reason::Reason,
    route,
};

/// Decides a connection at its destination: readiness, transport (PeerAuthentication), then policies.
/// The policies are those of the snapshot, even where `conn.workload` comes from an older one.
pub fn ingress(mesh: &Mesh, conn: Conn) -> Decision<Conn> {
    let judged =
        ready(mesh, &conn).and_then(|(workload, extra)| admitted(mesh, workload, extra, &conn));
    judged
        .unwrap_or_else(Verdict::refused)
        .about(|by| Permit::new(conn, by))
}

/// What must have been received before anything may pass, and who the destination is by now.
pub(super) fn ready<'a>(
    mesh: &'a Mesh,
    conn: &Conn,
) -> Result<(&'a Workload, &'a WorkloadExtra), Reason> {
    let (uid, ip, port) = (
        &conn.workload.uid,
        conn.destination.ip().to_canonical(),
        conn.destination.port(),
    );
    let complete = mesh.is_complete() && mesh.config().is_some();
    let (Some(workload), Some(extra), true) = (mesh.workload(uid), mesh.extra(uid), complete)
    else {
        return Err(Reason::NotReady);
    };
    if !knows_features(&extra.features) {
        return Err(Reason::PolicyInvalid);
    }
    if !workload.addresses.iter().any(|a| a.to_canonical() == ip) {
        return Err(Reason::BadAuthority);
    }
    if mesh.is_contested(&workload.network, ip) {
        return Err(Reason::NotReady);
    }
    if is_own_port(port) {
        return Err(Reason::Loop);
    }
    Ok((workload, extra))
}

/// The transport, the guard and the policies.
fn admitted(
    mesh: &Mesh,
    workload: &Workload,
    extra: &WorkloadExtra,
    conn: &Conn,
) -> Result<Verdict, Reason> {
    let port = conn.destination.port();
    let vouched = |peer| vouches(mesh, workload, peer);
    if conn.via.as_ref().is_some_and(|peer| !vouched(peer)) {
        return Err(Reason::NotWaypoint);
    }
    authn::admit(extra, port, &conn.transport)?;
    // The kubelet's probes to declared ports are no traffic of the mesh: policies do not speak of them.
    if conn.transport == Transport::Probe && extra.probe_ports.contains(&port) {
        return Ok(Verdict {
            outcome: Ok(None),
            audited: Vec::new(),
            dry_run: Vec::new(),
        });
    }
    let peer = match (&conn.via, &conn.transport) {
        (Some(peer), _) => Some(&**peer),
        (None, Transport::Mtls(peer)) => Some(peer),
        (None, Transport::Kernel(_) | Transport::Plain | Transport::Probe) => None,
    };
    if extra.guarded && !peer.is_some_and(vouched) {
        return Err(Reason::WaypointRequired);
    }
    Ok(judge(mesh, workload, &Facts::of(conn)))
}

/// Whether a peer is a waypoint of the workload, or of a service of it, or stands by for one, so that it may speak for the
/// workload's clients.
pub fn vouches(mesh: &Mesh, workload: &Workload, peer: &Identity) -> bool {
    let network = &workload.network;
    let own = workload.waypoint.as_ref();
    own.is_some_and(|w| route::waypoint::identities(mesh, network, w).contains(peer))
        || workload
            .services
            .iter()
            .any(|m| vouches_for(mesh, network, &m.service, peer))
}

/// Whether a peer is a waypoint of a service, or stands by for it.
pub fn vouches_for(
    mesh: &Mesh,
    network: &NetworkId,
    service: &ServiceName,
    peer: &Identity,
) -> bool {
    let waypoint = mesh.service(service).and_then(|s| s.waypoint.as_ref());
    let standby = mesh.service_extra(service);
    let standby = standby.and_then(|extra| mesh.service(extra.standby.as_ref()?));
    waypoint.is_some_and(|w| route::waypoint::identities(mesh, network, w).contains(peer))
        || standby.is_some_and(|s| route::waypoint::of_service(mesh, network, s).contains(peer))
}

/// What the policies say.
pub(super) struct Verdict {
    outcome: Result<Option<PolicyName>, Denial>,
    audited: Vec<PolicyName>,
    dry_run: Vec<PolicyName>,
}

impl Verdict {
    /// A refusal before any policy was asked.
    pub(super) fn refused(reason: Reason) -> Self {
        Self {
            outcome: Err(Denial::new(reason)),
            audited: Vec::new(),
            dry_run: Vec::new(),
        }
    }

    /// It as a decision; `permit` makes the permit, by the policy that permits.
    pub(super) fn about<T>(
        self,
        permit: impl FnOnce(Option<PolicyName>) -> Permit<T>,
    ) -> Decision<T> {
        Decision {
            outcome: self.outcome.map(permit),
            audited: self.audited,
            dry_run: self.dry_run,
        }
    }
}

/// Gathers what policies say, in any order.
#[derive(Default)]
struct Tally<'a> {
    missing: Option<&'a PolicyName>,
    invalid: Option<&'a PolicyName>,
    denied: Option<&'a PolicyName>,
    allowed: Option<&'a PolicyName>,
    demanded: bool,
    audited: Vec<PolicyName>,
    would_deny: Vec<PolicyName>,
    would_demand: Vec<PolicyName>,
    would_allow: bool,
}

pub(super) fn judge(mesh: &Mesh, workload: &Workload, facts: &Facts<'_>) -> Verdict {
    let (mut tally, rules) = (Tally::default(), mesh.rules());
    for scope in rules.scopes(&workload.namespace) {
        tally.add_scope(rules, scope, facts);
    }
    for name in &workload.policies {
        match (mesh.policy(name), rules.long(name)) {
            (None, _) => least(&mut tally.missing, name),
            (Some(policy), _) if governs_by_scope(policy, workload) => {}
            (Some(_), Some(scope)) => tally.add_scope(rules, scope, facts),
            (Some(policy), None) => tally.add(policy, facts),
        }
    }
    tally.verdict()
}

/// Whether a policy governs a workload without being listed by it.
pub(super) fn governs_by_scope(policy: &Policy, workload: &Workload) -> bool {
    match policy.scope {
        PolicyScope::Global => true,
        PolicyScope::Namespace => policy.name.namespace == workload.namespace,
        PolicyScope::Selector => false,
    }
}

/// Keeps the first in order of names, so that the same policy is named whatever the order of evaluation.
fn least<'a>(slot: &mut Option<&'a PolicyName>, name: &'a PolicyName) {
    if slot.is_none_or(|held| name < held) {
        *slot = Some(name);
    }
}

impl<'a> Tally<'a> {
    /// All policies of a scope at once.
    fn add_scope(&mut self, rules: &'a Rules, scope: &'a Scope, facts: &'a Facts<'_>) {
        self.demanded |= scope.demanding > 0;
        scope
            .invalid
            .first()
            .into_iter()
            .for_each(|name| least(&mut self.invalid, name));
        self.audited.extend(scope.invalid_audit.iter().cloned());
        self.would_deny
            .extend(scope.invalid_dry_run.iter().cloned());
        self.would_demand.extend(scope.would_demand.iter().cloned());
        for bucket in rules.find(scope, facts) {
            bucket
                .denies(facts)
                .into_iter()
                .for_each(|name| least(&mut self.denied, name));
            bucket
                .allows(facts)
                .into_iter()
                .for_each(|name| least(&mut self.allowed, name));
            for policy in bucket.reports(facts) {
                match policy.action {
                    Action::Audit => self.audited.push(policy.name.clone()),
                    Action::Deny => self.would_deny.push(policy.name.clone()),
                    Action::Allow => self.would_allow = true,
                }
            }
        }
    }

    /// One policy, rule by rule.
    fn add(&mut self, policy: &'a Policy, facts: &Facts<'_>) {
        let name = &policy.name;
        let invalid = matches!(policy.validity, Validity::Invalid(_));
        let matched = || {
            policy
                .rules
                .iter()
                .any(|r| matches::rule(r, policy.action, facts))
        };
        match (policy.action, policy.dry_run) {
            (Action::Audit, _) => {
                if invalid || matched() {
                    self.audited.push(name.clone());
                }
            }
            (Action::Allow | Action::Deny, false) if invalid => least(&mut self.invalid, name),
            (Action::Allow | Action::Deny, true) if invalid => self.would_deny.push(name.clone()),
            (Action::Deny, false) => {
                if matched() {
                    least(&mut self.denied, name);
                }
            }
            (Action::Deny, true) => {
                if matched() {
                    self.would_deny.push(name.clone());
                }
            }
            (Action::Allow, false) => {
                self.demanded = true;
                if matched() {
                    least(&mut self.allowed, name);
                }
            }
            (Action::Allow, true) => {
                self.would_demand.push(name.clone());
                self.would_allow |= matched();
            }
        }
    }

    fn verdict(self) -> Verdict {
        let Self {
            missing,
            invalid,
            denied,
            allowed,
            demanded,
            mut audited,
            would_deny: mut dry_run,
            would_demand,
            would_allow,
        } = self;
        let deny = |reason, policy: &PolicyName| {
            Err(Denial {
                reason,
                policy: Some(policy.clone()),
            })
        };
        let outcome = match (missing, invalid, denied, allowed) {
            (Some(p), ..) => deny(Reason::NotReady, p),
            (_, Some(p), ..) => deny(Reason::PolicyInvalid, p),
            (_, _, Some(p), _) => deny(Reason::PolicyDenied, p),
            (_, _, _, Some(p)) => Ok(Some(p.clone())),
            (None, None, None, None) if demanded => Err(Denial::new(Reason::NotAllowed)),
            (None, None, None, None) => Ok(None),
        };
        // Dry-run ALLOW policies are judged together: were they in force, would anything permit this?
        if allowed.is_none() && !would_allow {
            dry_run.extend(would_demand);
        }
        audited.sort_unstable();
        audited.dedup();
        dry_run.sort_unstable();
        dry_run.dedup();
        Verdict {
            outcome,
            audited,
            dry_run,
        }
    }
}
