//! A generator of worlds (policies and workloads that change step by step) and of connections into them.
//!
//! Invariants: the same seed gives the same world; the vocabulary is small, so that rules match often and every
//! boundary is met: absent identities, mapped addresses, empty lists, invalid, missing and dry-run policies.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use fastrand::Rng;
use ipnet::IpNet;

use super::cast;
use crate::{
    authn::Transport,
    authz::Conn,
    mesh::{
        Action, Change, Mesh, MtlsMode, Policy, PolicyScope, Validity, Workload, WorkloadExtra,
        policy::{Clause, Match, Rule, ServiceAccountMatch, StringMatch},
    },
    name::{Identity, PolicyName, WorkloadUid},
};

const NAMESPACES: [&str; 3] = ["a", "ab", "b"];
const ACCOUNTS: [&str; 3] = ["x", "xy", "y"];
const TRUST_DOMAINS: [&str; 2] = ["cluster.local", "ocal"];
const PORTS: [u16; 4] = [80, 81, 443, 65535];
const SOURCES: [&str; 7] = [
    "10.0.0.1",
    "10.0.0.2",
    "10.0.1.1",
    "::ffff:10.0.0.1",
    "fd00::1",
    "fd00::1:0:0:1",
    "::1",
];
const RANGES: [&str; 14] = [
    "10.0.0.1/32",
    "10.0.0.0/24",
    "10.0.1.0/24",
    "10.0.0.0/8",
    "10.0.0.7/30",
    "0.0.0.0/0",
    "::ffff:10.0.0.0/120",
    "::ffff:0:0/96",
    "::/0",
    "::/80",
    "fd00::/16",
    "fd00::1/128",
    "fd00::/64",
    "192.0.2.0/24",
];
/// One destination workload for each namespace, and another one that lists policies.
const DESTINATIONS: [(&str, &str, &str); 4] = [
    ("a", "one", "10.0.9.1"),
    ("a", "two", "10.0.9.2"),
    ("b", "one", "10.0.9.3"),
    ("ab", "six", "fd00:9::1"),
];

/// What there is, as a plain list and as the snapshot that `apply` made of it.
pub struct World {
    /// The snapshot.
    pub mesh: Mesh,
    /// The policies.
    pub policies: BTreeMap<PolicyName, Policy>,
    /// The destinations.
    pub workloads: BTreeMap<WorkloadUid, Workload>,
    /// Their extra parts; one may be missing.
    pub extras: BTreeMap<WorkloadUid, WorkloadExtra>,
    /// Whether all was received once.
    pub complete: bool,
}

impl World {
    /// A world with all destinations and some policies.
    pub fn new(rng: &mut Rng) -> Self {
        let mut world = Self {
            mesh: Mesh::empty(),
            policies: BTreeMap::new(),
            workloads: BTreeMap::new(),
            extras: BTreeMap::new(),
            complete: rng.u8(..) != 0,
        };
        let mut changes = vec![Change::Config(cast::config())];
        changes.extend(world.complete.then_some(Change::Complete));
        changes.extend(DESTINATIONS.iter().flat_map(|(ns, name, ip)| {
            [
                Change::Workload(cast::pod(ns, name, "n1", ip)),
                Change::WorkloadExtra(cast::uid(ns, name), extra(rng)),
            ]
        }));
        changes.extend((0..rng.usize(0..10)).map(|_| Change::Policy(policy(rng))));
        world.change(changes);
        world.step(rng);
        world
    }

    /// Some more changes: policies come, go and change; workloads are selected by others.
    pub fn step(&mut self, rng: &mut Rng) {
        let changes = (0..rng.usize(1..6)).map(|_| self.any_change(rng)).collect();
        self.change(changes);
    }

