//! The endpoints of subsets and places, and explanations of requests.

use std::sync::Arc;

use http::HeaderMap;
use mesh_model::{
    balance::Viewpoint,
    mesh::{
        Change, Mesh, MtlsMode, Service, Workload,
        service::{Mode, Scope},
        workload::Locality,
    },
    name::{ClusterId, NetworkId, NodeName},
    reason::Reason,
    resilience::{
        Destination, LoadBalancing, LocalityPreference, Share, Subset, TrafficPolicy, Warmup,
    },
    route::{
        Via,
        http::{
            Action, Asked, Backend, Match, PathMatch, Pattern, RouteSet, Routes, Rule, Selector,
            Text, endpoints, explain,
        },
    },
    testing::cast::*,
};

fn at(mut workload: Workload, place: &str) -> Workload {
    let mut parts = place.split('/').map(Arc::from);
    workload.locality = Locality {
        region: parts.next().unwrap_or_default(),
        zone: parts.next().unwrap_or_default(),
        subzone: parts.next().unwrap_or_default(),
    };
    workload
}

fn grouped(workload: Workload, groups: &[&str]) -> [Change; 2] {
    let uid = workload.uid.clone();
    let mut more = extra(MtlsMode::Permissive);
    more.groups = groups.iter().map(|g| Arc::from(*g)).collect();
    [Change::Workload(workload), Change::WorkloadExtra(uid, more)]
}

fn web(name: &str, node: &str, address: &str) -> Workload {
    serving(pod("shop", name, node, address), "shop", "web")
}

fn front() -> Service {
    service("shop", "web", "10.96.0.1", 80, 8080)
}

fn destination(locality: Option<LocalityPreference>, features: &[&str]) -> Change {
    let policy = Arc::new(TrafficPolicy {
        balancing: LoadBalancing {
            locality,
            ..LoadBalancing::default()
        },
        ..TrafficPolicy::default()
    });
    let subset = |name: &str, selector: &str| Subset {
        name: name.into(),
        selector: Selector(selector.into()),
        policy: policy.clone(),
        ports: [].into(),
    };
    Change::Destination(Destination {
        service: front().name,
        by: "shop/web".into(),
        policy: policy.clone(),
        ports: [].into(),
        subsets: [
            subset("v1", "version=v1"),
            subset("v2", "version=v2"),
            subset("v9", "version=v9"),
        ]
        .into(),
        features: features.iter().map(|f| Arc::from(*f)).collect(),
    })
}

fn mesh(changes: impl IntoIterator<Item = Change>) -> Mesh {
    let settings = [Change::Config(config()), Change::Complete];
    let service = [Change::Service(front())];
    Mesh::empty()
        .apply(service.into_iter().chain(changes).chain(settings))
        .0
}

/// Name, rank and weight of each endpoint, seen from a place.
fn seen(mesh: &Mesh, subset: Option<&str>, from: &str) -> Result<String, Reason> {
    let (node, cluster, network) = (
        NodeName::from("n1"),
        ClusterId::from("Kubernetes"),
        NetworkId::from(""),
    );
    let locality = at(pod("shop", "client", "n1", "10.0.1.1"), from).locality;
    let from = Viewpoint {
        node: &node,
        locality: &locality,
        cluster: &cluster,
        network: &network,
        groups: &["rack=r1".into(), "rack=r2,tier=front".into()],
        speaker: None,
    };
    let service = mesh.service(&front().name).expect("known");
    let list = endpoints(mesh, service, 80, subset, from)?;
    let one = |(rank, weight, e): &(usize, u32, mesh_model::route::http::Endpoint)| {
        let address = e.address.expect("has one");
        assert_eq!(address.port(), 8080);
        match &e.candidate.via {
            Via::Hbone { tunnel, .. } => assert_eq!(tunnel.ip(), address.ip()),
            other => panic!("{other:?}"),
        }
        format!("{} {rank} {weight}", e.workload.name)
    };
    Ok(list.iter().map(one).collect::<Vec<_>>().join(", "))
}

