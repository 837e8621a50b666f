//! The snapshot against a plain list: every lookup and every diff, over random histories.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use mesh_model::{
    mesh::{Change, Diff, Mesh, MtlsMode, Policy, Service, Workload, WorkloadExtra},
    name::{PolicyName, ServiceName, WorkloadUid},
    testing::{Rng, cast::*, world},
};

const IPS: [&str; 5] = ["10.0.0.1", "10.0.0.2", "10.0.0.3", "fd00::1", "fd00::2"];
const VIPS: [&str; 3] = ["10.96.0.1", "10.96.0.2", "10.0.0.1"];

/// What a snapshot ought to hold.
#[derive(Clone, Default)]
struct Plain {
    workloads: BTreeMap<WorkloadUid, Workload>,
    extras: BTreeMap<WorkloadUid, WorkloadExtra>,
    services: BTreeMap<ServiceName, Service>,
    policies: BTreeMap<PolicyName, Policy>,
    complete: bool,
}

impl Plain {
    fn change(&mut self, change: &Change) {
        match change.clone() {
            Change::Workload(w) => drop(self.workloads.insert(w.uid.clone(), w)),
            Change::RemoveWorkload(uid) => {
                drop((self.workloads.remove(&uid), self.extras.remove(&uid)))
            }
            Change::WorkloadExtra(uid, e) => drop(self.extras.insert(uid, e)),
            Change::RemoveWorkloadExtra(uid) => drop(self.extras.remove(&uid)),
            Change::Service(s) => drop(self.services.insert(s.name.clone(), s)),
            Change::RemoveService(name) => drop(self.services.remove(&name)),
            Change::Policy(p) => drop(self.policies.insert(p.name.clone(), p)),
            Change::RemovePolicy(name) => drop(self.policies.remove(&name)),
            Change::Complete => self.complete = true,
            other => panic!("not generated: {other:?}"),
        }
    }

    fn owners(&self, ip: IpAddr) -> Vec<&Workload> {
        self.workloads
            .values()
            .filter(|w| w.addresses.iter().any(|a| a.to_canonical() == ip))
            .collect()
    }

    fn endpoints(&self, name: &ServiceName) -> Vec<&Workload> {
        self.workloads
            .values()
            .filter(|w| w.services.iter().any(|m| m.service == *name))
            .collect()
    }

    fn vip_owners(&self, ip: IpAddr) -> Vec<&Service> {
        let exact: Vec<_> = self
            .services
            .values()
            .filter(|s| s.vips.iter().any(|v| v.ip == ip))
            .collect();
        if !exact.is_empty() {
            return exact;
        }
        let length = |s: &Service| {
            s.ranges
                .iter()
                .filter(|(_, r)| r.contains(&ip))
                .map(|(_, r)| r.prefix_len())
                .max()
        };
        let best = self.services.values().filter_map(length).max();
        self.services
            .values()
            .filter(|s| best.is_some() && length(s) == best)
            .collect()
    }

    fn disputed(&self, uid: &WorkloadUid) -> Vec<IpAddr> {
        let own: BTreeSet<IpAddr> = self
            .workloads
            .get(uid)
            .into_iter()
            .flat_map(|w| w.addresses.iter().map(IpAddr::to_canonical))
            .collect();
        own.into_iter()
            .filter(|ip| self.owners(*ip).len() > 1)
            .collect()
    }

    fn disputed_vips(&self, name: &ServiceName) -> Vec<String> {
        let of = |s: &Service| {
            s.vips
                .iter()
                .map(|v| v.ip.to_string())
                .chain(s.ranges.iter().map(|(_, r)| r.to_string()))
                .collect::<BTreeSet<_>>()
        };
        let own = self.services.get(name).map(of).unwrap_or_default();
        own.into_iter()
            .filter(|c| self.services.values().filter(|s| of(s).contains(c)).count() > 1)
            .collect()
    }

    /// The full comparison.
    fn diff(&self, new: &Plain) -> Diff {
        let uids: BTreeSet<_> = [self, new]
            .iter()
            .flat_map(|p| p.workloads.keys().chain(p.extras.keys()))
            .collect();
        let names: BTreeSet<_> = [self, new]
            .iter()
            .flat_map(|p| {
                p.services.keys().chain(
                    p.workloads
                        .values()
                        .flat_map(|w| w.services.iter().map(|m| &m.service)),
                )
            })
            .collect();
        let policies: BTreeSet<_> = [self, new]
            .iter()
            .flat_map(|p| p.policies.keys())
            .filter(|n| self.policies.get(*n) != new.policies.get(*n))
            .cloned()
            .collect();
        let everyone = |p: &Plain, n: &PolicyName| {
            p.policies
                .get(n)
                .is_some_and(|p| p.scope == mesh_model::mesh::PolicyScope::Global)
        };
        let moved = |n: &ServiceName| {
            new.endpoints(n)
                .iter()
                .any(|w| self.disputed(&w.uid) != new.disputed(&w.uid))
        };
        Diff {
            workloads: uids
                .into_iter()
                .filter(|u| {
                    self.workloads.get(*u) != new.workloads.get(*u)
                        || self.extras.get(*u) != new.extras.get(*u)
                        || self.disputed(u) != new.disputed(u)
                })
                .cloned()
                .collect(),
            services: names
                .into_iter()
                .filter(|n| {
                    self.services.get(*n) != new.services.get(*n)
                        || self.endpoints(n) != new.endpoints(n)
                        || self.disputed_vips(n) != new.disputed_vips(n)
                        || moved(n)
                })
                .cloned()
                .collect(),
            everyone: policies
                .iter()
                .any(|n| everyone(self, n) || everyone(new, n)),
            policies: policies.into_iter().collect(),
            config: self.complete != new.complete,
        }
    }

