//! ServiceEntry: services that Kubernetes does not know, as far as addresses carry them.
//!
//! Invariant: an entry never takes an address or a cluster name that belongs to somebody else.

use std::collections::BTreeMap;

use mesh_k8s::{
    ObjectRef,
    networking::{ServiceEntry, WorkloadEntrySpec},
};
use mesh_model::{
    mesh::{
        Service, ServiceExtra, ServicePort,
        service::{Balancing, Mode},
    },
    name::{Hostname, NetworkAddress, NetworkId, ServiceName},
};

use super::matches;
use crate::{
    core::{
        draft::{Bare, Drafts, parse_ip},
        pod::locality_of,
        protocol,
        service::{Claims, PortPlan, Say, ServiceDraft, Target},
    },
    labels::LabelIndex,
    settings::Settings,
    status::{InForce, Reports, Severity},
    view::{ClusterView, Entry},
};

static NO_LABELS: BTreeMap<String, String> = BTreeMap::new();

/// A service entry's services, with the entry for its endpoints.
pub(crate) struct EntryServices<'a> {
    entry: &'a Entry<ServiceEntry>,
    /// Indices of its services, one per host.
    services: Vec<usize>,
}

/// Adds a service per host, the oldest entries first.
pub(crate) fn collect<'a>(
    view: &'a ClusterView,
    settings: &Settings,
    drafts: &Drafts<'_>,
    claims: &mut Claims,
    services: &mut Vec<ServiceDraft<'a>>,
    reports: &mut Reports,
) -> Vec<EntryServices<'a>> {
    let mut entries: Vec<_> = view.service_entries.values().collect();
    entries.sort_by_cached_key(|entry| crate::settings::age(&entry.object.metadata));
    let mut all = Vec::new();
    for entry in entries {
        let object = ObjectRef::of::<ServiceEntry>(&entry.object.metadata);
        let mut say = Say {
            object: &object,
            origin: &entry.origin,
            reports,
        };
        let Some(mode) = mode(entry, &mut say) else {
            continue;
        };
        let (vips, ranges) = addresses(entry, settings, drafts, claims, &mut say);
        let (ports, plans) = ports(entry, &mut say);
        let first = services.len();
        for (i, host) in entry.object.spec.hosts.iter().enumerate() {
            let Some(hostname) = hostname(
                settings,
                &object.namespace,
                host,
                &format!("spec.hosts[{i}]"),
                &mut say,
            ) else {
                continue;
            };
            if services.iter().any(|service| {
                service.service.name.hostname == hostname
                    && *service.object.namespace == *object.namespace
            }) {
                let text = format!("{hostname} is already a service of this namespace");
                say.say(Severity::Error, format!("spec.hosts[{i}]"), text);
                continue;
            }
            // Addresses lead to one service: the first host's.
            let lead = services.len() == first;
            let service = Service {
                name: ServiceName {
                    namespace: object.namespace.as_ref().into(),
                    hostname,
                },
                short: object.name.clone(),
                vips: if lead { vips.clone().into() } else { [].into() },
                ranges: if lead {
                    ranges.clone().into()
                } else {
                    [].into()
                },
                ports: ports.clone(),
                subject_alt_names: entry
                    .object
                    .spec
                    .subject_alt_names
                    .iter()
                    .map(|name| name.as_str().into())
                    .collect(),
                waypoint: None,
                balancing: Balancing {
                    mode,
                    ..Balancing::default()
                },
            };
            let headless = vips.is_empty() && mode != Mode::Passthrough;
            let extra = ServiceExtra {
                headless,
                ..ServiceExtra::default()
            };
            let (object, ports) = (object.clone(), plans.clone());
            services.push(ServiceDraft {
                service,
                extra,
                object,
                ports,
                selector: &NO_LABELS,
            });
        }
        let in_force = if services.len() == first {
            InForce::Not("Invalid", "none of its hosts can be served".to_owned())
        } else {
            InForce::Wholly
        };
        say.in_force(in_force);
        all.push(EntryServices {
            entry,
            services: (first..services.len()).collect(),
        });
    }
    all
}

