//! Which pods of this node should be in the mesh and are not served there, for the controller to tell at them.
//!
//! Invariants: nothing is told of a pod that the configuration does not enrol, nor of what lasts no longer than from
//! one look to the next; what is told is bounded.

use std::{
    collections::{BTreeMap, HashSet},
    time::Duration,
};

use mesh_api::delta::{MAX_OUTSIDE, Outcome, Outside};
use mesh_model::{
    mesh::Enrolment,
    name::{ClusterId, WorkloadUid},
};
use tokio::{
    sync::watch,
    time::{Instant, sleep},
};

use super::Missing;
use crate::{
    capture::{BARRED, Capture, CaptureGone, PodReport, PodState},
    state::MeshState,
};

/// How often it is looked.
const LOOK: Duration = Duration::from_secs(5);

/// What the looks need.
#[derive(Debug)]
pub struct OutsideParts {
    /// This node's cluster.
    pub cluster: ClusterId,
    /// The configuration.
    pub state: MeshState,
    /// The registered pods.
    pub capture: Capture,
    /// Those that are not found.
    pub missing: Missing,
    /// Where it is told.
    pub told: watch::Sender<Vec<Outside>>,
}

/// The looks.
#[derive(Debug)]
pub struct OutsideMesh {
    parts: OutsideParts,
    /// Who was outside when it was last looked.
    before: HashSet<WorkloadUid>,
}

impl OutsideMesh {
    /// Looks that have not begun.
    pub fn new(parts: OutsideParts) -> Self {
        Self {
            parts,
            before: HashSet::new(),
        }
    }

    /// Looks until the registry ends.
    pub async fn run(mut self) {
        while self.look(Instant::now()).await.is_ok() {
            sleep(LOOK).await;
        }
    }

    async fn look(&mut self, now: Instant) -> Result<(), CaptureGone> {
        let reports = self.parts.capture.list().await?;
        let uid = |pod: &str| WorkloadUid::new(format!("{}//Pod/{pod}", self.parts.cluster));
        let missing = self.parts.missing.for_long(now).into_iter();
        let missing = missing.map(|(pod, reason)| Outside {
            uid: uid(&pod),
            reason,
            outcome: Outcome::TriedAgain,
        });
        let registered = reports.iter().filter_map(|report| {
            let (reason, outcome) = trouble(report)?;
            Some(Outside {
                uid: report.pod.workload(&self.parts.cluster),
                reason: reason.to_owned(),
                outcome,
            })
        });
        let all = missing.chain(registered);
        let mut all: BTreeMap<_, _> = all.map(|pod| (pod.uid.clone(), pod)).collect();
        let snapshot = self.parts.state.load();
        all.retain(|uid, _| {
            let extra = snapshot.mesh.extra(uid);
            extra.is_some_and(|e| e.enrolment == Enrolment::Enrolled)
        });
        let outside = all.keys().cloned().collect();
        let before = std::mem::replace(&mut self.before, outside);
        let lasting = all.into_values().filter(|pod| before.contains(&pod.uid));
        let lasting: Vec<Outside> = lasting.take(MAX_OUTSIDE).collect();
        self.parts.told.send_if_modified(|told| {
            let new = *told != lasting;
            *told = lasting;
            new
        });
        Ok(())
    }
}

/// Why a registered pod is not served, if it is not, and what becomes of its connections.
fn trouble(report: &PodReport) -> Option<(&str, Outcome)> {
    let reason = report.reason.as_deref()?;
    match report.state {
        PodState::Waiting => Some((reason, Outcome::TriedAgain)),
        PodState::Refused => Some((reason, Outcome::LeftAlone)),
        PodState::Captured => {
            let plain = reason.strip_suffix(BARRED).unwrap_or(reason);
            Some((plain, Outcome::Refused))
        }
        PodState::Out | PodState::Gone => None,
    }
}

#[cfg(test)]
#[path = "outside_tests.rs"]
mod tests;
