//! Routes that lead beyond the services of their waypoint: there it is a client like any other, with its own name.

use mesh_model::route::stream::{StreamAction, StreamRule};

use super::*;

/// A pod of a service that goes through no waypoint.
async fn far(w: &World, net: &str) -> (Home, App) {
    let at = |last: u8| format!("127.7.{net}.{last}");
    let home = w.node.pod("far", &at(4), MtlsMode::Strict).await;
    let listener = TcpListener::bind((home.ip, 0)).await.expect("a free port");
    let app = app(listener, "far");
    let service = testing::service("shop", "far", &at(101), PORT, app.address.port());
    w.node.state.apply([
        Change::Service(service),
        Change::Workload(testing::serving(home.workload.clone(), "shop", "far")),
    ]);
    (home, app)
}

/// What permits this principal alone.
fn only(who: &str) -> Change {
    let matched = mesh_model::mesh::policy::Match {
        principals: Box::new([StringMatch::Exact(format!("cluster.local/ns/{who}").into())]),
        ..mesh_model::mesh::policy::Match::default()
    };
    let (scope, action) = (PolicyScope::Namespace, mesh_model::mesh::Action::Allow);
    Change::Policy(testing::policy("shop", "only", scope, action, [matched]))
}

/// How a server's node sees the waypoint.
const ITSELF: &str = "src.identity=spiffe://cluster.local/ns/mesh/sa/waypoint ";

/// What a request is answered, once no connection to the server is in use that a change has just ended.
async fn settled(w: &World, path: &str) -> (u16, Bytes) {
    let asking = async {
        loop {
            match w.get(path).await {
                (StatusCode::SERVICE_UNAVAILABLE, ..) => {}
                (status, _, text) => return (status.as_u16(), text),
            }
        }
    };
    let answered = tokio::time::timeout(Duration::from_secs(10), asking);
    answered.await.expect("in time")
}

#[tokio::test]
async fn a_waypoint_is_itself_where_it_speaks_for_nobody() {
    for (net, protocol) in [("203", AppProtocol::Http11), ("204", AppProtocol::Http2)] {
        let w = world(net, protocol).await;
        w.destination(TrafficPolicy::default());
        let (home, app) = far(&w, net).await;
        let mut there = backend(None, 1);
        there.service = testing::service_name("shop", "far");
        let mut copied = rule("/copied", to("v1"));
        copied.mirrors = Box::new([Mirror {
            backend: there.clone(),
            share: Share::ALL,
        }]);
        w.routes(vec![copied, rule("/", Action::Forward(Box::new([there])))]);
        let answer = w.get("/first").await;
        assert_eq!((answer.0.as_u16(), &answer.2[..]), (200, &b"far"[..]));
        assert_eq!(w.get("/copied").await.2, "v1");
        until(|| app.seen("/copied").len() == 1).await;
        // Policies there mean the waypoint; where it serves the endpoint, they mean the client.
        w.node.state.apply([only("mesh/sa/waypoint")]);
        assert_eq!(settled(&w, "/second").await.0, 200);
        assert_eq!(settled(&w, "/copied").await.0, 403);
        w.node.state.apply([only("shop/sa/web")]);
        let (status, text) = settled(&w, "/third").await;
        assert_eq!((status, &text[..]), (403, &b"RBAC: access denied"[..]));
        let inbound = ["direction=inbound", "dst.workload=far"];
        let line = w
            .node
            .line(&[inbound[0], inbound[1], "reason=policy_changed"])
            .await;
        assert!(line.contains(ITSELF) && !line.contains("via="), "{line}");
        // Once it serves `far` too, it speaks for its clients there, on no connection of before.
        let vip = format!("127.7.{net}.101");
        let mut service = testing::service("shop", "far", &vip, PORT, app.address.port());
        service.waypoint = through(testing::ip(&format!("127.7.{net}.9")));
        w.node.state.apply([Change::Service(service.clone())]);
        assert_eq!(settled(&w, "/fourth").await.1, "far");
        // It is not let past another one that guards `far`.
        let other = w.node.waypoint("other", &format!("127.7.{net}.10")).await;
        service.waypoint = through(other.addresses[0]);
        let mut guarded = testing::extra(MtlsMode::Strict);
        guarded.guarded = true;
        w.node.state.apply([
            Change::RemovePolicy(testing::policy_name("shop", "only")),
            Change::Service(service),
            Change::WorkloadExtra(home.workload.uid.clone(), guarded),
        ]);
        assert_eq!(settled(&w, "/fifth").await.0, 403);
        w.node
            .line(&[inbound[0], inbound[1], "reason=waypoint_required"])
            .await;
        assert_eq!(app.seen("/fifth").len(), 0);
        w.node.stop().await;
    }
}

#[tokio::test]
async fn connections_that_are_routed_beyond_are_the_waypoints_own() {
    let w = world("205", AppProtocol::Tcp).await;
    let (_, app) = far(&w, "205").await;
    let mut there = backend(None, 1);
    there.service = testing::service_name("shop", "far");
    w.node.state.apply([Change::Routes(Routes {
        service: testing::service_name("shop", "db"),
        sets: Box::new([RouteSet {
            clients: None,
            ports: Box::default(),
            rules: [].into(),
            streams: [StreamRule {
                name: "VirtualService/shop/db#0".into(),
                matches: Box::default(),
                action: StreamAction::Forward(Box::new([there])),
            }]
            .into(),
        }]),
        features: Box::default(),
    })]);
    assert_eq!(w.get("/first").await.2, "far");
    let line = w
        .node
        .line(&["direction=inbound", "dst.workload=far"])
        .await;
    assert!(line.contains(ITSELF), "{line}");
    assert_eq!(app.asked.load(SeqCst), 1);
    w.node.stop().await;
}
