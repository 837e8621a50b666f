//! Why a flow did not come about, how that is reported, and for how long it is worth remembering.

use std::time::Duration;

use mesh_model::{authz::Denial, reason::Reason};

use crate::{
    dial::DialError,
    observe::{FlowGuard, Verdict},
};

/// How long a refusal that configuration decides makes further dials fail at once; it falls with the
/// destination's epoch before that.
const DECIDED_LASTS: Duration = Duration::from_secs(1);
/// The same for what only the far side showed. Its recovery shows in no configuration, so that this is the
/// longest that an application can be refused after it: no longer than anyone would notice.
const SEEN_LASTS: Duration = Duration::from_millis(200);

/// Why a flow did not come about.
pub(super) enum Stopped {
    /// The model refused.
    Denied(Denial),
    /// Nothing could be reached.
    Failed(DialError),
    /// The client gave up first.
    Abandoned,
}

impl From<Denial> for Stopped {
    fn from(denial: Denial) -> Self {
        Self::Denied(denial)
    }
}

impl From<DialError> for Stopped {
    fn from(error: DialError) -> Self {
        Self::Failed(error)
    }
}

impl Stopped {
    /// The reason that the flow ends with.
    pub(super) fn reason(&self) -> Reason {
        match self {
            Self::Denied(denial) => denial.reason,
            Self::Failed(error) => error.reason(),
            Self::Abandoned => Reason::PeerReset,
        }
    }

    /// For how long the next dial would certainly fare no better; `None` when nothing can be said.
    pub(super) fn lasting(&self) -> Option<Duration> {
        match self {
            Self::Denied(_) => Some(DECIDED_LASTS),
            Self::Failed(error) => error.is_of_the_far_side().then_some(SEEN_LASTS),
            Self::Abandoned => None,
        }
    }

    /// Fills in the flow's report.
    pub(super) fn report(&self, report: &mut FlowGuard) {
        match self {
            Self::Denied(denial) => report.refuse(denial),
            Self::Failed(error) => {
                if error.reason() == Reason::PeerDenied {
                    report.record_mut().policy = Some(Verdict::Deny);
                }
                report.fail(error.reason(), error.to_string());
            }
            Self::Abandoned => report.fail(
                Reason::PeerReset,
                "the client gave up before the connection was made",
            ),
        }
    }
}
