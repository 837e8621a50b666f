//! Which workload serves which service on which port: EndpointSlices joined with services and pods.
//!
//! Invariant: an endpoint that is ending and still serves takes new connections while its service has no ready one, as
//! it does at kube-proxy.

use std::{
    collections::{BTreeMap, HashSet},
    net::IpAddr,
};

use mesh_k8s::{
    Kind, ObjectRef,
    core::{Endpoint, EndpointSlice},
};
use mesh_model::mesh::workload::Locality;

use super::{
    draft::{Bare, Draft, Drafts, parse_ip},
    probes::{is_tcp, named_port},
    service::{PortPlan, ServiceDraft, Target},
};
use crate::{
    labels::LabelIndex,
    settings::Settings,
    status::{Reports, Severity},
    view::{ClusterView, Entry},
};

/// The label by which a slice names its service.
pub(crate) const SERVICE_NAME: &str = "kubernetes.io/service-name";

/// Services of Kubernetes by namespace and name, as indices.
pub(crate) type ServiceIndex<'a> = BTreeMap<(&'a str, &'a str), usize>;

/// Joins the slices. Returns the services that have at least one.
pub(crate) fn join<'a>(
    view: &'a ClusterView,
    settings: &Settings,
    services: &[ServiceDraft<'_>],
    index: &ServiceIndex<'_>,
    drafts: &mut Drafts<'a>,
    reports: &mut Reports,
) -> HashSet<usize> {
    let mut sliced = HashSet::new();
    let ready: HashSet<(&str, &str)> = view
        .endpoint_slices
        .values()
        .filter(|entry| has_ready(&entry.object))
        .filter_map(|entry| of_service(&entry.object))
        .collect();
    for entry in view.endpoint_slices.values() {
        let Some(owner) = of_service(&entry.object) else {
            continue;
        };
        let Some(service) = index.get(&owner).copied() else {
            continue;
        };
        sliced.insert(service);
        let ports = ports(&entry.object, &services[service]);
        let mut slice = Slice {
            entry,
            alone: !ready.contains(&owner),
            settings,
            drafts,
            reports,
        };
        slice.join(&services[service], &ports);
    }
    sliced
}

/// The namespace and name of the service that a slice is of.
fn of_service(slice: &EndpointSlice) -> Option<(&str, &str)> {
    let meta = &slice.metadata;
    Some((meta.namespace.as_str(), meta.label(SERVICE_NAME)?))
}

/// Whether a slice has an endpoint that is ready.
pub(crate) fn has_ready(slice: &EndpointSlice) -> bool {
    slice.endpoints.iter().any(is_ready)
}

/// What is not said counts as ready (Kubernetes, `EndpointConditions`).
fn is_ready(endpoint: &Endpoint) -> bool {
    endpoint.conditions.ready.unwrap_or(true)
}

/// Whether an endpoint is ending and serves still.
pub(crate) fn is_ending(endpoint: &Endpoint) -> bool {
    let said = &endpoint.conditions;
    !is_ready(endpoint) && said.terminating == Some(true) && said.serving == Some(true)
}

/// Service port to target port, as the slice has resolved it.
fn ports(slice: &EndpointSlice, service: &ServiceDraft<'_>) -> Vec<(u16, u16)> {
    let of_slice = slice.ports.iter().filter(|port| is_tcp(&port.protocol));
    let plan = |name: &str| service.ports.iter().find(|plan| plan.name == name);
    of_slice
        .filter_map(|port| Some((plan(&port.name)?.port, port.port?)))
        .collect()
}

/// The namespace and name of the pod that an endpoint is.
pub(crate) fn pod_of<'a>(
    slice: &'a EndpointSlice,
    endpoint: &'a Endpoint,
) -> Option<(&'a str, &'a str)> {
    let target = endpoint
        .target_ref
        .as_ref()
        .filter(|target| target.kind == "Pod")?;
    let namespace = match target.namespace.as_str() {
        "" => slice.metadata.namespace.as_str(),
        namespace => namespace,
    };
    Some((namespace, target.name.as_str()))
}

