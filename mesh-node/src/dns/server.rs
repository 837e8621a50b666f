//! The server on port 15053 of every captured pod.
//!
//! Invariants: queries in flight are bounded per pod; one pod's flood does not touch another's sockets; a
//! paused server still delivers what it was asked before; nothing that a pod sends ends a task of the server.

use std::{
    collections::HashMap,
    io,
    net::{SocketAddr, TcpListener as StdListener, UdpSocket as StdUdp},
    sync::Arc,
    time::Duration,
};

use hickory_proto::op::ResponseCode;
use mesh_model::name::NetworkId;
use prometheus_client::metrics::{counter::Counter, family::Family};
use tokio::{
    net::{TcpListener, TcpStream, UdpSocket},
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
    task::JoinSet,
    time::timeout,
};

use super::{
    answer::{Answer, Asker, answer},
    forward,
    handle::{DnsEvent, PodDns},
    message::{Incoming, Question, addresses_in, header_only, read},
};
use crate::{
    accept::{Pod, PodUid},
    capture::{Datapath, Kernel},
    observe::{DnsLabel, Metrics},
    state::MeshState,
};

/// How many queries of one pod may be in flight, and how many connections it may have.
const IN_FLIGHT: usize = 256;
const CONNECTIONS: usize = 64;
/// How long a connection may be silent.
const IDLE: Duration = Duration::from_secs(30);

/// What answering needs.
#[derive(Clone, Debug)]
pub struct DnsParts {
    /// The configuration.
    pub state: MeshState,
    /// Knows which resolver was asked over UDP.
    pub kernel: Arc<dyn Kernel>,
    /// Knows which resolver was asked over TCP.
    pub datapath: Arc<dyn Datapath>,
    /// The network that the pods are in.
    pub network: NetworkId,
    /// Metrics.
    pub metrics: Metrics,
}

/// The server.
#[derive(Debug)]
pub struct DnsServer {
    shared: Arc<Shared>,
    pods: HashMap<PodUid, Served>,
}

#[derive(Debug)]
struct Shared {
    parts: DnsParts,
    requests: Family<DnsLabel, Counter>,
}

/// A pod's sockets, kept for a resumption, and the tasks on them.
#[derive(Debug)]
struct Served {
    sockets: PodDns,
    room: Arc<Semaphore>,
    tasks: JoinSet<()>,
}

impl DnsServer {
    /// A server without pods.
    pub fn new(parts: DnsParts) -> Self {
        let requests = parts.metrics.node().dns_requests.clone();
        Self {
            shared: Arc::new(Shared { parts, requests }),
            pods: HashMap::new(),
        }
    }

    /// Runs until nobody can tell it anything any more.
    pub async fn run(mut self, mut events: mpsc::Receiver<DnsEvent>) {
        while let Some(event) = events.recv().await {
            match event {
                DnsEvent::Add(sockets) => {
                    let uid = sockets.pod.uid.clone();
                    self.pods.remove(&uid);
                    let mut served = Served {
                        sockets,
                        room: Arc::new(Semaphore::new(IN_FLIGHT)),
                        tasks: JoinSet::new(),
                    };
                    self.shared.serve(&mut served);
                    self.pods.insert(uid, served);
                }
                DnsEvent::Remove(uid) => drop(self.pods.remove(&uid)),
                DnsEvent::Pause => self.pods.values_mut().for_each(|p| p.tasks.abort_all()),
                DnsEvent::Resume => self.pods.values_mut().for_each(|p| self.shared.serve(p)),
            }
        }
    }
}

/// One query, and where its answer goes.
struct Query {
    pod: Arc<Pod>,
    packet: Vec<u8>,
    transport: &'static str,
}

impl Shared {
    fn serve(self: &Arc<Self>, served: &mut Served) {
        let pod = &served.sockets.pod;
        for socket in &served.sockets.udp {
            match socket.try_clone() {
                Ok(socket) => drop(served.tasks.spawn(self.clone().udp(
                    pod.clone(),
                    socket,
                    served.room.clone(),
                ))),
                Err(error) => tracing::error!(pod = %pod.uid, %error, "DNS over UDP is not served"),
            }
        }
        for listener in &served.sockets.tcp {
            match listener.try_clone() {
                Ok(listener) => drop(served.tasks.spawn(self.clone().tcp(pod.clone(), listener))),
                Err(error) => tracing::error!(pod = %pod.uid, %error, "DNS over TCP is not served"),
            }
        }
    }

