//! Why a decision came out as it did, for `why`, `analyze` and the logs.
//!
//! Invariant: an explanation asks the very functions that decide; it decides nothing by itself.

mod onward;
mod outsider;

pub use onward::{Asked, Client, Onward, onward};
pub use outsider::outsider;

use std::{fmt, net::SocketAddr, sync::Arc};

use serde::Serialize;

use crate::{
    authn::Transport,
    authz::{self, Conn, Decision, Egress, Target},
    mesh::{Action, Enrolment, Mesh, MtlsMode, Policy, PolicyScope, Validity, Workload},
    name::Identity,
    reason::Reason,
    route::{self, Authority, Candidate, Chooser, Named, Shortcut, Via},
};

/// Why a connection passes or not, from one workload to an address.
#[derive(Clone, Debug, Serialize)]
pub struct Explanation {
    /// The uid of the workload that dials.
    pub source: String,
    /// Who it is; empty when it proves nothing.
    pub identity: String,
    /// What it dials.
    pub dialed: SocketAddr,
    /// What that is: `service`, `workload` or `outside the mesh`.
    pub target: String,
    /// Why it may not leave or has nowhere to go.
    pub refused: Option<Why>,
    /// Where it may go, best first.
    pub ways: Vec<Way>,
}

/// One place where the connection may go.
#[derive(Clone, Debug, Serialize)]
pub struct Way {
    /// The uid of the workload there.
    pub workload: Option<String>,
    /// Its node.
    pub node: Option<String>,
    /// `hbone`, `direct` or `plain`.
    pub path: &'static str,
    /// Where the connection or its tunnel goes.
    pub address: String,
    /// The CONNECT authority.
    pub authority: Option<String>,
    /// The identities that the peer may prove.
    pub expects: Vec<String>,
    /// What the workload accepts on the port: `STRICT`, `PERMISSIVE`, `DISABLE`.
    pub mtls: Option<&'static str>,
    /// The policies that govern the workload.
    pub policies: Vec<InScope>,
    /// The waypoint to which its node hands the connection, and what it asks that for.
    pub handed: Option<HandedTo>,
    /// How it decides; absent where nobody of the mesh does, or where a waypoint decides.
    pub decision: Option<Verdict>,
}

/// To whom a connection from outside the mesh is handed.
#[derive(Clone, Debug, Serialize)]
pub struct HandedTo {
    /// The service that it can be for.
    pub service: String,
    /// The address and port of the service that is asked for.
    pub asked: SocketAddr,
    /// The replicas of the waypoint, best first.
    pub waypoints: Vec<SocketAddr>,
}

/// A policy that governs a workload.
#[derive(Clone, Debug, Serialize)]
pub struct InScope {
    /// `namespace/name`.
    pub name: String,
    /// `mesh`, `namespace` or `selector`; `missing` when it has not been received.
    pub scope: &'static str,
    /// `ALLOW`, `DENY` or `AUDIT`.
    pub action: Option<&'static str>,
    /// Whether it is only reported.
    pub dry_run: bool,
    /// Why it could not be understood.
    pub invalid: Option<String>,
}

/// What the destination says.
#[derive(Clone, Debug, Serialize)]
pub struct Verdict {
    /// Whether the connection passes.
    pub allowed: bool,
    /// Why not.
    pub why: Option<Why>,
    /// The policy that decided.
    pub policy: Option<String>,
    /// AUDIT policies that match.
    pub audited: Vec<String>,
    /// Dry-run policies that would refuse.
    pub dry_run: Vec<String>,
}

/// A reason as it is shown.
#[derive(Clone, Debug, Serialize)]
pub struct Why {
    /// Its key in the log.
    pub reason: &'static str,
    /// What it means.
    pub text: &'static str,
}

impl From<Reason> for Why {
    fn from(reason: Reason) -> Self {
        Self {
            reason: reason.shown().key,
            text: reason.shown().text,
        }
    }
}

/// Explains a connection.
pub fn connection(mesh: &Mesh, source: &Arc<Workload>, dialed: SocketAddr) -> Explanation {
    let target = authz::target(mesh, source, dialed);
    let mut explanation = Explanation {
        source: source.uid.to_string(),
        identity: source.identity.to_string(),
        dialed,
        target: name_of(mesh, source, &target, dialed),
        refused: None,
        ways: Vec::new(),
    };
    let chooser = Chooser {
        node: &source.node,
        seed: 0,
        client: source.addresses.first().copied().unwrap_or(dialed.ip()),
        ejected: &[],
    };
    let flow = Egress {
        source: Arc::clone(source),
        target,
        original: dialed,
        pinned: None,
    };
    let plan = authz::egress(mesh, flow)
        .outcome
        .map_err(|d| d.reason)
        .and_then(|permit| route::outbound(mesh, &permit, chooser));
    match plan {
        Ok(plan) => {
            explanation.ways = plan
                .candidates
                .iter()
                .map(|c| way(mesh, source, c))
                .collect()
        }
        Err(reason) => explanation.refused = Some(reason.into()),
    }
    explanation
}

