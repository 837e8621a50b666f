//! A whole controller on loopback, with nodes that join, subscribe and follow a root rotation.

use std::{fs, net::SocketAddr, path::Path, time::Duration};

use mesh_api::{
    auth::{
        IstioCertificateRequest, istio_certificate_service_client::IstioCertificateServiceClient,
    },
    delta::Client,
    discovery::{
        DeltaDiscoveryRequest,
        aggregated_discovery_service_client::AggregatedDiscoveryServiceClient,
    },
    resource::{Kind, Update},
};
use mesh_ctl::{
    admin::{self, Command},
    app::{Options, Running, start},
    ca::Step,
    listen::Names,
    token::JoinKey,
};
use mesh_model::mesh::Change;
use prost_types::{Struct, Value, value::Kind as ValueKind};
use rcgen::{CertificateParams, KeyPair};
use tokio::{sync::mpsc, time::timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{
    Code, Status, Streaming,
    transport::{Certificate, Channel, ClientTlsConfig, Identity},
};

const SOON: Duration = Duration::from_secs(20);
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

struct World {
    running: Running,
    state: tempfile::TempDir,
    manifests: tempfile::TempDir,
}

async fn world() -> World {
    let (state, manifests) = (
        tempfile::tempdir().expect("a directory"),
        tempfile::tempdir().expect("a directory"),
    );
    fs::write(manifests.path().join("objects.yaml"), OBJECTS).expect("written");
    let running = run(state.path(), manifests.path()).await;
    World {
        running,
        state,
        manifests,
    }
}

async fn run(state: &Path, manifests: &Path) -> Running {
    let any: SocketAddr = "127.0.0.1:0".parse().expect("is one");
    let ttl = Duration::from_secs(3600);
    let names = Names {
        dns: vec!["localhost".into()],
        addresses: vec![any.ip()],
        ttl,
    };
    let options = Options {
        manifests: manifests.to_owned(),
        state: state.to_owned(),
        listen: any,
        monitor: any,
        names,
        trust_domain: "cluster.local".into(),
        leaf_ttl: ttl,
        given: None,
    };
    start(options).await.expect("starts")
}

/// A key and the certificate chain for it, PEM.
type Credential = (String, Vec<String>);

impl World {
    async fn channel(&self, credential: Option<&Credential>) -> Channel {
        let roots = fs::read(self.state.path().join("ca.pem")).expect("there are roots");
        let mut tls = ClientTlsConfig::new()
            .ca_certificate(Certificate::from_pem(roots))
            .domain_name("localhost");
        if let Some((key, chain)) = credential {
            tls = tls.identity(Identity::from_pem(&chain[0], key));
        }
        let endpoint =
            Channel::from_shared(format!("https://{}", self.running.address)).expect("is one");
        endpoint
            .tls_config(tls)
            .expect("is good")
            .connect()
            .await
            .expect("connects")
    }

    fn token(&self, node: &str) -> String {
        let later = std::time::SystemTime::now() + SOON;
        JoinKey::open(self.state.path())
            .expect("there is a key")
            .issue(&node.into(), later)
    }

    async fn sign(
        &self,
        with: Result<&Credential, &str>,
        identity: Option<&str>,
    ) -> Result<Credential, Status> {
        let key = KeyPair::generate().expect("a key");
        let csr = CertificateParams::default()
            .serialize_request(&key)
            .expect("a request")
            .pem()
            .expect("PEM");
        let text = |t: &str| Value {
            kind: Some(ValueKind::StringValue(t.into())),
        };
        let metadata = identity.map(|i| Struct {
            fields: [("ImpersonatedIdentity".to_owned(), text(i))].into(),
        });
        let mut request = tonic::Request::new(IstioCertificateRequest {
            csr,
            validity_duration: 0,
            metadata,
        });
        if let Err(token) = with {
            let header = format!("Bearer {token}").parse().expect("is ASCII");
            request.metadata_mut().insert("authorization", header);
        }
        let mut client = IstioCertificateServiceClient::new(self.channel(with.ok()).await);
        let answer = client.create_certificate(request).await?;
        Ok((key.serialize_pem(), answer.into_inner().cert_chain))
    }

    async fn join(&self, node: &str) -> Credential {
        self.sign(Err(&self.token(node)), None)
            .await
            .expect("joins")
    }

    async fn rotate(&self, step: Step) -> anyhow::Result<()> {
        let answer = admin::ask(
            self.state.path(),
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
}

/// A subscriber as a node is one.
struct Node {
    client: Client,
    requests: mpsc::Sender<DeltaDiscoveryRequest>,
    responses: Streaming<mesh_api::discovery::DeltaDiscoveryResponse>,
    changes: Vec<Change>,
    updates: Vec<Update>,
    roots: Vec<String>,
}

impl Node {
    async fn subscribe(
        world: &World,
        credential: Option<&Credential>,
        mut client: Client,
    ) -> Result<Self, Status> {
        let (requests, queue) = mpsc::channel(16);
        for request in client.connect() {
            requests.send(request).await.expect("there is room");
        }
        let mut service = AggregatedDiscoveryServiceClient::new(world.channel(credential).await);
        let responses = service
            .delta_aggregated_resources(ReceiverStream::new(queue))
            .await?
            .into_inner();
        Ok(Self {
            client,
            requests,
            responses,
            changes: Vec::new(),
            updates: Vec::new(),
            roots: Vec::new(),
        })
    }

    /// Takes responses until what they amount to is as wanted.
    async fn until(&mut self, what: &str, wanted: impl Fn(&Self) -> bool) {
        while !wanted(self) {
            let response = timeout(SOON, self.responses.message()).await;
            let response = response.unwrap_or_else(|_| panic!("waited in vain for {what}"));
            let response = response
                .expect("the stream goes on")
                .expect("the stream goes on");
            let received = self.client.receive(response).expect("is legal");
            assert!(received.rejected.is_empty(), "{:?}", received.rejected);
            self.changes.extend(received.changes);
            self.updates.extend(received.updates);
            self.roots = received.roots.unwrap_or(std::mem::take(&mut self.roots));
            self.requests
                .send(received.reply)
                .await
                .expect("the stream goes on");
        }
    }

    fn has(&self, kind: Kind, name: &str) -> bool {
        self.updates
            .iter()
            .any(|u| matches!(u, Update::Set(r) if r.kind == kind && &*r.name == name))
    }
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
    let running = run(state.path(), manifests.path()).await;
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

    world.rotate(Step::Prepare).await.expect("prepared");
    subscriber.until("both roots", |n| n.roots.len() == 2).await;
    assert_eq!(subscriber.roots[0], first, "the old root signs still");
    world.rotate(Step::Switch).await.expect("switched");
    subscriber
        .until("the new root first", |n| {
            n.roots.len() == 2 && n.roots[0] != first
        })
        .await;
    let refused = world
        .rotate(Step::Finish)
        .await
        .expect_err("n1 uses the old root");
    assert!(refused.to_string().contains("warren/node/n1"), "{refused}");
    let new = world
        .sign(Ok(&old), None)
        .await
        .expect("the old certificate still proves the node");
    assert_eq!(new.1.last(), Some(&subscriber.roots[0]));
    world.rotate(Step::Finish).await.expect("finished");
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
        let (_requests, queue) = mpsc::channel::<DeltaDiscoveryRequest>(1);
        let mut service = AggregatedDiscoveryServiceClient::new(channel);
        service
            .delta_aggregated_resources(ReceiverStream::new(queue))
            .await
            .map(drop)
            .map_err(|e| e.to_string())
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
        manifests: world.manifests.path().to_owned(),
        state: world.state.path().to_owned(),
        listen: any,
        monitor: any,
        names: Names {
            dns: vec![],
            addresses: vec![],
            ttl: SOON,
        },
        trust_domain: "cluster.local".into(),
        leaf_ttl: SOON,
        given: None,
    };
    let error = start(options).await.err().expect("is refused");
    assert!(
        error.to_string().contains("another controller"),
        "{error:#}"
    );
}
