//! The way of a flow through the model, from target to plan.

use std::{net::SocketAddr, sync::Arc};

use mesh_model::{
    authn::Transport,
    authz::{self, Conn, Egress, Target},
    mesh::{Action, Change, Mesh, MtlsMode, PolicyScope, policy::Match},
    name::Identity,
    reason::Reason,
    route::{self, Authority, Chooser, Plan, Shortcut, Via},
    testing::cast::*,
};

/// Two pods of `shop` on two nodes behind one service, and a client.
fn shop() -> Mesh {
    let pods = [
        pod("shop", "client", "n1", "10.0.1.1"),
        serving(pod("shop", "web-1", "n1", "10.0.1.2"), "shop", "web"),
        serving(pod("shop", "web-2", "n2", "10.0.2.2"), "shop", "web"),
    ];
    let mut changes: Vec<Change> = pods.into_iter().flat_map(known).collect();
    changes.push(Change::Service(service(
        "shop",
        "web",
        "10.96.0.1",
        80,
        8080,
    )));
    changes.push(Change::Config(config()));
    changes.push(Change::Complete);
    Mesh::empty().apply(changes).0
}

fn dial(mesh: &Mesh, from: &str, to: &str, seed: u64) -> Result<Plan, Reason> {
    let source = mesh
        .workload_at(&"".into(), ip(from))
        .expect("a known source")
        .clone();
    let original: SocketAddr = to.parse().expect("a test's address");
    let target = authz::target(mesh, &source, original);
    let node = source.node.clone();
    let permit = authz::egress(
        mesh,
        Egress {
            source,
            target,
            original,
            pinned: None,
        },
    )
    .outcome
    .map_err(|d| d.reason)?;
    route::outbound(
        mesh,
        &permit,
        Chooser {
            node: &node,
            seed,
            client: ip(from),
            ejected: &[],
        },
    )
}

fn enter(mesh: &Mesh, to: &str, transport: Transport) -> Result<(), Reason> {
    let destination: SocketAddr = to.parse().expect("a test's address");
    let workload = mesh
        .workload_at(&"".into(), destination.ip())
        .expect("a known destination")
        .clone();
    let conn = Conn {
        via: None,
        transport,
        source_ip: ip("10.0.1.1"),
        workload,
        destination,
    };
    authz::ingress(mesh, conn)
        .outcome
        .map(drop)
        .map_err(|d| d.reason)
}

fn client() -> Identity {
    identity("shop", "client")
}

#[test]
fn a_service_is_reached_through_tunnels_to_all_its_endpoints() {
    let mesh = shop();
    let mut first = std::collections::BTreeSet::new();
    for seed in 0..64 {
        let plan = dial(&mesh, "10.0.1.1", "10.96.0.1:80", seed).expect("reachable");
        assert_eq!(plan.candidates.len(), 2);
        let Via::Hbone {
            tunnel,
            authority,
            identities,
        } = &plan.candidates[0].via
        else {
            panic!("{plan:?}")
        };
        assert_eq!(
            (tunnel.port(), authority),
            (
                15008,
                &Authority::Address(SocketAddr::new(tunnel.ip(), 8080))
            )
        );
        assert_eq!(
            **identities,
            [plan.candidates[0]
                .workload
                .as_ref()
                .expect("a pod")
                .identity
                .clone()]
        );
        first.insert(tunnel.ip());
    }
    assert_eq!(first.len(), 2, "both endpoints are chosen first at times");
    assert_eq!(
        dial(&mesh, "10.0.1.1", "10.96.0.1:81", 0).err(),
        Some(Reason::NoSuchPort)
    );
    assert!(matches!(
        dial(&mesh, "10.0.1.1", "1.1.1.1:443", 0)
            .expect("passthrough")
            .candidates[0]
            .via,
        Via::Plain(_)
    ));
    assert!(matches!(
        dial(&mesh, "10.0.1.1", "10.0.1.2:9", 0)
            .expect("pod")
            .candidates[0]
            .via,
        Via::Hbone { .. }
    ));
}

#[test]
fn nothing_passes_before_the_mesh_is_known() {
    let partial = Mesh::empty()
        .apply(known(pod("shop", "web", "n1", "10.0.1.2")))
        .0;
    assert_eq!(
        enter(&partial, "10.0.1.2:80", Transport::Mtls(client())),
        Err(Reason::NotReady)
    );
    assert_eq!(
        dial(&partial, "10.0.1.2", "1.1.1.1:80", 0).err(),
        Some(Reason::NotReady)
    );
    let without_extra = shop()
        .apply([Change::Workload(pod("shop", "new", "n1", "10.0.1.9"))])
        .0;
    assert_eq!(
        enter(&without_extra, "10.0.1.9:80", Transport::Mtls(client())),
        Err(Reason::NotReady)
    );
    assert_eq!(
        dial(&without_extra, "10.0.1.9", "1.1.1.1:80", 0).err(),
        Some(Reason::NotReady)
    );
}