#[test]
fn a_subset_is_what_its_selector_selects() {
    let known = mesh(
        [
            grouped(web("w1", "n1", "10.0.1.2"), &["version=v1"]),
            grouped(web("w2", "n2", "10.0.2.2"), &["app=web", "version=v2"]),
            grouped(web("w3", "n3", "10.0.3.2"), &["version=v1"]),
        ]
        .into_iter()
        .flatten()
        .chain([destination(None, &[])]),
    );
    assert_eq!(seen(&known, None, ""), Ok("w1 0 1, w2 0 1, w3 0 1".into()));
    assert_eq!(seen(&known, Some("v1"), ""), Ok("w1 0 1, w3 0 1".into()));
    assert_eq!(seen(&known, Some("v2"), ""), Ok("w2 0 1".into()));
    assert_eq!(seen(&known, Some("v9"), ""), Err(Reason::NoEndpoints));
    assert_eq!(seen(&known, Some("v3"), ""), Err(Reason::NoEndpoints));
    // Whose companion has not come is in no subset.
    let (later, _) = known.apply([
        Change::RemoveWorkloadExtra(uid("shop", "w1")),
        Change::RemoveWorkload(uid("shop", "w2")),
    ]);
    assert_eq!(seen(&later, Some("v1"), ""), Ok("w3 0 1".into()));
    assert_eq!(seen(&later, Some("v2"), ""), Err(Reason::NoEndpoints));
    // Without a destination nobody defines subsets, and one that is not understood refuses.
    let (none, _) = known.apply([Change::RemoveDestination(front().name)]);
    assert_eq!(seen(&none, Some("v1"), ""), Err(Reason::NoEndpoints));
    assert_eq!(seen(&none, None, ""), Ok("w1 0 1, w2 0 1, w3 0 1".into()));
    let (newer, _) = known.apply([destination(None, &["l4", "of-tomorrow"])]);
    assert_eq!(seen(&newer, None, ""), Err(Reason::RouteInvalid));
}

#[test]
fn the_sick_the_weightless_and_those_elsewhere_are_left_out() {
    let with = |spoil: &dyn Fn(&mut Workload)| {
        let mut w = web("w1", "n1", "10.0.1.2");
        spoil(&mut w);
        let pair = [known(w), known(web("w2", "n2", "10.0.2.2"))];
        seen(&mesh(pair.into_iter().flatten()), None, "")
    };
    assert_eq!(with(&|w| w.healthy = false), Ok("w2 0 1".into()));
    assert_eq!(with(&|w| w.capacity = 0), Ok("w2 0 1".into()));
    assert_eq!(with(&|w| w.capacity = 7), Ok("w1 0 7, w2 0 1".into()));
    assert_eq!(with(&|w| w.network = "east".into()), Ok("w2 0 1".into()));
    assert_eq!(with(&|w| w.addresses = [].into()), Ok("w2 0 1".into()));
    let mut w = web("w1", "n1", "10.0.1.2");
    w.network = "east".into();
    assert_eq!(seen(&mesh(known(w)), None, ""), Err(Reason::OtherNetwork));
    assert_eq!(seen(&mesh([]), None, ""), Err(Reason::NoEndpoints));
}

