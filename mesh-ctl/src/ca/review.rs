//! Projected service-account tokens, reviewed by the API server.
//!
//! Invariants: only tokens with our audience that are bound to a pod are accepted. That of the node agents' own service
//! account proves the node that its pod runs on, any other one a waypoint: its own pod, as the API server says, never
//! as the caller says; whether that pod is a waypoint's is asked where it is signed for.
//! Refusals are not remembered; acceptances for a short time. Reviews are bounded in time and number.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use k8s_openapi::api::{
    authentication::v1::{TokenReview, TokenReviewSpec, TokenReviewStatus},
    core::v1::Pod,
};
use kube::{Api, Client, api::PostParams};
use sha2::{Digest, Sha256};
use tokio::{sync::Semaphore, time::timeout};

use super::{Member, MemberTokenError, Waypoint, is_node_name};

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

/// What user names of service accounts begin with.
const ACCOUNT: &str = "system:serviceaccount:";
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
    /// By the token's digest: who it proves, and until when that is taken for granted, whatever the clock is set to.
    accepted: Mutex<HashMap<[u8; 32], (Member, Instant)>>,
}

/// The pod that a token is bound to.
#[derive(Debug, PartialEq, Eq)]
struct Bound {
    /// Namespace and name of its service account.
    account: (String, String),
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
            user: format!("{ACCOUNT}{namespace}:{name}"),
            namespace: namespace.to_owned(),
            slots: Semaphore::new(AT_ONCE),
            accepted: Mutex::default(),
        }
    }

    /// The node that the token's pod runs on, or the waypoint that it is.
    pub(super) async fn member(
        &self,
        token: &str,
        now: Instant,
    ) -> Result<Member, MemberTokenError> {
        if token.is_empty() || token.len() > LARGEST {
            return Err(refused(format!("{} bytes are no token", token.len())));
        }
        let digest: [u8; 32] = Sha256::digest(token).into();
        if let Some(member) = self.remembered(&digest, now) {
            return Ok(member);
        }
        let review = timeout(DEADLINE, self.review(token)).await;
        let member =
            review.map_err(|_| MemberTokenError::Unavailable("no answer in time".to_owned()))??;
        let mut accepted = self.accepted.lock().unwrap_or_else(PoisonError::into_inner);
        accepted.retain(|_, (_, until)| *until > now);
        if accepted.len() < MOST {
            accepted.insert(digest, (member.clone(), now + REMEMBERED));
        }
        Ok(member)
    }

    fn remembered(&self, digest: &[u8; 32], now: Instant) -> Option<Member> {
        let accepted = self.accepted.lock().unwrap_or_else(PoisonError::into_inner);
        let (member, until) = accepted.get(digest)?;
        (*until > now).then(|| member.clone())
    }

    async fn review(&self, token: &str) -> Result<Member, MemberTokenError> {
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
        let bound = bound(answer.status.unwrap_or_default()).map_err(refused)?;
        let (namespace, name) = &bound.account;
        if format!("{ACCOUNT}{namespace}:{name}") != self.user {
            let waypoint = Waypoint::parse(&format!("{namespace}/{name}/{}", bound.pod));
            let waypoint = waypoint.ok_or_else(|| refused("its names are none".to_owned()))?;
            return Ok(Member::Waypoint(waypoint));
        }
        let node = match bound.node {
            Some(node) => node,
            None => self.node_of(&bound).await?,
        };
        match is_node_name(&node) {
            true => Ok(Member::Node(node.as_str().into())),
            false => Err(refused(format!("{node:?} is no node's name"))),
        }
    }

    /// Where a pod runs, for API servers whose reviews do not say it.
    async fn node_of(&self, bound: &Bound) -> Result<String, MemberTokenError> {
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
fn bound(status: TokenReviewStatus) -> Result<Bound, String> {
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
    let account = name.strip_prefix(ACCOUNT).and_then(|a| a.split_once(':'));
    let Some((namespace, account)) = account else {
        return Err(format!("it is {name:?}'s, which is no service account"));
    };
    let extra: BTreeMap<String, Vec<String>> = info.extra.unwrap_or_default();
    let one = |key: &str| match extra.get(key).map(Vec::as_slice) {
        Some([value]) if !value.is_empty() => Some(value.clone()),
        _ => None,
    };
    let unbound = || "it is not bound to a pod".to_owned();
    Ok(Bound {
        account: (namespace.to_owned(), account.to_owned()),
        pod: one(POD).ok_or_else(unbound)?,
        uid: one(POD_UID).ok_or_else(unbound)?,
        node: one(NODE),
    })
}

fn refused(reason: String) -> MemberTokenError {
    MemberTokenError::Refused(reason)
}

fn unavailable(error: impl std::error::Error) -> MemberTokenError {
    MemberTokenError::Unavailable(error.to_string())
}

#[cfg(test)]
mod tests;
