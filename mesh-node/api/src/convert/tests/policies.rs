//! Policies that were spoiled on the way, and what foreign peers are told of good ones.

use fastrand::Rng;
use mesh_model::{
    mesh::{Action, Change, MtlsMode, Policy, PolicyScope, Validity, policy::StringMatch},
    name::Namespace,
};
use prost::Message;

use super::super::*;
use crate::{sample, security};

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
