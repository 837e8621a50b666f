//! Names of the mesh: one newtype for every name that could be confused with another.
//!
//! Invariant: a value of these types has been parsed; equality is byte equality.

mod identity;
mod node_identity;

pub use identity::{Identity, IdentityError};
pub use node_identity::{NodeIdentity, NodeIdentityError};

use std::{fmt, net::IpAddr, sync::Arc};

macro_rules! symbol {
    ($($(#[$doc:meta])* $name:ident),+ $(,)?) => {$(
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(Arc<str>);

        impl $name {
            /// Wraps text that the caller has already checked.
            pub fn new(text: impl Into<Arc<str>>) -> Self {
                Self(text.into())
            }

            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }

            /// The same text, shared: for whoever keeps it beside the name.
            pub fn share(&self) -> Arc<str> {
                Arc::clone(&self.0)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:?}", &*self.0)
            }
        }

        impl From<&str> for $name {
            fn from(text: &str) -> Self {
                Self(text.into())
            }
        }

        impl std::borrow::Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }
    )+};
}

symbol! {
    /// A SPIFFE trust domain, such as `cluster.local`.
    TrustDomain,
    /// A Kubernetes namespace.
    Namespace,
    /// A Kubernetes service account, without its namespace.
    ServiceAccount,
    /// A node of the cluster.
    NodeName,
    /// A cluster of the mesh.
    ClusterId,
    /// A network: addresses are unique within one. Empty is the default network.
    NetworkId,
    /// A workload's unique name: `<cluster>/<group>/<kind>/<namespace>/<name>`, e.g. `Kubernetes//Pod/shop/web-1`.
    WorkloadUid,
    /// A fully qualified host name in lower case without a trailing dot.
    Hostname,
}

/// An address within a network.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NetworkAddress {
    /// The network the address belongs to.
    pub network: NetworkId,
    /// The address; an IPv4-mapped IPv6 address is never stored here.
    pub ip: IpAddr,
}

/// A service: the namespace that owns it and its host name.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ServiceName {
    /// The namespace that owns the service.
    pub namespace: Namespace,
    /// Its host name, e.g. `reviews.bookinfo.svc.cluster.local`.
    pub hostname: Hostname,
}

impl fmt::Display for ServiceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.hostname)
    }
}

/// A policy: the namespace it lives in and its name.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PolicyName {
    /// The namespace the policy lives in.
    pub namespace: Namespace,
    /// Its name.
    pub name: Arc<str>,
}

impl fmt::Display for PolicyName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}
