//! Routes and destinations that were spoiled on the way refuse, with the field named.

use fastrand::Rng;
use mesh_model::{
    mesh::{Change, knows_features},
    name::ServiceName,
};
use prost::Message;

use super::super::*;
use crate::sample;

const NAME: &str = "shop/web.shop.svc";

fn service() -> ServiceName {
    field::service_name("", NAME).expect("is one")
}

/// What comes of a body: the field that is reported, and that the one change refuses.
#[track_caller]
fn refuses(kind: Kind, body: Vec<u8>, field: &str) {
    let decoded = decode_resource(kind.url(), NAME, body.into());
    let error = decoded.error.expect("is reported");
    assert_eq!(error.field, field, "{error}");
    let (name, features) = match &decoded.changes[..] {
        [Change::Routes(r)] => (&r.service, &r.features),
        [Change::Destination(d)] => (&d.service, &d.features),
        other => panic!("not one that refuses: {other:?}"),
    };
    assert_eq!(*name, service());
    assert!(!knows_features(features), "{features:?} does not refuse");
    assert!(features[0].contains(field), "{features:?} does not say why");
}

#[track_caller]
fn bad_routes(spoil: impl FnOnce(&mut warren::RouteRule), field: &str) {
    let good = || warren::RouteRule {
        action: Some(warren::route_rule::Action::Forward(warren::Forward {
            backends: vec![backend(), backend()],
        })),
        matches: vec![warren::RouteMatch::default(); 2],
        ..Default::default()
    };
    let mut spoiled = good();
    spoil(&mut spoiled);
    let routes = |rules| warren::Routes {
        service: NAME.into(),
        sets: vec![warren::RouteSet {
            rules,
            ..Default::default()
        }],
        features: Vec::new(),
    };
    let fine = routes(vec![good(), good()]).encode_to_vec();
    let decoded = decode_resource(Kind::Routes.url(), NAME, fine.into());
    assert_eq!(decoded.error, None);
    let body = routes(vec![good(), spoiled]).encode_to_vec();
    refuses(Kind::Routes, body, &format!("sets[0].rules[1].{field}"));
}

fn backend() -> warren::Backend {
    warren::Backend {
        service: NAME.into(),
        weight: 1,
        ..Default::default()
    }
}

fn forward(backends: Vec<warren::Backend>) -> Option<warren::route_rule::Action> {
    Some(warren::route_rule::Action::Forward(warren::Forward {
        backends,
    }))
}

fn regex(text: &str) -> Option<warren::TextMatch> {
    Some(warren::TextMatch {
        kind: Some(warren::text_match::Kind::Regex(text.into())),
    })
}

#[test]
fn one_bad_field_of_a_rule_refuses_all_of_them() {
    bad_routes(|r| r.action = None, "action");
    bad_routes(
        |r| {
            let other = warren::Backend {
                service: "no-slash".into(),
                ..backend()
            };
            r.action = forward(vec![backend(), other]);
        },
        "forward.backends[1].service",
    );
    bad_routes(
        |r| {
            let other = warren::Backend {
                port: Some(65_536),
                ..backend()
            };
            r.action = forward(vec![other]);
        },
        "forward.backends[0].port",
    );
    bad_routes(
        |r| r.matches[1].method = regex("a)(b"),
        "matches[1].method.regex",
    );
    bad_routes(
        |r| r.matches[1].authority = Some(warren::TextMatch { kind: None }),
        "matches[1].authority.kind",
    );
    bad_routes(
        |r| r.matches[0].path = Some(warren::PathMatch { kind: None }),
        "matches[0].path.kind",
    );
    bad_routes(
        |r| {
            r.matches[0].headers = vec![warren::HeaderMatch {
                name: "bad name".into(),
                value: regex(""),
                negated: false,
            }];
        },
        "matches[0].headers[0].name",
    );
    bad_routes(
        |r| {
            r.matches[0].query = vec![warren::QueryMatch {
                name: "q".into(),
                value: None,
            }];
        },
        "matches[0].query[0].value",
    );
    bad_routes(
        |r| {
            r.fault = Some(warren::Fault {
                delay: None,
                abort: Some(warren::Abort {
                    share: 1_000_001,
                    status: Some(warren::abort::Status::Http(500)),
                }),
            });
        },
        "fault.abort.share",
    );
    bad_routes(
        |r| r.retries = Some(warren::Retries::default()),
        "retries.on",
    );
    bad_routes(
        |r| {
            r.timeout = Some(prost_types::Duration {
                seconds: -1,
                nanos: 0,
            });
        },
        "timeout",
    );
    bad_routes(
        |r| {
            let rewrite = warren::Rewrite {
                authority: None,
                path: Some(warren::PathRewrite {
                    kind: Some(warren::path_rewrite::Kind::Regex(warren::Substitution {
                        pattern: "(a)".into(),
                        template: r"\2".into(),
                    })),
                }),
            };
            r.filters = Some(warren::Filters {
                rewrite: Some(rewrite),
                ..Default::default()
            });
        },
        "filters.rewrite.path.regex.template",
    );
    bad_routes(
        |r| {
            r.action = Some(warren::route_rule::Action::Respond(warren::Respond {
                status: 99,
                body: Vec::new(),
            }));
        },
        "respond.status",
    );
}