#[test]
fn policies_decide_who_enters_and_whether_the_kernel_may_connect() {
    let mesh = shop();
    let address: SocketAddr = "10.0.1.2:8080".parse().expect("an address");
    let pods = |m: &Mesh| {
        (
            m.workload_at(&"".into(), ip("10.0.1.1"))
                .cloned()
                .expect("client"),
            m.workload_at(&"".into(), ip("10.0.1.2"))
                .cloned()
                .expect("web"),
        )
    };
    let short = |m: &Mesh| {
        let (a, b) = pods(m);
        route::shortcut(m, &a, &b, address)
    };
    assert_eq!(
        (
            enter(&mesh, "10.0.1.2:8080", Transport::Plain),
            short(&mesh)
        ),
        (Ok(()), Shortcut::Direct)
    );
    let strict = mesh
        .apply([Change::WorkloadExtra(
            uid("shop", "web-1"),
            extra(MtlsMode::Strict),
        )])
        .0;
    assert_eq!(
        (
            enter(&strict, "10.0.1.2:8080", Transport::Plain),
            short(&strict)
        ),
        (Err(Reason::StrictRequired), Shortcut::Proxy)
    );
    let only_client = Match {
        principals: Box::new([mesh_model::mesh::policy::StringMatch::Exact(
            "cluster.local/ns/shop/sa/client".into(),
        )]),
        ..Match::default()
    };
    let allow = mesh
        .apply([Change::Policy(policy(
            "shop",
            "allow",
            PolicyScope::Namespace,
            Action::Allow,
            [only_client.clone()],
        ))])
        .0;
    assert_eq!(
        enter(&allow, "10.0.1.2:8080", Transport::Mtls(client())),
        Ok(())
    );
    assert_eq!(
        enter(
            &allow,
            "10.0.1.2:8080",
            Transport::Mtls(identity("shop", "other"))
        ),
        Err(Reason::NotAllowed)
    );
    assert_eq!(
        enter(&allow, "10.0.1.2:8080", Transport::Plain),
        Err(Reason::NotAllowed)
    );
    let deny = allow
        .apply([Change::Policy(policy(
            "warren-system",
            "deny",
            PolicyScope::Global,
            Action::Deny,
            [only_client],
        ))])
        .0;
    assert_eq!(
        enter(&deny, "10.0.1.2:8080", Transport::Mtls(client())),
        Err(Reason::PolicyDenied)
    );
    assert_eq!(
        (short(&allow), short(&deny)),
        (Shortcut::Direct, Shortcut::Refuse(Reason::PolicyDenied))
    );
}

#[test]
fn an_address_that_two_claim_is_nobodys() {
    let (mesh, diff) = shop().apply(known(pod("evil", "thief", "n2", "10.0.1.2")));
    assert_eq!(
        diff.workloads,
        [uid("evil", "thief"), uid("shop", "web-1")],
        "its owner is no longer trusted either"
    );
    assert!(mesh.workload_at(&"".into(), ip("10.0.1.2")).is_none());
    assert_eq!(
        dial(&mesh, "10.0.1.1", "10.0.1.2:80", 0).err(),
        Some(Reason::NotReady)
    );
    let plan = dial(&mesh, "10.0.1.1", "10.96.0.1:80", 0).expect("the other endpoint is left");
    assert_eq!(plan.candidates.len(), 1);
    let owner: Arc<_> = mesh.workload(&uid("shop", "web-1")).expect("known").clone();
    let conn = Conn {
        via: None,
        transport: Transport::Plain,
        source_ip: ip("10.0.1.1"),
        workload: owner,
        destination: "10.0.1.2:80".parse().expect("an address"),
    };
    assert_eq!(
        authz::ingress(&mesh, conn)
            .outcome
            .map(drop)
            .map_err(|d| d.reason),
        Err(Reason::NotReady)
    );
    let (mesh, _) = mesh.apply([Change::RemoveWorkload(uid("evil", "thief"))]);
    assert_eq!(
        mesh.workload_at(&"".into(), ip("::ffff:10.0.1.2"))
            .map(|w| w.uid.clone()),
        Some(uid("shop", "web-1"))
    );
    assert!(matches!(
        authz::target(
            &mesh,
            mesh.workload(&uid("shop", "client")).expect("known"),
            "10.0.1.2:80".parse().expect("an address")
        ),
        Target::Workload(..)
    ));
}
