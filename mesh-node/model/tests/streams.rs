//! Rules for connections that carry no requests, by tables.

use mesh_model::{
    name::Namespace,
    route::{
        http::{RouteSet, Routes, Selector},
        stream::{Connecting, FoundStream, StreamAction, StreamMatch, StreamRule},
    },
    testing::cast,
};

fn rule(name: &str, matches: Vec<StreamMatch>) -> StreamRule {
    StreamRule {
        name: name.into(),
        matches: matches.into(),
        action: StreamAction::Forward([].into()),
    }
}

fn routes(sets: Vec<RouteSet>, features: &[&str]) -> Routes {
    Routes {
        service: cast::service_name("shop", "db"),
        sets: sets.into(),
        features: features.iter().map(|f| (*f).into()).collect(),
    }
}

fn set(clients: Option<&str>, ports: &[u16], streams: Vec<StreamRule>) -> RouteSet {
    RouteSet {
        clients: clients.map(Namespace::from),
        ports: ports.into(),
        rules: [].into(),
        streams: streams.into(),
    }
}

fn hosts(list: &[&str]) -> StreamMatch {
    StreamMatch {
        hosts: list.iter().map(|h| (*h).into()).collect(),
        ..StreamMatch::default()
    }
}

/// What is found for a connection: a rule's name, or what there is instead.
fn found(routes: &Routes, asked: &Connecting<'_>) -> String {
    match routes.find_stream(asked) {
        FoundStream::Rule(rule) => rule.name.to_string(),
        FoundStream::NoRule => "no rule".to_owned(),
        FoundStream::Unrouted => "unrouted".to_owned(),
        FoundStream::Refused(reason) => reason.shown().key.to_owned(),
    }
}

fn asked<'a>(namespace: &'a Namespace, port: u16, sni: Option<&'a str>) -> Connecting<'a> {
    Connecting {
        namespace: Some(namespace),
        groups: &[],
        port,
        dialed: cast::ip("10.0.0.7"),
        sni,
    }
}

#[test]
fn names_are_compared_as_names() {
    let rules = vec![
        rule("exact", vec![hosts(&["a.example", "b.example"])]),
        rule("below", vec![hosts(&["*.c.example"])]),
        rule("any", vec![hosts(&["*"])]),
    ];
    let routes = routes(vec![set(None, &[], rules)], &[]);
    let shop = "shop".into();
    for (sni, expect) in [
        (Some("a.example"), "exact"),
        (Some("A.Example"), "exact"),
        (Some("b.example."), "exact"),
        (Some("x.a.example"), "any"),
        (Some("x.c.example"), "below"),
        (Some("x.y.C.example"), "below"),
        (Some("c.example"), "any"),
        (Some(".c.example"), "any"),
        (Some("xc.example"), "any"),
        (None, "no rule"),
    ] {
        assert_eq!(found(&routes, &asked(&shop, 443, sni)), expect, "{sni:?}");
    }
}

#[test]
fn every_condition_counts_and_the_first_rule_decides() {
    let network = |text: &str| StreamMatch {
        networks: [text.parse().expect("a network")].into(),
        ..StreamMatch::default()
    };
    let rules = vec![
        rule(
            "port",
            vec![StreamMatch {
                port: Some(1),
                ..StreamMatch::default()
            }],
        ),
        rule(
            "namespace",
            vec![StreamMatch {
                source_namespace: Some("bank".into()),
                ..StreamMatch::default()
            }],
        ),
        rule(
            "labels",
            vec![StreamMatch {
                source: Some(Selector("app=web".into())),
                port: Some(2),
                ..StreamMatch::default()
            }],
        ),
        rule(
            "elsewhere",
            vec![network("10.1.0.0/16"), network("fd00::/8")],
        ),
        rule(
            "here",
            vec![
                network("10.0.0.0/24"),
                StreamMatch {
                    port: Some(3),
                    ..StreamMatch::default()
                },
            ],
        ),
        rule("rest", vec![]),
    ];
    let all = routes(vec![set(None, &[], rules)], &[]);
    let (shop, bank) = ("shop".into(), "bank".into());
    let web = ["app=web".into()];
    for (mut asked, groups, dialed, expect) in [
        (asked(&bank, 1, None), false, "10.0.0.7", "port"),
        (asked(&bank, 2, None), true, "10.0.0.7", "namespace"),
        (asked(&shop, 2, None), true, "10.0.0.7", "labels"),
        (asked(&shop, 2, None), false, "10.0.0.7", "here"),
        (asked(&shop, 4, None), false, "10.1.2.3", "elsewhere"),
        (asked(&shop, 4, None), false, "fd00::1", "elsewhere"),
        (asked(&shop, 4, None), false, "::ffff:10.0.0.9", "here"),
        (asked(&shop, 3, None), false, "192.0.2.1", "here"),
        (asked(&shop, 4, None), false, "192.0.2.1", "rest"),
    ] {
        asked.dialed = cast::ip(dialed);
        asked.groups = if groups { &web } else { &[] };
        assert_eq!(found(&all, &asked), expect, "{asked:?}");
    }
}

#[test]
fn the_first_set_that_speaks_of_client_and_port_decides_alone() {
    let empty = set(None, &[], vec![]);
    let sets = vec![
        empty.clone(),
        set(
            Some("bank"),
            &[443],
            vec![rule("banks", vec![hosts(&["a.example"])])],
        ),
        set(None, &[443], vec![rule("everybodys", vec![])]),
    ];
    let all = routes(sets, &[]);
    let (shop, bank) = ("shop".into(), "bank".into());
    for (namespace, port, sni, expect, name) in [
        (&bank, 443, Some("a.example"), "banks", true),
        (&bank, 443, Some("b.example"), "no rule", true),
        (&bank, 443, None, "no rule", true),
        (&shop, 443, None, "everybodys", false),
        (&shop, 80, None, "unrouted", false),
    ] {
        let asked = asked(namespace, port, sni);
        assert_eq!(found(&all, &asked), expect, "{asked:?}");
        assert_eq!(all.wants_name(&asked), name, "{asked:?}");
    }
    let newer = routes(vec![empty], &["of-tomorrow"]);
    assert_eq!(found(&newer, &asked(&shop, 443, None)), "route_invalid");
}
