//! Whom the configuration expects here, and what follows from who is registered.

use mesh_model::{
    mesh::{Change, Enrolment, Mesh, Workload, WorkloadExtra},
    testing::cast,
};

use super::*;
use crate::capture::PodReport;

fn pod(name: &str, node: &str, address: &str) -> (Workload, WorkloadExtra) {
    let mut extra = cast::extra(mesh_model::mesh::MtlsMode::Permissive);
    extra.pod_uid = Some(format!("uid-{name}").into());
    (cast::pod("shop", name, node, address), extra)
}

fn mesh(pods: impl IntoIterator<Item = (Workload, WorkloadExtra)>) -> Mesh {
    let changes = pods.into_iter().flat_map(|(workload, extra)| {
        let uid = workload.uid.clone();
        [
            Change::Workload(workload),
            Change::WorkloadExtra(uid, extra),
        ]
    });
    Mesh::empty().apply(changes).0
}

fn here(mesh: &Mesh) -> Expected {
    expected(
        mesh,
        &cast::pod("x", "x", "n1", "10.0.0.1").cluster,
        &"n1".into(),
    )
}

fn saved(uid: &str, address: &str, netns: u64, state: PodState) -> SavedPod {
    let pod = Registration {
        uid: uid.into(),
        namespace: "shop".into(),
        name: "web".into(),
        service_account: String::new(),
        addresses: vec![address.parse().unwrap()],
        veth_ifindex: 7,
        cgroup: None,
        probe_ports: vec![],
    };
    SavedPod {
        report: PodReport {
            pod,
            state,
            reason: None,
        },
        netns,
    }
}

fn uids(pods: &[Registration]) -> Vec<&str> {
    pods.iter().map(|p| p.uid.as_str()).collect()
}

#[test]
fn only_pods_of_this_node_with_a_network_of_their_own_are_expected() {
    let mut host = pod("host", "n1", "10.0.0.9");
    host.0.host_network = true;
    let mut early = pod("early", "n1", "10.0.0.2");
    early.0.addresses = [].into();
    let mut out = pod("out", "n1", "10.0.0.3");
    out.1.enrolment = Enrolment::Out;
    let mut nameless = pod("nameless", "n1", "10.0.0.4");
    nameless.1.pod_uid = None;
    let mut odd = pod("odd", "n1", "10.0.0.5");
    odd.1.pod_uid = Some("../x".into());
    let mut outside = pod("outside", "n1", "10.0.0.6");
    outside.0.uid = WorkloadUid::from("Kubernetes/WorkloadEntry/shop/outside");
    let elsewhere = pod("elsewhere", "n2", "10.0.0.7");
    let web = pod("web", "n1", "10.0.0.1");
    let all = here(&mesh([
        host, early, out, nameless, odd, outside, elsewhere, web,
    ]));
    let mut found = uids(&all.pods);
    found.sort_unstable();
    assert_eq!(found, ["uid-out", "uid-web"]);
    assert_eq!(
        all.pods
            .iter()
            .find(|p| p.uid == "uid-web")
            .unwrap()
            .service_account,
        cast::pod("shop", "web", "n1", "10.0.0.1")
            .identity
            .service_account
            .as_str()
    );
    assert!(all.uids.contains("uid-early"), "it is no stranger");
    let told: Vec<_> = all.hopeless.keys().map(String::as_str).collect();
    assert_eq!(told, ["shop/nameless", "shop/odd"]);
}

#[test]
fn who_is_registered_with_the_same_addresses_is_not_missing() {
    let config = mesh([pod("a", "n1", "10.0.0.1"), pod("b", "n1", "10.0.0.2")]);
    let mut expected = here(&config);
    let known = [
        saved("uid-a", "10.0.0.1", 1, PodState::Out),
        saved("uid-b", "10.0.0.99", 2, PodState::Captured),
        saved("uid-c", "10.0.0.3", 3, PodState::Captured),
        saved("uid-d", "10.0.0.4", 4, PodState::Gone),
    ];
    let open = compare(&mut expected, &known, true);
    assert_eq!(uids(&open.missing), ["uid-b"]);
    assert_eq!(open.taken, HashSet::from([1, 2, 3, 4]));
    let suspects: Vec<_> = open
        .suspects
        .iter()
        .map(|s| (s.uid.as_str(), s.configured))
        .collect();
    assert_eq!(
        suspects,
        [("uid-a", true), ("uid-b", true), ("uid-c", false)]
    );
    // What is not complete proves nobody's absence.
    let open = compare(&mut here(&config), &known, false);
    assert!(open.suspects.iter().all(|s| s.configured));
}

#[test]
fn a_pod_that_is_being_deleted_is_not_registered_again_by_its_old_namespace() {
    let config = mesh([pod("a", "n1", "10.0.0.1")]);
    let gone = [saved("uid-a", "10.0.0.1", 1, PodState::Gone)];
    let open = compare(&mut here(&config), &gone, true);
    assert_eq!(uids(&open.missing), ["uid-a"], "it may have a new one");
    assert_eq!(open.taken, HashSet::from([1]));
    assert!(open.suspects.is_empty());
}

#[test]
fn pods_that_share_an_address_wait() {
    let config = mesh([pod("old", "n1", "10.0.0.1"), pod("new", "n1", "10.0.0.1")]);
    let mut expected = here(&config);
    assert!(compare(&mut expected, &[], true).missing.is_empty());
    assert_eq!(expected.hopeless.len(), 2);
    let mut expected = here(&mesh([pod("new", "n1", "10.0.0.1")]));
    assert_eq!(
        uids(&compare(&mut expected, &[], true).missing),
        ["uid-new"]
    );
}

#[test]
fn a_namespace_is_chosen_only_when_it_is_the_only_one_with_all_addresses() {
    let set =
        |text: &[&str]| -> BTreeSet<IpAddr> { text.iter().map(|a| a.parse().unwrap()).collect() };
    let mut wanted = saved("u", "10.0.0.1", 1, PodState::Out).report.pod;
    wanted.addresses.push("fd00::1".parse().unwrap());
    let (half, whole) = (
        set(&["10.0.0.1"]),
        set(&["10.0.0.1", "fd00::1", "192.0.2.1"]),
    );
    let check = |free: &[&BTreeSet<IpAddr>]| choose(&wanted, free.iter().copied().zip(0..)).ok();
    assert_eq!(check(&[]), None);
    assert_eq!(check(&[&half]), None);
    assert_eq!(check(&[&half, &whole]), Some(1));
    assert_eq!(
        check(&[&whole, &half, &whole]),
        None,
        "nobody knows whose it is"
    );
}