/// How endpoints are found; `None` when this version cannot.
fn mode(entry: &Entry<ServiceEntry>, say: &mut Say<'_>) -> Option<Mode> {
    let spec = &entry.object.spec;
    if !matches!(
        spec.location.as_str(),
        "" | "MESH_EXTERNAL" | "MESH_INTERNAL"
    ) {
        let text = format!(
            "{:?} is neither MESH_EXTERNAL nor MESH_INTERNAL",
            spec.location
        );
        say.say(Severity::Error, "spec.location".to_owned(), text);
    }
    if spec.export_to.iter().any(|to| to != "*") {
        let text =
            "visibility is not limited by this version: every namespace sees the entry".to_owned();
        say.say(Severity::Warning, "spec.exportTo".to_owned(), text);
    }
    match spec.resolution.as_str() {
        "STATIC" => Some(Mode::Unspecified),
        "" | "NONE" => {
            if spec.addresses.is_empty() {
                let text = "without addresses, resolution NONE matches no connection at layer 4"
                    .to_owned();
                say.say(Severity::Warning, "spec.addresses".to_owned(), text);
            }
            Some(Mode::Passthrough)
        }
        dns @ ("DNS" | "DNS_ROUND_ROBIN" | "DYNAMIC_DNS") => {
            let text = format!(
                "{dns} is not provided by this version: the entry is not in force, and its hosts are destinations outside the mesh"
            );
            say.say(
                Severity::Warning,
                "spec.resolution".to_owned(),
                text.clone(),
            );
            say.in_force(InForce::Not("Unsupported", text));
            None
        }
        other => {
            let text =
                format!("{other:?} is none of NONE, STATIC, DNS, DNS_ROUND_ROBIN, DYNAMIC_DNS");
            say.say(Severity::Error, "spec.resolution".to_owned(), text.clone());
            say.in_force(InForce::Not("Invalid", text));
            None
        }
    }
}

/// A host name as it is compared.
pub(crate) fn normal(host: &str) -> String {
    host.trim_end_matches('.').to_ascii_lowercase()
}

/// The single address that an entry claims with a text, unless it is a range.
pub(crate) fn virtual_address(text: &str) -> Option<std::net::IpAddr> {
    let network = matches::network(text)?;
    (network.prefix_len() == network.max_prefix_len()).then(|| network.addr())
}

/// The network that an endpoint's address belongs to.
pub(crate) fn network(settings: &Settings, endpoint: &WorkloadEntrySpec) -> NetworkId {
    match endpoint.network.as_str() {
        "" => settings.network.clone(),
        network => NetworkId::from(network),
    }
}

fn hostname(
    settings: &Settings,
    namespace: &str,
    host: &str,
    field: &str,
    say: &mut Say<'_>,
) -> Option<Hostname> {
    let host = normal(host);
    let mut wrong = |text: String| {
        say.say(Severity::Error, field.to_owned(), text);
        None
    };
    if host.contains('*') {
        return wrong(format!(
            "{host:?}: hosts with * need layer 7 and are not served"
        ));
    }
    let label = |label: &str| {
        !label.is_empty()
            && label
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'))
    };
    if host.is_empty() || host.len() > 253 || !host.split('.').all(label) {
        return wrong(format!(
            "{:?} is not a host name",
            host.escape_debug().to_string()
        ));
    }
    let suffix = format!(".svc.{}", settings.mesh.cluster_domain);
    if let Some(owner) = host
        .strip_suffix(&suffix)
        .map(|rest| rest.rsplit('.').next().unwrap_or(rest))
        && owner != namespace
    {
        return wrong(format!("{host} belongs to namespace {owner}"));
    }
    Some(Hostname::new(host))
}

type Addresses = (Vec<NetworkAddress>, Vec<(NetworkId, ipnet::IpNet)>);

fn addresses(
    entry: &Entry<ServiceEntry>,
    settings: &Settings,
    drafts: &Drafts<'_>,
    claims: &mut Claims,
    say: &mut Say<'_>,
) -> Addresses {
    let (mut vips, mut ranges) = (Vec::new(), Vec::new());
    for (i, text) in entry.object.spec.addresses.iter().enumerate() {
        let field = format!("spec.addresses[{i}]");
        let Some(network) = matches::network(text) else {
            say.say(
                Severity::Error,
                field,
                format!("{text:?} is neither an address nor a CIDR block"),
            );
            continue;
        };
        if network.prefix_len() != network.max_prefix_len() {
            ranges.push((settings.network.clone(), network));
            continue;
        }
        let address = NetworkAddress {
            network: settings.network.clone(),
            ip: network.addr(),
        };
        match drafts
            .by_address
            .get(&address)
            .map(|owner| &drafts.all[*owner])
        {
            Some(owner) if owner.pod.is_some() => {
                say.say(
                    Severity::Error,
                    field,
                    format!("{} is the address of {}", address.ip, owner.object),
                );
            }
            _ => say.claim_ip(settings, claims, &mut vips, &field, address.ip),
        }
    }
    (vips, ranges)
}