    fn any_change(&self, rng: &mut Rng) -> Change {
        let (ns, name, ip) = DESTINATIONS[rng.usize(..DESTINATIONS.len())];
        match rng.u8(0..16) {
            0..=6 => Change::Policy(policy(rng)),
            7..=10 => Change::RemovePolicy(
                rng.choice(self.policies.keys())
                    .cloned()
                    .unwrap_or_else(|| cast::policy_name("a", "none")),
            ),
            11..=13 => {
                let mut workload = cast::pod(ns, name, "n1", ip);
                workload.policies = (0..rng.usize(0..4))
                    .filter_map(|_| rng.choice(self.policies.keys()).cloned())
                    .collect();
                if rng.u8(0..16) == 0 {
                    workload.policies = Box::new([cast::policy_name("a", "missing")]);
                }
                Change::Workload(workload)
            }
            14 => Change::WorkloadExtra(cast::uid(ns, name), extra(rng)),
            _ if rng.u8(0..8) == 0 => Change::RemoveWorkloadExtra(cast::uid(ns, name)),
            _ => Change::WorkloadExtra(cast::uid(ns, name), cast::extra(MtlsMode::Permissive)),
        }
    }

    fn change(&mut self, changes: Vec<Change>) {
        for change in &changes {
            match change {
                Change::Policy(p) => drop(self.policies.insert(p.name.clone(), p.clone())),
                Change::RemovePolicy(name) => drop(self.policies.remove(name)),
                Change::Workload(w) => drop(self.workloads.insert(w.uid.clone(), w.clone())),
                Change::WorkloadExtra(uid, e) => drop(self.extras.insert(uid.clone(), e.clone())),
                Change::RemoveWorkloadExtra(uid) => drop(self.extras.remove(uid)),
                _ => {}
            }
        }
        self.mesh = self.mesh.apply(changes).0;
    }

    /// The same world received in another order, one change at a time.
    pub fn shuffled(&self, rng: &mut Rng) -> Mesh {
        let mut changes: Vec<Change> = self
            .policies
            .values()
            .cloned()
            .map(Change::Policy)
            .collect();
        changes.extend(self.workloads.values().cloned().map(Change::Workload));
        changes.extend(
            self.extras
                .iter()
                .map(|(u, e)| Change::WorkloadExtra(u.clone(), e.clone())),
        );
        changes.push(Change::Config(cast::config()));
        changes.extend(self.complete.then_some(Change::Complete));
        rng.shuffle(&mut changes);
        changes
            .into_iter()
            .fold(Mesh::empty(), |mesh, c| mesh.apply([c]).0)
    }

    /// A connection to one of the destinations.
    pub fn connection(&self, rng: &mut Rng) -> Conn {
        let (ns, name, ip) = DESTINATIONS[rng.usize(..DESTINATIONS.len())];
        let workload = Arc::new(self.workloads[&cast::uid(ns, name)].clone());
        let ip = match cast::ip(ip) {
            IpAddr::V4(v4) if rng.u8(0..4) == 0 => IpAddr::V6(v4.to_ipv6_mapped()),
            other => other,
        };
        let identity = Identity {
            trust_domain: pick(rng, &TRUST_DOMAINS).into(),
            namespace: pick(rng, &NAMESPACES).into(),
            service_account: pick(rng, &ACCOUNTS).into(),
        };
        let transport = match rng.u8(0..16) {
            0..=9 => Transport::Mtls(identity),
            10..=11 => Transport::Kernel(identity),
            12..=14 => Transport::Plain,
            _ => Transport::Probe,
        };
        Conn {
            via: None,
            transport,
            source_ip: cast::ip(pick(rng, &SOURCES)),
            workload,
            destination: SocketAddr::new(ip, PORTS[rng.usize(..PORTS.len())]),
        }
    }
}

fn pick<'a>(rng: &mut Rng, list: &[&'a str]) -> &'a str {
    list[rng.usize(..list.len())]
}

fn extra(rng: &mut Rng) -> WorkloadExtra {
    let mode = |rng: &mut Rng| {
        [
            MtlsMode::Permissive,
            MtlsMode::Permissive,
            MtlsMode::Strict,
            MtlsMode::Disable,
        ][rng.usize(..4)]
    };
    let mut extra = cast::extra(mode(rng));
    if rng.bool() {
        extra.mtls_ports = Box::new([(PORTS[rng.usize(..PORTS.len())], mode(rng))]);
        extra.probe_ports = Box::new([PORTS[rng.usize(..PORTS.len())]]);
    }
    if rng.u8(0..24) == 0 {
        extra.features = Box::new(["from-the-future".into()]);
    }
    extra
}

