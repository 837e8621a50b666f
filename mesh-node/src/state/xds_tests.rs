//! What a node tells its controller unasked, over streams that break.

use std::{net::SocketAddr, time::SystemTime};

use mesh_api::{
    delta::{Event, Outcome, Peer, Server},
    discovery::aggregated_discovery_service_server::{
        AggregatedDiscoveryService, AggregatedDiscoveryServiceServer,
    },
};
use rcgen::SanType;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{
    Request, Response, Status, Streaming,
    transport::{
        self, ServerTlsConfig,
        server::{Router, TcpIncoming},
    },
};

use super::*;
use crate::identify::testing::{Authority, Leaf};

/// A stream as the controller has it. It ends when this is dropped.
struct Subscriber {
    requests: Streaming<DeltaDiscoveryRequest>,
    server: Server,
    _responses: mpsc::Sender<Result<DeltaDiscoveryResponse, Status>>,
}

impl Subscriber {
    /// What the node tells next of pods that are outside; an acknowledgement is none.
    async fn told(&mut self) -> Vec<Outside> {
        loop {
            let request = soon(self.requests.message()).await.expect("goes on");
            let request = request.expect("goes on");
            match self.server.receive(request).expect("is legal") {
                Some(Event::NotCaptured(pods)) => return pods,
                Some(event @ (Event::Refused(..) | Event::UnknownType(_))) => panic!("{event:?}"),
                Some(Event::Acked(_)) | None => {}
            }
        }
    }
}

/// A controller that hands its streams to the test.
struct Streams(mpsc::Sender<Subscriber>);

#[tonic::async_trait]
impl AggregatedDiscoveryService for Streams {
    type DeltaAggregatedResourcesStream = ReceiverStream<Result<DeltaDiscoveryResponse, Status>>;

    async fn delta_aggregated_resources(
        &self,
        request: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaAggregatedResourcesStream>, Status> {
        let (sender, responses) = mpsc::channel(1);
        let subscriber = Subscriber {
            requests: request.into_inner(),
            server: Server::new(Peer {
                node: Some("n1".into()),
                ours: true,
                everywhere: false,
            }),
            _responses: sender,
        };
        let taken = self.0.send(subscriber).await;
        taken.map_err(|_| Status::unavailable("the test is over"))?;
        Ok(Response::new(ReceiverStream::new(responses)))
    }
}

async fn soon<T>(wait: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(30), wait)
        .await
        .expect("waited in vain")
}

fn listen(authority: &Authority, streams: mpsc::Sender<Subscriber>) -> (Router, TcpIncoming) {
    let any: SocketAddr = "127.0.0.1:0".parse().expect("an address");
    let leaf = Leaf {
        sans: vec![SanType::IpAddress(any.ip())],
        ..Leaf::of(&[])
    };
    let (_, pem) = authority.sign(&leaf);
    let tls = ServerTlsConfig::new().identity(transport::Identity::from_pem(&pem, &pem));
    let mut server = transport::Server::builder()
        .tls_config(tls)
        .expect("is good");
    let service = AggregatedDiscoveryServiceServer::new(Streams(streams));
    let incoming = TcpIncoming::bind(any).expect("a port");
    (server.add_service(service), incoming)
}

fn outside(name: &str) -> Outside {
    Outside {
        uid: format!("Kubernetes//Pod/shop/{name}").as_str().into(),
        reason: "it forwards".to_owned(),
        outcome: Outcome::LeftAlone,
    }
}

#[tokio::test]
async fn every_stream_is_told_which_pods_are_outside() {
    let dir = tempfile::tempdir().expect("a directory");
    let authority = Authority::new("ca");
    let (streams, mut subscribers) = mpsc::channel(1);
    let (server, incoming) = listen(&authority, streams);
    let address = incoming.local_addr().expect("an address");
    tokio::spawn(server.serve_with_incoming(incoming));
    let ca = dir.path().join("ca.pem");
    std::fs::write(&ca, authority.root_pem()).expect("writable");
    let certificates = Certificates::new(SystemTime::now);
    certificates.put_node(authority.issue_node("n1"));
    let (told, outside_mesh) = watch::channel(Vec::new());
    let (_status, client) = XdsClient::new(XdsParts {
        node: "n1".into(),
        cluster: "Kubernetes".to_owned(),
        kinds: Kind::NODE,
        state: MeshState::new(),
        certificates,
        controller: Controller {
            url: format!("https://{address}"),
            ca,
            timeout: Duration::from_secs(10),
        },
        longest_pause: Duration::from_millis(20),
        state_dir: dir.path().to_owned(),
        namespaces: EnrolledNamespaces::open(dir.path()),
        outside: outside_mesh,
        metrics: Metrics::new(),
    });
    tokio::spawn(client.run());

    let mut stream = soon(subscribers.recv()).await.expect("a stream");
    told.send_replace(vec![outside("a")]);
    assert_eq!(stream.told().await, [outside("a")]);
    told.send_replace(vec![outside("a"), outside("b")]);
    assert_eq!(stream.told().await, [outside("a"), outside("b")]);
    // The next stream knows nothing of what the last one was told.
    drop(stream);
    let mut stream = soon(subscribers.recv()).await.expect("another stream");
    assert_eq!(stream.told().await, [outside("a"), outside("b")]);
    told.send_replace(Vec::new());
    assert_eq!(stream.told().await, []);
    // Where there is nothing to tell, nothing is told first.
    drop(stream);
    let mut stream = soon(subscribers.recv()).await.expect("another stream");
    told.send_replace(vec![outside("c")]);
    assert_eq!(stream.told().await, [outside("c")]);
    // Without anybody who looks at pods, streams go on.
    drop(told);
    drop(stream);
    let mut stream = soon(subscribers.recv()).await.expect("another stream");
    assert_eq!(stream.told().await, [outside("c")]);
}