    async fn udp(self: Arc<Self>, pod: Arc<Pod>, socket: StdUdp, room: Arc<Semaphore>) {
        let socket = match UdpSocket::from_std(socket) {
            Ok(socket) => Arc::new(socket),
            Err(error) => {
                return tracing::error!(pod = %pod.uid, %error, "DNS over UDP is not served");
            }
        };
        loop {
            if let Err(error) = socket.readable().await {
                return tracing::error!(pod = %pod.uid, %error, "DNS over UDP ended");
            }
            match receive(&socket) {
                Ok((packet, client)) => {
                    let query = Query {
                        pod: pod.clone(),
                        packet,
                        transport: "udp",
                    };
                    self.clone().one_udp(query, client, &socket, &room);
                }
                // A reset that an earlier answer met, or nothing there after all.
                Err(_) => tokio::task::yield_now().await,
            }
        }
    }

    /// Answers from the mesh at once, or in a task that waits for the resolver.
    fn one_udp(
        self: Arc<Self>,
        query: Query,
        client: SocketAddr,
        socket: &Arc<UdpSocket>,
        room: &Arc<Semaphore>,
    ) {
        match self.mesh_answer(&query) {
            Step::Reply(reply) => drop(reply.map(|r| socket.try_send_to(&r, client))),
            Step::Forward(alias) => {
                let Ok(permit) = room.clone().try_acquire_owned() else {
                    self.count(&query, "refused");
                    drop(
                        header_only(&query.packet, ResponseCode::ServFail)
                            .map(|r| socket.try_send_to(&r, client)),
                    );
                    return;
                };
                let socket = socket.clone();
                tokio::spawn(self.forward_udp(query, alias, client, socket, permit));
            }
        }
    }

    async fn forward_udp(
        self: Arc<Self>,
        query: Query,
        alias: Option<Alias>,
        client: SocketAddr,
        socket: Arc<UdpSocket>,
        _room: OwnedSemaphorePermit,
    ) {
        let resolver = self.parts.kernel.resolver(client);
        let asked = match (resolver, &alias) {
            (None, _) => Err(io::Error::new(
                io::ErrorKind::NotFound,
                "the kernel does not know which resolver was asked",
            )),
            (Some(resolver), None) => forward::over_udp(&query.pod, resolver, &query.packet).await,
            (Some(resolver), Some(alias)) => {
                forward::over_udp(&query.pod, resolver, &alias.query).await
            }
        };
        if let Some(reply) = self.conclude(&query, alias, asked) {
            // A client that has gone does not need its answer.
            let _ = socket.send_to(&reply, client).await;
        }
    }

    /// The reply to a query that the resolver was asked about.
    fn conclude(
        &self,
        query: &Query,
        alias: Option<Alias>,
        asked: io::Result<Vec<u8>>,
    ) -> Option<Vec<u8>> {
        match (asked, alias) {
            (Ok(reply), None) => {
                self.count(query, "forwarded");
                Some(reply)
            }
            (Ok(reply), Some(alias)) => {
                self.count(query, "forwarded");
                alias
                    .question
                    .reply_alias(&alias.target, &addresses_in(&reply, alias.question.asked))
            }
            (Err(error), alias) => {
                tracing::debug!(pod = %query.pod.uid, %error, "a query could not be passed on");
                self.count(query, "failed");
                match alias {
                    Some(alias) => alias.question.fail(ResponseCode::ServFail),
                    None => header_only(&query.packet, ResponseCode::ServFail),
                }
            }
        }
    }

    fn count(&self, query: &Query, result: &'static str) {
        self.requests
            .get_or_create(&DnsLabel {
                transport: query.transport,
                result,
            })
            .inc();
    }

