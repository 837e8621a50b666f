//! Endpoints that are known by host name only, and endpoints on another network.

use std::net::SocketAddr;

use mesh_model::{
    authz::{self, Egress},
    mesh::{Change, Mesh, Workload, workload::TunnelProtocol},
    reason::Reason,
    route::{self, Chooser, Plan, Via},
    testing::cast::*,
};

fn mesh(endpoints: impl IntoIterator<Item = Workload>) -> Mesh {
    let client = pod("shop", "client", "n1", "10.0.1.1");
    let pods = [client].into_iter().chain(endpoints).flat_map(known);
    let rest = [
        Change::Service(service("shop", "db", "10.96.0.1", 80, 5432)),
        Change::Config(config()),
        Change::Complete,
    ];
    Mesh::empty().apply(pods.chain(rest)).0
}

fn dial(mesh: &Mesh, to: &str) -> Result<Plan, Reason> {
    let source = mesh.workload(&uid("shop", "client")).expect("known");
    let original: SocketAddr = to.parse().expect("an address");
    let flow = Egress {
        source: source.clone(),
        target: authz::target(mesh, source, original),
        original,
        pinned: None,
    };
    let permit = authz::egress(mesh, flow).outcome.map_err(|d| d.reason)?;
    let chooser = Chooser {
        node: &source.node,
        seed: 3,
        client: ip("10.0.1.1"),
        ejected: &[],
    };
    route::outbound(mesh, &permit, chooser)
}

fn named(name: &str, protocol: TunnelProtocol) -> Workload {
    Workload {
        addresses: Box::new([]),
        hostname: Some("db.example.com".into()),
        protocol,
        ..serving(pod("shop", name, "", "192.0.2.9"), "shop", "db")
    }
}

#[test]
fn a_name_becomes_a_way_once_it_is_resolved() {
    let mesh = mesh([named("outside", TunnelProtocol::None)]);
    let plan = dial(&mesh, "10.96.0.1:80").expect("a way");
    let [only] = &plan.candidates[..] else {
        panic!("{plan:?}")
    };
    let Via::Named(way) = &only.via else {
        panic!("{only:?}")
    };
    assert_eq!((way.host.as_str(), way.port), ("db.example.com", 5432));
    let at = way.at(ip("192.0.2.1"));
    assert_eq!(at, Via::Plain("192.0.2.1:5432".parse().expect("one")));
}

#[test]
fn a_named_workload_of_the_mesh_is_reached_by_a_tunnel_and_must_prove_itself() {
    let mesh = mesh([named("vm", TunnelProtocol::Hbone)]);
    let plan = dial(&mesh, "10.96.0.1:80").expect("a way");
    let Via::Named(way) = &plan.candidates[0].via else {
        panic!("{plan:?}")
    };
    let Via::Hbone {
        tunnel, identities, ..
    } = way.at(ip("192.0.2.1"))
    else {
        panic!("in the clear")
    };
    assert_eq!(tunnel, "192.0.2.1:15008".parse().expect("one"));
    assert_eq!(&identities[..], [identity("shop", "vm")]);
}

#[test]
fn the_kernel_leaves_a_named_endpoint_to_the_proxy() {
    let here = serving(pod("shop", "db-1", "n1", "10.0.1.2"), "shop", "db");
    let mesh = mesh([here, named("outside", TunnelProtocol::None)]);
    let db = mesh.service(&service_name("shop", "db")).expect("known");
    let slots = route::slots(&mesh, db, 80, &"n1".into());
    let local: Vec<bool> = slots.iter().map(|s| s.local).collect();
    assert_eq!(slots.len(), 2, "{slots:?}");
    assert!(local.contains(&true) && local.contains(&false), "{slots:?}");
}

#[test]
fn another_network_has_a_reason_of_its_own() {
    let far = |name: &str| Workload {
        network: "other".into(),
        ..serving(pod("shop", name, "n9", "10.0.9.1"), "shop", "db")
    };
    let refused = dial(&mesh([far("far")]), "10.96.0.1:80").expect_err("no way there");
    assert_eq!(refused, Reason::OtherNetwork);
    let unwell = Workload {
        healthy: false,
        ..far("far")
    };
    let refused = dial(&mesh([unwell]), "10.96.0.1:80").expect_err("not even there");
    assert_eq!(refused, Reason::NoEndpoints);
    let near = serving(pod("shop", "near", "n2", "10.0.2.1"), "shop", "db");
    let plan = dial(&mesh([far("far"), near]), "10.96.0.1:80").expect("a way");
    assert_eq!(plan.candidates.len(), 1, "{plan:?}");
}
