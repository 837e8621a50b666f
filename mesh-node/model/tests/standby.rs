//! A waypoint that stands by for a service: nobody is sent to it, and what comes that way all the same is taken.

use std::{net::SocketAddr, sync::Arc};

use mesh_model::{
    authz,
    balance::Viewpoint,
    mesh::{
        Change, GatewayAddress, GatewayDestination, Mesh, MtlsMode, Service, ServiceExtra, Workload,
    },
    name::NodeName,
    reason::Reason,
    route::http::endpoints,
    testing::cast::*,
};

fn mesh(standby: bool) -> Mesh {
    let web = serving(pod("shop", "web", "n1", "10.0.1.2"), "shop", "web");
    let waypoint = serving(pod("mesh", "wp", "n1", "10.0.1.9"), "mesh", "wp");
    let others = [
        pod("shop", "client", "n1", "10.0.1.3"),
        pod("mesh", "other", "n1", "10.0.1.8"),
    ];
    let changes = others
        .into_iter()
        .chain([web, waypoint])
        .flat_map(known)
        .chain([
            Change::Service(service("shop", "web", "10.96.0.1", 80, 8080)),
            Change::Service(service("mesh", "wp", "10.96.0.9", 15008, 15008)),
            Change::ServiceExtra(
                service_name("shop", "web"),
                ServiceExtra {
                    standby: standby.then(|| service_name("mesh", "wp")),
                    ..ServiceExtra::default()
                },
            ),
            Change::Config(config()),
            Change::Complete,
        ]);
    Mesh::empty().apply(changes).0
}

fn workload(mesh: &Mesh, namespace: &str, name: &str) -> Arc<Workload> {
    mesh.workload(&uid(namespace, name)).expect("known").clone()
}

#[test]
fn it_carries_what_comes_and_its_word_is_taken() {
    let to: SocketAddr = "10.96.0.1:80".parse().expect("an address");
    for standby in [true, false] {
        let mesh = mesh(standby);
        let client = workload(&mesh, "shop", "client").identity.clone();
        let client = authz::Bringer::Client(client);
        let carried = |name: &str| {
            let carrier = workload(&mesh, "mesh", name);
            authz::through(&mesh, carrier, &client, to).outcome
        };
        match standby {
            true => drop(carried("wp").expect("it is carried")),
            false => assert_eq!(
                carried("wp").expect_err("it is refused").reason,
                Reason::BadAuthority
            ),
        }
        assert!(carried("other").is_err(), "another is no waypoint of it");
        let web = workload(&mesh, "shop", "web");
        let vouches = |name: &str| {
            let peer = workload(&mesh, "mesh", name).identity.clone();
            authz::vouches(&mesh, &web, &peer)
        };
        assert_eq!((vouches("wp"), vouches("other")), (standby, false));
        assert_eq!(listed(&mesh, "wp", "web"), [standby]);
        assert_eq!(listed(&mesh, "other", "web"), [false]);
    }
}

/// Of each endpoint of a service, whether a waypoint's word is taken there.
fn listed(mesh: &Mesh, waypoint: &str, service: &str) -> Vec<bool> {
    let (node, waypoint) = (NodeName::from("n1"), workload(mesh, "mesh", waypoint));
    let from = Viewpoint::of_waypoint(mesh, &node, &waypoint);
    let service = mesh.service(&service_name("shop", service)).expect("known");
    let list = endpoints(mesh, service, 80, None, from).expect("there are some");
    list.iter().map(|(_, _, e)| e.vouched).collect()
}

#[test]
fn who_is_in_a_service_of_it_takes_its_word_whatever_service_was_asked_for() {
    let both = serving(pod("shop", "web", "n1", "10.0.1.2"), "shop", "web");
    let both = serving(both, "shop", "also");
    let one = serving(pod("shop", "only", "n1", "10.0.1.4"), "shop", "also");
    let mut also = service("shop", "also", "10.96.0.2", 80, 8080);
    let add = |also: &Service| {
        let known = [both.clone(), one.clone()].into_iter().flat_map(known);
        mesh(true)
            .apply(known.chain([Change::Service(also.clone())]))
            .0
    };
    let taken = |mesh: &Mesh| {
        let mut taken = listed(mesh, "wp", "also");
        taken.sort_unstable();
        taken
    };
    assert_eq!(taken(&add(&also)), [false, true]);
    // A client that is no waypoint speaks for nobody.
    let mesh = add(&also);
    let (node, client) = (NodeName::from("n1"), workload(&mesh, "shop", "client"));
    let from = Viewpoint::of(&mesh, &node, &client);
    let list = endpoints(&mesh, &also, 80, None, from).expect("there are some");
    assert!(list.iter().all(|(_, _, e)| !e.vouched));
    also.waypoint = Some(GatewayAddress {
        destination: GatewayDestination::Hostname(service_name("mesh", "wp")),
        hbone_port: 15008,
    });
    assert_eq!(taken(&add(&also)), [true, true]);
}

#[test]
fn whoever_guards_its_server_takes_its_word_too() {
    // A server that is guarded admits nobody else.
    let mut guarded = extra(MtlsMode::Permissive);
    guarded.guarded = true;
    let change = Change::WorkloadExtra(uid("shop", "web"), guarded);
    let mesh = mesh(true).apply([change]).0;
    let web = workload(&mesh, "shop", "web");
    let decide = |via: bool| {
        let peer = workload(&mesh, "mesh", "wp").identity.clone();
        let client = workload(&mesh, "shop", "client").identity.clone();
        let conn = authz::Conn {
            transport: mesh_model::authn::Transport::Mtls(client),
            via: via.then(|| Box::new(peer)),
            source_ip: "10.0.1.3".parse().expect("an address"),
            workload: web.clone(),
            destination: "10.0.1.2:8080".parse().expect("an address"),
        };
        authz::ingress(&mesh, conn).outcome.map(drop)
    };
    assert!(decide(true).is_ok());
    let denial = decide(false).expect_err("it went past the waypoint");
    assert_eq!(denial.reason, Reason::WaypointRequired);
}
