//! Names, as the mesh serves them.

use mesh_model::{
    mesh::{
        Change, Mesh, ServiceExtra, Workload,
        service::Balancing,
        workload::{Membership, TunnelProtocol},
    },
    name::{NetworkAddress, WorkloadUid},
};

use super::*;

fn service(namespace: &str, host: &str, vips: &[&str]) -> Change {
    Change::Service(Service {
        name: ServiceName {
            namespace: namespace.into(),
            hostname: host.into(),
        },
        short: host.split('.').next().unwrap().into(),
        vips: vips
            .iter()
            .map(|ip| NetworkAddress {
                network: "".into(),
                ip: ip.parse().unwrap(),
            })
            .collect(),
        ranges: [].into(),
        ports: [].into(),
        subject_alt_names: [].into(),
        waypoint: None,
        balancing: Balancing::default(),
        visibility: Default::default(),
    })
}

fn extra(namespace: &str, host: &str, extra: ServiceExtra) -> Change {
    Change::ServiceExtra(
        ServiceName {
            namespace: namespace.into(),
            hostname: host.into(),
        },
        extra,
    )
}

fn pod(name: &str, addresses: &[&str], healthy: bool, host: &str) -> Change {
    Change::Workload(Workload {
        uid: WorkloadUid::from(format!("Kubernetes//Pod/shop/{name}").as_str()),
        name: name.into(),
        namespace: "shop".into(),
        identity: "spiffe://cluster.local/ns/shop/sa/db".parse().unwrap(),
        network: "".into(),
        addresses: addresses.iter().map(|ip| ip.parse().unwrap()).collect(),
        hostname: None,
        node: "n1".into(),
        cluster: "Kubernetes".into(),
        protocol: TunnelProtocol::Hbone,
        host_network: false,
        healthy,
        locality: Default::default(),
        canonical: Default::default(),
        services: [Membership {
            service: ServiceName {
                namespace: "shop".into(),
                hostname: host.into(),
            },
            ports: [].into(),
        }]
        .into(),
        policies: [].into(),
        waypoint: None,
        capacity: 1,
    })
}

pub(in crate::dns) fn mesh() -> Mesh {
    let headless = ServiceExtra {
        headless: true,
        ..ServiceExtra::default()
    };
    let alias = |to: &str| ServiceExtra {
        external_name: Some(to.into()),
        ..ServiceExtra::default()
    };
    let db = "db.shop.svc.cluster.local";
    Mesh::empty()
        .apply([
            service("shop", "cart.shop.svc.cluster.local", &["10.96.0.7"]),
            service(
                "shop",
                "dual.shop.svc.cluster.local",
                &["10.96.0.8", "fd00:96::8"],
            ),
            service("shop", db, &[]),
            extra("shop", db, headless),
            pod("db-0", &["10.1.1.10", "fd00::10"], true, db),
            pod("db-1", &["10.1.1.11"], true, db),
            pod("db-2", &["10.1.1.12"], false, db),
            service("shop", "out.shop.svc.cluster.local", &[]),
            extra(
                "shop",
                "out.shop.svc.cluster.local",
                alias("api.example.com."),
            ),
            service("shop", "in.shop.svc.cluster.local", &[]),
            extra(
                "shop",
                "in.shop.svc.cluster.local",
                alias("cart.shop.svc.cluster.local"),
            ),
            service("a", "shared.example.org", &["240.0.0.1"]),
            service("shop", "shared.example.org", &["240.0.0.2"]),
            service("a", "*.wild.example.org", &["240.0.0.3"]),
            service("a", "resolved.example.org", &[]),
            limited(service("a", "hidden.example.org", &["240.0.0.4"])),
            limited(service("a", "lent.example.org", &["240.0.0.5"])),
            extra(
                "a",
                "lent.example.org",
                ServiceExtra {
                    visible_to: ["shop".into()].into(),
                    ..ServiceExtra::default()
                },
            ),
        ])
        .0
}

/// The same service, for its own namespace only.
fn limited(change: Change) -> Change {
    match change {
        Change::Service(mut service) => {
            service.visibility = mesh_model::mesh::service::Visibility::Namespace;
            Change::Service(service)
        }
        other => other,
    }
}

fn check(name: &str, asked: Asked, expect: Answer) {
    let (namespace, network) = ("shop".into(), "".into());
    let mut got = answer(
        &mesh(),
        Asker {
            namespace: &namespace,
            network: &network,
            seed: 0,
        },
        name,
        asked,
    );
    if let Answer::Addresses(list) = &mut got {
        list.sort();
    }
    assert_eq!(got, expect, "{name} {asked:?}");
}

fn ips(list: &[&str]) -> Answer {
    Answer::Addresses(list.iter().map(|ip| ip.parse().unwrap()).collect())
}

#[test]
fn names_are_answered_as_the_mesh_serves_them() {
    check("cart.shop.svc.cluster.local", Asked::A, ips(&["10.96.0.7"]));
    check("cart.shop.svc.cluster.local", Asked::Aaaa, ips(&[]));
    check("cart.shop.svc.cluster.local", Asked::Nothing, ips(&[]));
    check(
        "dual.shop.svc.cluster.local",
        Asked::Aaaa,
        ips(&["fd00:96::8"]),
    );
    check(
        "db.shop.svc.cluster.local",
        Asked::A,
        ips(&["10.1.1.10", "10.1.1.11"]),
    );
    check(
        "db-0.db.shop.svc.cluster.local",
        Asked::Aaaa,
        ips(&["fd00::10"]),
    );
    check(
        "db-2.db.shop.svc.cluster.local",
        Asked::A,
        ips(&["10.1.1.12"]),
    );
    check("db-9.db.shop.svc.cluster.local", Asked::A, Answer::Foreign);
    check("x.cart.shop.svc.cluster.local", Asked::A, Answer::Foreign);
    check(
        "out.shop.svc.cluster.local",
        Asked::A,
        Answer::Alias("api.example.com".into()),
    );
    check("shared.example.org", Asked::A, ips(&["240.0.0.2"]));
    check("deep.er.wild.example.org", Asked::A, ips(&["240.0.0.3"]));
    check("wild.example.org", Asked::A, Answer::Foreign);
    check("hidden.example.org", Asked::A, Answer::Foreign);
    check("lent.example.org", Asked::A, ips(&["240.0.0.5"]));
    check("resolved.example.org", Asked::A, Answer::Foreign);
    // Search lists are the resolver library's business.
    for name in ["cart", "cart.shop", "cart.shop.svc", "", "www.example.com"] {
        check(name, Asked::A, Answer::Foreign);
    }
}

#[test]
fn clients_are_spread_over_headless_addresses() {
    let (mesh, namespace, network) = (mesh(), "shop".into(), "".into());
    let first = |seed| match answer(
        &mesh,
        Asker {
            namespace: &namespace,
            network: &network,
            seed,
        },
        "db.shop.svc.cluster.local",
        Asked::A,
    ) {
        Answer::Addresses(list) => list[0],
        other => panic!("{other:?}"),
    };
    assert_ne!(first(0), first(1));
}
