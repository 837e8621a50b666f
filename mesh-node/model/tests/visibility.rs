//! A service that not everybody sees: to others its address is one like any outside the mesh.

use mesh_model::{
    authz::{self, Egress, Target},
    mesh::{Change, Mesh, ServiceExtra, service::Visibility},
    reason::Reason,
    route,
    testing::cast::*,
};

fn mesh(extra: Option<ServiceExtra>) -> Mesh {
    let mut limited = service("shop", "web", "10.96.0.1", 80, 8080);
    limited.visibility = Visibility::Namespace;
    let name = limited.name.clone();
    let pods = ["shop", "bank", "billing"]
        .into_iter()
        .enumerate()
        .map(|(i, namespace)| pod(namespace, "client", "n1", &format!("10.0.1.{}", 10 + i)))
        .chain([serving(pod("shop", "web", "n1", "10.0.1.2"), "shop", "web")]);
    let changes = pods.flat_map(known).chain([
        Change::Service(limited),
        Change::Config(config()),
        Change::Complete,
    ]);
    let extra = extra.map(|extra| Change::ServiceExtra(name, extra));
    Mesh::empty().apply(changes.chain(extra)).0
}

fn target(mesh: &Mesh, namespace: &str) -> Target {
    let source = mesh.workload(&uid(namespace, "client")).expect("known");
    authz::target(mesh, source, "10.96.0.1:80".parse().expect("an address"))
}

fn sees(mesh: &Mesh, namespace: &str) -> bool {
    matches!(target(mesh, namespace), Target::Service(..))
}

#[test]
fn only_those_who_are_meant_see_a_service() {
    let to_bank = ServiceExtra {
        visible_to: ["bank".into()].into(),
        ..ServiceExtra::default()
    };
    let check = |mesh: &Mesh, expect: [bool; 3]| {
        let seen = ["shop", "bank", "billing"].map(|namespace| sees(mesh, namespace));
        assert_eq!(seen, expect);
    };
    // Until its extra part came, nobody elsewhere is known to see it.
    check(&mesh(None), [true, false, false]);
    check(&mesh(Some(ServiceExtra::default())), [true, false, false]);
    check(&mesh(Some(to_bank)), [true, true, false]);
}

#[test]
fn who_does_not_see_it_is_refused_where_only_the_known_is_allowed() {
    let mut strict = config();
    strict.registry_only = true;
    let mesh = mesh(None).apply([Change::Config(strict)]).0;
    let ask = |namespace: &str| {
        let source = mesh
            .workload(&uid(namespace, "client"))
            .expect("known")
            .clone();
        let flow = Egress {
            target: target(&mesh, namespace),
            source,
            original: "10.96.0.1:80".parse().expect("an address"),
            pinned: None,
        };
        authz::egress(&mesh, flow).outcome.err().map(|d| d.reason)
    };
    assert_eq!(ask("shop"), None);
    assert_eq!(ask("billing"), Some(Reason::OutsideMesh));
}

#[test]
fn the_kernel_does_not_choose_for_those_who_do_not_see_it() {
    let mesh = mesh(None);
    let service = mesh.service(&service_name("shop", "web")).expect("known");
    assert!(route::slots(&mesh, service, 80, &"n1".into()).is_empty());
}
