//! A policy and the workload that names it, in every order of arrival and removal: what the whole state refuses is
//! never allowed on the way there, and never once its policy is gone while its workload still names it.

use mesh_model::{
    authn::Transport,
    authz::{self, Conn},
    mesh::{
        Action, Change, Mesh, Policy, PolicyScope, Workload, policy::Match, policy::StringMatch,
    },
    testing::cast::*,
};

/// Every order of these.
fn orders<T: Clone>(items: &[T]) -> Vec<Vec<T>> {
    if items.is_empty() {
        return vec![Vec::new()];
    }
    let mut all = Vec::new();
    for i in 0..items.len() {
        let mut rest = items.to_vec();
        let first = rest.remove(i);
        for mut order in orders(&rest) {
            order.insert(0, first.clone());
            all.push(order);
        }
    }
    all
}

fn allowed(mesh: &Mesh) -> bool {
    let Some(web) = mesh.workload(&uid("shop", "web")) else {
        return false;
    };
    let conn = Conn {
        via: None,
        transport: Transport::Mtls(identity("shop", "stranger")),
        source_ip: "10.0.9.9".parse().expect("an address"),
        workload: web.clone(),
        destination: "10.0.1.2:8080".parse().expect("an address"),
    };
    authz::ingress(mesh, conn).outcome.is_ok()
}

/// Policies by which a stranger is refused: an ALLOW that names somebody else, and a DENY that names him.
fn policies() -> [Policy; 2] {
    let of = |account: &str| Match {
        principals: [StringMatch::Exact(
            identity("shop", account)
                .to_string()
                .replace("spiffe://", "")
                .into(),
        )]
        .into(),
        ..Match::default()
    };
    [
        policy(
            "shop",
            "guard",
            PolicyScope::Selector,
            Action::Allow,
            [of("friend")],
        ),
        policy(
            "shop",
            "guard",
            PolicyScope::Selector,
            Action::Deny,
            [of("stranger")],
        ),
    ]
}

fn web(named: bool) -> Workload {
    let mut web = pod("shop", "web", "n1", "10.0.1.2");
    if named {
        web.policies = [policy_name("shop", "guard")].into();
    }
    web
}

#[test]
fn no_order_of_arrival_allows() {
    for policy in policies() {
        let mut changes: Vec<Change> = known(web(true)).into_iter().collect();
        changes.extend([
            Change::Policy(policy),
            Change::Config(config()),
            Change::Complete,
        ]);
        for order in orders(&changes) {
            let mut mesh = Mesh::empty();
            for (i, change) in order.iter().enumerate() {
                mesh = mesh.apply([change.clone()]).0;
                assert!(!allowed(&mesh), "allowed after {:?}", &order[..=i]);
            }
        }
    }
}

#[test]
fn no_order_of_removal_allows() {
    for policy in policies() {
        let mut whole: Vec<Change> = known(web(true)).into_iter().collect();
        whole.extend([
            Change::Policy(policy.clone()),
            Change::Config(config()),
            Change::Complete,
        ]);
        let mesh = Mesh::empty().apply(whole).0;
        let removals = [
            Change::RemovePolicy(policy.name.clone()),
            Change::RemoveWorkload(uid("shop", "web")),
        ];
        for order in orders(&removals) {
            let mut mesh = mesh.clone();
            for change in order {
                mesh = mesh.apply([change]).0;
                assert!(!allowed(&mesh), "allowed while things are removed");
            }
        }
        // Only the workload that does not name the policy any more is free of it.
        let deleted = mesh.apply([Change::RemovePolicy(policy.name.clone())]).0;
        assert!(!allowed(&deleted), "allowed because the policy is gone");
        let freed = deleted.apply([Change::Workload(web(false))]).0;
        assert!(allowed(&freed), "the test can fail");
    }
}
