//! Conversion: exact round trips, and one bad element among good ones in every place.

use std::net::{IpAddr, Ipv4Addr};

use fastrand::Rng;
use mesh_model::{
    mesh::{Action, Change, MtlsMode, Policy, PolicyScope, Validity, policy::StringMatch},
    name::Namespace,
};
use prost::Message;

use super::*;
use crate::{sample, security};

fn set(change: &Change) -> Resource {
    match encode(change).remove(0) {
        Update::Set(resource) => resource,
        Update::Remove(..) => panic!("{change:?} is a removal"),
    }
}

fn read(r: &Resource) -> Result<Vec<Change>, ConvertError> {
    decode(r.kind.url(), &r.name, &r.body)
}

#[test]
fn every_value_comes_back_as_it_was() {
    let mut rng = Rng::with_seed(7);
    for i in 0..20_000 {
        let change = sample::change(&mut rng);
        let resource = set(&change);
        let back = read(&resource).unwrap_or_else(|e| panic!("round {i}: {e}: {change:?}"));
        assert_eq!(format!("{back:?}"), format!("{:?}", [&change]), "round {i}");
        assert_eq!(set(&change), resource, "round {i}: encoded otherwise");
        assert_eq!(resource.version, Version::of(&resource.body));
    }
}

use crate::resource::Version;

#[test]
fn removals_come_back_as_removals_of_the_same_object() {
    let mut rng = Rng::with_seed(3);
    let w = sample::workload(&mut rng);
    let s = sample::service(&mut rng);
    let p = sample::policy(&mut rng);
    let check = |change: Change, expect: &[Change]| {
        let updates = encode(&change);
        let got: Vec<_> = updates
            .iter()
            .map(|u| match u {
                Update::Remove(kind, name) => removed(*kind, name).expect("stands for something"),
                Update::Set(r) => panic!("{r:?} was set"),
            })
            .collect();
        assert_eq!(format!("{got:?}"), format!("{expect:?}"));
    };
    check(
        Change::RemoveWorkload(w.uid.clone()),
        &[
            Change::RemoveWorkload(w.uid.clone()),
            Change::RemoveWorkloadExtra(w.uid),
        ],
    );
    check(
        Change::RemoveService(s.name.clone()),
        &[
            Change::RemoveService(s.name.clone()),
            Change::RemoveServiceExtra(s.name),
        ],
    );
    check(
        Change::RemovePolicy(p.name.clone()),
        &[Change::RemovePolicy(p.name)],
    );
    assert!(removed(Kind::Companion, "mesh").is_none());
    assert!(removed(Kind::Authorization, "no-slash").is_none());
}

/// Encodes a workload after something was done to its message, and expects an error at this field.
#[track_caller]
fn bad_workload(spoil: impl FnOnce(&mut workload::Workload), field: &str, problem: Problem) {
    let mut w = sample::workload(&mut Rng::with_seed(1));
    w.addresses = [IpAddr::from([10, 0, 0, 1]), IpAddr::from([10, 0, 0, 2])].into();
    let mut message = address::encode_workload(&w);
    spoil(&mut message);
    let body = workload::Address {
        r#type: Some(workload::address::Type::Workload(message)),
    }
    .encode_to_vec();
    let error = decode(Kind::Address.url(), w.uid.as_str(), &body).expect_err("is bad");
    assert_eq!(
        (error.field.as_str(), &error.problem),
        (field, &problem),
        "{error}"
    );
    assert!(
        error.to_string().contains(w.uid.as_str()),
        "{error} does not name the workload"
    );
}

