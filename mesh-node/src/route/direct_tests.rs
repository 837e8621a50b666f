//! The projection, against a kernel that remembers what it was told.

use mesh_model::{
    authz::{self, Egress},
    mesh::{
        Action, Change, MtlsMode, PolicyScope, SameNode,
        policy::{Match, StringMatch},
    },
    reason::Reason,
    testing::cast,
};

use super::*;
use crate::{
    accept::{PodSockets, PodUid},
    capture::FakeDatapath,
};

#[derive(Debug)]
struct NoSockets;

impl PodSockets for NoSockets {
    fn tcp(&self, _: Family, _: Option<SocketAddr>) -> std::io::Result<socket2::Socket> {
        Err(std::io::ErrorKind::Unsupported.into())
    }
}

struct World {
    state: MeshState,
    kernel: Arc<FakeDatapath>,
    director: Director,
    web: Arc<Workload>,
    pod: Pod,
}

const VIP: &str = "10.96.0.10:80";

fn at(text: &str) -> SocketAddr {
    text.parse().expect("a test's address")
}

fn world() -> World {
    let (state, kernel) = (MeshState::new(), Arc::new(FakeDatapath::default()));
    let director = Director::new("n1".into(), state.clone(), kernel.clone());
    let web = cast::pod("shop", "web", "n1", "10.1.1.1");
    let config = mesh_model::mesh::MeshConfig {
        same_node: SameNode::Direct,
        ..cast::config()
    };
    let mut changes = vec![
        Change::Config(config),
        Change::Complete,
        Change::Service(cast::service("shop", "db", "10.96.0.10", 80, 8080)),
    ];
    changes.extend(cast::known(web.clone()));
    changes.extend(cast::known(cast::serving(
        cast::pod("shop", "db-1", "n1", "10.1.1.2"),
        "shop",
        "db",
    )));
    changes.extend(cast::known(cast::serving(
        cast::pod("shop", "db-2", "n2", "10.1.2.2"),
        "shop",
        "db",
    )));
    state.apply(changes);
    let pod = Pod {
        uid: PodUid::new("web"),
        workload: web.uid.clone(),
        namespace: "shop".into(),
        name: "web".into(),
        service_account: "web".into(),
        identity: web.identity.clone(),
        addresses: web.addresses.clone(),
        netns_cookie: 7,
        barred: None,
        sockets: Arc::new(NoSockets),
    };
    World {
        state,
        kernel,
        director,
        web: Arc::new(web),
        pod,
    }
}

impl World {
    fn learn(&self, original: SocketAddr) {
        let target = authz::target(&self.state.load().mesh, &self.web, original);
        learn(
            &*self.kernel,
            &self.state,
            &"n1".into(),
            &self.pod,
            &Egress {
                source: self.web.clone(),
                target,
                original,
                pinned: None,
            },
        );
    }

    fn verdicts(&self) -> Vec<(SocketAddr, u32, Outcome)> {
        self.kernel
            .told()
            .verdicts
            .iter()
            .map(|v| (v.destination, v.epoch, v.outcome))
            .collect()
    }
}

#[test]
fn a_virtual_address_with_an_endpoint_here_gets_slots() {
    let mut w = world();
    w.director.begin();
    let slots = w.kernel.told().slots[&at(VIP)].clone();
    assert_eq!(slots.len(), 2, "{slots:?}");
    assert!(
        slots.contains(&VipSlot::Local(at("10.1.1.2:8080"))) && slots.contains(&VipSlot::Proxy),
        "{slots:?}"
    );
    let diff = w
        .state
        .apply([Change::RemoveWorkload(cast::uid("shop", "db-1"))]);
    w.director.follow(&diff);
    assert!(
        w.kernel.told().slots.is_empty(),
        "no endpoint is here any more"
    );
}

#[test]
fn a_flow_teaches_the_kernel_and_a_change_makes_it_forget() {
    let mut w = world();
    w.director.begin();
    w.learn(at(VIP));
    let epoch = w.kernel.epoch(cast::ip("10.1.1.2"));
    assert_eq!(
        w.verdicts(),
        vec![(at("10.1.1.2:8080"), epoch, Outcome::Direct)]
    );

    let matched = Match {
        principals: Box::new([StringMatch::Exact("cluster.local/ns/shop/sa/web".into())]),
        ..Match::default()
    };
    let deny = cast::policy(
        "shop",
        "no-web",
        PolicyScope::Namespace,
        Action::Deny,
        [matched],
    );
    let diff = w.state.apply([Change::Policy(deny)]);
    w.director.follow(&diff);
    assert!(
        w.kernel.epoch(cast::ip("10.1.1.2")) > epoch,
        "the old verdict still holds"
    );
    w.kernel.told().verdicts.clear();
    w.learn(at("10.1.1.2:8080"));
    let epoch = w.kernel.epoch(cast::ip("10.1.1.2"));
    assert_eq!(
        w.verdicts(),
        vec![(
            at("10.1.1.2:8080"),
            epoch,
            Outcome::Refuse(Reason::PolicyDenied)
        )]
    );
}

#[test]
fn what_the_kernel_may_not_do_is_not_taught() {
    let w = world();
    w.learn(at("10.1.2.2:8080"));
    w.learn(at("192.0.2.1:80"));
    assert_eq!(w.verdicts(), Vec::new(), "another node, and outside");
    let tunnel = mesh_model::mesh::MeshConfig {
        same_node: SameNode::Auto,
        ..cast::config()
    };
    w.state.apply([
        Change::Config(tunnel),
        Change::WorkloadExtra(cast::uid("shop", "db-1"), cast::extra(MtlsMode::Strict)),
    ]);
    w.learn(at("10.1.1.2:8080"));
    assert_eq!(w.verdicts(), Vec::new(), "STRICT wants the tunnel");
}

#[test]
fn a_failed_dial_is_forgotten_when_its_destination_changes() {
    let mut w = world();
    w.director.begin();
    let (vip, remote, outside) = (
        cast::ip("10.96.0.10"),
        cast::ip("10.1.2.2"),
        cast::ip("192.0.2.1"),
    );
    let epochs = |w: &World| [vip, remote, outside].map(|ip| w.kernel.epoch(ip));
    let mut check = |changes: Vec<Change>, voids: [bool; 3]| {
        let before = epochs(&w);
        let diff = w.state.apply(changes);
        w.director.follow(&diff);
        let after = epochs(&w);
        let moved = [0, 1, 2].map(|i| after[i] > before[i]);
        assert_eq!(moved, voids, "{diff:?}");
    };
    let db2 = |healthy: bool| {
        let pod = cast::pod("shop", "db-2", "n2", "10.1.2.2");
        Change::Workload(Workload {
            healthy,
            ..cast::serving(pod, "shop", "db")
        })
    };
    check(vec![db2(false)], [true, true, false]);
    check(vec![db2(true)], [true, true, false]);
    let other = cast::pod("shop", "other", "n2", "10.1.2.3");
    check(vec![Change::Workload(other)], [false, false, false]);
    check(vec![Change::Config(cast::config())], [true; 3]);
    let gone = Change::RemoveService(cast::service_name("shop", "db"));
    check(vec![gone], [true; 3]);
}
