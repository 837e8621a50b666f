//! Random values of the model, for the tests of this crate.
//!
//! Invariant: every value is one that the model allows, so that a round trip has to be exact.

pub(crate) mod routes;

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::Arc,
    time::Duration,
};

use fastrand::Rng;
use ipnet::IpNet;
use mesh_model::{
    mesh::{
        Action, AppProtocol, Change, Collector, Enrolment, GatewayAddress, GatewayDestination,
        MeshConfig, MtlsMode, Policy, PolicyScope, SameNode, Service, ServiceExtra, ServicePort,
        SpanTag, TagValue, Tracing, TracingScope, TunnelBlocker, Validity, Workload, WorkloadExtra,
        policy::{Clause, Match, Rule, ServiceAccountMatch, StringMatch},
        service::{Balancing, Mode, Scope, Visibility},
        workload::{Canonical, Locality, Membership, TunnelProtocol},
    },
    name::{Hostname, Identity, Namespace, NetworkAddress, PolicyName, ServiceName, WorkloadUid},
    resilience::Share,
};

pub(crate) fn word(r: &mut Rng) -> String {
    let len = r.usize(1..8);
    (0..len).map(|_| r.lowercase()).collect()
}

fn list<T>(r: &mut Rng, max: usize, mut one: impl FnMut(&mut Rng) -> T) -> Box<[T]> {
    let n = r.usize(0..=max);
    (0..n).map(|_| one(r)).collect()
}

fn pick<T: Clone>(r: &mut Rng, from: &[T]) -> T {
    from[r.usize(0..from.len())].clone()
}

fn opt<T>(r: &mut Rng, one: impl FnOnce(&mut Rng) -> T) -> Option<T> {
    r.bool().then(|| one(r))
}

pub(crate) fn ip(r: &mut Rng) -> IpAddr {
    if r.bool() {
        Ipv4Addr::from(r.u32(..)).into()
    } else {
        Ipv6Addr::from(r.u128(..)).to_canonical()
    }
}

fn net(r: &mut Rng) -> IpNet {
    let ip = ip(r);
    let max = if ip.is_ipv4() { 32 } else { 128 };
    IpNet::new(ip, r.u8(0..=max)).expect("the prefix fits")
}

fn network_address(r: &mut Rng) -> NetworkAddress {
    NetworkAddress {
        network: pick(r, &["", "east"]).into(),
        ip: ip(r),
    }
}

fn service_name(r: &mut Rng) -> ServiceName {
    ServiceName {
        namespace: word(r).as_str().into(),
        hostname: format!("{}.svc.{}", word(r), word(r)).as_str().into(),
    }
}

fn policy_name(r: &mut Rng) -> PolicyName {
    PolicyName {
        namespace: word(r).as_str().into(),
        name: word(r).into(),
    }
}

fn gateway(r: &mut Rng) -> GatewayAddress {
    let destination = if r.bool() {
        GatewayDestination::Hostname(service_name(r))
    } else {
        GatewayDestination::Address(network_address(r))
    };
    GatewayAddress {
        destination,
        hbone_port: r.u16(1..),
    }
}

pub(crate) fn uid(namespace: &str, name: &str) -> WorkloadUid {
    format!("Kubernetes//Pod/{namespace}/{name}")
        .as_str()
        .into()
}

