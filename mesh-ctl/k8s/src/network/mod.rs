//! Kinds of Kubernetes' own networking group.

mod network_policy;

pub use network_policy::{
    Expression, IpBlock, NetworkPolicy, NetworkPolicySpec, Peer, PolicyPort, Rule, Selector,
};
