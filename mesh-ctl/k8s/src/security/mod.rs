//! Kinds of Istio's security group that L4 knows.

mod authorization_policy;
mod peer_authentication;
mod selector;

pub use authorization_policy::{
    AuthorizationPolicy, AuthorizationPolicySpec, Condition, From, Operation, Provider, Rule,
    Source, To,
};
pub use peer_authentication::{MutualTls, PeerAuthentication, PeerAuthenticationSpec};
pub use selector::{PolicyTargetReference, WorkloadSelector};
