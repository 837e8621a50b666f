//! What arrives in the clear at a guarded pod: when it is handed to the waypoint, how, and who may do that.

use std::{net::SocketAddr, sync::Arc};

use mesh_model::{
    authn::Transport,
    authz::{self, Arrived, Bringer, Conn},
    mesh::{
        Action, Change, GatewayAddress, GatewayDestination, Mesh, MtlsMode, PolicyScope, Service,
        ServicePort, Workload,
        policy::{Match, StringMatch},
    },
    name::NetworkAddress,
    reason::Reason,
    route::{self, Authority, Chooser, Via},
    testing::cast::*,
};

const POD: &str = "10.0.1.2";
const CLIENT: &str = "192.0.2.7";

/// As its waypoint, a service of namespace `mesh`.
fn by(name: &str) -> Option<GatewayAddress> {
    Some(GatewayAddress {
        destination: GatewayDestination::Hostname(service_name("mesh", name)),
        hbone_port: 15008,
    })
}

fn web(waypoint: Option<GatewayAddress>) -> Service {
    Service {
        waypoint,
        ..service("shop", "web", "10.96.0.1", 80, 8080)
    }
}

/// A guarded pod `web` on `n1` behind a service that goes through waypoint `wp`, and further services over it.
fn mesh(more: impl IntoIterator<Item = Service>) -> Mesh {
    let more: Vec<Service> = more.into_iter().collect();
    let mut pod_of_all = serving(pod("shop", "web", "n1", POD), "shop", "web");
    for service in &more {
        pod_of_all = serving(pod_of_all, "shop", &service.short);
    }
    let mut guarded = extra(MtlsMode::Permissive);
    guarded.guarded = true;
    let others = [
        serving(pod("mesh", "wp", "n2", "10.0.2.9"), "mesh", "wp"),
        serving(pod("mesh", "other", "n2", "10.0.2.8"), "mesh", "other"),
        serving(pod("shop", "web-2", "n2", "10.0.2.2"), "shop", "web"),
        pod_of_all,
    ];
    let changes = others
        .into_iter()
        .flat_map(known)
        .chain([
            Change::WorkloadExtra(uid("shop", "web"), guarded),
            Change::Service(web(by("wp"))),
            Change::Service(service("mesh", "wp", "10.96.0.9", 15008, 15008)),
            Change::Service(service("mesh", "other", "10.96.0.8", 15008, 15008)),
            Change::Config(config()),
            Change::Complete,
        ])
        .chain(more.into_iter().map(Change::Service));
    Mesh::empty().apply(changes).0
}

fn workload(mesh: &Mesh, namespace: &str, name: &str) -> Arc<Workload> {
    mesh.workload(&uid(namespace, name)).expect("known").clone()
}

fn conn(mesh: &Mesh, port: u16) -> Conn {
    Conn {
        transport: Transport::Plain,
        via: None,
        source_ip: ip(CLIENT),
        workload: workload(mesh, "shop", "web"),
        destination: SocketAddr::new(ip(POD), port),
    }
}

fn permit(mesh: &Mesh, conn: Conn) -> Result<Arrived, Reason> {
    let decision = authz::arrive(mesh, conn);
    let outcome = decision.outcome.map(Arrived::from);
    outcome.map_err(|denial| denial.reason)
}

/// `straight`, or what the waypoint is asked for, or why it is refused.
fn arrive(mesh: &Mesh, conn: Conn) -> Result<String, Reason> {
    Ok(match permit(mesh, conn)? {
        Arrived::Enters(_) => "straight".to_owned(),
        Arrived::Handed(handed) => handed.subject().asked.to_string(),
    })
}

fn handed(to: &str) -> Result<String, Reason> {
    Ok(to.to_owned())
}

const REQUIRED: Result<String, Reason> = Err(Reason::WaypointRequired);