fn ports(entry: &Entry<ServiceEntry>, say: &mut Say<'_>) -> (Box<[ServicePort]>, Vec<PortPlan>) {
    let (mut ports, mut plans) = (Vec::new(), Vec::<PortPlan>::new());
    for (i, port) in entry.object.spec.ports.iter().enumerate() {
        if port.protocol.eq_ignore_ascii_case("UDP") {
            continue;
        }
        if port.number == 0 || plans.iter().any(|plan| plan.port == port.number) {
            let text = format!(
                "{} is no port, or given twice; it is not served",
                port.number
            );
            say.say(Severity::Error, format!("spec.ports[{i}].number"), text);
            continue;
        }
        let target = port
            .target_port
            .filter(|target| *target != 0)
            .unwrap_or(port.number);
        let protocol = protocol::declared(&port.protocol, &port.name, port.number);
        ports.push(ServicePort {
            port: port.number,
            target_port: target,
            protocol,
        });
        plans.push(PortPlan {
            name: port.name.clone(),
            port: port.number,
            target: Target::Number(target),
        });
    }
    (ports.into(), plans)
}

/// Joins the entries' endpoints: written inline, or selected by label.
pub(crate) fn join<'a>(
    entries: &[EntryServices<'a>],
    settings: &Settings,
    services: &[ServiceDraft<'_>],
    labels: &LabelIndex<'_>,
    drafts: &mut Drafts<'a>,
    reports: &mut Reports,
) {
    for EntryServices {
        entry,
        services: own,
    } in entries
    {
        let spec = &entry.object.spec;
        let object = ObjectRef::of::<ServiceEntry>(&entry.object.metadata);
        let mut members: Vec<(usize, &BTreeMap<String, u16>)> = Vec::new();
        for (i, endpoint) in spec.endpoints.iter().enumerate() {
            match parse_ip(&endpoint.address) {
                Some(ip) => members.push((
                    drafts.at(
                        settings,
                        &entry.origin,
                        bare(settings, &object, endpoint, ip),
                    ),
                    &endpoint.ports,
                )),
                None => {
                    let text = format!(
                        "{:?} is not an IP address; this endpoint is not served",
                        endpoint.address
                    );
                    let field = format!("spec.endpoints[{i}].address");
                    reports.say(&object, &entry.origin, Severity::Error, field, text);
                }
            }
        }
        if let Some(selector) = &spec.workload_selector {
            for index in labels.select(Some(&object.namespace), &selector.labels) {
                members.push((index, own_ports(&drafts.all[index])));
            }
        }
        for service in own.iter().map(|index| &services[*index]) {
            for (member, own) in &members {
                let port = |plan: &PortPlan| {
                    let Target::Number(target) = plan.target else {
                        return None;
                    };
                    Some((plan.port, own.get(&plan.name).copied().unwrap_or(target)))
                };
                drafts.all[*member]
                    .serve(&service.service.name, service.ports.iter().filter_map(port));
            }
        }
    }
}

fn own_ports<'a>(draft: &crate::core::draft::Draft<'a>) -> &'a BTreeMap<String, u16> {
    static NONE: BTreeMap<String, u16> = BTreeMap::new();
    draft.entry_ports.unwrap_or(&NONE)
}

fn bare<'e>(
    settings: &Settings,
    object: &ObjectRef,
    endpoint: &'e WorkloadEntrySpec,
    ip: std::net::IpAddr,
) -> Bare<'e> {
    Bare {
        source: "networking.istio.io/ServiceEntry",
        object: object.clone(),
        network: network(settings, endpoint),
        ip,
        locality: locality_of(&endpoint.locality),
        healthy: true,
        weight: endpoint.weight.unwrap_or(1),
        service_account: &endpoint.service_account,
    }
}
