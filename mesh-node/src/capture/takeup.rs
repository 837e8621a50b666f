//! Pods that outlive a process: taken up from disk, from a running process, or given to the next.
//!
//! Invariants: what was captured stays captured, configuration or not; what can no longer be found keeps its
//! entries in the kernel until nobody can speak from its address any more.

use std::sync::Arc;

use super::{
    Netns,
    handle::HandedPod,
    registration::PodState,
    registry::{CaptureTask, Entry},
    saved::SavedPod,
    sockets::Doors,
};

impl CaptureTask {
    pub(super) async fn restore(&mut self) -> usize {
        let saved = self.parts.saved.load().unwrap_or_else(|error| {
            tracing::error!(%error, "the records of pods cannot be read; pods must be registered again");
            Vec::new()
        });
        let mut taken = 0;
        let found = self.parts.finder.look();
        for pod in saved {
            let reg = &pod.report.pod;
            let netns = match pod.report.state {
                PodState::Gone => Ok(None),
                _ => found.namespace(pod.netns, &reg.addresses),
            };
            let netns = match netns {
                Ok(Some(netns)) => netns.duplicate().ok(),
                Ok(None) => None,
                Err(error) => {
                    tracing::warn!(pod = reg.title(), %error, "looking for its network namespace failed");
                    None
                }
            };
            taken += usize::from(netns.is_some());
            self.take_up(HandedPod {
                saved: pod,
                netns,
                doors: Doors::default(),
            })
            .await;
        }
        self.look_after_strangers();
        self.settled.send_replace(true);
        taken
    }

    pub(super) async fn adopt(&mut self, pods: Vec<HandedPod>) -> usize {
        let count = pods.len();
        for pod in pods {
            self.take_up(pod).await;
        }
        self.look_after_strangers();
        self.settled.send_replace(true);
        count
    }

    async fn take_up(&mut self, handed: HandedPod) {
        let SavedPod {
            report,
            netns: inode,
        } = handed.saved;
        let uid = report.pod.uid.clone();
        let netns = handed
            .netns
            .and_then(|fd| Netns::from_fd(fd).ok())
            .map(Arc::new);
        let mut entry = Entry::new(report.pod.clone(), netns);
        entry.inode = inode;
        entry.was_captured = report.state == PodState::Captured;
        entry.handed = (!handed.doors.tcp.is_empty()).then_some(handed.doors);
        let lost = entry.netns.is_none();
        entry.report = report;
        if lost {
            // Its entries stay until nobody can speak from its address any more.
            entry.report.state = PodState::Gone;
        }
        self.pods.insert(uid.clone(), entry);
        if !lost {
            self.judge(&uid).await;
        }
    }

    /// Pods that the kernel knows and nobody here does: what is alive stays captured, and so refused, until
    /// it is registered again.
    fn look_after_strangers(&mut self) {
        let known = self.parts.enroller.kernel.known().unwrap_or_default();
        let found = self.parts.finder.look();
        for pod in known
            .into_iter()
            .filter(|k| !self.pods.contains_key(&k.uid))
        {
            match found.namespace(pod.inode, &pod.addresses) {
                Ok(None) => {
                    if let Err(error) = self.parts.enroller.kernel.remove(&pod.uid) {
                        tracing::warn!(uid = pod.uid, %error, "the entries of a pod that is gone could not be removed");
                    }
                }
                Ok(Some(_)) => tracing::error!(
                    uid = pod.uid,
                    "a captured pod is not known here; its traffic is refused until it is registered again"
                ),
                Err(error) => {
                    tracing::warn!(uid = pod.uid, %error, "looking for a pod's network namespace failed; its traffic is refused")
                }
            }
        }
        match self.parts.enroller.kernel.retire_older() {
            Ok(0) => {}
            Ok(layouts) => tracing::info!(
                layouts,
                "programs of an earlier layout serve only the flows that they have"
            ),
            Err(error) => {
                tracing::error!(%error, "programs of an earlier layout could not be retired; both decide")
            }
        }
    }

    pub(super) fn export(&self) -> Vec<HandedPod> {
        let handed = |e: &Entry| {
            let doors = e
                .live
                .as_ref()
                .map(|l| l.doors.duplicate())
                .transpose()?
                .unwrap_or_default();
            let netns = e.netns.as_ref().map(|n| n.duplicate()).transpose()?;
            Ok::<_, std::io::Error>(HandedPod {
                saved: e.saved(),
                netns,
                doors,
            })
        };
        let one = |e: &Entry| match handed(e) {
            Ok(pod) => Some(pod),
            Err(error) => {
                tracing::error!(pod = e.report.pod.title(), %error, "a pod's sockets could not be duplicated; the successor opens its own");
                None
            }
        };
        self.pods.values().filter_map(one).collect()
    }
}