    fn mesh_answer(&self, query: &Query) -> Step {
        let question = match read(&query.packet, query.transport == "tcp") {
            Incoming::Question(question) => question,
            Incoming::Other => return Step::Forward(None),
            Incoming::Malformed(reply) => {
                self.count(query, "malformed");
                return Step::Reply(reply);
            }
        };
        let snapshot = self.parts.state.load();
        let asker = Asker {
            namespace: &query.pod.namespace,
            network: &self.parts.network,
            seed: fastrand::u64(..),
        };
        match answer(&snapshot.mesh, asker, &question.name, question.asked) {
            Answer::Foreign => Step::Forward(None),
            Answer::Addresses(found) => {
                self.count(query, "answered");
                Step::Reply(question.reply(&found))
            }
            Answer::Alias(target) => match answer(&snapshot.mesh, asker, &target, question.asked) {
                Answer::Addresses(found) => {
                    self.count(query, "answered");
                    Step::Reply(question.reply_alias(&target, &found))
                }
                Answer::Alias(_) | Answer::Foreign => {
                    match question.about(&target, fastrand::u16(..)) {
                        Some(asked) => Step::Forward(Some(Alias {
                            question,
                            target,
                            query: asked,
                        })),
                        None => Step::Reply(question.fail(ResponseCode::ServFail)),
                    }
                }
            },
        }
    }

    async fn tcp(self: Arc<Self>, pod: Arc<Pod>, listener: StdListener) {
        let listener = match TcpListener::from_std(listener) {
            Ok(listener) => listener,
            Err(error) => {
                return tracing::error!(pod = %pod.uid, %error, "DNS over TCP is not served");
            }
        };
        let room = Arc::new(Semaphore::new(CONNECTIONS));
        loop {
            let Ok(permit) = room.clone().acquire_owned().await else {
                return;
            };
            match listener.accept().await {
                Ok((stream, client)) => {
                    let (this, pod) = (self.clone(), pod.clone());
                    tokio::spawn(async move {
                        if let Err(error) = this.connection(pod, stream, client).await {
                            tracing::debug!(%client, %error, "a DNS connection ended");
                        }
                        drop(permit);
                    });
                }
                Err(error) => {
                    tracing::warn!(pod = %pod.uid, %error, "DNS over TCP could not accept; trying again in a second");
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
            }
        }
    }

    async fn connection(
        self: Arc<Self>,
        pod: Arc<Pod>,
        mut stream: TcpStream,
        client: SocketAddr,
    ) -> io::Result<()> {
        let resolver = self
            .parts
            .datapath
            .take_original(stream.local_addr()?, client);
        let mut upstream: Option<TcpStream> = None;
        while let Some(packet) = timeout(IDLE, forward::read_framed(&mut stream)).await?? {
            let query = Query {
                pod: pod.clone(),
                packet,
                transport: "tcp",
            };
            let reply = match self.mesh_answer(&query) {
                Step::Reply(reply) => reply,
                Step::Forward(alias) => {
                    let bytes = alias.as_ref().map_or(&query.packet, |a| &a.query);
                    let asked = pass_on(&pod, resolver, &mut upstream, bytes).await;
                    self.conclude(&query, alias, asked)
                }
            };
            match reply {
                Some(reply) => timeout(IDLE, forward::write_framed(&mut stream, &reply)).await??,
                // Bytes that are no query: there is no telling where the next one begins.
                None => return Ok(()),
            }
        }
        Ok(())
    }
}

/// Asks the resolver over a connection that is opened with the first query; a broken one is opened anew once.
async fn pass_on(
    pod: &Pod,
    resolver: Option<SocketAddr>,
    upstream: &mut Option<TcpStream>,
    query: &[u8],
) -> io::Result<Vec<u8>> {
    let resolver = resolver.ok_or_else(|| {
        io::Error::new(io::ErrorKind::NotFound, "this connection was not captured")
    })?;
    if let Some(mut open) = upstream.take()
        && let Ok(answer) = forward::over_tcp(&mut open, query).await
    {
        *upstream = Some(open);
        return Ok(answer);
    }
    let mut fresh = forward::connect(pod, resolver).await?;
    let answer = forward::over_tcp(&mut fresh, query).await?;
    *upstream = Some(fresh);
    Ok(answer)
}

fn receive(socket: &UdpSocket) -> io::Result<(Vec<u8>, SocketAddr)> {
    // On the stack while it is read, so that a pod that asks nothing costs no buffer.
    let mut buffer = [0; forward::PACKET];
    let (length, client) = socket.try_recv_from(&mut buffer)?;
    Ok((buffer[..length].to_vec(), client))
}

enum Step {
    Reply(Option<Vec<u8>>),
    Forward(Option<Alias>),
}

/// A name of the mesh that stands for one outside.
struct Alias {
    question: Box<Question>,
    target: String,
    query: Vec<u8>,
}

#[cfg(test)]
#[path = "server_tests.rs"]
mod tests;
