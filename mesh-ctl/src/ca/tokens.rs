//! How a node or a waypoint proves its name the first time: by a join token, or by a token that the cluster vouches for.

use std::time::{Instant, SystemTime};

use super::{Member, Reviews};
use crate::token::{JoinKey, TokenError};

/// Checks the tokens of members that have no certificate yet.
pub enum MemberTokens {
    /// Join tokens made by this controller.
    Join(JoinKey),
    /// Projected service-account tokens, reviewed by the API server.
    Review(Box<Reviews>),
}

/// Why a token proves nobody.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MemberTokenError {
    /// A join token.
    #[error(transparent)]
    Join(#[from] TokenError),
    /// The API server does not vouch for it, or not for a member.
    #[error("the token is not accepted: {0}")]
    Refused(String),
    /// Nobody could say.
    #[error("the token could not be reviewed: {0}")]
    Unavailable(String),
}

impl MemberTokens {
    /// The member that a token proves.
    pub async fn member(&self, token: &str, now: SystemTime) -> Result<Member, MemberTokenError> {
        match self {
            Self::Join(key) => Ok(key.verify(token, now)?),
            Self::Review(reviews) => reviews.member(token, Instant::now()).await,
        }
    }

    /// Where a token comes from.
    pub(super) fn hint(&self) -> &'static str {
        match self {
            Self::Join(_) => {
                "make one with `mesh-ctl token create --node NAME` or `--waypoint NAMESPACE/ACCOUNT/POD`"
            }
            Self::Review(_) => {
                "node proxies and waypoints send their projected token of audience `warren.dev`; check its token volume"
            }
        }
    }
}
