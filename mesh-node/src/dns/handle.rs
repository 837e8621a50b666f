//! How enrolment hands a pod's DNS sockets to the server.
//!
//! Invariant: the queue is bounded and a sender waits for room, so that no pod is left without DNS.

use std::{
    net::{TcpListener, UdpSocket},
    sync::Arc,
};

use tokio::sync::mpsc;

use crate::accept::{Pod, PodUid};

/// How many events may wait.
const QUEUE: usize = 256;

/// What the server is told.
#[derive(Debug)]
pub enum DnsEvent {
    /// Serve a pod, or serve it under a new identity.
    Add(PodDns),
    /// Stop serving a pod.
    Remove(PodUid),
    /// Take no more queries; answers that are on their way are still delivered.
    Pause,
    /// Take queries again.
    Resume,
}

/// A pod's DNS sockets.
#[derive(Debug)]
pub struct PodDns {
    /// The pod; sockets towards the resolver come from it too.
    pub pod: Arc<Pod>,
    /// Port 15053, UDP.
    pub udp: Vec<UdpSocket>,
    /// Port 15053, TCP.
    pub tcp: Vec<TcpListener>,
}

/// The server, as seen by who enrols pods.
#[derive(Clone, Debug)]
pub struct DnsHandle(mpsc::Sender<DnsEvent>);

/// The server has ended.
#[derive(Debug, thiserror::Error)]
#[error("the DNS server has ended; the node proxy is shutting down")]
pub struct DnsGone;

impl DnsHandle {
    /// A handle, and the server's end of it.
    pub fn new() -> (Self, mpsc::Receiver<DnsEvent>) {
        let (send, receive) = mpsc::channel(QUEUE);
        (Self(send), receive)
    }

    /// Tells the server.
    pub async fn tell(&self, event: DnsEvent) -> Result<(), DnsGone> {
        self.0.send(event).await.map_err(|_| DnsGone)
    }
}