#[test]
fn one_bad_field_of_a_workload_is_named() {
    bad_workload(
        |w| w.addresses.push(vec![1, 2, 3]),
        "addresses[2]",
        Problem::AddressLength(3),
    );
    bad_workload(
        |w| w.addresses.insert(0, vec![]),
        "addresses[0]",
        Problem::AddressLength(0),
    );
    bad_workload(
        |w| w.tunnel_protocol = 9,
        "tunnel_protocol",
        Problem::UnknownValue(9),
    );
    bad_workload(
        |w| w.tunnel_protocol = 2,
        "tunnel_protocol",
        Problem::UnknownValue(2),
    );
    bad_workload(|w| w.status = 4, "status", Problem::UnknownValue(4));
    bad_workload(
        |w| w.network_mode = 4,
        "network_mode",
        Problem::UnknownValue(4),
    );
    bad_workload(
        |w| w.workload_type = 44,
        "workload_type",
        Problem::UnknownValue(44),
    );
    bad_workload(
        |w| w.uid = "a/b/c/d/e".into(),
        "uid",
        Problem::NameMismatch("a/b/c/d/e".into()),
    );
    bad_workload(
        |w| w.namespace.clear(),
        "namespace",
        Problem::Name(String::new()),
    );
    bad_workload(
        |w| w.hostname = "Upper.case".into(),
        "hostname",
        Problem::Name("Upper.case".into()),
    );
    bad_workload(
        |w| w.authorization_policies = vec!["ns/good".into(), "bad".into()],
        "authorization_policies[1]",
        Problem::Name("bad".into()),
    );
    bad_workload(
        |w| {
            let port = |p| workload::Port {
                service_port: p,
                target_port: 80,
                app_protocol: 0,
            };
            w.services = [(
                "ns/host".to_owned(),
                workload::PortList {
                    ports: vec![port(80), port(65_536)],
                },
            )]
            .into();
        },
        "services[ns/host].ports[1].service_port",
        Problem::Port(65_536),
    );
    bad_workload(
        |w| w.waypoint = Some(workload::GatewayAddress::default()),
        "waypoint.destination",
        Problem::Missing,
    );
}

#[test]
fn an_identity_that_is_none_is_refused() {
    let mut w = address::encode_workload(&sample::workload(&mut Rng::with_seed(1)));
    w.tunnel_protocol = workload::TunnelProtocol::Hbone.into();
    for account in ["", "../x", "a/b", "a\0"] {
        w.service_account = account.into();
        let error =
            address::decode_workload(&w.uid.clone(), w.clone()).expect_err("is no identity");
        assert_eq!(error.field, "service_account", "{account:?}");
    }
    // An endpoint without a tunnel has nothing to prove, and may be nobody; a bad name stays one.
    w.tunnel_protocol = workload::TunnelProtocol::None.into();
    w.service_account = String::new();
    let nobody = address::decode_workload(&w.uid.clone(), w.clone()).expect("is an endpoint");
    assert_eq!(nobody.identity.service_account.as_str(), "");
    assert_eq!(address::encode_workload(&nobody).service_account, "");
    w.service_account = "a/b".into();
    assert!(address::decode_workload(&w.uid.clone(), w.clone()).is_err());
}

#[test]
fn mapped_addresses_are_unwrapped_and_duplicates_dropped() {
    let v4 = Ipv4Addr::new(10, 0, 0, 1);
    let mut w = sample::workload(&mut Rng::with_seed(1));
    let mut message = address::encode_workload(&w);
    message.addresses = vec![v4.octets().to_vec(), v4.to_ipv6_mapped().octets().to_vec()];
    w.addresses = [IpAddr::V4(v4)].into();
    assert_eq!(
        address::decode_workload(w.uid.as_str(), message).expect("is good"),
        w
    );
    let mapped = v4.to_ipv6_mapped().octets();
    assert_eq!(
        field::net(&mapped, 120).expect("is good").to_string(),
        "10.0.0.1/24"
    );
    assert_eq!(
        field::net(&mapped, 95).expect("is good").to_string(),
        "::ffff:10.0.0.1/95"
    );
    assert_eq!(
        field::net(&[10, 0, 0, 1], 33)
            .expect_err("too long")
            .problem,
        Problem::PrefixLength(33)
    );
    assert_eq!(
        field::net(&[10, 0, 0, 1], 256)
            .expect_err("too long")
            .problem,
        Problem::PrefixLength(256)
    );
}

#[track_caller]
fn bad_service(spoil: impl FnOnce(&mut workload::Service), field: &str) {
    let s = sample::service(&mut Rng::with_seed(5));
    let mut message = address::encode_service(&s);
    message.addresses.clear();
    message.ports.clear();
    spoil(&mut message);
    let error = address::decode_service(&s.name.to_string(), message).expect_err("is bad");
    assert_eq!(error.field, field, "{error:?}");
}