/// A policy with a name out of a few, so that policies replace each other and change their scope.
pub fn policy(rng: &mut Rng) -> Policy {
    let action = [Action::Allow, Action::Allow, Action::Deny, Action::Audit][rng.usize(..4)];
    let rules = if rng.u8(0..12) == 0 {
        rng.usize(9..14)
    } else {
        rng.usize(0..3)
    };
    Policy {
        name: cast::policy_name(pick(rng, &NAMESPACES), &format!("p{}", rng.u8(0..8))),
        scope: [
            PolicyScope::Global,
            PolicyScope::Namespace,
            PolicyScope::Namespace,
            PolicyScope::Selector,
        ][rng.usize(..4)],
        action,
        rules: (0..rules).map(|_| rule(rng)).collect(),
        dry_run: rng.u8(0..6) == 0,
        validity: if rng.u8(0..50) == 0 {
            Validity::Invalid("a test says so".into())
        } else {
            Validity::Valid
        },
    }
}

fn rule(rng: &mut Rng) -> Rule {
    let clause = |rng: &mut Rng| Clause {
        matches: (0..rng.usize(0..3)).map(|_| one(rng)).collect(),
    };
    Rule {
        clauses: (0..rng.usize(0..4)).map(|_| clause(rng)).collect(),
    }
}

fn one(rng: &mut Rng) -> Match {
    fn some<T>(rng: &mut Rng, make: impl Fn(&mut Rng) -> T) -> Box<[T]> {
        let count = if rng.u8(0..5) == 0 {
            rng.usize(1..4)
        } else {
            0
        };
        (0..count).map(|_| make(rng)).collect()
    }
    let namespace = |rng: &mut Rng| {
        let text = pick(rng, &NAMESPACES).to_owned();
        affix(rng, text)
    };
    let principal = |rng: &mut Rng| {
        let text = format!(
            "{}/ns/{}/sa/{}",
            pick(rng, &TRUST_DOMAINS),
            pick(rng, &NAMESPACES),
            pick(rng, &ACCOUNTS)
        );
        affix(rng, text)
    };
    let net = |rng: &mut Rng| {
        pick(rng, &RANGES)
            .parse::<IpNet>()
            .expect("a range of the vocabulary")
    };
    let port = |rng: &mut Rng| PORTS[rng.usize(..PORTS.len())];
    let account = |rng: &mut Rng| ServiceAccountMatch {
        namespace: pick(rng, &NAMESPACES).into(),
        service_account: pick(rng, &ACCOUNTS).into(),
    };
    Match {
        namespaces: some(rng, namespace),
        not_namespaces: some(rng, namespace),
        principals: some(rng, principal),
        not_principals: some(rng, principal),
        source_ips: some(rng, net),
        not_source_ips: some(rng, net),
        destination_ips: some(rng, |rng| {
            if rng.bool() {
                net(rng)
            } else {
                destination(rng)
            }
        }),
        not_destination_ips: some(rng, net),
        destination_ports: some(rng, port),
        not_destination_ports: some(rng, port),
        service_accounts: some(rng, account),
        not_service_accounts: some(rng, account),
        beyond_l4: rng.u8(0..10) == 0,
    }
}

fn destination(rng: &mut Rng) -> IpNet {
    let ip = cast::ip(DESTINATIONS[rng.usize(..DESTINATIONS.len())].2);
    match ip {
        IpAddr::V4(v4) if rng.bool() => {
            IpNet::new(v4.to_ipv6_mapped().into(), 128).expect("a full length")
        }
        ip => IpNet::from(ip),
    }
}

/// The text itself, or a piece of its beginning or end, sometimes empty or a character off.
fn affix(rng: &mut Rng, text: String) -> StringMatch {
    let cut = rng.usize(..=text.len());
    let spoil = |rng: &mut Rng, t: String| if rng.u8(0..8) == 0 { t + "/" } else { t };
    match rng.u8(0..8) {
        0..=3 => StringMatch::Exact(spoil(rng, text).into()),
        4..=5 => StringMatch::Prefix(spoil(rng, text[..cut].to_owned()).into()),
        6 => StringMatch::Suffix(text[cut..].into()),
        _ => StringMatch::Presence,
    }
}
