//! A whole controller on loopback, with nodes that join, subscribe and follow a root rotation.

mod world;

use std::fs;

use mesh_api::{delta::Client, resource::Kind};
use mesh_ctl::{
    admin::{self, Command},
    app::{Input, Options, start},
    ca::Step,
    listen::Names,
};
use mesh_model::mesh::Change;
use tokio::time::timeout;
use tonic::{
    Code, Status,
    transport::{Certificate, Channel, ClientTlsConfig, Identity},
};
use world::{Credential, Node, SOON, World, run};

const WEB: &str = "spiffe://cluster.local/ns/shop/sa/web";

const OBJECTS: &str = r#"
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {warren.dev/mesh: enabled}}
---
apiVersion: v1
kind: Pod
metadata: {name: web, namespace: shop, uid: u1, labels: {app: web}}
spec: {nodeName: n1, serviceAccountName: web, containers: [{name: c, image: i}]}
status: {phase: Running, podIP: 10.1.0.5, podIPs: [{ip: 10.1.0.5}], conditions: [{type: Ready, status: "True"}]}
"#;

const POLICY: &str = r#"
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: allow, namespace: shop}
spec: {action: ALLOW, rules: [{from: [{source: {namespaces: [shop]}}]}]}
"#;

async fn world() -> World {
    world::world(OBJECTS).await
}

async fn rotate(world: &World, step: Step) -> anyhow::Result<()> {
    let answer = admin::ask(
        world.state.path(),
        &Command::Rotate {
            step,
            force: false,
            given: None,
        },
    )
    .await?;
    assert!(
        answer.is_some(),
        "the controller does not answer on its socket"
    );
    Ok(())
}

fn node() -> Client {
    Client::new("n1", "Kubernetes")
}

fn code<T>(answer: Result<T, Status>) -> Code {
    answer.err().map_or(Code::Ok, |s| s.code())
}

#[tokio::test]
async fn a_node_joins_and_gets_what_it_hosts() {
    let world = world().await;
    let n1 = world.join("n1").await;
    let n2 = world.join("n2").await;
    // Signing for pods begins when the objects have been read, which the first whole state shows.
    let mut subscriber = Node::subscribe(&world, Some(&n1), node())
        .await
        .expect("may subscribe");
    subscriber
        .until("the whole state", |n| n.client.is_complete())
        .await;
    let web = world.sign(Ok(&n1), Some(WEB)).await.expect("runs on n1");
    assert_eq!(
        code(world.sign(Ok(&n2), Some(WEB)).await),
        Code::PermissionDenied,
        "no such pod on n2"
    );
    assert_eq!(
        code(world.sign(Ok(&web), None).await),
        Code::PermissionDenied,
        "a workload got a certificate"
    );
    assert_eq!(
        code(world.sign(Err("warren1.a.b"), None).await),
        Code::Unauthenticated
    );
    assert!(
        world.sign(Ok(&n1), None).await.is_ok(),
        "a node renews with its certificate"
    );
    let ask =
        async |credential: Option<&Credential>| match Node::subscribe(&world, credential, node())
            .await
        {
            Err(status) => status.code(),
            Ok(mut n) => code(n.responses.message().await),
        };
    assert_eq!(
        ask(None).await,
        Code::Unauthenticated,
        "somebody without a certificate subscribed"
    );
    assert_eq!(
        ask(Some(&web)).await,
        Code::PermissionDenied,
        "a workload subscribed"
    );
}