#[test]
fn only_what_can_be_for_one_port_of_one_service_is_handed_over() {
    let plain = mesh([]);
    assert_eq!(arrive(&plain, conn(&plain, 8080)), handed("10.96.0.1:80"));
    assert_eq!(arrive(&plain, conn(&plain, 9090)), REQUIRED, "no service");
    // A second service over the same pod, by its waypoint, its own port and the port of the pod.
    let check = |waypoint: Option<&str>, target: u16, expect: Result<String, Reason>| {
        let mut second = service("shop", "second", "10.96.0.2", 81, target);
        second.waypoint = waypoint.and_then(by);
        let mesh = mesh([second]);
        assert_eq!(
            arrive(&mesh, conn(&mesh, 8080)),
            expect,
            "{waypoint:?} {target}"
        );
    };
    check(None, 8080, handed("10.96.0.1:80"));
    check(Some("other"), 8080, REQUIRED);
    check(Some("wp"), 8080, REQUIRED);
    check(Some("other"), 8081, handed("10.96.0.1:80"));
    // Two ports of the one service lead to the same port.
    let mut twice = web(by("wp"));
    let more = ServicePort {
        port: 8080,
        ..twice.ports[0].clone()
    };
    twice.ports = Box::new([twice.ports[0].clone(), more]);
    let mesh = plain.apply([Change::Service(twice)]).0;
    assert_eq!(arrive(&mesh, conn(&mesh, 8080)), REQUIRED);
    // Without an address of its own the service cannot be asked for.
    let headless = Service {
        vips: Box::new([]),
        ..web(by("wp"))
    };
    let mesh = plain.apply([Change::Service(headless)]).0;
    assert_eq!(arrive(&mesh, conn(&mesh, 8080)), REQUIRED);
    // Nor where another claims its address.
    let rival = service("shop", "rival", "10.96.0.1", 80, 8080);
    let mesh = plain.apply([Change::Service(rival)]).0;
    assert_eq!(arrive(&mesh, conn(&mesh, 8080)), REQUIRED);
    // The service has none, and the pod demands one.
    let mesh = plain.apply([Change::Service(web(None))]).0;
    assert_eq!(arrive(&mesh, conn(&mesh, 8080)), REQUIRED);
}

#[test]
fn who_may_not_enter_is_not_handed_over_either() {
    let plain = mesh([]);
    let with = |change: Change| plain.apply([change]).0;
    let mut strict = extra(MtlsMode::Strict);
    strict.guarded = true;
    let mesh = with(Change::WorkloadExtra(uid("shop", "web"), strict));
    assert_eq!(
        arrive(&mesh, conn(&mesh, 8080)),
        Err(Reason::StrictRequired)
    );
    // A waypoint that only routes is not on the way.
    let mesh = with(Change::WorkloadExtra(
        uid("shop", "web"),
        extra(MtlsMode::Permissive),
    ));
    assert_eq!(arrive(&mesh, conn(&mesh, 8080)), handed("straight"));
    let rule = |action, matched| {
        let policy = policy("shop", "p", PolicyScope::Namespace, action, [matched]);
        let mesh = plain.apply([Change::Policy(policy)]).0;
        arrive(&mesh, conn(&mesh, 8080))
    };
    let exact = |text: &str| StringMatch::Exact(text.into());
    let somebody = || Match {
        principals: Box::new([exact("cluster.local/ns/shop/sa/client")]),
        ..Match::default()
    };
    let not_somebody = || Match {
        not_principals: Box::new([exact("cluster.local/ns/shop/sa/client")]),
        ..Match::default()
    };
    let from = |net: &str| Match {
        source_ips: Box::new([net.parse().expect("a network")]),
        ..Match::default()
    };
    let through = || handed("10.96.0.1:80");
    assert_eq!(rule(Action::Allow, somebody()), Err(Reason::NotAllowed));
    assert_eq!(rule(Action::Deny, somebody()), through());
    assert_eq!(
        rule(Action::Deny, not_somebody()),
        Err(Reason::PolicyDenied)
    );
    assert_eq!(rule(Action::Allow, from("192.0.2.0/24")), through());
    assert_eq!(
        rule(Action::Deny, from("192.0.2.7/32")),
        Err(Reason::PolicyDenied)
    );
    assert_eq!(
        rule(Action::Allow, from("198.51.100.0/24")),
        Err(Reason::NotAllowed)
    );
    // What is not in the clear went past the waypoint, and what the waypoint itself dials in the clear would come again.
    let proven = |transport| Conn {
        transport,
        ..conn(&plain, 8080)
    };
    let client = || identity("shop", "client");
    for transport in [Transport::Mtls(client()), Transport::Kernel(client())] {
        assert_eq!(arrive(&plain, proven(transport)), REQUIRED);
    }
    assert_eq!(arrive(&plain, proven(Transport::Probe)), through());
    let again = Conn {
        source_ip: ip("10.0.2.9"),
        ..conn(&plain, 8080)
    };
    assert_eq!(arrive(&plain, again), REQUIRED);
}

