//! The endpoints of service entries: written inline by address or by name, selected by label, or the host itself.
//!
//! Invariant: an endpoint that cannot be served is named; none is replaced by another.

use std::{collections::BTreeMap, net::IpAddr};

use mesh_k8s::{
    ObjectRef,
    networking::{ServiceEntry, WorkloadEntrySpec},
};
use mesh_model::name::{Hostname, NetworkId};

use super::service_entry::{EntryServices, Resolution, normal};
use crate::{
    core::{
        draft::{Bare, Draft, Drafts, parse_ip},
        pod::locality_of,
        service::{PortPlan, ServiceDraft, Target},
    },
    labels::LabelIndex,
    settings::Settings,
    status::{Reports, Severity},
    view::Entry,
};

/// Where an endpoint is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    Address(IpAddr),
    Host(Hostname),
}

impl Place {
    /// Reads an address or a host name.
    pub(crate) fn read(text: &str) -> Option<Self> {
        if let Some(ip) = parse_ip(text) {
            return Some(Self::Address(ip));
        }
        let host = normal(text);
        // What looks like an address and is none is no name either.
        let name = mesh_k8s::is_name(&host) && host.bytes().any(|b| b.is_ascii_lowercase());
        name.then(|| Self::Host(Hostname::new(host)))
    }

    pub(crate) fn address(&self) -> Option<IpAddr> {
        match self {
            Self::Address(ip) => Some(*ip),
            Self::Host(_) => None,
        }
    }
}

/// Joins the entries' endpoints.
pub(crate) fn join<'a>(
    entries: &[EntryServices<'a>],
    settings: &Settings,
    services: &[ServiceDraft<'_>],
    labels: &LabelIndex<'_>,
    drafts: &mut Drafts<'a>,
    reports: &mut Reports,
) {
    for entry in entries {
        let mut joining = Joining {
            entry: entry.entry,
            resolution: entry.resolution,
            object: ObjectRef::of::<ServiceEntry>(&entry.entry.object.metadata),
            settings,
            drafts,
            reports,
            hosts: BTreeMap::new(),
        };
        joining.join(&entry.services, services, labels);
    }
}

struct Joining<'j, 'a> {
    entry: &'a Entry<ServiceEntry>,
    resolution: Resolution,
    object: ObjectRef,
    settings: &'j Settings,
    drafts: &'j mut Drafts<'a>,
    reports: &'j mut Reports,
    /// Endpoints by name, once each.
    hosts: BTreeMap<Hostname, usize>,
}

type Member<'a> = (usize, &'a BTreeMap<String, u16>);

