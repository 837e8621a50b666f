//! A whole controller on loopback and subscribers as nodes are: what tests and measurements of it have in common.
//!
//! Invariant: nothing here knows more than a node does; keys and certificates are got over the wire.

// Each test and measurement uses its part of this.
#![allow(dead_code)]

use std::{fs, net::SocketAddr, path::Path, time::Duration};

use mesh_api::{
    auth::{
        IstioCertificateRequest, istio_certificate_service_client::IstioCertificateServiceClient,
    },
    delta::{Client, Received},
    discovery::{
        DeltaDiscoveryRequest, DeltaDiscoveryResponse,
        aggregated_discovery_service_client::AggregatedDiscoveryServiceClient,
    },
    resource::{Kind, Update},
};
use mesh_ctl::{
    app::{Input, Options, Running, start},
    ca::Member,
    listen::Names,
    token::JoinKey,
};
use mesh_model::mesh::Change;
use prost::Message;
use prost_types::{Struct, Value, value::Kind as ValueKind};
use rcgen::{CertificateParams, KeyPair};
use tokio::{sync::mpsc, time::timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{
    Status, Streaming,
    transport::{Certificate, Channel, ClientTlsConfig, Identity},
};

/// How long a wait may last on a busy machine.
pub const SOON: Duration = Duration::from_secs(60);

/// A controller with its folders.
pub struct World {
    pub running: Running,
    pub state: tempfile::TempDir,
    pub manifests: tempfile::TempDir,
}

/// A controller that is given these objects.
pub async fn world(objects: &str) -> World {
    let (state, manifests) = (
        tempfile::tempdir().expect("a directory"),
        tempfile::tempdir().expect("a directory"),
    );
    fs::write(manifests.path().join("objects.yaml"), objects).expect("written");
    let any: SocketAddr = "127.0.0.1:0".parse().expect("is one");
    let running = run(state.path(), manifests.path(), any).await;
    World {
        running,
        state,
        manifests,
    }
}

/// Runs a controller that listens here.
pub async fn run(state: &Path, manifests: &Path, listen: SocketAddr) -> Running {
    let any: SocketAddr = "127.0.0.1:0".parse().expect("is one");
    let ttl = Duration::from_secs(3600);
    let names = Names {
        dns: vec!["localhost".into()],
        addresses: vec![any.ip()],
        ttl,
    };
    let options = Options {
        from: Input::Manifests(manifests.to_owned()),
        state: state.to_owned(),
        listen,
        monitor: any,
        webhook: any,
        names,
        trust_domain: "cluster.local".into(),
        leaf_ttl: ttl,
        given: None,
        taint: false,
    };
    start(options).await.expect("starts")
}

/// A key and the certificate chain for it, PEM.
pub type Credential = (String, Vec<String>);

impl World {
    pub async fn channel(&self, credential: Option<&Credential>) -> Channel {
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

    pub fn token(&self, node: &str) -> String {
        let later = std::time::SystemTime::now() + SOON;
        JoinKey::open(self.state.path())
            .expect("there is a key")
            .issue(&Member::Node(node.into()), later)
    }

    pub async fn sign(
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

    pub async fn join(&self, node: &str) -> Credential {
        self.sign(Err(&self.token(node)), None)
            .await
            .expect("joins")
    }
}

/// A subscriber as a node is one.
pub struct Node {
    pub client: Client,
    pub requests: mpsc::Sender<DeltaDiscoveryRequest>,
    pub responses: Streaming<DeltaDiscoveryResponse>,
    pub changes: Vec<Change>,
    pub updates: Vec<Update>,
    pub roots: Vec<String>,
    /// Bytes of messages, sent and received.
    pub sent: usize,
    pub received: usize,
}

impl Node {
    pub async fn subscribe(
        world: &World,
        credential: Option<&Credential>,
        client: Client,
    ) -> Result<Self, Status> {
        Self::over(world.channel(credential).await, client).await
    }

    /// Begins a stream over this connection.
    pub async fn over(channel: Channel, mut client: Client) -> Result<Self, Status> {
        let (requests, queue) = mpsc::channel(16);
        let mut sent = 0;
        for request in client.connect() {
            sent += request.encoded_len();
            requests.send(request).await.expect("there is room");
        }
        let mut service =
            AggregatedDiscoveryServiceClient::new(channel).max_decoding_message_size(64 << 20);
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
            sent,
            received: 0,
        })
    }

    /// The next response, as the client takes it; the reply has been sent.
    pub async fn next(&mut self) -> Result<Received, Status> {
        let response = self.responses.message().await?;
        let response = response.ok_or_else(|| Status::unavailable("the stream has ended"))?;
        self.received += response.encoded_len();
        let mut received = self.client.receive(response).expect("is legal");
        let reply = std::mem::take(&mut received.reply);
        self.sent += reply.encoded_len();
        self.requests
            .send(reply)
            .await
            .map_err(|_| Status::unavailable("the stream has ended"))?;
        Ok(received)
    }

    /// Takes responses until what they amount to is as wanted.
    pub async fn until(&mut self, what: &str, wanted: impl Fn(&Self) -> bool) {
        while !wanted(self) {
            let received = timeout(SOON, self.next()).await;
            let received = received.unwrap_or_else(|_| panic!("waited in vain for {what}"));
            let received = received.unwrap_or_else(|e| panic!("waiting for {what}: {e}"));
            assert!(received.rejected.is_empty(), "{:?}", received.rejected);
            self.changes.extend(received.changes);
            self.updates.extend(received.updates);
            self.roots = received.roots.unwrap_or(std::mem::take(&mut self.roots));
        }
    }

    pub fn has(&self, kind: Kind, name: &str) -> bool {
        self.updates
            .iter()
            .any(|u| matches!(u, Update::Set(r) if r.kind == kind && &*r.name == name))
    }
}