fn name_of(mesh: &Mesh, source: &Workload, target: &Target, dialed: SocketAddr) -> String {
    match target {
        Target::Service(service, port) => format!("service {} port {port}", service.name),
        Target::Workload(workload, port) => format!("workload {} port {port}", workload.uid),
        Target::External if mesh.is_contested(&source.network, dialed.ip()) => {
            "an address that several claim".to_owned()
        }
        Target::External => "outside the mesh".to_owned(),
    }
}

fn way(mesh: &Mesh, source: &Arc<Workload>, candidate: &Candidate) -> Way {
    let texts = |identities: &[Identity]| identities.iter().map(Identity::to_string).collect();
    let (address, authority, expects) = match &candidate.via {
        Via::Plain(address) => (*address, None, Vec::new()),
        Via::Hbone {
            tunnel,
            authority,
            identities,
        } => (*tunnel, Some(authority), texts(identities)),
        Via::Named(named) => return by_name(candidate, named, texts),
    };
    let authority_text = authority.map(|a| match a {
        Authority::Address(a) => a.to_string(),
        Authority::Host(host, port) => format!("{host}:{port}"),
    });
    // What the application there is dialed at; elsewhere (a waypoint) somebody else decides.
    let final_address = match authority {
        None => Some(address),
        Some(Authority::Address(a)) if a.ip() == address.ip() => Some(*a),
        Some(Authority::Address(_) | Authority::Host(..)) => None,
    };
    let mut way = Way {
        workload: candidate.workload.as_ref().map(|w| w.uid.to_string()),
        node: candidate.workload.as_ref().map(|w| w.node.to_string()),
        path: if authority.is_some() {
            "hbone"
        } else {
            "plain"
        },
        address: address.to_string(),
        authority: authority_text,
        expects,
        mtls: None,
        policies: Vec::new(),
        handed: None,
        decision: None,
    };
    if let (Some(workload), Some(at)) = (&candidate.workload, final_address) {
        judge(mesh, source, workload, at, &mut way);
    }
    way
}

/// A way whose address only a resolver knows.
fn by_name(
    candidate: &Candidate,
    named: &Named,
    texts: impl Fn(&[Identity]) -> Vec<String>,
) -> Way {
    Way {
        workload: candidate.workload.as_ref().map(|w| w.uid.to_string()),
        node: None,
        path: if named.identities.is_some() {
            "hbone"
        } else {
            "plain"
        },
        address: format!("{}:{}", named.host, named.port),
        authority: None,
        expects: named.identities.as_deref().map(texts).unwrap_or_default(),
        mtls: None,
        policies: Vec::new(),
        handed: None,
        decision: None,
    }
}

/// Adds what the destination says.
fn judge(
    mesh: &Mesh,
    source: &Arc<Workload>,
    workload: &Arc<Workload>,
    at: SocketAddr,
    way: &mut Way,
) {
    let Some(extra) = mesh.extra(&workload.uid) else {
        return;
    };
    if extra.enrolment != Enrolment::Enrolled {
        return;
    }
    let is_plain = way.path == "plain";
    way.mtls = Some(mode_name(extra.mtls_for(at.port())));
    way.policies = authz::governing(mesh, workload)
        .into_iter()
        .map(|(name, policy)| in_scope(&name.to_string(), policy.map(|p| &**p)))
        .collect();
    if is_plain {
        return outsider::judge(mesh, source, workload, at, way);
    }
    let short = route::short(mesh, source, workload, at);
    let decision = match (short.way, short.decision) {
        (Shortcut::Direct, Some(decision)) => {
            (way.path, way.address, way.authority, way.expects) =
                ("direct", at.to_string(), None, Vec::new());
            decision
        }
        (Shortcut::Direct | Shortcut::Proxy | Shortcut::Refuse(_), _) => {
            let transport = Transport::Mtls(source.identity.clone());
            authz::ingress(mesh, conn(source, transport, workload, at))
        }
    };
    way.decision = Some(Verdict::of(&decision));
}

