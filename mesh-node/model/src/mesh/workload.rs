//! Workloads: pods and workload entries, as the mesh knows them.

use std::{net::IpAddr, sync::Arc};

use super::GatewayAddress;
use crate::name::{
    ClusterId, Hostname, Identity, Namespace, NetworkId, NodeName, PolicyName, ServiceName,
    WorkloadUid,
};

/// A workload of the mesh.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Workload {
    /// Its unique name.
    pub uid: WorkloadUid,
    /// Its own name, e.g. the pod's.
    pub name: Arc<str>,
    /// Its namespace.
    pub namespace: Namespace,
    /// Who it is.
    pub identity: Identity,
    /// The network its addresses belong to.
    pub network: NetworkId,
    /// Its addresses, none twice; empty for a workload that is known by host name only.
    pub addresses: Box<[IpAddr]>,
    /// Its DNS name when it has no address.
    pub hostname: Option<Hostname>,
    /// The node it runs on; empty for workloads that are not pods.
    pub node: NodeName,
    /// The cluster it runs in.
    pub cluster: ClusterId,
    /// How its traffic arrives.
    pub protocol: TunnelProtocol,
    /// Whether it shares the node's network.
    pub host_network: bool,
    /// Whether it may take new connections.
    pub healthy: bool,
    /// Where it is.
    pub locality: Locality,
    /// Names for telemetry.
    pub canonical: Canonical,
    /// The services it serves, with its own ports.
    pub services: Box<[Membership]>,
    /// The policies that select it by label.
    pub policies: Box<[PolicyName]>,
    /// The waypoint for traffic addressed to the workload itself.
    pub waypoint: Option<GatewayAddress>,
    /// Relative weight among endpoints; 1 unless said otherwise.
    pub capacity: u32,
}

/// How a workload receives mesh traffic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TunnelProtocol {
    /// Plain TCP.
    None,
    /// HBONE on port 15008.
    Hbone,
}

/// Region, zone and subzone; an empty part is unknown.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Locality {
    /// Region.
    pub region: Arc<str>,
    /// Zone.
    pub zone: Arc<str>,
    /// Subzone.
    pub subzone: Arc<str>,
}

/// Names that telemetry shows for a workload.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Canonical {
    /// Canonical service (`service.istio.io/canonical-name`, `app.kubernetes.io/name`, `app`, workload name).
    pub name: Arc<str>,
    /// Canonical revision (`service.istio.io/canonical-revision`, `app.kubernetes.io/version`, `version`, `latest`).
    pub revision: Arc<str>,
    /// The owner's name, e.g. the Deployment's.
    pub workload_name: Arc<str>,
    /// The owner's kind in lower case: `deployment`, `cronjob`, `pod`, `job`.
    pub workload_type: Arc<str>,
}

/// A workload's part in a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Membership {
    /// The service.
    pub service: ServiceName,
    /// Service port to this workload's target port.
    pub ports: Box<[(u16, u16)]>,
}

/// What Istio's workload type cannot carry; published beside it under the same name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkloadExtra {
    /// Whether the workload's traffic is to be captured.
    pub enrolment: Enrolment,
    /// What it accepts, per port where that differs.
    pub mtls: MtlsMode,
    /// Ports whose mode differs from `mtls`.
    pub mtls_ports: Box<[(u16, MtlsMode)]>,
    /// Ports that the kubelet may probe without mutual TLS.
    pub probe_ports: Box<[u16]>,
    /// Whether connections older than enrolment are ended (`warren.dev/cut-existing`).
    pub cut_existing: bool,
    /// Whether traffic forwarded for others is tolerated (`warren.dev/allow-forwarded`).
    pub allow_forwarded: bool,
    /// Whether a waypoint guards the workload, so that going around it is refused.
    pub guarded: bool,
    /// Features the workload's configuration needs; one that this build does not know denies.
    pub features: Box<[Arc<str>]>,
    /// The uid that kubelet and the container runtime know the pod by; `None` for what is no pod.
    pub pod_uid: Option<Arc<str>>,
    /// Which of the selectors that routes and destinations use select it, in the form of
    /// [`crate::route::http::Selector`], ordered.
    pub groups: Box<[Arc<str>]>,
}

/// Whether a workload takes part in the mesh.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Enrolment {
    /// Captured.
    Enrolled,
    /// Left alone.
    Out,
    /// Asked for, but cannot be captured; says why.
    Refused(Arc<str>),
}

/// What a workload accepts on a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MtlsMode {
    /// Mutual TLS only.
    Strict,
    /// Mutual TLS and plaintext.
    Permissive,
    /// Plaintext only.
    Disable,
}

impl WorkloadExtra {
    /// The mode that holds for a port.
    pub fn mtls_for(&self, port: u16) -> MtlsMode {
        self.mtls_ports
            .iter()
            .find(|(p, _)| *p == port)
            .map_or(self.mtls, |(_, m)| *m)
    }
}