#[tokio::test]
async fn a_node_is_told_the_state_and_its_changes_and_nothing_twice() {
    let world = world().await;
    let n1 = world.join("n1").await;
    let mut first = Node::subscribe(&world, Some(&n1), node())
        .await
        .expect("may subscribe");
    first
        .until("the whole state", |n| n.client.is_complete())
        .await;
    assert!(
        first.has(Kind::Address, "Kubernetes//Pod/shop/web"),
        "{:?}",
        first.changes
    );
    assert!(
        first.has(Kind::Companion, "workload/Kubernetes//Pod/shop/web")
            && first.has(Kind::Companion, "mesh")
    );
    assert_eq!(first.roots.len(), 1);
    assert!(matches!(first.changes.last(), Some(Change::Complete)));
    let n2 = world.join("n2").await;
    let mut other = Node::subscribe(&world, Some(&n2), Client::new("n1", "a lie"))
        .await
        .expect("may subscribe");
    other
        .until("the whole state", |n| n.client.is_complete())
        .await;
    assert!(other.has(Kind::Address, "Kubernetes//Pod/shop/web"));
    assert!(
        !other.has(Kind::Companion, "workload/Kubernetes//Pod/shop/web"),
        "n2 got what only n1 needs"
    );

    fs::write(world.manifests.path().join("policy.yaml"), POLICY).expect("written");
    first
        .until("the policy", |n| n.has(Kind::Authorization, "shop/allow"))
        .await;
    fs::remove_file(world.manifests.path().join("policy.yaml")).expect("removed");
    first
        .until("its removal", |n| {
            n.changes
                .iter()
                .any(|c| matches!(c, Change::RemovePolicy(p) if p.to_string() == "shop/allow"))
        })
        .await;

    // The controller restarts: the node comes back with what it has and is sent nothing again.
    let World {
        running,
        state,
        manifests,
    } = world;
    drop(running);
    let any = "127.0.0.1:0".parse().expect("is one");
    let running = run(state.path(), manifests.path(), any).await;
    let world = World {
        running,
        state,
        manifests,
    };
    let mut back = Node::subscribe(&world, Some(&n1), first.client)
        .await
        .expect("may subscribe");
    back.until("the end of the list", |n| n.client.is_complete())
        .await;
    assert!(back.updates.is_empty(), "sent again: {:?}", back.updates);
}

#[tokio::test]
async fn the_root_is_replaced_while_a_node_stays_connected() {
    let world = world().await;
    let old = world.join("n1").await;
    let mut subscriber = Node::subscribe(&world, Some(&old), node())
        .await
        .expect("may subscribe");
    subscriber
        .until("the whole state", |n| {
            n.client.is_complete() && n.roots.len() == 1
        })
        .await;
    let first = subscriber.roots[0].clone();

    rotate(&world, Step::Prepare).await.expect("prepared");
    subscriber.until("both roots", |n| n.roots.len() == 2).await;
    assert_eq!(subscriber.roots[0], first, "the old root signs still");
    rotate(&world, Step::Switch).await.expect("switched");
    subscriber
        .until("the new root first", |n| {
            n.roots.len() == 2 && n.roots[0] != first
        })
        .await;
    let refused = rotate(&world, Step::Finish)
        .await
        .expect_err("n1 uses the old root");
    let both = refused
        .to_string()
        .contains("2 certificates of the old root");
    assert!(both, "{refused}");
    let web = "spiffe://cluster.local/ns/shop/sa/web";
    let signed = world.sign(Ok(&old), Some(web)).await;
    signed.expect("the old certificate still proves the node");
    let refused = rotate(&world, Step::Finish)
        .await
        .expect_err("n1 itself uses the old root");
    assert!(refused.to_string().contains("warren/node/n1"), "{refused}");
    let new = world
        .sign(Ok(&old), None)
        .await
        .expect("the old certificate still proves the node");
    assert_eq!(new.1.last(), Some(&subscriber.roots[0]));
    rotate(&world, Step::Finish).await.expect("finished");
    subscriber.until("one root", |n| n.roots.len() == 1).await;
    assert_ne!(subscriber.roots[0], first);

    let again = Node::subscribe(&world, Some(&new), node()).await;
    assert!(again.is_ok(), "the new certificate is not believed");
    let tls = ClientTlsConfig::new()
        .ca_certificate(Certificate::from_pem(&subscriber.roots[0]))
        .domain_name("localhost")
        .identity(Identity::from_pem(&old.1[0], &old.0));
    let endpoint =
        Channel::from_shared(format!("https://{}", world.running.address)).expect("is one");
    let rejected = async {
        let channel = endpoint
            .tls_config(tls)
            .expect("is good")
            .connect()
            .await
            .map_err(|e| e.to_string())?;
        let subscribed = Node::over(channel, node()).await;
        subscribed.map(drop).map_err(|e| e.to_string())
    };
    assert!(
        timeout(SOON, rejected).await.expect("is answered").is_err(),
        "a certificate of the old root is believed"
    );
}

#[tokio::test]
async fn two_controllers_do_not_share_a_state_directory() {
    let world = world().await;
    let any = "127.0.0.1:0".parse().expect("is one");
    let options = Options {
        from: Input::Manifests(world.manifests.path().to_owned()),
        state: world.state.path().to_owned(),
        listen: any,
        monitor: any,
        webhook: any,
        names: Names {
            dns: vec![],
            addresses: vec![],
            ttl: SOON,
        },
        trust_domain: "cluster.local".into(),
        leaf_ttl: SOON,
        given: None,
        taint: false,
    };
    let error = start(options).await.err().expect("is refused");
    assert!(
        error.to_string().contains("another controller"),
        "{error:#}"
    );
}
