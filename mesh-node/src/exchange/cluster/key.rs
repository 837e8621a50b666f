//! What a cluster is called, by Warren and in the words of Istio.

use std::{fmt, sync::Arc};

use mesh_model::{name::ServiceName, route::http::Backend};

/// What requests are balanced over.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum ClusterKey {
    /// Endpoints of a service.
    Service {
        /// The service.
        service: ServiceName,
        /// Its port.
        port: u16,
        /// The subset.
        subset: Option<Arc<str>>,
    },
    /// Workloads that were addressed themselves: nothing is balanced. One for all of them, since pods come and go.
    Addressed,
}

impl ClusterKey {
    /// What a rule's backend names; what it leaves open, and everything where there is none, is as it was addressed.
    pub fn of(addressed: &ServiceName, port: u16, backend: Option<&Backend>) -> Self {
        Self::Service {
            service: backend.map_or(addressed, |b| &b.service).clone(),
            port: backend.and_then(|b| b.port).unwrap_or(port),
            subset: backend.and_then(|b| b.subset.clone()),
        }
    }

    /// The service, where it is one.
    pub fn service(&self) -> Option<&ServiceName> {
        match self {
            Self::Service { service, .. } => Some(service),
            Self::Addressed => None,
        }
    }
}

impl fmt::Display for ClusterKey {
    /// As Istio names clusters.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Service {
                service,
                port,
                subset,
            } => {
                let subset = subset.as_deref().unwrap_or_default();
                write!(f, "outbound|{port}|{subset}|{}", service.hostname)
            }
            Self::Addressed => f.write_str("encap"),
        }
    }
}