#[test]
fn places_are_preferred_as_the_destination_says() {
    let pods = [
        ("a", "us/east/1"),
        ("b", "us/east/2"),
        ("c", "us/west/1"),
        ("d", "eu/north/1"),
        ("e", "ap/x/1"),
    ];
    let check = |preference: LocalityPreference, from: &str, expect: &str| {
        let pods = (1..).zip(pods).flat_map(|(i, (name, place))| {
            known(at(web(name, "n2", &format!("10.0.1.{i}")), place))
        });
        let mesh = mesh(pods.chain([destination(Some(preference), &[])]));
        assert_eq!(
            seen(&mesh, None, from).as_deref(),
            Ok(expect),
            "from {from}"
        );
    };
    let failover = |pairs: &[(&str, &str)]| {
        let pair = |(from, to): &(&str, &str)| (Arc::from(*from), Arc::from(*to));
        LocalityPreference::Failover(pairs.iter().map(pair).collect())
    };
    check(
        failover(&[]),
        "us/east/1",
        "a 4 1, b 3 1, c 2 1, d 0 1, e 0 1",
    );
    check(
        failover(&[("us", "eu")]),
        "us/east/1",
        "a 4 1, b 3 1, c 2 1, d 1 1, e 0 1",
    );
    check(
        failover(&[("us", "eu")]),
        "eu/north/9",
        "a 0 1, b 0 1, c 0 1, d 3 1, e 0 1",
    );
    check(
        failover(&[("us", "eu")]),
        "",
        "a 0 1, b 0 1, c 0 1, d 0 1, e 0 1",
    );
    let distribute = |table: &[(&str, &[(&str, u32)])]| {
        let to = |list: &[(&str, u32)]| list.iter().map(|(p, s)| (Arc::from(*p), *s)).collect();
        let row = |(from, list): &(&str, &[(&str, u32)])| (Arc::from(*from), to(list));
        LocalityPreference::Distribute(table.iter().map(row).collect())
    };
    let table: &[(&str, &[(&str, u32)])] = &[
        ("us/*", &[("eu/*", 100)]),
        (
            "us/east/*",
            &[("us/east/*", 80), ("us/west/*", 20), ("ap/*", 0)],
        ),
    ];
    // Two in the east share its 80 per cent, one in the west has 20.
    check(
        distribute(table),
        "us/east/1",
        "a 0 400000, b 0 400000, c 0 200000",
    );
    check(distribute(table), "us/west/1", "d 0 1000000");
    check(
        distribute(table),
        "ap/x/1",
        "a 0 1, b 0 1, c 0 1, d 0 1, e 0 1",
    );
    let labels =
        |keys: &[&str]| LocalityPreference::Labels(keys.iter().map(|k| Arc::from(*k)).collect());
    let (region, zone) = (
        "topology.kubernetes.io/region",
        "topology.kubernetes.io/zone",
    );
    check(
        labels(&[region, zone]),
        "us/east/1",
        "a 2 1, b 2 1, c 1 1, d 0 1, e 0 1",
    );
    let fixed = format!("{region}=eu");
    check(
        labels(&[&fixed, zone]),
        "us/east/1",
        "a 0 1, b 0 1, c 0 1, d 1 1, e 0 1",
    );
    check(
        labels(&["app", region]),
        "us/east/1",
        "a 0 1, b 0 1, c 0 1, d 0 1, e 0 1",
    );
}

/// Places that nobody asked for, as endpoints fall ill one after the other.
#[test]
fn the_own_place_comes_first_unasked_and_the_next_ones_as_endpoints_fall_ill() {
    let unasked = || destination(Some(LocalityPreference::unasked()), &[]);
    let pods = |places: &[(&'static str, &'static str)]| {
        let pods = (1..).zip(places.to_vec());
        let pods = pods.map(|(i, (name, place))| {
            at(web(name, &format!("n{i}"), &format!("10.0.{i}.1")), place)
        });
        pods.collect::<Vec<_>>()
    };
    let places = [
        ("a", "us/east/1"),
        ("b", "us/east/2"),
        ("c", "us/west/1"),
        ("d", "eu/north/1"),
    ];
    let mut all = pods(&places);
    let of = |pods: &[Workload]| mesh(pods.iter().cloned().flat_map(known).chain([unasked()]));
    for (ill, expect) in [
        (None, "a 4 1, b 3 1, c 2 1, d 0 1"),
        (Some(0), "b 3 1, c 2 1, d 0 1"),
        (Some(1), "c 2 1, d 0 1"),
        (Some(2), "d 0 1"),
    ] {
        if let Some(at) = ill {
            all[at].healthy = false;
        }
        let from = "us/east/1";
        assert_eq!(
            seen(&of(&all), None, from).as_deref(),
            Ok(expect),
            "{ill:?}"
        );
    }
    // A subset has the order, too.
    let versions = pods(&places)
        .into_iter()
        .flat_map(|w| grouped(w, &["version=v1"]));
    let versions = mesh(versions.chain([unasked()]));
    let expect = "a 4 1, b 3 1, c 2 1, d 0 1";
    assert_eq!(
        seen(&versions, Some("v1"), "us/east/1").as_deref(),
        Ok(expect)
    );
    // Where nobody is anywhere, nobody is nearer than others.
    let nowhere = of(&pods(&[("a", ""), ("b", "")]));
    assert_eq!(seen(&nowhere, None, "").as_deref(), Ok("a 0 1, b 0 1"));
    let somewhere = of(&pods(&[("a", ""), ("b", "us/east")]));
    assert_eq!(seen(&somewhere, None, "").as_deref(), Ok("a 0 1, b 0 1"));
}