/// A connection as its destination sees it.
fn conn(
    source: &Workload,
    transport: Transport,
    workload: &Arc<Workload>,
    destination: SocketAddr,
) -> Conn {
    let v6 = destination.is_ipv6();
    let of_family = source.addresses.iter().find(|a| a.is_ipv6() == v6);
    let client = of_family.or(source.addresses.first());
    Conn {
        via: None,
        transport,
        source_ip: client.copied().unwrap_or(destination.ip()),
        workload: Arc::clone(workload),
        destination,
    }
}

impl Verdict {
    fn of<T>(decision: &Decision<T>) -> Self {
        let names =
            |list: &[crate::name::PolicyName]| list.iter().map(ToString::to_string).collect();
        let outcome = decision.outcome.as_ref();
        Self {
            allowed: outcome.is_ok(),
            why: outcome.err().map(|d| d.reason.into()),
            policy: outcome
                .map_or_else(|d| d.policy.as_ref(), |p| p.by())
                .map(ToString::to_string),
            audited: names(&decision.audited),
            dry_run: names(&decision.dry_run),
        }
    }
}

fn in_scope(name: &str, policy: Option<&Policy>) -> InScope {
    InScope {
        name: name.to_owned(),
        scope: match policy.map(|p| p.scope) {
            None => "missing",
            Some(PolicyScope::Global) => "mesh",
            Some(PolicyScope::Namespace) => "namespace",
            Some(PolicyScope::Selector) => "selector",
        },
        action: policy.map(|p| match p.action {
            Action::Allow => "ALLOW",
            Action::Deny => "DENY",
            Action::Audit => "AUDIT",
        }),
        dry_run: policy.is_some_and(|p| p.dry_run),
        invalid: policy.and_then(|p| match &p.validity {
            Validity::Valid => None,
            Validity::Invalid(why) => Some(why.to_string()),
        }),
    }
}

fn mode_name(mode: MtlsMode) -> &'static str {
    match mode {
        MtlsMode::Strict => "STRICT",
        MtlsMode::Permissive => "PERMISSIVE",
        MtlsMode::Disable => "DISABLE",
    }
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.identity.as_str() {
            "" => writeln!(f, "{} (nobody, to the mesh)", self.source)?,
            identity => writeln!(f, "{} ({identity})", self.source)?,
        }
        writeln!(f, "dials {}: {}", self.dialed, self.target)?;
        if let Some(why) = &self.refused {
            writeln!(f, "refused: {} ({})", why.text, why.reason)?;
        }
        for (n, way) in self.ways.iter().enumerate() {
            write!(f, "{}. {way}", n + 1)?;
        }
        Ok(())
    }
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} to {}", self.path, self.address)?;
        if let Some(authority) = &self.authority {
            write!(f, " for {authority}")?;
        }
        if let Some(workload) = &self.workload {
            write!(f, ", workload {workload}")?;
        }
        if let Some(node) = self.node.as_ref().filter(|n| !n.is_empty()) {
            write!(f, " on node {node}")?;
        }
        writeln!(f)?;
        if let Some(mtls) = self.mtls {
            writeln!(f, "   accepts: {mtls}")?;
        }
        for policy in &self.policies {
            write!(
                f,
                "   policy {} ({}, {})",
                policy.name,
                policy.scope,
                policy.action.unwrap_or("not received")
            )?;
            if policy.dry_run {
                f.write_str(", dry run")?;
            }
            if let Some(why) = &policy.invalid {
                write!(f, ", invalid: {why}")?;
            }
            writeln!(f)?;
        }
        if let Some(HandedTo {
            service,
            asked,
            waypoints,
        }) = &self.handed
        {
            let all: Vec<String> = waypoints.iter().map(ToString::to_string).collect();
            writeln!(
                f,
                "   handed to the waypoint of service {service} at {} for {asked}, which returns it",
                all.join(", ")
            )?;
        }
        self.decision.iter().try_for_each(|d| write!(f, "{d}"))
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let by = self
            .policy
            .as_ref()
            .map_or_else(String::new, |p| format!(" by {p}"));
        match &self.why {
            None => writeln!(f, "   => allowed{by}")?,
            Some(why) => writeln!(f, "   => refused{by}: {} ({})", why.text, why.reason)?,
        }
        for name in &self.audited {
            writeln!(f, "   audit: {name} matches")?;
        }
        for name in &self.dry_run {
            writeln!(f, "   dry run: {name} would refuse")?;
        }
        Ok(())
    }
}
