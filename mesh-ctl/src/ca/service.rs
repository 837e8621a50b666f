//! Istio's certificate service: authenticates the caller, decides the grant, signs, and logs every signature.
//!
//! Invariants: who the caller is comes from its certificate or its token, never from the request; a refused
//! request says why to the caller and in the log; each node's rate is bounded.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::{Duration, Instant, SystemTime},
};

use mesh_api::auth::{
    IstioCertificateRequest, IstioCertificateResponse,
    istio_certificate_service_server::IstioCertificateService,
};
use mesh_model::name::{Identity, NodeName};
use prost_types::value::Kind;
use tonic::{Request, Response, Status};

use super::{Authority, CaError, Grant, Member, MemberTokenError, MemberTokens, Waypoint};
use crate::{
    listen::{Peer, PeerName},
    monitor::Metrics,
};

/// Who hosts what: the answer comes from the controller's own view, never from the node.
pub trait Hosted: Send + Sync + 'static {
    /// Whether a pod with this identity runs on this node.
    fn hosts(&self, node: &NodeName, identity: &Identity) -> bool;

    /// Whether this is a pod that there is, with that service account, and one that is marked as a waypoint.
    fn is_waypoint(&self, waypoint: &Waypoint) -> bool;

    /// Whether there is a node of this name.
    fn is_node(&self, node: &NodeName) -> bool;

    /// Whether the cluster's nodes are known, and there is none of this name. Manifests need not name nodes.
    fn is_gone(&self, node: &NodeName) -> bool;

    /// All identities by the nodes whose pods have them.
    fn all(&self) -> Vec<(NodeName, Identity)>;
}

/// Limits and lifetimes of what is signed.
#[derive(Clone, Copy, Debug)]
pub struct Policy {
    /// The lifetime of a leaf when the request asks for none, and the longest that is granted.
    pub leaf_ttl: Duration,
    /// Signatures that one node may ask for within a minute.
    pub per_minute: u32,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            leaf_ttl: Duration::from_secs(24 * 3600),
            per_minute: 600,
        }
    }
}

/// The label of a gateway's pods (GEP-1762), by which a pod is known as a waypoint's.
pub const GATEWAY: &str = "gateway.networking.k8s.io/gateway-name";

/// The certificate service.
pub struct CertificateService {
    authority: Arc<Authority>,
    hosted: Arc<dyn Hosted>,
    tokens: MemberTokens,
    policy: Policy,
    metrics: Arc<Metrics>,
    spent: Mutex<HashMap<NodeName, (Instant, u32)>>,
}

/// How a caller proved who it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Proof {
    Certificate,
    Token,
}

impl CertificateService {
    /// A service that signs with `authority` what `hosted` confirms.
    pub fn new(
        authority: Arc<Authority>,
        hosted: Arc<dyn Hosted>,
        tokens: MemberTokens,
        policy: Policy,
        metrics: Arc<Metrics>,
    ) -> Self {
        Self {
            authority,
            hosted,
            tokens,
            policy,
            metrics,
            spent: Mutex::default(),
        }
    }

    async fn caller(
        &self,
        request: &Request<IstioCertificateRequest>,
    ) -> Result<(Member, Proof), Status> {
        match request.extensions().get::<Peer>().map(|p| &p.name) {
            Some(PeerName::Member(member)) => return Ok((member.clone(), Proof::Certificate)),
            Some(PeerName::Other(name)) => {
                return Err(Status::permission_denied(format!(
                    "only nodes and waypoints ask for certificates; this is {name}"
                )));
            }
            Some(PeerName::Nobody) | None => {}
        }
        let header = request
            .metadata()
            .get("authorization")
            .and_then(|v| v.to_str().ok());
        let token = header
            .and_then(|h| h.strip_prefix("Bearer "))
            .ok_or_else(|| {
                Status::unauthenticated(format!(
                    "no certificate of a node or a waypoint and no `authorization: Bearer` token; {}",
                    self.tokens.hint()
                ))
            })?;
        let member = self.tokens.member(token.trim(), SystemTime::now()).await;
        member.map(|m| (m, Proof::Token)).map_err(|e| match e {
            MemberTokenError::Unavailable(_) => Status::unavailable(e.to_string()),
            MemberTokenError::Join(_) | MemberTokenError::Refused(_) => {
                Status::unauthenticated(e.to_string())
            }
        })
    }

