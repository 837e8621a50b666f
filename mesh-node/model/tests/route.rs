//! Endpoint choice, waypoints and slots.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    sync::Arc,
    time::Duration,
};

use mesh_model::{
    authn::Transport,
    authz::{self, Conn, Egress},
    mesh::{
        Change, GatewayAddress, GatewayDestination, Mesh, MtlsMode, Service, ServiceExtra,
        Workload,
        service::{Balancing, Mode, Scope},
        workload::TunnelProtocol,
    },
    reason::Reason,
    resilience::{Destination, Outlier, Pool, TrafficPolicy},
    route::{self, Authority, Chooser, Plan, Via},
    testing::cast::*,
};

fn mesh(
    pods: impl IntoIterator<Item = Workload>,
    services: impl IntoIterator<Item = Service>,
) -> Mesh {
    let client = pod("shop", "client", "n1", "10.0.1.1");
    let changes = [client]
        .into_iter()
        .chain(pods)
        .flat_map(known)
        .chain(services.into_iter().map(Change::Service));
    Mesh::empty()
        .apply(changes.chain([Change::Config(config()), Change::Complete]))
        .0
}

fn dial_as(mesh: &Mesh, to: &str, seed: u64, client: &str) -> Result<Plan, Reason> {
    let source = mesh
        .workload(&uid("shop", "client"))
        .expect("known")
        .clone();
    let original: SocketAddr = to.parse().expect("an address");
    let (target, node) = (authz::target(mesh, &source, original), source.node.clone());
    let permit = authz::egress(
        mesh,
        Egress {
            source,
            target,
            original,
            pinned: None,
        },
    )
    .outcome
    .map_err(|d| d.reason)?;
    route::outbound(
        mesh,
        &permit,
        Chooser {
            node: &node,
            seed,
            client: ip(client),
            ejected: &[],
        },
    )
}

fn dial(mesh: &Mesh, to: &str, seed: u64) -> Result<Plan, Reason> {
    dial_as(mesh, to, seed, "10.0.1.1")
}

fn web(name: &str, node: &str, address: &str) -> Workload {
    serving(pod("shop", name, node, address), "shop", "web")
}

fn three() -> [Workload; 3] {
    [
        web("w1", "n1", "10.0.1.2"),
        web("w2", "n2", "10.0.2.2"),
        web("w3", "n3", "10.0.3.2"),
    ]
}

fn front() -> Service {
    service("shop", "web", "10.96.0.1", 80, 8080)
}

/// The names of the candidates in order.
fn names(plan: &Plan) -> Vec<String> {
    plan.candidates
        .iter()
        .map(|c| {
            c.workload
                .as_ref()
                .map_or("-".into(), |w| w.name.to_string())
        })
        .collect()
}

/// How often each endpoint is the first choice.
fn firsts(mesh: &Mesh) -> BTreeMap<String, usize> {
    let mut seen = BTreeMap::new();
    for seed in 0..1_000 {
        *seen
            .entry(names(&dial(mesh, "10.96.0.1:80", seed).expect("reachable")).remove(0))
            .or_default() += 1;
    }
    seen
}

fn balanced(mode: Mode, preference: &[Scope]) -> Service {
    Service {
        balancing: Balancing {
            preference: preference.into(),
            mode,
            allow_unhealthy: false,
        },
        ..front()
    }
}

#[test]
fn health_decides_who_is_chosen() {
    let mut pods = three();
    pods[0].healthy = false;
    let sick = mesh(pods.clone(), [front()]);
    assert_eq!(firsts(&sick).into_keys().collect::<Vec<_>>(), ["w2", "w3"]);
    let any = mesh(
        pods.clone(),
        [Service {
            balancing: Balancing {
                allow_unhealthy: true,
                ..Balancing::default()
            },
            ..front()
        }],
    );
    assert_eq!(firsts(&any).len(), 3);
    pods.iter_mut().for_each(|p| p.healthy = false);
    assert_eq!(
        dial(&mesh(pods, [front()]), "10.96.0.1:80", 0).err(),
        Some(Reason::NoEndpoints)
    );
    assert_eq!(
        dial(&mesh([], [front()]), "10.96.0.1:80", 0).err(),
        Some(Reason::NoEndpoints)
    );
}

#[test]
fn weights_share_the_connections() {
    let mut pods = three();
    (pods[0].capacity, pods[1].capacity, pods[2].capacity) = (3, 1, 0);
    let seen = firsts(&mesh(pods, [front()]));
    assert!(
        (650..850).contains(&seen["w1"]) && seen.len() == 2,
        "{seen:?}"
    );
}

