//! Why a flow did not come about, and how that is reported.

use mesh_model::{authz::Denial, reason::Reason};

use crate::{
    dial::DialError,
    observe::{FlowGuard, Verdict},
};

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
