//! A handle to the registry of pods: what others may ask of it.
//!
//! Invariants: the queue is bounded and whoever asks waits for room; a registry that has ended is an error,
//! never a silence.

use std::{os::fd::OwnedFd, time::Duration};

use tokio::{
    sync::{mpsc, oneshot, watch},
    time::Instant,
};

use super::{
    registration::{PodReport, Registration, Reply},
    registry::{CaptureParts, CaptureTask},
    saved::SavedPod,
    sockets::Doors,
};

/// How many requests may wait.
const QUEUE: usize = 256;

/// A pod on its way from one process to the next.
#[derive(Debug)]
pub struct HandedPod {
    /// What is known of it.
    pub saved: SavedPod,
    /// Its namespace; absent for one that is being deleted.
    pub netns: Option<OwnedFd>,
    /// Its listeners; empty unless it is captured.
    pub doors: Doors,
}

pub(super) enum Command {
    Add {
        pod: Registration,
        netns: OwnedFd,
        deadline: Instant,
        reply: oneshot::Sender<Reply>,
    },
    Del {
        uid: String,
        reply: oneshot::Sender<Reply>,
    },
    List {
        reply: oneshot::Sender<Vec<PodReport>>,
    },
    Known {
        reply: oneshot::Sender<Vec<SavedPod>>,
    },
    Restore {
        done: oneshot::Sender<usize>,
    },
    Adopt {
        pods: Vec<HandedPod>,
        done: oneshot::Sender<usize>,
    },
    Export {
        reply: oneshot::Sender<Vec<HandedPod>>,
    },
    Pause {
        done: oneshot::Sender<()>,
    },
    Resume {
        done: oneshot::Sender<()>,
    },
    Close {
        done: oneshot::Sender<()>,
    },
}

/// A handle to the registry. Cloning is cheap.
#[derive(Clone, Debug)]
pub struct Capture {
    commands: mpsc::Sender<Command>,
    settled: watch::Receiver<bool>,
}

/// The registry has ended.
#[derive(Debug, thiserror::Error)]
#[error("the registry of pods has ended; the node proxy is shutting down")]
pub struct CaptureGone;

impl Capture {
    /// The registry and its task, which must be run.
    pub fn new(parts: CaptureParts) -> (Self, CaptureTask) {
        let (commands, receiver) = mpsc::channel(QUEUE);
        let (settle, settled) = watch::channel(false);
        let task = CaptureTask::new(parts, receiver, settle);
        (Self { commands, settled }, task)
    }

    async fn ask<T>(
        &self,
        make: impl FnOnce(oneshot::Sender<T>) -> Command,
    ) -> Result<T, CaptureGone> {
        let (reply, answer) = oneshot::channel();
        self.commands
            .send(make(reply))
            .await
            .map_err(|_| CaptureGone)?;
        answer.await.map_err(|_| CaptureGone)
    }

    /// Registers a pod; waits at most `patience` for configuration.
    pub async fn add(
        &self,
        pod: Registration,
        netns: OwnedFd,
        patience: Duration,
    ) -> Result<Reply, CaptureGone> {
        let deadline = Instant::now() + patience;
        self.ask(|reply| Command::Add {
            pod,
            netns,
            deadline,
            reply,
        })
        .await
    }

    /// A pod is being deleted.
    pub async fn del(&self, uid: String) -> Result<Reply, CaptureGone> {
        self.ask(|reply| Command::Del { uid, reply }).await
    }

    /// Every pod and its state.
    pub async fn list(&self) -> Result<Vec<PodReport>, CaptureGone> {
        self.ask(|reply| Command::List { reply }).await
    }

    /// Every pod, its state, and the inode of its network namespace.
    pub async fn known(&self) -> Result<Vec<SavedPod>, CaptureGone> {
        self.ask(|reply| Command::Known { reply }).await
    }

    /// Takes up the pods that an earlier process left on disk; says how many.
    pub async fn restore(&self) -> Result<usize, CaptureGone> {
        self.ask(|done| Command::Restore { done }).await
    }

    /// Takes over the pods of a running process; says how many.
    pub async fn adopt(&self, pods: Vec<HandedPod>) -> Result<usize, CaptureGone> {
        self.ask(|done| Command::Adopt { pods, done }).await
    }

    /// Duplicates of every pod's sockets, for the process that takes over. From here on nothing changes until
    /// `resume`; connections are still accepted until `pause`.
    pub async fn export(&self) -> Result<Vec<HandedPod>, CaptureGone> {
        self.ask(|reply| Command::Export { reply }).await
    }

    /// Stops accepting connections and queries; flows go on.
    pub async fn pause(&self) -> Result<(), CaptureGone> {
        self.ask(|done| Command::Pause { done }).await
    }

    /// Takes everything up again after a hand-over that failed.
    pub async fn resume(&self) -> Result<(), CaptureGone> {
        self.ask(|done| Command::Resume { done }).await
    }

    /// Closes every listener for good, because the process ends without a successor: connections are refused
    /// rather than left waiting. Pods stay captured; sockets of flows under way stay open.
    pub async fn close(&self) -> Result<(), CaptureGone> {
        self.ask(|done| Command::Close { done }).await
    }

    /// Whether the pods of an earlier process have been taken up.
    pub fn is_settled(&self) -> bool {
        *self.settled.borrow()
    }
}