    fn check(&self, mesh: &Mesh) {
        for ip in IPS.iter().chain(&VIPS).map(|t| ip(t)) {
            let owner = match self.owners(ip)[..] {
                [only] => Some(only),
                _ => None,
            };
            assert_eq!(
                mesh.workload_at(&"".into(), ip).map(|w| &**w),
                owner,
                "{ip}"
            );
            let service = match self.vip_owners(ip)[..] {
                [only] => Some(only),
                _ => None,
            };
            assert_eq!(
                mesh.service_at(&"".into(), ip).map(|s| &**s),
                service,
                "{ip}"
            );
            let rivals = self.owners(ip);
            let contested = self.vip_owners(ip).len() > 1
                || (rivals.len() > 1 && rivals.iter().any(|w| !w.host_network));
            assert_eq!(mesh.is_contested(&"".into(), ip), contested, "{ip}");
        }
        for n in 0..3 {
            let name = service_name("a", &format!("s{n}"));
            let endpoints: Vec<&Workload> = mesh.endpoints(&name).iter().map(|w| &**w).collect();
            assert_eq!(endpoints, self.endpoints(&name));
            let named: Vec<ServiceName> = self
                .services
                .keys()
                .filter(|s| s.hostname == name.hostname)
                .cloned()
                .collect();
            assert_eq!(mesh.services_named(name.hostname.as_str()), named);
            let node = format!("n{n}").as_str().into();
            let local: Vec<&Workload> = mesh.workloads_on(&node).iter().map(|w| &**w).collect();
            assert_eq!(
                local,
                self.workloads
                    .values()
                    .filter(|w| w.node == node)
                    .collect::<Vec<_>>()
            );
            assert_eq!(
                mesh.serves_on(&name, &node),
                self.endpoints(&name).iter().any(|w| w.node == node)
            );
        }
        assert_eq!(
            (
                mesh.workload_count(),
                mesh.policies().count(),
                mesh.services().count()
            ),
            (
                self.workloads.len(),
                self.policies.len(),
                self.services.len()
            )
        );
        for (uid, workload) in &self.workloads {
            assert_eq!(
                (
                    mesh.workload(uid).map(|w| &**w),
                    mesh.extra(uid).map(Arc::as_ref)
                ),
                (Some(workload), self.extras.get(uid))
            );
        }
    }
}

fn any_change(rng: &mut Rng) -> Change {
    let name = format!("p{}", rng.u8(0..6));
    match rng.u8(0..20) {
        0..=6 => Change::Workload(workload(rng, &name)),
        7..=8 => Change::RemoveWorkload(uid("a", &name)),
        9..=10 => Change::WorkloadExtra(
            uid("a", &name),
            extra(if rng.bool() {
                MtlsMode::Strict
            } else {
                MtlsMode::Permissive
            }),
        ),
        11 => Change::RemoveWorkloadExtra(uid("a", &name)),
        12..=14 => Change::Service(a_service(rng)),
        15 => Change::RemoveService(service_name("a", &format!("s{}", rng.u8(0..3)))),
        16..=17 => Change::Policy(world::policy(rng)),
        18 => Change::RemovePolicy(policy_name("a", &format!("p{}", rng.u8(0..8)))),
        _ => Change::Complete,
    }
}

fn workload(rng: &mut Rng, name: &str) -> Workload {
    let mut w = pod(
        "a",
        name,
        &format!("n{}", rng.u8(0..3)),
        IPS[rng.usize(..5)],
    );
    match rng.u8(0..6) {
        0 => w.addresses = Box::new([]),
        1 => w.addresses = Box::new([ip("10.0.0.3"), ip("fd00::2")]),
        2 => w.addresses = Box::new([ip("fd00::1"), ip("10.0.0.2"), ip("::ffff:10.0.0.1")]),
        _ => {}
    }
    if rng.u8(0..4) == 0 {
        w.node = "".into();
    }
    w.host_network = rng.u8(0..4) == 0;
    w.healthy = rng.bool();
    if rng.u8(0..5) == 0 {
        w.name = "another".into();
    }
    for _ in 0..rng.usize(0..3) {
        w = serving(w, "a", &format!("s{}", rng.u8(0..3)));
    }
    w
}

