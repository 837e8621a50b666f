//! How a node proves its name the first time: by a join token, or by a token that the cluster vouches for.

use std::time::SystemTime;

use mesh_model::name::NodeName;

use super::Reviews;
use crate::token::{JoinKey, TokenError};

/// Checks the tokens of nodes that have no certificate yet.
pub enum NodeTokens {
    /// Join tokens made by this controller.
    Join(JoinKey),
    /// Projected service-account tokens, reviewed by the API server.
    Review(Box<Reviews>),
}

/// Why a token proves no node.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NodeTokenError {
    /// A join token.
    #[error(transparent)]
    Join(#[from] TokenError),
    /// The API server does not vouch for it, or not for a node.
    #[error("the token is not accepted: {0}")]
    Refused(String),
    /// Nobody could say.
    #[error("the token could not be reviewed: {0}")]
    Unavailable(String),
}

impl NodeTokens {
    /// The node that a token proves.
    pub async fn node(&self, token: &str, now: SystemTime) -> Result<NodeName, NodeTokenError> {
        match self {
            Self::Join(key) => Ok(key.verify(token, now)?),
            Self::Review(reviews) => reviews.node(token, now).await,
        }
    }

    /// Where a token comes from.
    pub(super) fn hint(&self) -> &'static str {
        match self {
            Self::Join(_) => "make one with `mesh-ctl token create --node NAME`",
            Self::Review(_) => {
                "the node agent sends its projected token of audience `warren.dev`; check its token volume"
            }
        }
    }
}