pub(crate) fn workload(r: &mut Rng) -> Workload {
    let (namespace, name) = (word(r), word(r));
    let mut addresses = list(r, 3, ip).into_vec();
    addresses.sort();
    addresses.dedup();
    let mut services = list(r, 3, |r| Membership {
        service: service_name(r),
        ports: list(r, 3, |r| (r.u16(1..), r.u16(1..))),
    })
    .into_vec();
    services.sort_by_key(|m| m.service.to_string());
    services.dedup_by_key(|m| m.service.to_string());
    let identity: Identity = format!("spiffe://{}.local/ns/{namespace}/sa/{}", word(r), word(r))
        .parse()
        .expect("is one");
    Workload {
        uid: uid(&namespace, &name),
        name: name.into(),
        namespace: Namespace::from(namespace.as_str()),
        identity,
        network: pick(r, &["", "east"]).into(),
        addresses: addresses.into(),
        hostname: opt(r, |r| Hostname::from(word(r).as_str())),
        node: word(r).as_str().into(),
        cluster: word(r).as_str().into(),
        protocol: pick(r, &[TunnelProtocol::None, TunnelProtocol::Hbone]),
        host_network: r.bool(),
        healthy: r.bool(),
        locality: Locality {
            region: pick(r, &["", "r"]).into(),
            zone: pick(r, &["", "z"]).into(),
            subzone: pick(r, &["", "s"]).into(),
        },
        canonical: Canonical {
            name: word(r).into(),
            revision: word(r).into(),
            workload_name: word(r).into(),
            workload_type: pick(r, &["deployment", "cronjob", "pod", "job"]).into(),
        },
        services: services.into(),
        policies: list(r, 3, policy_name),
        waypoint: opt(r, gateway),
        capacity: pick(r, &[0, 1, 7]),
    }
}

pub(crate) fn workload_extra(r: &mut Rng) -> WorkloadExtra {
    let modes = [MtlsMode::Strict, MtlsMode::Permissive, MtlsMode::Disable];
    WorkloadExtra {
        enrolment: pick(
            r,
            &[
                Enrolment::Enrolled,
                Enrolment::Out,
                Enrolment::Refused("gVisor".into()),
            ],
        ),
        mtls: pick(r, &modes),
        mtls_ports: list(r, 3, |r| (r.u16(..), pick(r, &modes))),
        probe_ports: list(r, 3, |r| r.u16(..)),
        cut_existing: r.bool(),
        allow_forwarded: r.bool(),
        guarded: r.bool(),
        features: list(r, 2, |r| word(r).into()),
        pod_uid: opt(r, |r| word(r).into()),
        groups: list(r, 3, |r| format!("app={}", word(r)).into()),
    }
}

pub(crate) fn service(r: &mut Rng) -> Service {
    let protocols = [
        AppProtocol::Unknown,
        AppProtocol::Http11,
        AppProtocol::Http2,
        AppProtocol::Grpc,
        AppProtocol::Tcp,
        AppProtocol::Tls,
    ];
    let scopes = [
        Scope::Region,
        Scope::Zone,
        Scope::Subzone,
        Scope::Node,
        Scope::Cluster,
        Scope::Network,
    ];
    Service {
        name: service_name(r),
        short: word(r).into(),
        vips: list(r, 3, network_address),
        ranges: list(r, 2, |r| (pick(r, &["", "east"]).into(), net(r))),
        ports: list(r, 3, |r| ServicePort {
            port: r.u16(1..),
            target_port: r.u16(..),
            protocol: pick(r, &protocols),
        }),
        subject_alt_names: list(r, 2, |r| word(r).into()),
        waypoint: opt(r, gateway),
        balancing: Balancing {
            preference: list(r, 3, |r| pick(r, &scopes)),
            mode: pick(
                r,
                &[
                    Mode::Unspecified,
                    Mode::Strict,
                    Mode::Failover,
                    Mode::Passthrough,
                ],
            ),
            allow_unhealthy: r.bool(),
        },
        visibility: pick(r, &[Visibility::Public, Visibility::Namespace]),
    }
}

pub(crate) fn service_extra(r: &mut Rng) -> ServiceExtra {
    ServiceExtra {
        affinity: opt(r, |r| {
            Duration::new(r.u64(0..86_400), r.u32(0..1_000_000_000))
        }),
        headless: r.bool(),
        external_name: opt(r, |r| word(r).into()),
        features: list(r, 2, |r| word(r).into()),
        visible_to: list(r, 2, |r| pick(r, &["shop", "bank"]).into()),
        standby: opt(r, service_name),
    }
}

fn string_match(r: &mut Rng) -> StringMatch {
    let text: Arc<str> = word(r).into();
    pick(
        r,
        &[
            StringMatch::Exact(text.clone()),
            StringMatch::Prefix(text.clone()),
            StringMatch::Suffix(text),
            StringMatch::Presence,
        ],
    )
}