/// A service that says itself where its endpoints should be is asked first, unless the destination was asked to decide.
#[test]
fn a_services_own_preference_comes_before_places_that_nobody_asked_for() {
    let check = |locality: LocalityPreference, mode, scopes: &[Scope], expect: &str| {
        let mut service = front();
        service.balancing.mode = mode;
        service.balancing.preference = scopes.into();
        // Of the client's node, and of its subzone.
        let node = at(web("node", "n1", "10.0.1.2"), "us/west/1");
        let near = at(web("near", "n2", "10.0.2.2"), "us/east/1");
        let changes = [Change::Service(service), destination(Some(locality), &[])];
        let known = mesh(
            [known(node), known(near)]
                .into_iter()
                .flatten()
                .chain(changes),
        );
        let found = seen(&known, None, "us/east/1");
        assert_eq!(found.as_deref(), Ok(expect), "{mode:?} {scopes:?}");
    };
    let unasked = LocalityPreference::unasked;
    let text = |text: &str| -> Arc<str> { text.into() };
    let asked = || LocalityPreference::Failover([(text("us"), text("eu"))].into());
    check(unasked(), Mode::Unspecified, &[], "near 4 1, node 2 1");
    check(
        unasked(),
        Mode::Failover,
        &[Scope::Node],
        "near 0 1, node 1 1",
    );
    check(
        unasked(),
        Mode::Failover,
        &[Scope::Region],
        "near 1 1, node 1 1",
    );
    check(unasked(), Mode::Strict, &[Scope::Node], "node 1 1");
    check(unasked(), Mode::Passthrough, &[], "near 0 1, node 0 1");
    check(
        asked(),
        Mode::Failover,
        &[Scope::Node],
        "near 4 1, node 2 1",
    );
    check(asked(), Mode::Strict, &[Scope::Node], "node 2 1");
}

#[test]
fn endpoints_are_preferred_that_share_labels_with_the_client() {
    let check = |keys: &[&str], expect: &str| {
        let keys = keys.iter().map(|k| Arc::from(*k)).collect();
        let known = mesh(
            [
                grouped(web("a", "n1", "10.0.1.2"), &["rack=r1", "rev=2"]),
                grouped(web("b", "n1", "10.0.1.3"), &["rack=r1"]),
                grouped(web("c", "n1", "10.0.1.4"), &["rack=r2", "rev=2"]),
                grouped(web("d", "n1", "10.0.1.5"), &["rack=r2,tier=front"]),
            ]
            .into_iter()
            .flatten()
            .chain([destination(Some(LocalityPreference::Labels(keys)), &[])]),
        );
        assert_eq!(
            seen(&known, None, "us/east/1"),
            Ok(expect.into()),
            "{expect}"
        );
    };
    check(&["rack"], "a 1 1, b 1 1, c 0 1, d 0 1");
    check(&["rack", "rev=2"], "a 2 1, b 1 1, c 0 1, d 0 1");
    check(&["rev=2", "rack"], "a 2 1, b 0 1, c 1 1, d 0 1");
    // The client has no such label; a value of its own says nothing about that.
    check(&["rev", "rack"], "a 0 1, b 0 1, c 0 1, d 0 1");
    check(&["rack=r2"], "a 0 1, b 0 1, c 1 1, d 0 1");
    // Another label whose name only begins so.
    check(&["rac"], "a 0 1, b 0 1, c 0 1, d 0 1");
}

#[test]
fn a_new_endpoint_comes_to_its_share_by_and_by() {
    let secs = std::time::Duration::from_secs;
    let check = |aggression, age, expect| {
        let warmup = Warmup {
            duration: secs(100),
            minimum: Share::per_million(100_000),
            aggression,
        };
        assert_eq!(
            warmup.share(secs(age)).parts(),
            expect,
            "{aggression}, {age} s"
        );
    };
    check(1_000, 0, 100_000);
    check(1_000, 5, 100_000);
    check(1_000, 50, 500_000);
    check(1_000, 100, 1_000_000);
    check(1_000, 1_000, 1_000_000);
    check(2_000, 25, 500_000);
    check(500, 50, 250_000);
    let at_once = Warmup {
        duration: secs(0),
        minimum: Share::NONE,
        aggression: 1_000,
    };
    assert_eq!(at_once.share(secs(0)), Share::ALL);
}

