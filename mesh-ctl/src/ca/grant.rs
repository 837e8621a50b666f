//! What a certificate may say, and who asks for certificates.
//!
//! Invariants: a member's own URI never parses as a workload identity; a waypoint is its pod, and may have one
//! workload identity only: its own.

use std::{fmt, net::IpAddr, sync::Arc};

use mesh_model::name::{Identity, Namespace, NodeName, ServiceAccount, TrustDomain};

/// Who asks for certificates and configuration.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Member {
    /// A node proxy.
    Node(NodeName),
    /// A waypoint.
    Waypoint(Waypoint),
}

/// The pod that a waypoint is.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Waypoint {
    /// Its namespace.
    pub namespace: Namespace,
    /// Its service account.
    pub account: ServiceAccount,
    /// Its name.
    pub pod: Arc<str>,
}

impl Member {
    /// What the certificate says with which it speaks to the controller.
    pub fn grant(&self, domain: &TrustDomain) -> Grant {
        match self {
            Member::Node(node) => Grant::Node(domain.clone(), node.clone()),
            Member::Waypoint(waypoint) => Grant::Waypoint(domain.clone(), waypoint.clone()),
        }
    }

    /// The member of this name, as it is displayed.
    pub fn named(text: &str) -> Option<Self> {
        match text.strip_prefix("waypoint/") {
            Some(waypoint) => Waypoint::parse(waypoint).map(Member::Waypoint),
            None => is_node_name(text).then(|| Member::Node(text.into())),
        }
    }

    /// Its name among all members: a waypoint's has slashes, which no node's has.
    pub fn name(&self) -> NodeName {
        NodeName::new(self.to_string())
    }
}

impl fmt::Display for Member {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Member::Node(node) => write!(f, "{node}"),
            Member::Waypoint(w) => write!(f, "waypoint/{}/{}/{}", w.namespace, w.account, w.pod),
        }
    }
}

impl Waypoint {
    /// Takes its three names apart: `namespace/account/pod`.
    pub fn parse(text: &str) -> Option<Self> {
        let mut parts = text.split('/');
        let mut next = || parts.next().filter(|part| is_node_name(part));
        let (namespace, account, pod) = (next()?, next()?, next()?);
        parts.next().is_none().then(|| Self {
            namespace: namespace.into(),
            account: account.into(),
            pod: pod.into(),
        })
    }

    /// Who it is among workloads.
    pub fn identity(&self, domain: &TrustDomain) -> Identity {
        Identity {
            trust_domain: domain.clone(),
            namespace: self.namespace.clone(),
            service_account: self.account.clone(),
        }
    }
}

/// A subject that the authority has decided to certify. Its URI is the only URI in the certificate.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Grant {
    /// A workload.
    Workload(Identity),
    /// A node, for xDS, the certificate service, and what it hands to waypoints.
    Node(TrustDomain, NodeName),
    /// A waypoint, for xDS and the certificate service only.
    Waypoint(TrustDomain, Waypoint),
    /// The controller's own server, with the names and addresses it is dialed by.
    Controller(TrustDomain, Vec<String>, Vec<IpAddr>),
}

impl Grant {
    /// The URI of the certificate. A node's, a waypoint's and the controller's do not parse as workload identities.
    pub fn uri(&self) -> String {
        match self {
            Grant::Workload(identity) => identity.to_string(),
            Grant::Node(domain, node) => format!("spiffe://{domain}/warren/node/{node}"),
            Grant::Waypoint(domain, w) => format!(
                "spiffe://{domain}/warren/waypoint/{}/{}/{}",
                w.namespace, w.account, w.pod
            ),
            Grant::Controller(domain, _, _) => format!("spiffe://{domain}/warren/controller"),
        }
    }
}

/// The node or waypoint that a certificate's URI names, when it is one of this trust domain.
pub fn member_of(uri: &str, domain: &TrustDomain) -> Option<Member> {
    let name = uri
        .strip_prefix("spiffe://")?
        .strip_prefix(domain.as_str())?
        .strip_prefix("/warren/")?;
    match name.strip_prefix("node/") {
        Some(node) => is_node_name(node).then(|| Member::Node(node.into())),
        None => Waypoint::parse(name.strip_prefix("waypoint/")?).map(Member::Waypoint),
    }
}

/// Whether a text can name a node: what Kubernetes allows (RFC 1123 subdomain), case kept as given.
pub fn is_node_name(text: &str) -> bool {
    let ok = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_');
    !text.is_empty() && text.len() <= 253 && text != "." && text != ".." && text.bytes().all(ok)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_uris_round_trip_and_are_no_workloads() {
        let domain = TrustDomain::from("cluster.local");
        let waypoint = Waypoint::parse("shop/waypoint/waypoint-1").expect("three names");
        for member in [Member::Node("n1".into()), Member::Waypoint(waypoint)] {
            let uri = member.grant(&domain).uri();
            assert_eq!(Member::named(&member.to_string()), Some(member.clone()));
            assert_eq!(member_of(&uri, &domain), Some(member));
            assert!(uri.parse::<Identity>().is_err());
            assert_eq!(member_of(&uri, &"other".into()), None);
        }
        for uri in [
            "spiffe://cluster.local/warren/node/a/b",
            "spiffe://cluster.local.evil/warren/node/a",
            "spiffe://cluster.local/warren/node/",
            "spiffe://cluster.local/warren/waypoint/a",
            "spiffe://cluster.local/warren/waypoint/a/b",
            "spiffe://cluster.local/warren/waypoint/a/b/",
            "spiffe://cluster.local/warren/waypoint/a/../c",
            "spiffe://cluster.local/warren/waypoint/a/b/c/d",
            "spiffe://cluster.local/warren/controller",
        ] {
            assert_eq!(member_of(uri, &domain), None, "{uri}");
        }
    }
}