#[test]
fn it_goes_to_the_waypoint_under_the_name_of_the_service() {
    let mesh = mesh([]);
    let plan = |mesh: &Mesh| {
        let Ok(Arrived::Handed(permit)) = permit(mesh, conn(mesh, 8080)) else {
            panic!("it is not handed over")
        };
        let chooser = Chooser {
            node: &"n1".into(),
            seed: 0,
            client: ip(CLIENT),
            ejected: &[],
        };
        route::handed(mesh, &permit, chooser)
    };
    let found = plan(&mesh).expect("a way");
    assert_eq!(found.service, Some(service_name("shop", "web")));
    let expect = Via::Hbone {
        tunnel: "10.0.2.9:15008".parse().expect("an address"),
        authority: Authority::Address("10.96.0.1:80".parse().expect("an address")),
        identities: Box::new([identity("mesh", "wp")]),
    };
    let ways: Vec<_> = found.candidates.into_iter().map(|c| c.via).collect();
    assert_eq!(ways, [expect]);
    // Gone, and not known yet: no way, and none around it.
    let gone = mesh.apply([Change::RemoveWorkload(uid("mesh", "wp"))]).0;
    assert_eq!(plan(&gone).err(), Some(Reason::WaypointGone));
    let unknown = mesh.apply([Change::Service(web(by("nowhere")))]).0;
    assert_eq!(plan(&unknown).err(), Some(Reason::NotReady));
}