#[test]
fn locality_comes_before_chance() {
    let failover = mesh(three(), [balanced(Mode::Failover, &[Scope::Node])]);
    let plan = dial(&failover, "10.96.0.1:80", 5).expect("reachable");
    assert_eq!(
        (names(&plan)[0].as_str(), plan.candidates.len()),
        ("w1", 3),
        "others are left for a retry"
    );
    let strict = mesh(three(), [balanced(Mode::Strict, &[Scope::Node])]);
    assert_eq!(
        names(&dial(&strict, "10.96.0.1:80", 5).expect("reachable")),
        ["w1"]
    );
    let [_, w2, w3] = three();
    let nothing_local = mesh([w2, w3], [balanced(Mode::Strict, &[Scope::Node])]);
    assert_eq!(
        dial(&nothing_local, "10.96.0.1:80", 5).err(),
        Some(Reason::NoEndpoints)
    );
    let five = (1..=6).map(|n| web(&format!("w{n}"), "n2", &format!("10.0.2.{n}")));
    assert_eq!(
        dial(&mesh(five, [front()]), "10.96.0.1:80", 1)
            .expect("reachable")
            .candidates
            .len(),
        4,
        "three more for retries"
    );
}

#[test]
fn affinity_keeps_a_client_and_moves_few() {
    let sticky = Change::ServiceExtra(
        service_name("shop", "web"),
        ServiceExtra {
            affinity: Some(Duration::from_secs(10_800)),
            ..ServiceExtra::default()
        },
    );
    let pods: Vec<Workload> = (1..=10)
        .map(|n| web(&format!("w{n}"), "n2", &format!("10.0.2.{n}")))
        .collect();
    let all = mesh(pods.clone(), [front()]).apply([sticky]).0;
    let less = all.apply([Change::RemoveWorkload(uid("shop", "w4"))]).0;
    let first = |mesh: &Mesh, client: usize, seed| {
        names(
            &dial_as(
                mesh,
                "10.96.0.1:80",
                seed,
                &format!("10.9.{}.{}", client / 250, client % 250),
            )
            .expect("reachable"),
        )
        .remove(0)
    };
    let mut used = BTreeSet::new();
    for client in 0..500 {
        let chosen = first(&all, client, 1);
        assert_eq!(chosen, first(&all, client, 2), "whatever the seed");
        if chosen != "w4" {
            assert_eq!(
                chosen,
                first(&less, client, 3),
                "only clients of the removed endpoint move"
            );
        }
        used.insert(chosen);
    }
    assert_eq!(used.len(), 10);
    assert!(
        route::slots(&all, &front(), 80, &"n2".into()).is_empty(),
        "the kernel does not know affinity"
    );
}

#[test]
fn ports_families_and_protocols() {
    let mut pods = three();
    pods[0].services[0].ports = Box::new([(80, 9000)]);
    pods[1].services[0].ports = Box::new([(81, 9000)]);
    pods[2].protocol = TunnelProtocol::None;
    let named_only = Service {
        ports: Box::new([mesh_model::mesh::ServicePort {
            target_port: 0,
            ..front().ports[0].clone()
        }]),
        ..front()
    };
    let plan = dial(&mesh(pods.clone(), [named_only]), "10.96.0.1:80", 0).expect("reachable");
    assert_eq!(
        names(&plan),
        ["w1"],
        "a named port that an endpoint does not have cannot be dialed there"
    );
    assert!(
        matches!(&plan.candidates[0].via, Via::Hbone { authority: Authority::Address(a), .. } if a.port() == 9000)
    );
    let plan = dial(&mesh(pods.clone(), [front()]), "10.96.0.1:80", 0).expect("reachable");
    let third = plan
        .candidates
        .iter()
        .find(|c| c.workload.as_ref().is_some_and(|w| &*w.name == "w3"))
        .expect("all three");
    assert_eq!(
        third.via,
        Via::Plain("10.0.3.2:8080".parse().expect("an address"))
    );
    pods[0].addresses = Box::new([ip("10.0.1.2"), ip("fd00::2")]);
    let six = Service {
        vips: Box::new([mesh_model::name::NetworkAddress {
            network: "".into(),
            ip: ip("fd96::1"),
        }]),
        ..front()
    };
    let dual = mesh(pods, [six]);
    for c in dial(&dual, "[fd96::1]:80", 0)
        .expect("reachable")
        .candidates
    {
        let at = match c.via {
            Via::Hbone { tunnel, .. } => tunnel,
            Via::Plain(at) => at,
            Via::Named(named) => panic!("{named:?} has an address"),
        };
        assert_eq!(
            at.is_ipv6(),
            c.workload.is_some_and(|w| &*w.name == "w1"),
            "{at}"
        );
    }
    let disabled = dual
        .apply([Change::WorkloadExtra(
            uid("shop", "w1"),
            extra(MtlsMode::Disable),
        )])
        .0;
    assert!(matches!(
        dial(&disabled, "10.0.1.2:1", 0)
            .expect("reachable")
            .candidates[0]
            .via,
        Via::Plain(_)
    ));
    assert_eq!(
        dial(&disabled, "10.0.2.2:15008", 0).err(),
        Some(Reason::Loop)
    );
}

