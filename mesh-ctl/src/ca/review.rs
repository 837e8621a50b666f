//! Projected service-account tokens, reviewed by the API server.
//!
//! Invariants: only the node agents' own service account is accepted, only with our audience, and only a token that
//! is bound to a pod; the node is the one that this pod runs on as the API server says, never what the caller says.
//! Refusals are not remembered; acceptances for a short time. Reviews are bounded in time and number.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use k8s_openapi::api::{
    authentication::v1::{TokenReview, TokenReviewSpec, TokenReviewStatus},
    core::v1::Pod,
};
use kube::{Api, Client, api::PostParams};
use mesh_model::name::NodeName;
use sha2::{Digest, Sha256};
use tokio::{sync::Semaphore, time::timeout};

use super::{NodeTokenError, is_node_name};

/// The audience that node tokens are made for.
const AUDIENCE: &str = "warren.dev";
/// How long an accepted token is not reviewed again: as long as a pod's deletion may go unnoticed.
const REMEMBERED: Duration = Duration::from_secs(10);
/// So many accepted tokens are remembered.
const MOST: usize = 4096;
/// How long the API server may take.
const DEADLINE: Duration = Duration::from_secs(5);
/// So many reviews are under way at once.
const AT_ONCE: usize = 16;
/// The largest token that is looked at, in bytes.
const LARGEST: usize = 16 * 1024;

const NODE: &str = "authentication.kubernetes.io/node-name";
const POD: &str = "authentication.kubernetes.io/pod-name";
const POD_UID: &str = "authentication.kubernetes.io/pod-uid";

/// Reviews tokens.
pub struct Reviews {
    client: Client,
    /// The user name of the node agents' service account, and its namespace.
    user: String,
    namespace: String,
    slots: Semaphore,
    /// By the token's digest: the node, and until when that is taken for granted.
    accepted: Mutex<HashMap<[u8; 32], (NodeName, SystemTime)>>,
}

/// The pod that a token is bound to.
#[derive(Debug, PartialEq, Eq)]
struct Bound {
    pod: String,
    uid: String,
    /// Its node; older API servers do not say it.
    node: Option<String>,
}

impl Reviews {
    /// Accepts tokens of this service account, namespace and name.
    pub fn new(client: Client, (namespace, name): (&str, &str)) -> Self {
        Self {
            client,
            user: format!("system:serviceaccount:{namespace}:{name}"),
            namespace: namespace.to_owned(),
            slots: Semaphore::new(AT_ONCE),
            accepted: Mutex::default(),
        }
    }

    /// The node that the token's pod runs on.
    pub(super) async fn node(
        &self,
        token: &str,
        now: SystemTime,
    ) -> Result<NodeName, NodeTokenError> {
        if token.is_empty() || token.len() > LARGEST {
            return Err(refused(format!("{} bytes are no token", token.len())));
        }
        let digest: [u8; 32] = Sha256::digest(token).into();
        if let Some(node) = self.remembered(&digest, now) {
            return Ok(node);
        }
        let review = timeout(DEADLINE, self.review(token)).await;
        let node =
            review.map_err(|_| NodeTokenError::Unavailable("no answer in time".to_owned()))??;
        let mut accepted = self.accepted.lock().unwrap_or_else(PoisonError::into_inner);
        accepted.retain(|_, (_, until)| *until > now);
        if accepted.len() < MOST {
            accepted.insert(digest, (node.clone(), now + REMEMBERED));
        }
        Ok(node)
    }

    fn remembered(&self, digest: &[u8; 32], now: SystemTime) -> Option<NodeName> {
        let accepted = self.accepted.lock().unwrap_or_else(PoisonError::into_inner);
        let (node, until) = accepted.get(digest)?;
        (*until > now).then(|| node.clone())
    }

    async fn review(&self, token: &str) -> Result<NodeName, NodeTokenError> {
        let _slot = self.slots.acquire().await.map_err(unavailable)?;
        let asked = TokenReview {
            spec: TokenReviewSpec {
                token: Some(token.to_owned()),
                audiences: Some(vec![AUDIENCE.to_owned()]),
            },
            ..TokenReview::default()
        };
        let answer = Api::<TokenReview>::all(self.client.clone())
            .create(&PostParams::default(), &asked)
            .await
            .map_err(unavailable)?;
        let bound = bound(answer.status.unwrap_or_default(), &self.user).map_err(refused)?;
        let node = match bound.node {
            Some(node) => node,
            None => self.node_of(&bound).await?,
        };
        match is_node_name(&node) {
            true => Ok(node.as_str().into()),
            false => Err(refused(format!("{node:?} is no node's name"))),
        }
    }

    /// Where a pod runs, for API servers whose reviews do not say it.
    async fn node_of(&self, bound: &Bound) -> Result<String, NodeTokenError> {
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), &self.namespace);
        let pod = pods.get_opt(&bound.pod).await.map_err(unavailable)?;
        let pod = pod.filter(|pod| pod.metadata.uid.as_deref() == Some(&bound.uid));
        pod.and_then(|pod| pod.spec?.node_name).ok_or_else(|| {
            refused(format!(
                "its pod {} with uid {} runs nowhere",
                bound.pod, bound.uid
            ))
        })
    }
}

/// What a review says, when it says all that is wanted.
fn bound(status: TokenReviewStatus, user: &str) -> Result<Bound, String> {
    if status.authenticated != Some(true) {
        let error = status.error.unwrap_or_default();
        return Err(format!("the API server does not know it ({error})"));
    }
    if !status
        .audiences
        .unwrap_or_default()
        .iter()
        .any(|a| a == AUDIENCE)
    {
        return Err(format!("it is not for audience {AUDIENCE}"));
    }
    let info = status.user.unwrap_or_default();
    let name = info.username.unwrap_or_default();
    if name != user {
        return Err(format!("it is {name:?}'s; nodes are {user:?}"));
    }
    let extra: BTreeMap<String, Vec<String>> = info.extra.unwrap_or_default();
    let one = |key: &str| match extra.get(key).map(Vec::as_slice) {
        Some([value]) if !value.is_empty() => Some(value.clone()),
        _ => None,
    };
    let unbound = || "it is not bound to a pod".to_owned();
    Ok(Bound {
        pod: one(POD).ok_or_else(unbound)?,
        uid: one(POD_UID).ok_or_else(unbound)?,
        node: one(NODE),
    })
}

fn refused(reason: String) -> NodeTokenError {
    NodeTokenError::Refused(reason)
}

fn unavailable(error: impl std::error::Error) -> NodeTokenError {
    NodeTokenError::Unavailable(error.to_string())
}

#[cfg(test)]
mod tests;