#[test]
fn only_its_node_brings_it_and_it_goes_back_to_where_it_arrived() {
    let plain = mesh([]);
    let asked: SocketAddr = "10.96.0.1:80".parse().expect("an address");
    let bring = |mesh: &Mesh, waypoint: &str, node: &str, arrived: &str, to: SocketAddr| {
        let bringer = Bringer::Node {
            node: node.into(),
            arrived: arrived.parse().expect("an address"),
        };
        let carrier = workload(mesh, "mesh", waypoint);
        authz::through(mesh, carrier, &bringer, to)
            .outcome
            .map_err(|denial| denial.reason)
    };
    let check = |node: &str, arrived: &str, expect: Reason| {
        let got = bring(&plain, "wp", node, arrived, asked);
        assert_eq!(got.err(), Some(expect), "{node} {arrived}");
    };
    check("n2", "10.0.1.2:8080", Reason::NotItsNode);
    check("", "10.0.1.2:8080", Reason::NotItsNode);
    // Another pod of the node, one of another, nobody, and another port of the pod.
    check("n1", "10.0.1.9:8080", Reason::NotItsNode);
    check("n1", "10.0.2.2:8080", Reason::NotItsNode);
    check("n1", "10.0.1.2:8081", Reason::NotItsNode);
    check("n1", "10.0.1.2:80", Reason::NotItsNode);
    let other = bring(&plain, "other", "n1", "10.0.1.2:8080", asked);
    assert_eq!(other.err(), Some(Reason::BadAuthority), "another's service");
    let itself: SocketAddr = "10.0.1.2:8080".parse().expect("an address");
    let got = bring(&plain, "wp", "n1", "10.0.1.2:8080", itself);
    assert_eq!(
        got.err(),
        Some(Reason::BadAuthority),
        "the pod's own address"
    );
    // There are two endpoints: it is this one whatever is drawn, and by a tunnel whatever its port takes.
    let mut disabled = extra(MtlsMode::Disable);
    disabled.guarded = true;
    let disabled = Change::WorkloadExtra(uid("shop", "web"), disabled);
    for mesh in [plain.clone(), plain.apply([disabled]).0] {
        let permit = bring(&mesh, "wp", "n1", "10.0.1.2:8080", asked).expect("it is taken");
        for seed in 0..16 {
            let chooser = Chooser {
                node: &"n2".into(),
                seed,
                client: ip(CLIENT),
                ejected: &[uid("shop", "web")],
            };
            let plan = route::outbound(&mesh, &permit, chooser).expect("a way");
            let ways: Vec<_> = plan.candidates.into_iter().map(|c| c.via).collect();
            let expect = Via::Hbone {
                tunnel: "10.0.1.2:15008".parse().expect("an address"),
                authority: Authority::Address(itself),
                identities: Box::new([identity("shop", "web")]),
            };
            assert_eq!(ways, [expect]);
        }
        let pinned = permit.subject().pinned.as_ref().expect("it is pinned");
        let service = mesh.service(&pinned.service).expect("known").clone();
        let found = route::http::pinned(&mesh, pinned, &service, 80).expect("a way");
        assert_eq!(found.address, Some(itself));
        let none = route::http::pinned(&mesh, pinned, &service, 81);
        assert_eq!(none.err(), Some(Reason::NoSuchPort));
    }
    // The pod is another by now.
    let permit = bring(&plain, "wp", "n1", "10.0.1.2:8080", asked).expect("it is taken");
    let moved = serving(pod("shop", "web", "n1", "10.0.1.7"), "shop", "web");
    let moved = plain.apply([Change::Workload(moved)]).0;
    let chooser = Chooser {
        node: &"n2".into(),
        seed: 0,
        client: ip(CLIENT),
        ejected: &[],
    };
    let plan = route::outbound(&moved, &permit, chooser);
    assert_eq!(plan.err(), Some(Reason::WorkloadGone));
}

#[test]
fn what_comes_back_is_nobodys_and_needs_the_waypoint() {
    let plain = mesh([]);
    let back = |mesh: &Mesh, via: &str| {
        let conn = Conn {
            via: Some(Box::new(workload(mesh, "mesh", via).identity.clone())),
            ..conn(mesh, 8080)
        };
        arrive(mesh, conn)
    };
    assert_eq!(back(&plain, "wp"), handed("straight"));
    assert_eq!(back(&plain, "other"), Err(Reason::NotWaypoint));
    let mut strict = extra(MtlsMode::Strict);
    strict.guarded = true;
    let strict = plain
        .apply([Change::WorkloadExtra(uid("shop", "web"), strict)])
        .0;
    assert_eq!(back(&strict, "wp"), Err(Reason::StrictRequired));
}

#[test]
fn a_waypoint_by_address_is_found_too() {
    let wp = Some(GatewayAddress {
        destination: GatewayDestination::Address(NetworkAddress {
            network: "".into(),
            ip: ip("10.0.2.9"),
        }),
        hbone_port: 15008,
    });
    let mesh = mesh([]).apply([Change::Service(web(wp))]).0;
    assert_eq!(arrive(&mesh, conn(&mesh, 8080)), handed("10.96.0.1:80"));
}