    fn decide(&self, member: &Member, proof: Proof, wanted: Option<&str>) -> Result<Grant, Status> {
        let domain = self.authority.domain();
        if let Member::Waypoint(waypoint) = member
            && !self.hosted.is_waypoint(waypoint)
        {
            return Err(Status::permission_denied(format!(
                "{member} is no pod of a waypoint: the controller knows no pod of this name and service account with the label {GATEWAY}"
            )));
        }
        // Whoever kept the key of a node that was removed could renew its certificate for ever.
        if let (Member::Node(node), Proof::Certificate) = (member, proof)
            && self.hosted.is_gone(node)
        {
            return Err(Status::permission_denied(format!(
                "the cluster has no node {node} any more"
            )));
        }
        let own = member.grant(domain);
        let Some(wanted) = wanted.filter(|w| *w != own.uri()) else {
            return Ok(own);
        };
        if proof == Proof::Token {
            return Err(Status::permission_denied(
                "a token is good for the caller's own name only; ask again with the certificate of that name",
            ));
        }
        let identity: Identity = wanted
            .parse()
            .map_err(|e| Status::invalid_argument(format!("ImpersonatedIdentity: {e}")))?;
        if identity.trust_domain != *domain {
            return Err(Status::permission_denied(format!(
                "{identity} is not of trust domain {domain}"
            )));
        }
        match member {
            Member::Node(node) if !self.hosted.hosts(node, &identity) => {
                return Err(Status::permission_denied(format!(
                    "no pod of {identity} runs on node {node}"
                )));
            }
            Member::Waypoint(waypoint) if waypoint.identity(domain) != identity => {
                return Err(Status::permission_denied(format!(
                    "{member} has its own identity only, not {identity}"
                )));
            }
            Member::Node(_) | Member::Waypoint(_) => {}
        }
        Ok(Grant::Workload(identity))
    }

    fn spend(&self, member: &Member, now: Instant) -> Result<(), Status> {
        let mut spent = self.spent.lock().expect("nothing panics while it is held");
        spent.retain(|_, (since, _)| now.duration_since(*since) < Duration::from_secs(60));
        let (_, count) = spent.entry(member.name()).or_insert((now, 0));
        *count += 1;
        match *count > self.policy.per_minute {
            true => Err(Status::resource_exhausted(format!(
                "{member} asked for more than {} certificates within a minute",
                self.policy.per_minute
            ))),
            false => Ok(()),
        }
    }

    async fn answer(
        &self,
        request: &Request<IstioCertificateRequest>,
    ) -> Result<(Grant, Vec<String>), Status> {
        let (member, proof) = self.caller(request).await?;
        self.spend(&member, Instant::now())?;
        let body = request.get_ref();
        let grant = self.decide(&member, proof, impersonated(body))?;
        let asked = u64::try_from(body.validity_duration)
            .ok()
            .filter(|s| *s > 0)
            .map(Duration::from_secs);
        let ttl = asked.map_or(self.policy.leaf_ttl, |a| a.min(self.policy.leaf_ttl));
        let chain = self
            .authority
            .sign(&body.csr, &grant, &member, SystemTime::now(), ttl)
            .map_err(status)?;
        tracing::info!(target: "ca", node = %member, identity = %grant.uri(), by = ?proof, ttl_seconds = ttl.as_secs(), "signed");
        Ok((grant, chain))
    }
}

#[tonic::async_trait]
impl IstioCertificateService for CertificateService {
    async fn create_certificate(
        &self,
        request: Request<IstioCertificateRequest>,
    ) -> Result<Response<IstioCertificateResponse>, Status> {
        let answer = self.answer(&request).await;
        self.metrics
            .certificate(answer.as_ref().err().map(Status::code));
        match answer {
            Ok((_, cert_chain)) => Ok(Response::new(IstioCertificateResponse { cert_chain })),
            Err(status) => {
                let wanted = impersonated(request.get_ref()).unwrap_or("the caller's own name");
                tracing::warn!(target: "ca", wanted = %wanted.escape_debug(), code = ?status.code(), reason = status.message(), "refused to sign");
                Err(status)
            }
        }
    }
}

fn impersonated(request: &IstioCertificateRequest) -> Option<&str> {
    match request
        .metadata
        .as_ref()?
        .fields
        .get("ImpersonatedIdentity")?
        .kind
        .as_ref()?
    {
        Kind::StringValue(text) => Some(text),
        // Anything but text is no identity; it is refused as one that does not parse.
        _ => Some("(not text)"),
    }
}

fn status(error: CaError) -> Status {
    match error {
        CaError::Request(_) => Status::invalid_argument(error.to_string()),
        CaError::Expired => Status::failed_precondition(error.to_string()),
        CaError::State { .. }
        | CaError::Given(_)
        | CaError::Secret(_)
        | CaError::Order(_)
        | CaError::InUse(_)
        | CaError::Sign(_) => Status::internal(error.to_string()),
    }
}

#[cfg(test)]
mod tests;