fn rule(name: &str, matches: Vec<Match>, action: Action) -> Rule {
    Rule {
        name: name.into(),
        matches: matches.into(),
        filters: Default::default(),
        action,
        timeout: None,
        retries: None,
        fault: None,
        mirrors: [].into(),
        cors: None,
        session: None,
    }
}

fn backend(subset: Option<&str>, weight: u32) -> Backend {
    Backend {
        service: front().name,
        port: None,
        subset: subset.map(Arc::from),
        weight,
        filters: Default::default(),
        invalid: None,
    }
}

#[test]
fn an_explanation_names_the_rule_and_why_the_others_did_not_match() {
    let path = |p: PathMatch| Match {
        path: Some(p),
        ..Match::default()
    };
    let method = Match {
        method: Some(Text::Exact("POST".into())),
        ..Match::default()
    };
    let regex = Pattern::new("/v[0-9]+/.*").expect("one");
    let rules = [
        rule(
            "VirtualService/shop/web#post",
            vec![method, path(PathMatch::Segments("/api".into()))],
            Action::Forward([].into()),
        ),
        rule(
            "VirtualService/shop/web#versions",
            vec![path(PathMatch::Regex(regex))],
            Action::Invalid("no such thing".into()),
        ),
        rule(
            "VirtualService/shop/web#split",
            Vec::new(),
            Action::Forward([backend(Some("v1"), 80), backend(Some("v3"), 20)].into()),
        ),
        rule(
            "VirtualService/shop/web#never",
            Vec::new(),
            Action::Forward([].into()),
        ),
    ];
    let sets = [
        RouteSet {
            clients: Some("bank".into()),
            ports: [].into(),
            rules: [].into(),
            streams: [].into(),
        },
        RouteSet {
            clients: None,
            ports: [80].into(),
            rules: rules.into(),
            streams: [].into(),
        },
    ];
    let routes = Routes {
        service: front().name,
        sets: sets.into(),
        features: [].into(),
    };
    let known = mesh([destination(None, &[]), Change::Routes(routes.clone())]);
    let headers = HeaderMap::new();
    let shop = "shop".into();
    let asked = |path, port| Asked {
        namespace: Some(&shop),
        groups: &[],
        port,
        method: "GET",
        scheme: "http",
        authority: "web",
        path,
        query: None,
        headers: &headers,
    };
    let text = |mesh: &Mesh, asked: Asked<'_>| explain(mesh, &front().name, &asked).to_string();
    assert_eq!(
        text(&known, asked("/apis", 80)),
        "passed over: rules for clients of namespace bank only\n\
         rule VirtualService/shop/web#post: method \"GET\" is not \"POST\"; or path \"/apis\" is not \"/api\" or below\n\
         rule VirtualService/shop/web#versions: path \"/apis\" does not match \"/v[0-9]+/.*\"\n\
         rule VirtualService/shop/web#split: decides\n\
         => forwards\n   \
            80 of 100: shop/web.shop.svc.cluster.local:80 subset v1\n   \
            20 of 100: shop/web.shop.svc.cluster.local:80 subset v3, fails: no destination rule defines the subset v3\n"
    );
    let invalid = text(&known, asked("/v2/x", 80));
    assert!(
        invalid.ends_with("=> answers 500, because it is invalid: no such thing\n"),
        "{invalid}"
    );
    let elsewhere = text(&known, asked("/", 81));
    assert!(
        elsewhere.ends_with("passed over: rules for port 80 only\n=> no rules: to shop/web.shop.svc.cluster.local itself\n"),
        "{elsewhere}"
    );
    let newer = Routes {
        features: ["of-tomorrow".into()].into(),
        ..routes
    };
    let (newer, _) = known.apply([Change::Routes(newer)]);
    let refused = text(&newer, asked("/", 80));
    assert!(refused.starts_with("=> refused: "), "{refused}");
    assert!(refused.ends_with("needs: of-tomorrow\n"), "{refused}");
    let none = explain(&mesh([]), &front().name, &asked("/", 80));
    assert_eq!(none.outcome, "unrouted");
}
