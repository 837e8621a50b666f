//! What a node tells unasked on its stream: the pods on it that should be in the mesh and are not served there.
//!
//! Invariants: a message is the whole list, and bounded on both sides; a server of an earlier build takes it for a
//! request for a type that it does not serve, and goes on.

use mesh_model::name::WorkloadUid;
use prost::Message;

use crate::{
    any::Any,
    discovery::{DeltaDiscoveryRequest, Status},
    warren,
};

/// The type of the message, and of what it carries.
pub const NOT_CAPTURED: &str = "type.googleapis.com/warren.v1.NotCaptured";
/// More pods than these are not told of.
pub const MAX_OUTSIDE: usize = 256;
/// The longest reason, in bytes.
const REASON: usize = 512;
/// The longest uid: what Kubernetes lets be a name, twice, and a cluster's.
const UID: usize = 1024;

/// A pod that its node should capture and does not serve.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outside {
    /// The workload.
    pub uid: WorkloadUid,
    /// Why.
    pub reason: String,
    /// What becomes of its connections.
    pub outcome: Outcome,
}

/// What becomes of the connections of a pod that is not served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// They go on without the mesh, until the pod is started anew.
    LeftAlone,
    /// They go on without the mesh, until it is captured after all.
    TriedAgain,
    /// They are refused.
    Refused,
    /// A node of a later build says something that this one does not know.
    Unknown,
}

impl Outcome {
    fn wire(self) -> warren::Outcome {
        match self {
            Outcome::LeftAlone => warren::Outcome::LeftAlone,
            Outcome::TriedAgain => warren::Outcome::TriedAgain,
            Outcome::Refused => warren::Outcome::Refused,
            Outcome::Unknown => warren::Outcome::Unspecified,
        }
    }

    fn of(wire: i32) -> Self {
        match warren::Outcome::try_from(wire) {
            Ok(warren::Outcome::LeftAlone) => Outcome::LeftAlone,
            Ok(warren::Outcome::TriedAgain) => Outcome::TriedAgain,
            Ok(warren::Outcome::Refused) => Outcome::Refused,
            Ok(warren::Outcome::Unspecified) | Err(_) => Outcome::Unknown,
        }
    }
}

/// The message that these pods are outside at present, and no others.
pub fn tell_outside(pods: &[Outside]) -> DeltaDiscoveryRequest {
    let one = |pod: &Outside| warren::NotCapturedPod {
        uid: pod.uid.to_string(),
        reason: plain(&pod.reason),
        outcome: pod.outcome.wire().into(),
    };
    let pods = pods.iter().take(MAX_OUTSIDE).map(one).collect();
    let detail = Any::pack(NOT_CAPTURED, &warren::NotCaptured { pods });
    DeltaDiscoveryRequest {
        type_url: NOT_CAPTURED.to_owned(),
        error_detail: Some(Status {
            details: vec![detail],
            ..Status::default()
        }),
        ..DeltaDiscoveryRequest::default()
    }
}

/// What such a message says; `None` when it is none, or cannot be read.
pub(super) fn heard(request: &DeltaDiscoveryRequest) -> Option<Vec<Outside>> {
    if request.type_url != NOT_CAPTURED {
        return None;
    }
    let details = &request.error_detail.as_ref()?.details;
    let detail = details.iter().find(|d| d.type_url == NOT_CAPTURED)?;
    let list = warren::NotCaptured::decode(detail.value.clone()).ok()?;
    let pods = list.pods.into_iter().filter(|pod| pod.uid.len() <= UID);
    let one = |pod: warren::NotCapturedPod| Outside {
        uid: WorkloadUid::new(pod.uid),
        reason: plain(&pod.reason),
        outcome: Outcome::of(pod.outcome),
    };
    Some(pods.take(MAX_OUTSIDE).map(one).collect())
}

/// One line that is not too long.
fn plain(text: &str) -> String {
    let end = text.floor_char_boundary(REASON);
    text[..end].replace(char::is_control, " ")
}
