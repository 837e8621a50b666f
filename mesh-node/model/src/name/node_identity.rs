//! The identity of a node proxy: `spiffe://<trust domain>/warren/node/<node>`.
//!
//! Invariants: parsing is strict and byte-exact; printing a parsed identity gives the same bytes; no text is both
//! this and the identity of a workload.

use std::{fmt, str::FromStr};

use super::{NodeName, TrustDomain, identity::part};

/// Who a node proxy is among other parts of the mesh. It is never the source of an application's traffic.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeIdentity {
    /// The trust domain that vouches for it.
    pub trust_domain: TrustDomain,
    /// The node.
    pub node: NodeName,
}

/// Why a text is not the identity of a node.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{text:?} is not the identity of a node: expected spiffe://<trust domain>/warren/node/<node>"
)]
pub struct NodeIdentityError {
    text: String,
}

impl FromStr for NodeIdentity {
    type Err = NodeIdentityError;

    fn from_str(text: &str) -> Result<Self, NodeIdentityError> {
        let parse = || {
            let mut parts = text.strip_prefix("spiffe://")?.split('/');
            let domain = part(parts.next()?)?;
            (parts.next()? == "warren" && parts.next()? == "node").then_some(())?;
            let node = part(parts.next()?)?;
            parts.next().is_none().then(|| Self {
                trust_domain: domain.into(),
                node: node.into(),
            })
        };
        parse().ok_or_else(|| NodeIdentityError {
            text: text.escape_debug().to_string(),
        })
    }
}

impl fmt::Display for NodeIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "spiffe://{}/warren/node/{}",
            self.trust_domain, self.node
        )
    }
}

impl fmt::Debug for NodeIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::name::Identity;

    #[test]
    fn nodes_parse_strictly_and_are_no_workloads() {
        let check = |text: &str, ok: bool| match text.parse::<NodeIdentity>() {
            Ok(id) => {
                assert!(ok && id.to_string() == text, "{text} parsed as {id}");
                assert!(text.parse::<Identity>().is_err(), "{text} is a workload");
            }
            Err(e) => assert!(!ok, "{e}"),
        };
        check("spiffe://cluster.local/warren/node/n1", true);
        check(
            "spiffe://cluster.local/warren/node/ip-10-0-0-1.internal",
            true,
        );
        for bad in [
            "spiffe://cluster.local/warren/node/",
            "spiffe://cluster.local/warren/node/..",
            "spiffe://cluster.local/warren/node/a/b",
            "spiffe://cluster.local/warren/node/a/",
            "spiffe://cluster.local/warren/waypoint/shop/wp/wp-1",
            "spiffe://cluster.local/warren/controller",
            "spiffe://cluster.local/ns/warren/sa/node",
            "spiffe:///warren/node/a",
            "SPIFFE://cluster.local/warren/node/a",
            "spiffe://cluster.local/warren/node/a%62",
        ] {
            check(bad, false);
        }
    }
}
