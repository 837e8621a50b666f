//! The controller goes away and comes back: what changed meanwhile is caught up, what did not is not sent again, and
//! nothing is removed before the list is complete. What a node refuses is shown at the object,
//! and what it does not serve at the pod.

mod world;

use std::{fs, net::SocketAddr, path::Path, time::Duration};

use mesh_api::{
    any::Any,
    delta::{self, Client, Outcome, Outside},
    discovery::{DeltaDiscoveryRequest, Status as Detail},
    resource::{Kind, Update},
    warren,
};
use mesh_model::mesh::Change;
use tokio::time::timeout;
use world::{Credential, Node, SOON, World};

fn pod(i: usize) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: p{i}, namespace: shop, uid: u{i}, labels: {{app: web}}}}\n\
         spec: {{nodeName: n{}, serviceAccountName: web, containers: [{{name: c, image: i}}]}}\n\
         status: {{phase: Running, podIPs: [{{ip: 10.{}.{}.{}}}]}}\n---\n",
        1 + i % 2,
        1 + i / 62_500,
        i / 250 % 250,
        1 + i % 250
    )
}

fn pods(numbers: impl IntoIterator<Item = usize>) -> String {
    numbers.into_iter().map(pod).collect()
}

const NAMESPACE: &str = "apiVersion: v1\nkind: Namespace\nmetadata: {name: shop, labels: {warren.dev/mesh: enabled}}\n---\n";

fn policy(namespaces: &str) -> String {
    format!(
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: allow, namespace: shop}}\n\
         spec: {{action: ALLOW, rules: [{{from: [{{source: {{namespaces: [{namespaces}]}}}}]}}]}}\n"
    )
}

fn client() -> Client {
    Client::new("n1", "Kubernetes")
}

async fn synced(world: &World, credential: &Credential, client: Client) -> Node {
    let mut node = Node::subscribe(world, Some(credential), client)
        .await
        .expect("may subscribe");
    node.until("the whole state", |n| n.client.is_complete())
        .await;
    node
}