#[track_caller]
fn bad_destination(spoil: impl FnOnce(&mut warren::Destination), field: &str) {
    let mut d = sample::routes::destination(&mut Rng::with_seed(4));
    d.service = service();
    let mut message = destination::encode(&d);
    let policy = message.policy.clone();
    message.subsets = vec![
        warren::Subset {
            policy,
            ..Default::default()
        };
        2
    ];
    spoil(&mut message);
    refuses(Kind::Destination, message.encode_to_vec(), field);
}

#[test]
fn one_bad_field_of_a_destination_refuses() {
    fn policy(d: &mut warren::Destination) -> &mut warren::TrafficPolicy {
        d.policy.as_mut().expect("is there")
    }
    bad_destination(|d| d.policy = None, "policy");
    bad_destination(|d| policy(d).pool = None, "policy.pool");
    bad_destination(|d| policy(d).balancing = None, "policy.balancing");
    bad_destination(|d| policy(d).proxy_protocol = 7, "policy.proxy_protocol");
    bad_destination(|d| d.subsets[1].policy = None, "subsets[1].policy");
    bad_destination(
        |d| {
            d.subsets[1].ports = vec![warren::PortPolicy {
                port: 0,
                policy: d.policy.clone(),
            }];
        },
        "subsets[1].ports[0].port",
    );
    bad_destination(
        |d| {
            let simple = warren::balancing::Weighing::Simple(0);
            policy(d).balancing = Some(warren::Balancing {
                weighing: Some(simple),
                ..Default::default()
            });
        },
        "policy.balancing.simple",
    );
    bad_destination(
        |d| policy(d).tls = Some(warren::UpstreamTls { mode: None }),
        "policy.tls.mode",
    );
    bad_destination(|d| d.service = "shop/other".into(), "service");
}

#[test]
fn what_is_no_message_too_large_or_from_the_future_refuses() {
    for kind in [Kind::Routes, Kind::Destination] {
        refuses(kind, vec![0xff; 3], "");
        refuses(kind, vec![0; MAX_BODY + 1], "");
        let mut rng = Rng::with_seed(9);
        let mut body = match kind {
            Kind::Routes => {
                let mut r = sample::routes::routes(&mut rng);
                r.service = service();
                routes::encode(&r).encode_to_vec()
            }
            _ => {
                let mut d = sample::routes::destination(&mut rng);
                d.service = service();
                destination::encode(&d).encode_to_vec()
            }
        };
        body.extend([0xfa, 0x01, 0x01, 0x00]); // field 31, one byte
        refuses(kind, body, "");
        let error = decode(kind.url(), "no-slash", &[]);
        assert!(error.is_err(), "a name that is none stands for nobody");
    }
}

#[test]
fn removals_are_of_the_same_service() {
    let pairs = [
        (Kind::Routes, Change::RemoveRoutes(service())),
        (Kind::Destination, Change::RemoveDestination(service())),
    ];
    for (kind, change) in pairs {
        let [Update::Remove(encoded, name)] = &encode(&change)[..] else {
            panic!("not a removal");
        };
        assert_eq!((*encoded, &**name), (kind, NAME));
        assert_eq!(removed(kind, name), Some(change));
        assert_eq!(removed(kind, "no-slash"), None);
    }
}
