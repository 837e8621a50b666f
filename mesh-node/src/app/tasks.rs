//! Tasks of the control runtime, and what readiness is made of.
//!
//! Invariant: a task that must not end takes the process's readiness with it when it does.

use tokio::sync::watch;

use crate::{
    identify::Certificates,
    lifecycle::{Ending, Lifecycle, Readiness},
    state::XdsStatus,
};

/// The tasks of the control runtime: while one that must not end runs, its part is ready.
pub(super) struct Tasks {
    pub(super) readiness: Readiness,
    pub(super) lifecycle: Lifecycle,
}

impl Tasks {
    /// Runs something that must not end before the process does.
    pub(super) fn spawn(
        &self,
        name: &'static str,
        task: impl Future<Output: Send> + Send + 'static,
    ) {
        let part = self.readiness.part(name, "its start");
        part.ready();
        tokio::spawn(async move {
            // Dropped when the task ends, also by a panic: the part then counts as dead.
            let _part = part;
            task.await;
            tracing::error!(
                task = name,
                "a task ended that should not; the process is no longer ready"
            );
        });
    }

    /// Runs something that a successor takes over: two of it would get in each other's way.
    pub(super) fn spawn_until_handed_over(
        &self,
        name: &'static str,
        task: impl Future<Output: Send> + Send + 'static,
    ) {
        let lifecycle = self.lifecycle.clone();
        self.spawn(name, async move {
            let handed_over = async {
                if lifecycle.draining().await == Ending::Stop {
                    std::future::pending::<()>().await;
                }
            };
            tokio::select! {
                _ = task => {}
                () = handed_over => std::future::pending().await,
            }
        });
    }
}

/// Follows what readiness depends on besides tasks.
pub(super) async fn follow_readiness(
    readiness: Readiness,
    mut xds: watch::Receiver<XdsStatus>,
    certificates: Certificates,
) {
    let configuration = readiness.part("configuration", "the controller");
    let certificate = readiness.part("certificate", "the controller");
    let mut changes = certificates.changes();
    loop {
        changes.mark_unchanged();
        let status = xds.borrow_and_update().clone();
        match (status.complete, status.last_error) {
            (true, _) => configuration.ready(),
            (false, why) => configuration.waits(&why.unwrap_or_else(|| "the controller".into())),
        }
        match certificates.node() {
            Some(_) => certificate.ready(),
            None => certificate.waits("the controller to sign the node's certificate"),
        }
        let ended = tokio::select! {
            changed = xds.changed() => changed.is_err(),
            changed = changes.changed() => changed.is_err(),
        };
        if ended {
            return;
        }
    }
}
