//! Conversion: exact round trips, and one bad element among good ones in every place.

use std::net::{IpAddr, Ipv4Addr};

mod companions;
mod policies;
mod routes;

use fastrand::Rng;
use mesh_model::mesh::{Change, Validity};
use prost::Message;

use super::*;
use crate::{
    resource::{Kind, Version},
    sample,
};

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
            let name = match kind {
                Kind::Companion | Kind::Address => "Kubernetes//Pod/shop/web",
                Kind::Authorization | Kind::Destination | Kind::Routes => "shop/deny",
            };
            let changes = decode(kind.url(), name, &body).unwrap_or_default();
            if matches!(kind, Kind::Destination | Kind::Routes) {
                assert_eq!(changes.len(), 1, "{kind} was dropped");
            }
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
