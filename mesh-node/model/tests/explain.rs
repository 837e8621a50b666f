//! Explanations, and what a change must have decided again.

use mesh_model::{
    authz, explain,
    mesh::{Action, Change, Mesh, MtlsMode, PolicyScope, policy::Match},
    testing::cast::*,
};

fn shop() -> Mesh {
    let web = |name, node, address| serving(pod("shop", name, node, address), "shop", "web");
    let pods = [
        pod("shop", "client", "n1", "10.0.1.1"),
        web("w1", "n1", "10.0.1.2"),
        web("w2", "n2", "10.0.2.2"),
    ];
    let changes = pods.into_iter().flat_map(known);
    let rest = [
        Change::Service(service("shop", "web", "10.96.0.1", 80, 8080)),
        Change::Config(config()),
        Change::Complete,
    ];
    Mesh::empty().apply(changes.chain(rest)).0
}

#[test]
fn an_explanation_names_what_decided() {
    let deny = policy(
        "shop",
        "nobody",
        PolicyScope::Namespace,
        Action::Deny,
        [Match::default()],
    );
    let mut trial = policy("shop", "trial", PolicyScope::Namespace, Action::Allow, []);
    trial.dry_run = true;
    let mesh = shop()
        .apply([Change::Policy(deny), Change::Policy(trial)])
        .0;
    let client = mesh.workload(&uid("shop", "client")).expect("known");
    let text =
        explain::connection(&mesh, client, "10.96.0.1:80".parse().expect("an address")).to_string();
    for part in [
        "service shop/web.shop.svc.cluster.local port 80",
        "policy shop/nobody (namespace, DENY)",
        "refused by shop/nobody",
        "(policy_denied)",
        "dry run: shop/trial would refuse",
        "PERMISSIVE",
        "hbone to 10.0.2.2:15008 for 10.0.2.2:8080",
    ] {
        assert!(text.contains(part), "{part:?} is missing in\n{text}");
    }
    let open = mesh
        .apply([Change::RemovePolicy(policy_name("shop", "nobody"))])
        .0;
    let text =
        explain::connection(&open, client, "10.0.1.2:80".parse().expect("an address")).to_string();
    assert!(
        text.contains("direct to 10.0.1.2:80") && text.contains("=> allowed"),
        "{text}"
    );
}

#[test]
fn a_change_rechecks_whom_it_can_affect() {
    let mesh = shop();
    let target = mesh.workload(&uid("shop", "w1")).expect("known").clone();
    let check = |change: Change, expected: bool| {
        let (_, diff) = mesh.apply([change]);
        assert_eq!(authz::recheck(&diff, &target), expected, "{diff:?}");
    };
    let make = |ns: &str, scope| Change::Policy(policy(ns, "p", scope, Action::Deny, []));
    check(make("shop", PolicyScope::Namespace), true);
    check(make("other", PolicyScope::Namespace), false);
    check(make("other", PolicyScope::Global), true);
    check(make("warren-system", PolicyScope::Selector), true);
    check(
        Change::WorkloadExtra(uid("shop", "w1"), extra(MtlsMode::Strict)),
        true,
    );
    check(
        Change::WorkloadExtra(uid("shop", "w2"), extra(MtlsMode::Strict)),
        false,
    );
    check(
        Change::Workload(pod("evil", "thief", "n1", "10.0.1.2")),
        true,
    );
    check(Change::Config(config()), false);
}