/// The controller ends; meanwhile something happens; it starts again, at the same address.
async fn restart(world: World, meanwhile: impl FnOnce(&Path)) -> World {
    let World {
        running,
        state,
        manifests,
    } = world;
    let address = running.address;
    drop(running);
    meanwhile(manifests.path());
    let free = || std::net::TcpListener::bind(address).is_ok();
    timeout(SOON, async {
        while !free() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await
    .expect("the old controller lets go of its address");
    let running = world::run(state.path(), manifests.path(), address).await;
    World {
        running,
        state,
        manifests,
    }
}

/// The names of what came, sorted.
fn names(node: &Node) -> Vec<String> {
    let mut names: Vec<String> = node
        .updates
        .iter()
        .map(|update| match update {
            Update::Set(r) => format!("+{}", r.name),
            Update::Remove(_, name) => format!("-{name}"),
        })
        .collect();
    names.sort();
    names
}

#[tokio::test]
async fn churn_during_an_outage_is_caught_up_and_nothing_else_is_sent() {
    let world = world::world(&(NAMESPACE.to_owned() + &pods(0..500) + &policy("shop"))).await;
    let n1 = world.join("n1").await;
    let first = synced(&world, &n1, client()).await;
    let whole = first.received;
    let changed =
        NAMESPACE.to_owned() + &pods((0..501).filter(|i| *i != 7)) + &policy("shop, bank");
    let world = restart(world, |folder| {
        fs::write(folder.join("objects.yaml"), changed).expect("written");
    })
    .await;
    let back = synced(&world, &n1, first.client).await;
    let (added, gone) = ("Kubernetes//Pod/shop/p500", "Kubernetes//Pod/shop/p7");
    // Pod 7 ran on n2, pod 500 runs on n1, which gets its companion too.
    assert_eq!(
        names(&back),
        [
            format!("+{added}"),
            "+shop/allow".to_owned(),
            format!("+workload/{added}"),
            format!("-{gone}"),
        ]
    );
    assert!(
        back.received < whole / 20,
        "{} bytes to catch up, {whole} for everything",
        back.received
    );

    // Nothing changed: nothing is sent but the markers, by versions and by digests alike.
    let world = restart(world, |_| {}).await;
    let again = synced(&world, &n1, back.client).await;
    assert!(again.updates.is_empty(), "sent again: {:?}", names(&again));
    assert!(
        again.received < 1_000,
        "{} bytes to say that nothing changed",
        again.received
    );
    let world = restart(world, |_| {}).await;
    let digests = synced(&world, &n1, again.client.digests_above(0)).await;
    assert!(digests.updates.is_empty(), "{:?}", names(&digests));
    assert!(
        digests.received < 1_000 && digests.sent < 10_000,
        "{} bytes asked, {} answered",
        digests.sent,
        digests.received
    );
}

#[tokio::test]
async fn a_partial_list_removes_nothing() {
    let world = world::world(&(NAMESPACE.to_owned() + &pods(0..4_000))).await;
    let n1 = world.join("n1").await;
    let holding = synced(&world, &n1, client()).await;
    // Half of the pods go while the controller is away, and everything else is different.
    let half = NAMESPACE.to_owned()
        + &pods((0..4_000).filter(|i| i % 2 == 0)).replace("app: web", "app: other");
    let world = restart(world, |folder| {
        fs::write(folder.join("objects.yaml"), half).expect("written");
    })
    .await;
    let mut back = Node::subscribe(&world, Some(&n1), holding.client)
        .await
        .expect("may subscribe");
    let mut set = 0;
    // The controller ends in the middle of the list.
    while set < 600 {
        let received = timeout(SOON, back.next())
            .await
            .expect("in time")
            .expect("the stream goes on");
        for change in received.changes {
            match change {
                Change::Workload(_) => set += 1,
                Change::RemoveWorkload(uid) => panic!("{uid} was removed by a partial list"),
                _ => {}
            }
        }
    }
    assert!(!back.client.is_complete(), "the list came in one piece");
    let world = restart(world, |_| {}).await;
    let mut again = Node::subscribe(&world, Some(&n1), back.client)
        .await
        .expect("may subscribe");
    let mut removed = 0;
    while removed < 2_000 {
        let received = timeout(SOON, again.next())
            .await
            .expect("in time")
            .expect("the stream goes on");
        for change in received.changes {
            if matches!(change, Change::RemoveWorkload(_)) {
                removed += 1;
                assert!(again.client.is_complete(), "removed before the marker");
            }
        }
    }
    assert_eq!(removed, 2_000);
}

/// The status that the controller keeps of an object, once it is as wanted.
async fn status(world: &World, kind: &str, wanted: impl Fn(&serde_json::Value) -> bool) {
    let path = world.state.path().join("statuses.json");
    let mut last = serde_json::Value::Null;
    let look = async {
        loop {
            if let Ok(text) = fs::read(&path)
                && let Ok(kept) = serde_json::from_slice::<serde_json::Value>(&text)
            {
                last = kept["statuses"]
                    .as_array()
                    .and_then(|all| all.iter().find(|s| s["object"]["kind"] == kind))
                    .cloned()
                    .unwrap_or_default();
                if wanted(&last) {
                    return;
                }
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let found = timeout(SOON, look).await;
    assert!(found.is_ok(), "the status of {kind} stays {last}");
}

#[tokio::test]
async fn a_refusal_is_shown_at_the_object_until_it_changes() {
    let world = world::world(&(NAMESPACE.to_owned() + &policy("shop"))).await;
    let n1 = world.join("n1").await;
    let mut node = Node::subscribe(&world, Some(&n1), client())
        .await
        .expect("may subscribe");
    let nonce = loop {
        let response = timeout(SOON, node.responses.message()).await;
        let response = response
            .expect("in time")
            .expect("goes on")
            .expect("goes on");
        if response.type_url == Kind::Authorization.url() {
            break response.nonce;
        }
        let reply = node.client.receive(response).expect("is legal").reply;
        node.requests.send(reply).await.expect("goes on");
    };
    let rejection = warren::Rejection {
        name: "shop/allow".into(),
        message: "rule 0 is beyond me".into(),
    };
    let details = warren::Rejections {
        rejections: vec![rejection],
    };
    let refusal = DeltaDiscoveryRequest {
        type_url: Kind::Authorization.url().to_owned(),
        response_nonce: nonce,
        error_detail: Some(Detail {
            code: 3,
            message: "no".into(),
            details: vec![Any::pack(
                "type.googleapis.com/warren.v1.Rejections",
                &details,
            )],
        }),
        ..Default::default()
    };
    node.requests.send(refusal).await.expect("goes on");
    status(&world, "AuthorizationPolicy", |s| {
        s["conditions"][1]["reason"] == "RefusedByNode"
            && s["messages"]
                .to_string()
                .contains("n1 refused shop/allow: rule 0 is beyond me")
    })
    .await;
    fs::write(
        world.manifests.path().join("objects.yaml"),
        NAMESPACE.to_owned() + &policy("bank"),
    )
    .expect("written");
    status(&world, "AuthorizationPolicy", |s| {
        s["conditions"][1]["reason"] == "Programmed" && s["messages"].is_null()
    })
    .await;
}

fn outside(pod: &str, reason: &str) -> DeltaDiscoveryRequest {
    delta::tell_outside(&[Outside {
        uid: format!("Kubernetes//Pod/shop/{pod}").as_str().into(),
        reason: reason.to_owned(),
        outcome: Outcome::LeftAlone,
    }])
}

/// Waits until a node's former requests have been dealt with: they are in their order.
async fn heard(node: &mut Node) {
    let ask = DeltaDiscoveryRequest {
        type_url: Kind::Address.url().to_owned(),
        resource_names_unsubscribe: vec!["*".to_owned()],
        resource_names_subscribe: vec!["shop/nobody".to_owned()],
        ..Default::default()
    };
    node.requests.send(ask).await.expect("goes on");
    let answer = timeout(SOON, node.next()).await.expect("in time");
    let received = answer.expect("the stream goes on");
    assert_eq!(received.absent, ["shop/nobody"]);
}

#[tokio::test]
async fn what_a_node_does_not_serve_is_told_at_the_pod_while_it_says_so() {
    let world = world::world(&(NAMESPACE.to_owned() + &pods(0..1))).await;
    let (n1, n2) = (world.join("n1").await, world.join("n2").await);
    let mut stranger = synced(&world, &n2, Client::new("n2", "Kubernetes")).await;
    let lie = outside("p0", "a lie");
    stranger.requests.send(lie).await.expect("goes on");
    // What a later build may send, an earlier one knows as little as this one.
    let later = DeltaDiscoveryRequest {
        type_url: "type.googleapis.com/warren.v1.Later".to_owned(),
        ..outside("p0", "from the future")
    };
    stranger.requests.send(later).await.expect("goes on");
    heard(&mut stranger).await;

    let told = |text: &'static str| {
        move |s: &serde_json::Value| {
            let is_it = s["conditions"][1]["reason"] == "NotCaptured";
            is_it && s["messages"].to_string().contains(text)
        }
    };
    let node = synced(&world, &n1, client()).await;
    let say = async |node: &Node, request| node.requests.send(request).await.expect("goes on");
    say(&node, outside("p0", "it forwards")).await;
    let first = "node n1 cannot bring pod shop/p0 into the mesh: it forwards";
    status(&world, "Pod", told(first)).await;
    say(&node, outside("p0", "it forwards still")).await;
    status(&world, "Pod", told("it forwards still")).await;
    // The node goes, and what it said with it; it comes back, and says it again.
    drop(node);
    status(&world, "Pod", serde_json::Value::is_null).await;
    let node = synced(&world, &n1, client()).await;
    say(&node, outside("p0", "it forwards")).await;
    status(&world, "Pod", told(first)).await;
    say(&node, delta::tell_outside(&[])).await;
    status(&world, "Pod", serde_json::Value::is_null).await;
}

#[tokio::test]
async fn bad_objects_are_named_stop_nobody_and_widen_nothing() {
    let world = world::world(&(NAMESPACE.to_owned() + &pods(0..3) + &policy("shop"))).await;
    let any: SocketAddr = world.running.address;
    assert!(any.port() != 0);
    let n1 = world.join("n1").await;
    let mut node = synced(&world, &n1, client()).await;
    let folder = world.manifests.path().to_owned();
    let write = |name: &str, text: &str| fs::write(folder.join(name), text).expect("written");
    // The policy becomes unreadable in every way there is; each time the last good version stays.
    let good = NAMESPACE.to_owned() + &pods(0..3);
    let bad = [
        ("syntax", policy("shop").replace("rules: [", "rules: [[")),
        ("type", policy("shop").replace("[shop]", "shop")),
        (
            "twice",
            policy("shop").replace("action: ALLOW", "action: ALLOW, action: DENY"),
        ),
    ];
    for (what, text) in bad {
        assert_ne!(text, policy("shop"));
        write("objects.yaml", &(good.clone() + &text));
        status(&world, "AuthorizationPolicy", |s| {
            let line = s["origin"]["line"].as_u64().unwrap_or_default();
            s["conditions"][0]["status"] == false
                && s["conditions"][1]["reason"] == "LastGoodVersion"
                && s["origin"]["file"]
                    .as_str()
                    .is_some_and(|f| f.ends_with("objects.yaml"))
                && line >= 15
        })
        .await;
        // Somebody else's change goes through meanwhile.
        write("other.yaml", &pods([3 + what.len()]));
        let name = format!("Kubernetes//Pod/shop/p{}", 3 + what.len());
        node.until("the other pod", |n| n.has(Kind::Address, &name))
            .await;
        let policies = node
            .updates
            .iter()
            .filter(|u| u.key().0 == Kind::Authorization);
        assert_eq!(
            policies.count(),
            1,
            "{what}: the policy was sent again or removed"
        );
    }
    // A field that is not known makes the policy deny, and says so.
    write(
        "objects.yaml",
        &(good.clone() + &policy("shop").replace("action: ALLOW", "action: ALLOW, actoin: DENY")),
    );
    status(&world, "AuthorizationPolicy", |s| {
        s["messages"].to_string().contains("spec.actoin")
            && s["conditions"][1]["reason"] == "Invalid"
    })
    .await;
    node.until("the policy that denies", |n| {
        n.changes.iter().any(
            |c| matches!(c, Change::Policy(p) if p.validity != mesh_model::mesh::Validity::Valid),
        )
    })
    .await;
    // Mended, with ten thousand rules.
    let rules = "{from: [{source: {namespaces: [a-quite-ordinary-namespace]}}]},".repeat(10_000);
    write(
        "objects.yaml",
        &(good + &policy("shop").replace("rules: [", &format!("rules: [{rules}"))),
    );
    node.until("ten thousand rules", |n| {
        n.changes
            .iter()
            .any(|c| matches!(c, Change::Policy(p) if p.rules.len() == 10_001))
    })
    .await;
    status(&world, "AuthorizationPolicy", |s| {
        s["conditions"][1]["reason"] == "Programmed"
    })
    .await;
}
