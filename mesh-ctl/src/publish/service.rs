//! The discovery service on the wire: one task per subscriber that drives its state machine.
//!
//! Invariants: only nodes and waypoints subscribe, and only as themselves; a stream ends when the certificate behind it does;
//! a message is made only when the stream has room for it.

use std::{
    pin::Pin,
    time::{Duration, SystemTime},
};

use futures_util::Stream;
use mesh_api::{
    delta::{self, Event, MARK, Server, View},
    discovery::{
        DeltaDiscoveryRequest, DeltaDiscoveryResponse, Node,
        aggregated_discovery_service_server::AggregatedDiscoveryService,
    },
    resource::Kind,
};
use mesh_model::name::NodeName;
use prost_types::value::Kind as ValueKind;
use tokio::{
    sync::{mpsc, watch},
    time::{sleep, timeout},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};
use tracing::{debug, info, warn};

use super::{Entry, Handle, Published, foreign};
use crate::{
    ca::Member,
    listen::{Peer, PeerName},
};

/// Messages that wait for the connection to take them.
const QUEUE: usize = 2;
/// A subscriber says what it wants within this time.
const FIRST_REQUEST: Duration = Duration::from_secs(10);

/// Answers nodes that subscribe.
#[derive(Clone)]
pub struct DiscoveryService {
    handle: Handle,
}

impl DiscoveryService {
    pub(super) fn new(handle: Handle) -> Self {
        Self { handle }
    }
}

type Responses = Pin<Box<dyn Stream<Item = Result<DeltaDiscoveryResponse, Status>> + Send>>;

#[tonic::async_trait]
impl AggregatedDiscoveryService for DiscoveryService {
    type DeltaAggregatedResourcesStream = Responses;

    async fn delta_aggregated_resources(
        &self,
        request: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Responses>, Status> {
        let peer = request.extensions().get::<Peer>().cloned();
        let peer = peer.ok_or_else(|| Status::internal("a connection without a peer"))?;
        let member = match peer.name {
            PeerName::Member(member) => member,
            PeerName::Nobody => {
                return Err(Status::unauthenticated(
                    "subscribing needs the certificate of a node or a waypoint; ask the CA for one first",
                ));
            }
            PeerName::Other(name) => {
                return Err(Status::permission_denied(format!(
                    "only nodes and waypoints subscribe; this is {name}"
                )));
            }
        };
        let (out, responses) = mpsc::channel(QUEUE);
        let stream = Subscription {
            handle: self.handle.clone(),
            node: member.name(),
            member,
            requests: request.into_inner(),
            out: out.clone(),
        };
        let life = peer
            .not_after
            .and_then(|t| t.duration_since(SystemTime::now()).ok())
            .unwrap_or_default();
        tokio::spawn(async move {
            let node = stream.node.clone();
            let end = tokio::select! {
                end = stream.run() => end,
                () = sleep(life) => Err(Status::unauthenticated("the node certificate of this stream has expired")),
                () = out.closed() => Ok(()),
            };
            match end {
                Ok(()) => info!(%node, "a node left"),
                Err(status) => {
                    warn!(%node, code = ?status.code(), reason = status.message(), "a node's stream ended");
                    // When there is no room any more the stream is just closed.
                    let _ = out.try_send(Err(status));
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(responses))))
    }
}

struct Subscription {
    handle: Handle,
    /// Its name among subscribers.
    node: NodeName,
    member: Member,
    requests: Streaming<DeltaDiscoveryRequest>,
    out: mpsc::Sender<Result<DeltaDiscoveryResponse, Status>>,
}

impl Subscription {
    async fn run(mut self) -> Result<(), Status> {
        let mut published = self.handle.inner.published.subscribe();
        let first = timeout(FIRST_REQUEST, self.requests.message()).await;
        let first = first.map_err(|_| Status::deadline_exceeded("no request came"))??;
        let Some(first) = first else { return Ok(()) };
        let ours = first.node.as_ref().is_some_and(is_ours);
        info!(node = %self.node, ours, "a node subscribes");
        let entry = self.handle.enter(&self.node, ours);
        let (node, everywhere) = match &self.member {
            Member::Node(node) => (Some(node.as_str().into()), false),
            // A waypoint has to know the labels of clients and endpoints on every node.
            Member::Waypoint(_) => (None, true),
        };
        let mut server = Server::new(delta::Peer {
            node,
            everywhere,
            ours,
        });
        self.received(&mut server, first, &published, &entry)?;
        let mut pending = None;
        loop {
            let current = published.borrow_and_update().clone();
            // Before the first whole state there is nothing that may be believed.
            if pending.is_none() && current.whole {
                pending = server
                    .next(view(&current, ours))
                    .map_err(|v| Status::invalid_argument(v.to_string()))?;
                entry.update(server.unanswered(), server.is_at(view(&current, ours)));
            }
            tokio::select! {
                room = self.out.reserve(), if pending.is_some() => {
                    let Ok(room) = room else { return Ok(()) };
                    if let Some(response) = pending.take() {
                        self.count(&response, &current);
                        room.send(Ok(response));
                    }
                }
                request = self.requests.message() => match request? {
                    Some(request) => self.received(&mut server, request, &published, &entry)?,
                    None => return Ok(()),
                },
                changed = published.changed() => if changed.is_err() {
                    return Err(Status::unavailable("the controller is stopping"));
                },
            }
        }
    }

    fn received(
        &self,
        server: &mut Server,
        request: DeltaDiscoveryRequest,
        published: &watch::Receiver<Published>,
        entry: &Entry,
    ) -> Result<(), Status> {
        match server
            .receive(request)
            .map_err(|v| Status::invalid_argument(v.to_string()))?
        {
            Some(Event::Refused(kind, rejections)) => {
                for r in &rejections {
                    warn!(node = %self.node, %kind, name = %r.name, reason = r.message, "a node refused a resource");
                }
                self.handle.inner.metrics.refused(kind, rejections.len());
                self.handle.inner.refusals.add(
                    &published.borrow().view,
                    kind,
                    &self.node,
                    rejections,
                );
            }
            Some(Event::NotCaptured(pods)) => entry.tell(&self.node, pods),
            Some(Event::UnknownType(url)) => {
                debug!(node = %self.node, url, "a type that is not served was asked for")
            }
            Some(Event::Acked(_)) | None => {}
        }
        Ok(())
    }

    fn count(&self, response: &DeltaDiscoveryResponse, current: &Published) {
        let metrics = &self.handle.inner.metrics;
        if let Some(kind) = Kind::from_url(&response.type_url) {
            metrics.sent(kind, response.resources.len());
        }
        metrics
            .push_seconds
            .observe(current.at.elapsed().as_secs_f64());
    }
}

fn view(published: &Published, ours: bool) -> &View {
    if ours {
        &published.view
    } else {
        published
            .foreign
            .get_or_init(|| foreign::view(&published.view))
    }
}

fn is_ours(node: &Node) -> bool {
    let value = node
        .metadata
        .as_ref()
        .and_then(|m| m.fields.get(MARK.0))
        .and_then(|v| v.kind.as_ref());
    matches!(value, Some(ValueKind::StringValue(text)) if text == MARK.1)
}