#[test]
fn one_bad_field_of_a_service_is_named() {
    let good = || workload::NetworkAddress {
        network: String::new(),
        address: vec![10, 0, 0, 1],
        length: None,
    };
    bad_service(
        |s| {
            s.addresses = vec![
                good(),
                workload::NetworkAddress {
                    address: vec![1],
                    ..good()
                },
            ]
        },
        "addresses[1].address",
    );
    bad_service(
        |s| {
            s.addresses = vec![
                good(),
                workload::NetworkAddress {
                    length: Some(40),
                    ..good()
                },
            ]
        },
        "addresses[1].length",
    );
    let port = |p, a| workload::Port {
        service_port: p,
        target_port: 1,
        app_protocol: a,
    };
    bad_service(
        |s| s.ports = vec![port(80, 0), port(0, 0)],
        "ports[1].service_port",
    );
    bad_service(
        |s| s.ports = vec![port(80, 0), port(81, 77)],
        "ports[1].app_protocol",
    );
    let preference = |p: Vec<i32>| {
        Some(workload::LoadBalancing {
            routing_preference: p,
            mode: 0,
            health_policy: 0,
        })
    };
    bad_service(
        |s| s.load_balancing = preference(vec![1, 0]),
        "load_balancing.routing_preference[1]",
    );
    bad_service(
        |s| s.load_balancing = preference(vec![1, 99]),
        "load_balancing.routing_preference[1]",
    );
    bad_service(|s| s.hostname = "other.svc".into(), "hostname");
}

/// A policy that was spoiled on the wire must come out invalid, in its scope, with the field named.
#[track_caller]
fn bad_policy(spoil: impl FnOnce(&mut security::Authorization), field: &str) -> Policy {
    let mut rng = Rng::with_seed(11);
    let good = security::Match {
        principals: vec![security::StringMatch {
            match_type: Some(security::string_match::MatchType::Exact("a".into())),
        }],
        ..Default::default()
    };
    let mut message = policy::encode(&Policy {
        scope: PolicyScope::Selector,
        action: Action::Allow,
        validity: Validity::Valid,
        ..sample::policy(&mut rng)
    });
    message.rules = vec![security::Rule {
        clauses: vec![security::Clause {
            matches: vec![good.clone(), good],
        }],
    }];
    spoil(&mut message);
    let name = "shop/allow-web";
    (message.namespace, message.name) = ("shop".into(), "allow-web".into());
    let decoded = decode_resource(
        Kind::Authorization.url(),
        name,
        message.encode_to_vec().into(),
    );
    let error = decoded.error.expect("is reported");
    assert_eq!(error.field, field, "{error}");
    match &decoded.changes[..] {
        [Change::Policy(p)] => {
            assert_eq!(p.name.to_string(), name);
            assert!(
                matches!(p.validity, Validity::Invalid(_)),
                "{p:?} is not invalid"
            );
            p.clone()
        }
        other => panic!("a policy was dropped: {other:?}"),
    }
}

#[test]
fn a_policy_with_one_bad_element_denies() {
    let second =
        |m: &mut security::Authorization| std::mem::take(&mut m.rules[0].clauses[0].matches[1]);
    let put =
        |m: &mut security::Authorization, x: security::Match| m.rules[0].clauses[0].matches[1] = x;
    let at = "rules[0].clauses[0].matches[1]";
    let p = bad_policy(
        |m| {
            let x = second(m);
            put(
                m,
                security::Match {
                    principals: vec![security::StringMatch { match_type: None }],
                    ..x
                },
            );
        },
        &format!("{at}.principals[0].match_type"),
    );
    assert_eq!(p.scope, PolicyScope::Selector);
    let short = || {
        vec![security::Address {
            address: vec![1, 2, 3],
            length: 8,
        }]
    };
    bad_policy(
        |m| {
            let x = second(m);
            put(
                m,
                security::Match {
                    not_source_ips: short(),
                    ..x
                },
            )
        },
        &format!("{at}.not_source_ips[0].address"),
    );
    bad_policy(
        |m| {
            let x = second(m);
            put(
                m,
                security::Match {
                    destination_ips: short(),
                    ..x
                },
            )
        },
        &format!("{at}.destination_ips[0].address"),
    );
    bad_policy(
        |m| {
            let x = second(m);
            put(
                m,
                security::Match {
                    destination_ports: vec![1, 70_000],
                    ..x
                },
            )
        },
        &format!("{at}.destination_ports[1]"),
    );
    let extension = || security::Extension {
        name: "istio.io/new".into(),
        config: None,
    };
    bad_policy(
        |m| {
            let x = second(m);
            put(
                m,
                security::Match {
                    extensions: vec![extension()],
                    ..x
                },
            )
        },
        &format!("{at}.extensions[0]"),
    );
    let nobody = || security::ServiceAccountMatch {
        namespace: "a".into(),
        service_account: String::new(),
    };
    bad_policy(
        |m| {
            let x = second(m);
            put(
                m,
                security::Match {
                    service_accounts: vec![nobody()],
                    ..x
                },
            )
        },
        &format!("{at}.service_accounts[0].service_account"),
    );
    bad_policy(|m| m.extensions.push(extension()), "extensions[0]");
    bad_policy(|m| m.action = 7, "action");
    assert_eq!(
        bad_policy(|m| m.scope = 7, "scope").scope,
        PolicyScope::Namespace
    );
}