struct Slice<'s, 'a> {
    entry: &'a Entry<EndpointSlice>,
    /// Whether no endpoint of the service is ready.
    alone: bool,
    settings: &'s Settings,
    drafts: &'s mut Drafts<'a>,
    reports: &'s mut Reports,
}

impl Slice<'_, '_> {
    fn join(&mut self, service: &ServiceDraft<'_>, ports: &[(u16, u16)]) {
        let slice = &*self.entry.object;
        if slice.address_type == "FQDN" {
            let text = "endpoints by host name are not served".to_owned();
            return self.say("addressType".to_owned(), text);
        }
        for (i, endpoint) in slice.endpoints.iter().enumerate() {
            if let Some(pod) = pod_of(slice, endpoint) {
                // A pod that is not known has ended, or comes later.
                if let Some(index) = self.drafts.by_pod.get(&pod) {
                    let draft = &mut self.drafts.all[*index];
                    draft.workload.healthy |= self.alone && is_ending(endpoint);
                    draft.serve(&service.service.name, ports.iter().copied());
                }
                continue;
            }
            for (j, text) in endpoint.addresses.iter().enumerate() {
                match parse_ip(text) {
                    Some(ip) => self.bare(service, ports, endpoint, ip),
                    None => self.say(
                        format!("endpoints[{i}].addresses[{j}]"),
                        format!("{text:?} is not an IP address; this endpoint is not served"),
                    ),
                }
            }
        }
    }

    fn bare(
        &mut self,
        service: &ServiceDraft<'_>,
        ports: &[(u16, u16)],
        endpoint: &Endpoint,
        ip: IpAddr,
    ) {
        let bare = Bare {
            source: "discovery.k8s.io/EndpointSlice",
            object: ObjectRef::of::<EndpointSlice>(self.entry.object.metadata()),
            network: self.settings.network.clone(),
            ip,
            locality: Locality {
                zone: endpoint.zone.as_str().into(),
                ..Locality::default()
            },
            healthy: is_ready(endpoint) || self.alone && is_ending(endpoint),
            weight: 1,
            service_account: "",
        };
        let index = self.drafts.at(self.settings, &self.entry.origin, bare);
        self.drafts.all[index].serve(&service.service.name, ports.iter().copied());
    }

    fn say(&mut self, field: String, text: String) {
        let object = ObjectRef::of::<EndpointSlice>(self.entry.object.metadata());
        self.reports
            .say(&object, &self.entry.origin, Severity::Error, field, text);
    }
}

/// Joins by label: pods where no slice says otherwise (manifests without an endpoints controller), and workload
/// entries always, which no slice knows.
pub(crate) fn join_by_label(
    services: &[ServiceDraft<'_>],
    sliced: &HashSet<usize>,
    labels: &LabelIndex<'_>,
    drafts: &mut Drafts<'_>,
) {
    for (index, service) in services
        .iter()
        .enumerate()
        .filter(|(_, service)| !service.selector.is_empty())
    {
        for member in labels.select(Some(&service.object.namespace), service.selector) {
            let draft = &mut drafts.all[member];
            if draft.pod.is_none() || !sliced.contains(&index) {
                let ports = targets(&service.ports, draft);
                draft.serve(&service.service.name, ports);
            }
        }
    }
}

fn targets(plans: &[PortPlan], draft: &Draft<'_>) -> Vec<(u16, u16)> {
    let own = |name: &str| draft.entry_ports.and_then(|ports| ports.get(name)).copied();
    let target = |plan: &PortPlan| match &plan.target {
        _ if own(&plan.name).is_some() => own(&plan.name),
        Target::Number(number) => Some(*number),
        Target::Name(name) => draft.pod.and_then(|pod| named_port(pod, name)),
    };
    plans
        .iter()
        .filter_map(|plan| Some((plan.port, target(plan)?)))
        .collect()
}