#[test]
fn subject_alternative_names_are_accepted_beside_the_workloads_own() {
    let sans: Box<[_]> = Box::new(["spiffe://other/ns/x/sa/y".into(), "web.example.com".into()]);
    let plan = dial(
        &mesh(
            three(),
            [Service {
                subject_alt_names: sans,
                ..front()
            }],
        ),
        "10.96.0.1:80",
        0,
    )
    .expect("reachable");
    let Via::Hbone { identities, .. } = &plan.candidates[0].via else {
        panic!("{plan:?}")
    };
    assert_eq!(
        identities
            .iter()
            .map(ToString::to_string)
            .filter(|i| i.contains("other"))
            .count(),
        1
    );
    assert_eq!(identities.len(), 2);
}

#[test]
fn a_waypoint_is_never_gone_around() {
    let gateway = service_name("shop", "waypoint");
    let at = |destination| {
        Some(GatewayAddress {
            destination,
            hbone_port: 15008,
        })
    };
    let guarded = Service {
        waypoint: at(GatewayDestination::Hostname(gateway.clone())),
        ..front()
    };
    let lost = mesh(three(), [guarded.clone()]);
    assert_eq!(
        dial(&lost, "10.96.0.1:80", 0).err(),
        Some(Reason::NotReady),
        "a waypoint that is unknown is waited for"
    );
    let entry = service("shop", "waypoint", "10.96.0.9", 15008, 15008);
    let empty = lost.apply([Change::Service(entry)]).0;
    assert_eq!(
        dial(&empty, "10.96.0.1:80", 0).err(),
        Some(Reason::WaypointGone)
    );
    let full = empty
        .apply(known(serving(
            pod("shop", "wp-1", "n2", "10.0.2.9"),
            "shop",
            "waypoint",
        )))
        .0;
    let plan = dial(&full, "10.96.0.1:80", 0).expect("through the waypoint");
    let expected = Via::Hbone {
        tunnel: "10.0.2.9:15008".parse().expect("an address"),
        authority: Authority::Address("10.96.0.1:80".parse().expect("an address")),
        identities: Box::new([identity("shop", "wp-1")]),
    };
    assert_eq!(
        (
            plan.candidates[0].via.clone(),
            plan.service.map(|s| s.hostname)
        ),
        (expected, Some(guarded.name.hostname.clone()))
    );
    assert!(route::slots(&full, &guarded, 80, &"n1".into()).is_empty());

    let mut only_waypoint = extra(MtlsMode::Permissive);
    only_waypoint.guarded = true;
    let closed = full
        .apply([Change::WorkloadExtra(uid("shop", "w1"), only_waypoint)])
        .0;
    let enter = |transport| {
        let workload = closed.workload(&uid("shop", "w1")).expect("known").clone();
        let conn = Conn {
            via: None,
            transport,
            source_ip: ip("10.0.1.1"),
            workload,
            destination: "10.0.1.2:8080".parse().expect("an address"),
        };
        authz::ingress(&closed, conn)
            .outcome
            .map(drop)
            .map_err(|d| d.reason)
    };
    assert_eq!(enter(Transport::Mtls(identity("shop", "wp-1"))), Ok(()));
    assert_eq!(
        enter(Transport::Mtls(identity("shop", "client"))),
        Err(Reason::WaypointRequired)
    );
    assert_eq!(enter(Transport::Plain), Err(Reason::WaypointRequired));
}

#[test]
fn passthrough_and_outside() {
    let original = mesh(three(), [balanced(Mode::Passthrough, &[])]);
    assert_eq!(
        dial(&original, "10.96.0.1:80", 0).expect("kept").candidates[0].via,
        Via::Plain("10.96.0.1:80".parse().expect("an address"))
    );
    let mut closed = config();
    closed.registry_only = true;
    let closed = original.apply([Change::Config(closed)]).0;
    assert_eq!(
        dial(&closed, "1.1.1.1:80", 0).err(),
        Some(Reason::OutsideMesh)
    );
    assert!(dial(&closed, "10.0.2.2:80", 0).is_ok());
    let future = ServiceExtra {
        features: Box::new(["from-the-future".into()]),
        ..ServiceExtra::default()
    };
    let unknown = original
        .apply([Change::ServiceExtra(service_name("shop", "web"), future)])
        .0;
    assert_eq!(
        dial(&unknown, "10.96.0.1:80", 0).err(),
        Some(Reason::PolicyInvalid)
    );
}