#[test]
fn a_policy_with_a_field_from_the_future_denies() {
    let p = sample::policy(&mut Rng::with_seed(2));
    let mut body = policy::encode(&p).encode_to_vec();
    body.extend([0xfa, 0x01, 0x01, 0x00]); // field 31, one byte
    let changes =
        decode(Kind::Authorization.url(), &p.name.to_string(), &body).expect("is a policy");
    assert!(
        matches!(&changes[..], [Change::Policy(p)] if matches!(p.validity, Validity::Invalid(_))),
        "{changes:?}"
    );
}

#[test]
fn garbage_is_refused_without_harm() {
    let mut rng = Rng::with_seed(23);
    for _ in 0..20_000 {
        let mut body = set(&sample::change(&mut rng)).body.to_vec();
        for _ in 0..rng.usize(1..4) {
            let at = rng.usize(0..=body.len());
            match rng.u8(0..3) {
                0 => body.truncate(at),
                1 if at < body.len() => body[at] = rng.u8(..),
                _ => body.insert(at, rng.u8(..)),
            }
        }
        for kind in Kind::ALL {
            let name = if kind == Kind::Authorization {
                "shop/deny"
            } else {
                "Kubernetes//Pod/shop/web"
            };
            let changes = decode(kind.url(), name, &body).unwrap_or_default();
            if kind == Kind::Authorization {
                assert!(
                    matches!(&changes[..], [Change::Policy(p)] if p.name.to_string() == name),
                    "{changes:?}"
                );
            }
        }
    }
    assert!(decode("type.googleapis.com/envoy.Cluster", "a", &[]).is_err());
    assert!(decode(Kind::Authorization.url(), "no-namespace", &[]).is_err());
}

#[test]
fn deep_nesting_and_giants_are_refused() {
    let mut config = prost_types::Value { kind: None };
    for _ in 0..5_000 {
        let list = prost_types::ListValue {
            values: vec![config],
        };
        config = prost_types::Value {
            kind: Some(prost_types::value::Kind::ListValue(list)),
        };
    }
    let body = config.encode_to_vec();
    std::mem::forget(config); // its destructor would recurse as deep
    assert!(
        prost_types::Value::decode(&body[..]).is_err(),
        "the decoder follows any depth"
    );
    let giant = vec![0; MAX_BODY + 1];
    assert_eq!(
        decode(Kind::Address.url(), "a/b", &giant)
            .expect_err("too large")
            .problem,
        Problem::TooLarge(MAX_BODY + 1)
    );
    let changes = decode(Kind::Authorization.url(), "shop/big", &giant).expect("is a policy");
    assert!(
        matches!(&changes[..], [Change::Policy(p)] if matches!(p.validity, Validity::Invalid(_))),
        "{changes:?}"
    );
}

#[test]
fn a_companion_of_a_newer_controller_denies_rather_than_opens() {
    let companion = |w: warren::Workload| {
        let content = Some(warren::companion::Content::Workload(w));
        let body = warren::Companion { content }.encode_to_vec();
        decode(
            Kind::Companion.url(),
            "workload/Kubernetes//Pod/shop/web",
            &body,
        )
    };
    let good = warren::Workload {
        enrolment: 1,
        mtls: 2,
        ..Default::default()
    };
    assert!(companion(good.clone()).is_ok());
    let newer = companion(warren::Workload {
        mtls: 9,
        ..good.clone()
    })
    .expect("is understood as strict");
    match &newer[..] {
        [Change::WorkloadExtra(_, x)] => {
            assert_eq!(x.mtls, MtlsMode::Strict);
            assert_eq!(x.features.len(), 1, "nothing demands a newer build");
        }
        other => panic!("{other:?}"),
    }
    let field = |w| companion(w).expect_err("is bad").field;
    assert_eq!(
        field(warren::Workload {
            enrolment: 9,
            ..good.clone()
        }),
        "enrolment"
    );
    assert_eq!(
        field(warren::Workload {
            enrolment: 0,
            ..good.clone()
        }),
        "enrolment"
    );
    assert_eq!(
        field(warren::Workload {
            probe_ports: vec![80, 65_536],
            ..good.clone()
        }),
        "probe_ports[1]"
    );
    let port = warren::PortMtls {
        port: 70_000,
        mtls: 1,
    };
    assert_eq!(
        field(warren::Workload {
            mtls_ports: vec![port],
            ..good
        }),
        "mtls_ports[0].port"
    );
}

