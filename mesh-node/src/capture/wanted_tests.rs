//! What the configuration wants of a pod, in every constellation of what is known.

use mesh_model::{
    mesh::{Change, MtlsMode, Workload, WorkloadExtra, workload::TunnelProtocol},
    name::WorkloadUid,
};

use super::*;

fn pod() -> Registration {
    Registration {
        uid: "u-1".into(),
        namespace: "shop".into(),
        name: "web-1".into(),
        service_account: "web".into(),
        addresses: vec!["10.1.1.5".parse().unwrap()],
        veth_ifindex: 7,
        cgroup: None,
        probe_ports: vec![],
    }
}

fn workload(name: &str, account: &str, addresses: &[&str]) -> Change {
    Change::Workload(Workload {
        uid: WorkloadUid::from(format!("Kubernetes//Pod/shop/{name}").as_str()),
        name: name.into(),
        namespace: "shop".into(),
        identity: format!("spiffe://cluster.local/ns/shop/sa/{account}")
            .parse()
            .unwrap(),
        network: "".into(),
        addresses: addresses.iter().map(|ip| ip.parse().unwrap()).collect(),
        hostname: None,
        node: "n1".into(),
        cluster: "Kubernetes".into(),
        protocol: TunnelProtocol::Hbone,
        host_network: false,
        healthy: true,
        locality: Default::default(),
        canonical: Default::default(),
        services: [].into(),
        policies: [].into(),
        waypoint: None,
        capacity: 1,
    })
}

fn extra(enrolment: Enrolment) -> Change {
    let extra = WorkloadExtra {
        enrolment,
        mtls: MtlsMode::Permissive,
        mtls_ports: [].into(),
        probe_ports: [8080].into(),
        cut_existing: true,
        allow_forwarded: false,
        guarded: false,
        features: [].into(),
        pod_uid: None,
        groups: Box::default(),
    };
    Change::WorkloadExtra("Kubernetes//Pod/shop/web-1".into(), extra)
}

fn check(changes: impl IntoIterator<Item = Change>, expect: impl FnOnce(&Wanted) -> bool) {
    let mesh = Mesh::empty().apply(changes).0;
    let got = wanted(&mesh, &"Kubernetes".into(), &pod());
    assert!(expect(&got), "{got:?}");
}

#[test]
fn only_a_registration_that_agrees_is_captured() {
    let mine = || workload("web-1", "web", &["10.1.1.5"]);
    let terms = Terms {
        cut_existing: true,
        allow_forwarded: false,
        probe_ports: vec![8080],
    };
    check([mine(), extra(Enrolment::Enrolled)], |w| {
        *w == Wanted::Capture(terms.clone())
    });
    // The address is known to the configuration only later.
    check(
        [workload("web-1", "web", &[]), extra(Enrolment::Enrolled)],
        |w| matches!(w, Wanted::Capture(_)),
    );
    check([mine(), extra(Enrolment::Out)], |w| *w == Wanted::Out);
    check([mine(), extra(Enrolment::Refused("gvisor".into()))], |w| {
        *w == Wanted::Refuse("gvisor".into())
    });
    check(
        [
            workload("web-1", "admin", &["10.1.1.5"]),
            extra(Enrolment::Enrolled),
        ],
        |w| matches!(w, Wanted::Disagree(why) if why.contains("admin")),
    );
    check(
        [
            workload("web-1", "web", &["10.1.1.6"]),
            extra(Enrolment::Enrolled),
        ],
        |w| matches!(w, Wanted::Disagree(_)),
    );
    let rival = workload("web-2", "web", &["10.1.1.5"]);
    check(
        [mine(), extra(Enrolment::Enrolled), rival],
        |w| matches!(w, Wanted::Disagree(why) if why.contains("another")),
    );
}

#[test]
fn what_was_not_said_is_unknown() {
    check([], |w| *w == Wanted::Unknown);
    check([workload("web-1", "web", &["10.1.1.5"])], |w| {
        *w == Wanted::Unknown
    });
    check([extra(Enrolment::Enrolled)], |w| *w == Wanted::Unknown);
    check(
        [
            workload("web-2", "web", &["10.1.1.5"]),
            extra(Enrolment::Enrolled),
        ],
        |w| *w == Wanted::Unknown,
    );
}

#[test]
fn an_identity_is_the_configurations_or_nobodys() {
    let mesh = Mesh::empty().apply([workload("web-1", "web", &[])]).0;
    let who = |mesh: &Mesh| identity(mesh, &"Kubernetes".into(), &pod()).to_string();
    assert_eq!(who(&mesh), "spiffe://cluster.local/ns/shop/sa/web");
    assert_eq!(
        who(&Mesh::empty()),
        "spiffe://unknown.invalid/ns/shop/sa/web"
    );
}

#[test]
fn a_service_account_that_was_not_registered_is_the_configurations() {
    let mut pod = pod();
    pod.service_account = String::new();
    let cluster = "Kubernetes".into();
    let known = [workload("web-1", "web", &[]), extra(Enrolment::Enrolled)];
    let mesh = Mesh::empty().apply(known).0;
    assert!(matches!(wanted(&mesh, &cluster, &pod), Wanted::Capture(_)));
    assert_eq!(
        identity(&mesh, &cluster, &pod).service_account.as_str(),
        "web"
    );
    assert_eq!(
        identity(&Mesh::empty(), &cluster, &pod)
            .trust_domain
            .as_str(),
        "unknown.invalid"
    );
    let elsewhere = [
        workload("web-1", "web", &["10.1.1.6"]),
        extra(Enrolment::Enrolled),
    ];
    let mesh = Mesh::empty().apply(elsewhere).0;
    assert!(matches!(wanted(&mesh, &cluster, &pod), Wanted::Disagree(_)));
}