fn account(r: &mut Rng) -> ServiceAccountMatch {
    ServiceAccountMatch {
        namespace: word(r).as_str().into(),
        service_account: word(r).as_str().into(),
    }
}

pub(crate) fn one_match(r: &mut Rng) -> Match {
    Match {
        namespaces: list(r, 2, string_match),
        not_namespaces: list(r, 2, string_match),
        principals: list(r, 2, string_match),
        not_principals: list(r, 2, string_match),
        source_ips: list(r, 2, net),
        not_source_ips: list(r, 2, net),
        destination_ips: list(r, 2, net),
        not_destination_ips: list(r, 2, net),
        destination_ports: list(r, 2, |r| r.u16(..)),
        not_destination_ports: list(r, 2, |r| r.u16(..)),
        service_accounts: list(r, 2, account),
        not_service_accounts: list(r, 2, account),
        beyond_l4: r.bool(),
    }
}

pub(crate) fn policy(r: &mut Rng) -> Policy {
    let clause = |r: &mut Rng| Clause {
        matches: list(r, 3, one_match),
    };
    Policy {
        name: policy_name(r),
        scope: pick(
            r,
            &[
                PolicyScope::Global,
                PolicyScope::Namespace,
                PolicyScope::Selector,
            ],
        ),
        action: pick(r, &[Action::Allow, Action::Deny, Action::Audit]),
        rules: list(r, 3, |r| Rule {
            clauses: list(r, 3, clause),
        }),
        dry_run: r.bool(),
        validity: pick(
            r,
            &[
                Validity::Valid,
                Validity::Valid,
                Validity::Invalid("rules[0].from: who".into()),
            ],
        ),
    }
}

pub(crate) fn config(r: &mut Rng) -> MeshConfig {
    MeshConfig {
        trust_domain: "cluster.local".into(),
        root_namespace: word(r).as_str().into(),
        cluster_domain: "cluster.local".into(),
        registry_only: r.bool(),
        same_node: pick(r, &[SameNode::Auto, SameNode::Tunnel, SameNode::Direct]),
        enrolled_namespaces: list(r, 3, |r| word(r).as_str().into()),
        tunnel_blockers: list(r, 2, |r| TunnelBlocker {
            namespace: word(r).as_str().into(),
            name: word(r).as_str().into(),
            ingress: r.bool(),
        }),
        tracing: list(r, 3, |r| Arc::new(tracing(r))),
    }
}

fn tracing(r: &mut Rng) -> Tracing {
    Tracing {
        scope: match r.u8(0..4) {
            0 => TracingScope::Service(service_name(r)),
            1 => TracingScope::Waypoint(service_name(r)),
            2 => TracingScope::Namespace(word(r).as_str().into()),
            _ => TracingScope::Mesh,
        },
        sampling: Share::per_million(r.u32(0..=1_000_000)),
        collector: r.bool().then(|| Collector {
            namespace: r.bool().then(|| word(r).as_str().into()),
            hostname: word(r).as_str().into(),
            port: r.u16(1..),
        }),
        tags: list(r, 2, |r| SpanTag {
            name: word(r).into(),
            value: match r.bool() {
                true => TagValue::Literal(word(r).into()),
                false => TagValue::Header(word(r).into(), r.bool().then(|| word(r).into())),
            },
        }),
    }
}

/// A random change that sets something.
pub(crate) fn change(r: &mut Rng) -> Change {
    match r.u8(0..8) {
        0 => Change::Workload(workload(r)),
        1 => Change::WorkloadExtra(uid(&word(r), &word(r)), workload_extra(r)),
        2 => Change::Service(service(r)),
        3 => Change::ServiceExtra(service_name(r), service_extra(r)),
        4 => Change::Policy(policy(r)),
        5 => Change::Routes(routes::routes(r)),
        6 => Change::Destination(routes::destination(r)),
        _ => Change::Config(config(r)),
    }
}