#[test]
fn a_companion_under_a_wrong_name_is_refused() {
    let r = set(&Change::Config(sample::config(&mut Rng::with_seed(1))));
    for name in [
        "roots",
        "service/ns/host",
        "workload/Kubernetes//Pod/shop/web",
        "other",
        "workload/short",
    ] {
        assert!(
            decode(Kind::Companion.url(), name, &r.body).is_err(),
            "{name}"
        );
    }
}

#[test]
fn roots_are_told_apart_from_changes() {
    let pem = vec!["one".to_owned(), "two".to_owned()];
    let Update::Set(r) = encode_roots(&pem) else {
        panic!("roots are set")
    };
    let decoded = decode_resource(r.kind.url(), &r.name, r.body);
    assert_eq!(decoded.roots, Some(pem));
    assert!(decoded.changes.is_empty() && decoded.error.is_none());
}

#[test]
fn a_foreign_peer_sees_something_at_least_as_strict() {
    let mut rng = Rng::with_seed(5);
    for _ in 0..2_000 {
        let p = sample::policy(&mut rng);
        let Some(out) = foreign::policy(&p) else {
            assert_eq!(p.action, Action::Audit);
            continue;
        };
        let matches = || {
            out.rules
                .iter()
                .flat_map(|r| &r.clauses)
                .flat_map(|c| &c.matches)
        };
        assert!(matches().all(|m| !m.beyond_l4), "{out:?}");
        assert!(policy::encode(&out).extensions.is_empty());
        match (&p.validity, p.action) {
            (Validity::Invalid(_), _) => {
                assert!(out.action == Action::Deny && matches().any(|m| *m == Default::default()))
            }
            (Validity::Valid, Action::Deny) => assert_eq!(out.rules.len(), p.rules.len()),
            (Validity::Valid, Action::Allow) => {
                let emptied = out
                    .rules
                    .iter()
                    .any(|r| r.clauses.iter().any(|c| c.matches.is_empty()));
                let was = p
                    .rules
                    .iter()
                    .any(|r| r.clauses.iter().any(|c| c.matches.is_empty()));
                assert!(
                    !emptied || was,
                    "a clause that could not match now matches everything: {out:?}"
                );
            }
            (Validity::Valid, Action::Audit) => panic!("AUDIT was sent"),
        }
    }
}

#[test]
fn peer_authentication_becomes_a_deny_for_foreign_peers() {
    let root = Namespace::from("warren-system");
    let mut extra = sample::workload_extra(&mut Rng::with_seed(1));
    let mut check = |mode, ports: &[(u16, MtlsMode)], name: Option<&str>| {
        (extra.mtls, extra.mtls_ports) = (mode, ports.into());
        let policy = foreign::mtls_policy(&root, &extra);
        assert_eq!(policy.as_ref().map(|p| &*p.name.name), name);
        policy.map(|p| p.rules[0].clauses[0].matches[0].clone())
    };
    assert!(check(MtlsMode::Permissive, &[], None).is_none());
    assert!(check(MtlsMode::Disable, &[(80, MtlsMode::Permissive)], None).is_none());
    let all = check(MtlsMode::Strict, &[], Some("istio_converted_static_strict")).expect("denies");
    assert_eq!(*all.not_principals, [StringMatch::Presence]);
    let some = check(
        MtlsMode::Strict,
        &[(80, MtlsMode::Disable)],
        Some("warren_strict_except_80"),
    )
    .expect("denies");
    assert_eq!(*some.not_destination_ports, [80]);
    let one = check(
        MtlsMode::Permissive,
        &[(80, MtlsMode::Strict)],
        Some("warren_strict_on_80"),
    )
    .expect("denies");
    assert_eq!(*one.destination_ports, [80]);
}
