//! Services: Kubernetes Services and ServiceEntries, as the mesh knows them.

use std::{sync::Arc, time::Duration};

use ipnet::IpNet;

use super::GatewayAddress;
use crate::name::{Namespace, NetworkAddress, NetworkId, ServiceName};

/// A service of the mesh.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// Its owner and host name.
    pub name: ServiceName,
    /// Its short name, e.g. `reviews`.
    pub short: Arc<str>,
    /// Its virtual addresses; empty when headless.
    pub vips: Box<[NetworkAddress]>,
    /// Address ranges (ServiceEntry with CIDR addresses); longest prefix wins.
    pub ranges: Box<[(NetworkId, IpNet)]>,
    /// Its ports.
    pub ports: Box<[ServicePort]>,
    /// SPIFFE identities that its endpoints may prove besides their own.
    pub subject_alt_names: Box<[Arc<str>]>,
    /// Its waypoint.
    pub waypoint: Option<GatewayAddress>,
    /// How endpoints are chosen.
    pub balancing: Balancing,
    /// Whose clients see it.
    pub visibility: Visibility,
}

/// Whose clients see a service: to others its addresses and its name are not the mesh's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Visibility {
    /// Everybody's.
    #[default]
    Public,
    /// Those of its own namespace, and of namespaces that its extra part names.
    Namespace,
}

/// A port of a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServicePort {
    /// The port that clients dial.
    pub port: u16,
    /// The endpoint's port where a workload names none of its own; 0 when it always does (named target ports).
    pub target_port: u16,
    /// The protocol that was declared.
    pub protocol: AppProtocol,
}

/// A declared application protocol.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AppProtocol {
    /// Not declared.
    #[default]
    Unknown,
    /// HTTP/1.1.
    Http11,
    /// HTTP/2.
    Http2,
    /// gRPC.
    Grpc,
    /// Opaque TCP.
    Tcp,
    /// TLS.
    Tls,
}

/// Locality preference and health policy, as Istio's `LoadBalancing` carries them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Balancing {
    /// Scopes in which an endpoint should equal the client, most important first.
    pub preference: Box<[Scope]>,
    /// What happens when no endpoint matches the whole preference.
    pub mode: Mode,
    /// Whether unhealthy endpoints may be chosen (`publishNotReadyAddresses`).
    pub allow_unhealthy: bool,
}

/// A scope of locality.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// Region.
    Region,
    /// Zone.
    Zone,
    /// Subzone.
    Subzone,
    /// Node.
    Node,
    /// Cluster.
    Cluster,
    /// Network.
    Network,
}

/// What to do with the preference.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// Preference is not used.
    #[default]
    Unspecified,
    /// Only endpoints that match all of it (`internalTrafficPolicy: Local` is STRICT on NODE).
    Strict,
    /// Endpoints that match most of it.
    Failover,
    /// The original destination is kept.
    Passthrough,
}

/// What Istio's service type cannot carry; published beside it under the same name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServiceExtra {
    /// `sessionAffinity: ClientIP` with its timeout.
    pub affinity: Option<Duration>,
    /// Whether the service has no virtual address (`clusterIP: None`).
    pub headless: bool,
    /// The CNAME target of an ExternalName service.
    pub external_name: Option<Arc<str>>,
    /// Further namespaces that see a service whose visibility is limited.
    pub visible_to: Box<[Namespace]>,
    /// A waypoint, by its service, that may carry traffic to this service although nobody is sent to it: what is still
    /// on its way there when it is given up, and already when it begins, is not refused.
    pub standby: Option<ServiceName>,
    /// Features the service's configuration needs; one that this build does not know denies.
    pub features: Box<[Arc<str>]>,
}
