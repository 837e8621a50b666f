//! Handing listeners to the data threads.
//!
//! Invariants: every thread gets every event in the order it was sent; the queue to a thread is bounded
//! and a sender waits for room, so that a slow thread slows enrolment and never loses a listener.

use std::{net::TcpListener, sync::Arc};

use mesh_model::reason::Reason;
use tokio::sync::mpsc;

use super::{Pod, PodUid};

/// How many listener events may wait for one data thread.
const QUEUE: usize = 1024;

/// What a listener inside a pod is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// 15001 and its siblings: connections that the pod dialed.
    Outbound,
    /// 15006: plaintext that was addressed to the pod.
    Plaintext,
    /// 15008: HBONE that is addressed to the pod.
    Hbone,
    /// 15008 of a waypoint: HBONE that is addressed to what the waypoint serves.
    Waypoint,
}

/// What a data thread is told about the pods it serves.
#[derive(Debug)]
pub enum ListenerEvent {
    /// Serve one more listener of a pod.
    Add {
        /// The pod.
        pod: Arc<Pod>,
        /// What the listener is for.
        kind: Kind,
        /// The listener, non-blocking.
        listener: TcpListener,
    },
    /// Stop accepting for a pod and end its flows.
    Remove {
        /// The pod.
        uid: PodUid,
        /// Why its flows end.
        reason: Reason,
    },
    /// Stop accepting everywhere and keep the flows: another process accepts on the same listeners now.
    Pause,
    /// Accept again, after a hand-over that did not come about.
    Resume,
}

/// The data threads, as seen by who makes listeners.
#[derive(Clone, Debug)]
pub struct Listeners {
    threads: Arc<[mpsc::Sender<ListenerEvent>]>,
}

/// Why a listener could not be handed over.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// The descriptor could not be duplicated.
    #[error("a listener of the pod could not be shared with every data thread: {0}")]
    Duplicate(#[from] std::io::Error),
    /// A data thread has ended.
    #[error("a data thread has ended; the node proxy is shutting down")]
    Gone,
}

impl Listeners {
    /// A handle to `threads` data threads, and the receiving end for each of them.
    pub fn new(threads: usize) -> (Self, Vec<mpsc::Receiver<ListenerEvent>>) {
        let (senders, receivers): (Vec<_>, Vec<_>) =
            (0..threads).map(|_| mpsc::channel(QUEUE)).unzip();
        (
            Self {
                threads: senders.into(),
            },
            receivers,
        )
    }

    /// Lets every data thread accept on a listener. The listener must be non-blocking; the caller may keep
    /// or close its own descriptor afterwards.
    pub async fn add(
        &self,
        pod: &Arc<Pod>,
        kind: Kind,
        listener: &TcpListener,
    ) -> Result<(), ListenError> {
        for thread in self.threads.iter() {
            let event = ListenerEvent::Add {
                pod: pod.clone(),
                kind,
                listener: listener.try_clone()?,
            };
            thread.send(event).await.map_err(|_| ListenError::Gone)?;
        }
        Ok(())
    }

    /// Stops every data thread from serving a pod; its listeners close and its flows end with this reason.
    pub async fn remove(&self, uid: &PodUid, reason: Reason) -> Result<(), ListenError> {
        for thread in self.threads.iter() {
            thread
                .send(ListenerEvent::Remove {
                    uid: uid.clone(),
                    reason,
                })
                .await
                .map_err(|_| ListenError::Gone)?;
        }
        Ok(())
    }

    /// Stops accepting on every listener; flows go on and listeners stay open.
    pub async fn pause(&self) -> Result<(), ListenError> {
        for thread in self.threads.iter() {
            thread
                .send(ListenerEvent::Pause)
                .await
                .map_err(|_| ListenError::Gone)?;
        }
        Ok(())
    }

    /// Accepts again.
    pub async fn resume(&self) -> Result<(), ListenError> {
        for thread in self.threads.iter() {
            thread
                .send(ListenerEvent::Resume)
                .await
                .map_err(|_| ListenError::Gone)?;
        }
        Ok(())
    }
}
