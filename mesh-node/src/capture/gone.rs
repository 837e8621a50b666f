//! The end of a pod: nothing of it is served, and in time nothing of it is remembered.
//!
//! Invariant: a deleted pod's identity leaves the kernel only after its network namespace has ended, or
//! when its address has a new owner.

use std::fs;

use nix::net::if_::if_indextoname;

use super::{
    registration::{PodState, Registration, Reply},
    registry::CaptureTask,
};

impl CaptureTask {
    /// A pod is being deleted: nothing of it is served any more. Its entries stay in the kernel until its
    /// namespace is gone, so that nothing leaves it unguarded.
    pub(super) async fn del(&mut self, uid: &str) -> Reply {
        let gone = Reply::state(PodState::Gone, None);
        let Some(entry) = self.pods.get_mut(uid) else {
            return gone;
        };
        let captured = entry.live.is_some() || entry.was_captured;
        entry
            .waiters
            .drain(..)
            .for_each(|w| drop(w.reply.send(gone.clone())));
        entry.handed = None;
        self.release(uid).await;
        self.parts.enroller.kernel.release(uid);
        let Some(entry) = self.pods.get_mut(uid) else {
            return gone;
        };
        entry.netns = None;
        entry.retry = None;
        entry.report.state = PodState::Gone;
        entry.report.reason = None;
        let saved = entry.saved();
        tracing::info!(pod = saved.report.pod.title(), "a pod is being deleted");
        match captured {
            true => self.keep_on_disk(&saved),
            false => self.finish(uid),
        }
        self.publish_counts();
        gone
    }

    /// Forgets a deleted pod.
    pub(super) fn finish(&mut self, uid: &str) {
        let Some(entry) = self
            .pods
            .get(uid)
            .filter(|e| e.report.state == PodState::Gone)
        else {
            return;
        };
        if let Err(error) = self.parts.enroller.withdraw(&entry.report.pod) {
            tracing::warn!(pod = entry.report.pod.title(), %error, "the entries of a deleted pod could not be removed; trying again");
            return;
        }
        if let Err(error) = self.parts.saved.remove(uid) {
            tracing::warn!(uid, %error, "the record of a deleted pod could not be removed");
        }
        self.pods.remove(uid);
    }
}

/// Whether nothing can speak from a deleted pod any more: its veth dies with its namespace.
pub(super) fn netns_is_gone(pod: &Registration) -> bool {
    match pod.veth_ifindex {
        0 => pod.cgroup.as_ref().is_none_or(|c| fs::metadata(c).is_err()),
        // A name that is empty is no name: the wrapper does not see every failure.
        index => if_indextoname(index).map_or(true, |name| name.is_empty()),
    }
}