impl<'a> Joining<'_, 'a> {
    fn join(&mut self, own: &[usize], services: &[ServiceDraft<'_>], labels: &LabelIndex<'_>) {
        let spec = &self.entry.object.spec;
        let own: Vec<_> = own.iter().map(|index| &services[*index]).collect();
        if own.iter().all(|service| service.hidden) {
            return;
        }
        let mut members: Vec<Member<'a>> = Vec::new();
        for (i, endpoint) in spec.endpoints.iter().enumerate() {
            let Some(member) = self.inline(i, endpoint) else {
                continue;
            };
            if members.iter().any(|(index, _)| *index == member.0) {
                let text = format!(
                    "{:?} is given again; the first one counts",
                    endpoint.address
                );
                let field = format!("spec.endpoints[{i}].address");
                self.say(Severity::Warning, field, text);
            } else {
                members.push(member);
            }
        }
        if let Some(selector) = &spec.workload_selector {
            if !spec.endpoints.is_empty() {
                let text = "stands beside endpoints; both are served".to_owned();
                self.say(Severity::Warning, "spec.workloadSelector".to_owned(), text);
            }
            for index in labels.select(Some(&self.object.namespace), &selector.labels) {
                members.push((index, own_ports(&self.drafts.all[index])));
            }
        }
        let itself = self.resolution == Resolution::Dns
            && spec.endpoints.is_empty()
            && spec.workload_selector.is_none();
        for service in own {
            for (member, own) in &members {
                self.serve(*member, own, service);
            }
            let host = &service.service.name.hostname;
            if itself && !host.as_str().starts_with('*') {
                let index = self.host(host.clone(), &NOTHING);
                self.serve(index, own_ports(&self.drafts.all[index]), service);
            }
        }
    }

    fn serve(&mut self, member: usize, own: &BTreeMap<String, u16>, service: &ServiceDraft<'_>) {
        let port = |plan: &PortPlan| {
            let Target::Number(target) = plan.target else {
                return None;
            };
            Some((plan.port, own.get(&plan.name).copied().unwrap_or(target)))
        };
        self.drafts.all[member].serve(&service.service.name, service.ports.iter().filter_map(port));
    }

    /// The workload that an endpoint of the entry is.
    fn inline(&mut self, i: usize, endpoint: &'a WorkloadEntrySpec) -> Option<Member<'a>> {
        let index = match (Place::read(&endpoint.address), self.resolution) {
            (Some(Place::Address(ip)), _) => {
                let bare = self.bare(endpoint, ip);
                self.drafts.at(self.settings, &self.entry.origin, bare)
            }
            (Some(Place::Host(host)), Resolution::Dns) => self.host(host, endpoint),
            (Some(Place::Host(_)), Resolution::None | Resolution::Static) => {
                let text = format!(
                    "{:?} is a host name, which needs resolution DNS; this endpoint is not served",
                    endpoint.address
                );
                self.say(
                    Severity::Error,
                    format!("spec.endpoints[{i}].address"),
                    text,
                );
                return None;
            }
            (None, _) => {
                let text = format!(
                    "{:?} is neither an IP address nor a host name; this endpoint is not served",
                    endpoint.address
                );
                self.say(
                    Severity::Error,
                    format!("spec.endpoints[{i}].address"),
                    text,
                );
                return None;
            }
        };
        Some((index, &endpoint.ports))
    }

    fn host(&mut self, host: Hostname, endpoint: &WorkloadEntrySpec) -> usize {
        if let Some(index) = self.hosts.get(&host) {
            return *index;
        }
        let bare = self.bare(endpoint, IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED));
        let index = self
            .drafts
            .named(self.settings, &self.entry.origin, &host, bare);
        self.hosts.insert(host, index);
        index
    }

    fn bare<'e>(&self, endpoint: &'e WorkloadEntrySpec, ip: IpAddr) -> Bare<'e> {
        Bare {
            source: "networking.istio.io/ServiceEntry",
            object: self.object.clone(),
            network: network(self.settings, endpoint),
            ip,
            locality: locality_of(&endpoint.locality),
            healthy: true,
            weight: endpoint.weight.unwrap_or(1),
            service_account: &endpoint.service_account,
        }
    }

    fn say(&mut self, severity: Severity, field: String, text: String) {
        self.reports
            .say(&self.object, &self.entry.origin, severity, field, text);
    }
}

/// An endpoint that says nothing but its place.
static NOTHING: WorkloadEntrySpec = WorkloadEntrySpec {
    address: String::new(),
    ports: BTreeMap::new(),
    labels: BTreeMap::new(),
    network: String::new(),
    locality: String::new(),
    weight: None,
    service_account: String::new(),
};

/// The network that an endpoint's address belongs to.
pub(crate) fn network(settings: &Settings, endpoint: &WorkloadEntrySpec) -> NetworkId {
    match endpoint.network.as_str() {
        "" => settings.network.clone(),
        network => NetworkId::from(network),
    }
}

fn own_ports<'a>(draft: &Draft<'a>) -> &'a BTreeMap<String, u16> {
    static NONE: BTreeMap<String, u16> = BTreeMap::new();
    draft.entry_ports.unwrap_or(&NONE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_addresses_or_names() {
        let check = |text: &str, expect: Option<&str>| {
            let found = Place::read(text).map(|place| match place {
                Place::Address(ip) => ip.to_string(),
                Place::Host(host) => host.to_string(),
            });
            assert_eq!(found.as_deref(), expect, "{text}");
        };
        check("10.0.0.1", Some("10.0.0.1"));
        check("::ffff:10.0.0.1", Some("10.0.0.1"));
        check("Db.Example.com.", Some("db.example.com"));
        check("localhost", Some("localhost"));
        check("10.0.0.300", None);
        check("unix:///var/run/x", None);
        check("a b", None);
        check("", None);
    }
}
