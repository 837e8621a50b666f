//! A workload in the making, and the table of all of them.
//!
//! Invariant: an address that belongs to a pod never becomes a second workload because some other object names it.

use std::{
    collections::{BTreeMap, HashMap},
    net::IpAddr,
};

use mesh_k8s::{ObjectRef, core::Pod};
use mesh_model::{
    mesh::{
        Enrolment, MtlsMode, Workload, WorkloadExtra,
        workload::{Canonical, Locality, Membership, TunnelProtocol},
    },
    name::{
        Hostname, Identity, Namespace, NetworkAddress, NetworkId, NodeName, PolicyName,
        ServiceAccount, ServiceName, WorkloadUid,
    },
};

use crate::{settings::Settings, view::Origin};

/// A workload in the making.
#[derive(Debug)]
pub(crate) struct Draft<'a> {
    pub(crate) workload: Workload,
    pub(crate) extra: WorkloadExtra,
    /// The object that it is made from.
    pub(crate) object: ObjectRef,
    pub(crate) origin: &'a Origin,
    /// Labels that policies select by; none for bare endpoints.
    pub(crate) labels: Option<&'a BTreeMap<String, String>>,
    /// The namespace in which selectors find it; none for bare endpoints.
    pub(crate) selectable: Option<&'a str>,
    /// Its pod, for named ports.
    pub(crate) pod: Option<&'a Pod>,
    /// Its own ports by name, when it is a workload entry.
    pub(crate) entry_ports: Option<&'a BTreeMap<String, u16>>,
    pub(crate) services: BTreeMap<ServiceName, BTreeMap<u16, u16>>,
    pub(crate) policies: Vec<PolicyName>,
}

impl<'a> Draft<'a> {
    /// The namespace in which selectors find it; none for bare endpoints.
    pub(crate) fn namespace(&self) -> Option<&'a str> {
        self.selectable
    }

    /// The finished workload.
    pub(crate) fn finish(mut self) -> (Workload, WorkloadExtra) {
        let membership = |(service, ports): (ServiceName, BTreeMap<u16, u16>)| Membership {
            service,
            ports: ports.into_iter().collect(),
        };
        self.workload.services = self.services.into_iter().map(membership).collect();
        self.policies.sort();
        self.policies.dedup();
        self.workload.policies = self.policies.into();
        (self.workload, self.extra)
    }

    /// Makes it an endpoint of a service on `port`.
    pub(crate) fn serve(
        &mut self,
        service: &ServiceName,
        ports: impl IntoIterator<Item = (u16, u16)>,
    ) {
        self.services
            .entry(service.clone())
            .or_default()
            .extend(ports);
    }
}

/// All workloads in the making.
#[derive(Debug, Default)]
pub(crate) struct Drafts<'a> {
    pub(crate) all: Vec<Draft<'a>>,
    /// Pods by namespace and name.
    pub(crate) by_pod: HashMap<(&'a str, &'a str), usize>,
    /// Owners of addresses; pods in the node's network own none.
    pub(crate) by_address: HashMap<NetworkAddress, usize>,
}

/// An endpoint that is not a pod: where it is and what named it.
pub(crate) struct Bare<'a> {
    /// The group and kind of the naming object, e.g. `discovery.k8s.io/EndpointSlice`.
    pub(crate) source: &'a str,
    pub(crate) object: ObjectRef,
    pub(crate) network: NetworkId,
    pub(crate) ip: IpAddr,
    pub(crate) locality: Locality,
    pub(crate) healthy: bool,
    pub(crate) weight: u32,
    pub(crate) service_account: &'a str,
}

impl<'a> Drafts<'a> {
    /// The workload that owns an address, or a new one that stands for it.
    pub(crate) fn at(&mut self, settings: &Settings, origin: &'a Origin, bare: Bare<'_>) -> usize {
        let address = NetworkAddress {
            network: bare.network.clone(),
            ip: bare.ip,
        };
        if let Some(index) = self.by_address.get(&address) {
            return *index;
        }
        let ip = bare.ip;
        let index = self.bare(settings, origin, bare, &ip.to_string());
        self.all[index].workload.addresses = [ip].into();
        self.by_address.insert(address, index);
        index
    }

    /// A workload that is known by its host name only; nodes ask for its addresses.
    pub(crate) fn named(
        &mut self,
        settings: &Settings,
        origin: &'a Origin,
        host: &Hostname,
        bare: Bare<'_>,
    ) -> usize {
        let index = self.bare(settings, origin, bare, host.as_str());
        self.all[index].workload.hostname = Some(host.clone());
        index
    }

    fn bare(
        &mut self,
        settings: &Settings,
        origin: &'a Origin,
        bare: Bare<'_>,
        place: &str,
    ) -> usize {
        let ObjectRef {
            namespace, name, ..
        } = &bare.object;
        let uid = WorkloadUid::new(format!(
            "{}/{}/{namespace}/{name}/{}{place}",
            settings.cluster,
            bare.source,
            elsewhere(settings, &bare.network)
        ));
        let workload = Workload {
            uid,
            name: format!("{name}-{place}").into(),
            namespace: Namespace::from(&**namespace),
            identity: Identity {
                trust_domain: settings.mesh.trust_domain.clone(),
                namespace: Namespace::from(&**namespace),
                service_account: ServiceAccount::from(bare.service_account),
            },
            network: bare.network,
            addresses: [].into(),
            hostname: None,
            node: NodeName::from(""),
            cluster: settings.cluster.clone(),
            protocol: TunnelProtocol::None,
            host_network: false,
            healthy: bare.healthy,
            locality: bare.locality,
            canonical: Canonical {
                name: name.clone(),
                revision: "latest".into(),
                workload_name: name.clone(),
                workload_type: "pod".into(),
            },
            services: [].into(),
            policies: [].into(),
            waypoint: None,
            capacity: bare.weight,
        };
        let index = self.all.len();
        self.all.push(Draft {
            workload,
            extra: outside(),
            object: bare.object,
            origin,
            labels: None,
            selectable: None,
            pod: None,
            entry_ports: None,
            services: BTreeMap::new(),
            policies: Vec::new(),
        });
        index
    }
}

/// Tells the same address in two networks apart.
fn elsewhere(settings: &Settings, network: &NetworkId) -> String {
    if *network == settings.network {
        String::new()
    } else {
        format!("{network}/")
    }
}

/// What belongs to a workload that the mesh does not capture.
pub(crate) fn outside() -> WorkloadExtra {
    WorkloadExtra {
        enrolment: Enrolment::Out,
        mtls: MtlsMode::Permissive,
        mtls_ports: [].into(),
        probe_ports: [].into(),
        cut_existing: false,
        allow_forwarded: false,
        guarded: false,
        features: [].into(),
        pod_uid: None,
        groups: Box::default(),
    }
}

/// An address as the model keeps it: never IPv4 mapped into IPv6.
pub(crate) fn parse_ip(text: &str) -> Option<IpAddr> {
    text.parse::<IpAddr>().ok().map(|ip| ip.to_canonical())
}
