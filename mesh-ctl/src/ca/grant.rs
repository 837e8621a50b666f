//! What a certificate may say.

use std::net::IpAddr;

use mesh_model::name::{Identity, NodeName, TrustDomain};

/// A subject that the authority has decided to certify. Its URI is the only URI in the certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Grant {
    /// A workload.
    Workload(Identity),
    /// A node, for xDS and the certificate service only.
    Node(TrustDomain, NodeName),
    /// The controller's own server, with the names and addresses it is dialed by.
    Controller(TrustDomain, Vec<String>, Vec<IpAddr>),
}

impl Grant {
    /// The URI of the certificate. A node's and the controller's do not parse as workload identities.
    pub fn uri(&self) -> String {
        match self {
            Grant::Workload(identity) => identity.to_string(),
            Grant::Node(domain, node) => format!("spiffe://{domain}/warren/node/{node}"),
            Grant::Controller(domain, _, _) => format!("spiffe://{domain}/warren/controller"),
        }
    }
}

/// The node that a certificate's URI names, when it is a node of this trust domain.
pub fn node_of(uri: &str, domain: &TrustDomain) -> Option<NodeName> {
    let node = uri
        .strip_prefix("spiffe://")?
        .strip_prefix(domain.as_str())?
        .strip_prefix("/warren/node/")?;
    is_node_name(node).then(|| NodeName::from(node))
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
    fn node_uris_round_trip_and_are_no_workloads() {
        let domain = TrustDomain::from("cluster.local");
        let uri = Grant::Node(domain.clone(), "n1".into()).uri();
        assert_eq!(node_of(&uri, &domain), Some("n1".into()));
        assert!(uri.parse::<Identity>().is_err());
        assert_eq!(node_of(&uri, &"other".into()), None);
        assert_eq!(
            node_of("spiffe://cluster.local/warren/node/a/b", &domain),
            None
        );
        assert_eq!(
            node_of("spiffe://cluster.local.evil/warren/node/a", &domain),
            None
        );
        assert_eq!(
            node_of("spiffe://cluster.local/warren/node/", &domain),
            None
        );
    }
}