#[test]
fn slots_are_what_the_node_would_choose_from() {
    let slots = |mode, preference: &[Scope], node: &str| -> Vec<(String, bool)> {
        let service = balanced(mode, preference);
        let found = route::slots(
            &mesh(three(), [service.clone()]),
            &service,
            80,
            &node.into(),
        );
        assert!(
            found
                .iter()
                .all(|s| s.port == 8080 && s.v4.is_some() && s.v6.is_none() && s.weight == 1)
        );
        found
            .iter()
            .map(|s| (s.workload.name.to_string(), s.local))
            .collect()
    };
    let local = |n: &str| (n.to_owned(), true);
    let far = |n: &str| (n.to_owned(), false);
    assert_eq!(
        slots(Mode::Unspecified, &[], "n1"),
        [local("w1"), far("w2"), far("w3")]
    );
    assert_eq!(slots(Mode::Failover, &[Scope::Node], "n2"), [local("w2")]);
    assert_eq!(slots(Mode::Unspecified, &[], "n9"), []);
    assert_eq!(slots(Mode::Passthrough, &[], "n1"), []);
}

#[test]
fn connections_are_bounded_by_whoever_carries_them() {
    let pool = |pool: Pool| TrafficPolicy {
        pool,
        ..TrafficPolicy::default()
    };
    let seconds = Duration::from_secs;
    let bounded = [
        Pool {
            max_connections: Some(1),
            ..Pool::default()
        },
        Pool {
            connect_timeout: seconds(1),
            ..Pool::default()
        },
        Pool {
            keepalive: Some((Some(3), None, None)),
            ..Pool::default()
        },
        Pool {
            max_duration: Some(seconds(60)),
            ..Pool::default()
        },
        Pool {
            tcp_idle: Duration::ZERO,
            ..Pool::default()
        },
    ];
    let outlier = |outlier: Outlier| TrafficPolicy {
        outlier: Some(outlier),
        ..TrafficPolicy::default()
    };
    let answers_only = Outlier {
        split_local: true,
        consecutive_local: 0,
        ..Outlier::default()
    };
    let of_requests = Pool {
        max_requests: Some(1),
        ..Pool::default()
    };
    let cases = bounded.into_iter().map(|p| (pool(p), true)).chain([
        (outlier(Outlier::default()), true),
        (outlier(answers_only), false),
        (pool(of_requests), false),
        (TrafficPolicy::default(), false),
    ]);
    for (policy, expect) in cases {
        let shown = format!("{policy:?}");
        let service = balanced(Mode::Unspecified, &[]);
        let by = |by: &str, features: &[&str]| {
            Change::Destination(Destination {
                service: service.name.clone(),
                by: by.into(),
                policy: Arc::new(policy.clone()),
                ports: Box::default(),
                subsets: Box::default(),
                features: features.iter().map(|f| (*f).into()).collect(),
            })
        };
        let destination = |features: &[&str]| by("shop/web", features);
        let plain = mesh(three(), [service.clone()]);
        let source = plain.workload(&uid("shop", "client")).expect("known");
        let known = plain.apply([destination(&[])]).0;
        let found = route::bounds(&known, source, &service, 80);
        assert_eq!(found.map(|p| p.is_some()), Ok(expect), "{shown}");
        // What is bounded is counted by the proxy, which the kernel would go past.
        let slots = route::slots(&known, &service, 80, &"n1".into());
        assert_eq!(slots.is_empty(), expect, "{shown}");
        let unknown = plain.apply([destination(&["a-later-one"])]).0;
        let found = route::bounds(&unknown, source, &service, 80);
        let refused = expect.then_some(Reason::RouteInvalid);
        assert_eq!(found.err(), refused, "{shown}");
        // What could not be read at all may have said something.
        let unread = plain.apply([by("", &["a-later-one"])]).0;
        let found = route::bounds(&unread, source, &service, 80);
        assert_eq!(found.err(), Some(Reason::RouteInvalid), "{shown}");
        assert!(route::slots(&unread, &service, 80, &"n1".into()).is_empty());
        // A waypoint on the way keeps to it.
        let mut behind = service.clone();
        behind.waypoint = Some(GatewayAddress {
            destination: GatewayDestination::Hostname(service_name("shop", "wp")),
            hbone_port: 15008,
        });
        let behind = route::bounds(&known, source, &behind, 80);
        assert_eq!(behind.map(|p| p.is_some()), Ok(false), "{shown}");
    }
}