fn a_service(rng: &mut Rng) -> Service {
    let mut s = service(
        "a",
        &format!("s{}", rng.u8(0..3)),
        VIPS[rng.usize(..3)],
        80,
        rng.u16(8080..8082),
    );
    if rng.u8(0..3) == 0 {
        s.vips = Box::new([]);
    }
    if rng.u8(0..3) == 0 {
        let range = ["10.0.0.0/24", "10.0.0.0/8", "10.96.0.0/31", "0.0.0.0/0"][rng.usize(..4)];
        s.ranges = Box::new([("".into(), range.parse().expect("a range"))]);
    }
    s
}

#[test]
fn lookups_and_diffs_agree_with_a_plain_list() {
    let mut rng = Rng::with_seed(0x5eed);
    for _ in 0..60 {
        let (mut plain, mut mesh) = (Plain::default(), Mesh::empty());
        for _ in 0..60 {
            let changes: Vec<Change> = (0..rng.usize(0..6)).map(|_| any_change(&mut rng)).collect();
            let (before, old) = (plain.clone(), mesh.clone());
            changes.iter().for_each(|c| plain.change(c));
            let (next, diff) = mesh.apply(changes.clone());
            assert_eq!(diff, before.diff(&plain), "after {changes:#?}");
            plain.check(&next);
            before.check(&old);
            mesh = next;
        }
    }
}

#[test]
fn what_nobody_owns_any_more_is_named() {
    let captured = serving(pod("shop", "db", "n1", "10.0.0.1"), "shop", "db");
    let mut shown = pod("shop", "node-agent", "n1", "10.0.0.2");
    shown.host_network = true;
    let mut plain = serving(pod("shop", "web", "n1", "10.0.0.3"), "shop", "web");
    plain.protocol = mesh_model::mesh::workload::TunnelProtocol::None;
    let (uid, uids) = (captured.uid.clone(), [shown.uid.clone(), plain.uid.clone()]);
    let (before, _) = Mesh::empty().apply([
        Change::Workload(captured.clone()),
        Change::Workload(shown),
        Change::Workload(plain),
        Change::Service(service("shop", "db", "10.96.0.1", 80, 8080)),
        Change::Service(service("shop", "web", "10.96.0.2", 80, 8080)),
    ]);
    let vacated = |changes: Vec<Change>| {
        let (after, diff) = before.apply(changes);
        let named = after.vacated(&before, &diff);
        let ips: BTreeSet<String> = named.iter().map(|at| at.ip.to_string()).collect();
        ips.into_iter().collect::<Vec<_>>().join(" ")
    };
    let gone = |uid: &WorkloadUid| Change::RemoveWorkload(uid.clone());
    assert_eq!(vacated(uids.iter().map(gone).collect()), "");
    assert_eq!(vacated(vec![gone(&uid)]), "10.0.0.1");
    let services = ["db", "web"].map(|name| Change::RemoveService(service_name("shop", name)));
    assert_eq!(vacated(services.to_vec()), "10.96.0.1");
    let mut moved = captured;
    moved.addresses = Box::new(["10.0.0.9".parse().expect("an address")]);
    assert_eq!(vacated(vec![Change::Workload(moved)]), "10.0.0.1");
    let heir = pod("shop", "heir", "n2", "10.0.0.1");
    assert_eq!(vacated(vec![gone(&uid), Change::Workload(heir)]), "");
}

#[test]
fn a_namespace_is_enrolled_when_it_is_said_or_seen_to_be() {
    let said = |names: &[&str]| {
        let mut config = config();
        config.enrolled_namespaces = names.iter().map(|n| (*n).into()).collect();
        Change::Config(config)
    };
    let listed = |mesh: &Mesh| {
        let names = mesh.enrolled_namespaces().into_iter();
        names.map(ToString::to_string).collect::<Vec<_>>().join(" ")
    };
    let seen = pod("shop", "web", "n1", "10.0.0.1");
    let plain = pod("plain", "web", "n1", "10.0.0.2");
    let (mesh, _) = Mesh::empty().apply([
        Change::WorkloadExtra(seen.uid.clone(), extra(MtlsMode::Strict)),
        Change::Workload(seen),
        Change::Workload(plain),
        said(&["bank", "empty"]),
    ]);
    assert_eq!(listed(&mesh), "bank empty shop");
    let (mesh, diff) = mesh.apply([said(&["bank"])]);
    assert_eq!(listed(&mesh), "bank shop");
    assert_eq!(
        diff,
        Diff::default(),
        "no connection is decided again for the list's sake"
    );
    let mut other = config();
    other.registry_only = true;
    let (mesh, diff) = mesh.apply([Change::Config(other)]);
    assert_eq!((listed(&mesh).as_str(), diff.config), ("shop", true));
}
