//! ServiceEntry: services that Kubernetes does not know, as far as addresses carry them.
//!
//! Invariant: an entry never takes an address or a cluster name that belongs to somebody else.

use std::{collections::BTreeMap, net::IpAddr};

use mesh_k8s::{ObjectRef, networking::ServiceEntry};
use mesh_model::{
    mesh::{
        Service, ServiceExtra, ServicePort,
        service::{Balancing, Mode},
    },
    name::{Hostname, NetworkAddress, NetworkId, ServiceName},
};

use super::{automatic, matches};
use crate::{
    core::{
        draft::Drafts,
        protocol,
        service::{self, Claims, PortPlan, Say, ServiceDraft, Target},
        visibility::{self, Seen},
        way::{Lack, Way},
    },
    settings::Settings,
    status::{InForce, Reports, Severity},
    view::{ClusterView, Entry},
};

static NO_LABELS: BTreeMap<String, String> = BTreeMap::new();

/// The label that switches addresses of our own making off.
const AUTOMATIC: &str = "networking.istio.io/enable-autoallocate-ip";

/// How a service entry's endpoints are found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Resolution {
    /// Where the client dials.
    None,
    /// By address.
    Static,
    /// By name.
    Dns,
}

/// A service entry's services, with the entry for its endpoints.
pub(crate) struct EntryServices<'a> {
    pub(super) entry: &'a Entry<ServiceEntry>,
    pub(super) resolution: Resolution,
    /// Indices of its services, one per host.
    pub(super) services: Vec<usize>,
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
        let Some(resolution) = resolution(entry, &mut say) else {
            continue;
        };
        let first = services.len();
        Making {
            view,
            settings,
            drafts,
            entry,
            resolution,
        }
        .services(claims, services, &mut say);
        let made = first..services.len();
        let exported = services[made.clone()].iter().any(|s| !s.hidden);
        let in_force = match (made.is_empty(), exported) {
            (true, _) => InForce::Not("Invalid", "none of its hosts can be served".to_owned()),
            (false, false) => InForce::Not("NotExported", "exportTo names nobody".to_owned()),
            (false, true) => InForce::Wholly,
        };
        say.in_force(in_force);
        all.push(EntryServices {
            entry,
            resolution,
            services: made.collect(),
        });
    }
    all
}

/// What the services of one entry are made from.
struct Making<'m, 'a> {
    view: &'m ClusterView,
    settings: &'m Settings,
    drafts: &'m Drafts<'m>,
    entry: &'a Entry<ServiceEntry>,
    resolution: Resolution,
}

impl<'a> Making<'_, 'a> {
    fn services(
        &self,
        claims: &mut Claims,
        services: &mut Vec<ServiceDraft<'a>>,
        say: &mut Say<'_>,
    ) {
        let (object, spec) = (say.object.clone(), &self.entry.object.spec);
        let (vips, ranges) = self.addresses(claims, say);
        let (ports, plans) = ports(self.entry, say);
        let seen = visibility::read(
            &object.namespace,
            spec.export_to.iter().map(String::as_str),
            "spec.exportTo",
            say,
        );
        let balancing = self.balancing(say);
        let first = services.len();
        for (i, host) in spec.hosts.iter().enumerate() {
            let field = format!("spec.hosts[{i}]");
            let Some(hostname) = self.hostname(host, &field, say) else {
                continue;
            };
            if services.iter().any(|service| {
                service.service.name.hostname == hostname
                    && *service.object.namespace == *object.namespace
            }) {
                let text = format!("{hostname} is already a service of this namespace");
                say.say(Severity::Error, field, text);
                continue;
            }
            // Addresses lead to one service: the first host's.
            let lead = services.len() == first;
            let mut own = if lead { vips.clone() } else { Vec::new() };
            if self.wants_automatic(&hostname) {
                own = self.automatic(&hostname, claims, say);
            }
            let mut draft = self.draft(&object, hostname, own, &ports, balancing.clone(), &seen);
            draft.ports.clone_from(&plans);
            if lead {
                draft.service.ranges = ranges.clone().into();
            }
            services.push(draft);
        }
    }

    fn draft(
        &self,
        object: &ObjectRef,
        hostname: Hostname,
        vips: Vec<NetworkAddress>,
        ports: &[ServicePort],
        balancing: Balancing,
        seen: &Seen,
    ) -> ServiceDraft<'a> {
        let spec = &self.entry.object.spec;
        let extra = ServiceExtra {
            // One by name without an address is left to the resolver that clients have.
            headless: vips.is_empty() && self.resolution == Resolution::Static,
            features: seen.features(),
            visible_to: seen.to.clone(),
            ..ServiceExtra::default()
        };
        let service = Service {
            name: ServiceName {
                namespace: object.namespace.as_ref().into(),
                hostname,
            },
            short: object.name.clone(),
            vips: vips.into(),
            ranges: [].into(),
            ports: ports.into(),
            subject_alt_names: spec
                .subject_alt_names
                .iter()
                .map(|name| name.as_str().into())
                .collect(),
            waypoint: None,
            balancing,
            visibility: seen.visibility,
        };
        ServiceDraft {
            service,
            extra,
            object: object.clone(),
            ports: Vec::new(),
            selector: &NO_LABELS,
            hidden: seen.nobody,
            way: Way::default(),
            lack: Lack::default(),
        }
    }

    fn balancing(&self, say: &mut Say<'_>) -> Balancing {
        let mut balancing = Balancing::default();
        match self.resolution {
            Resolution::None => balancing.mode = Mode::Passthrough,
            Resolution::Static | Resolution::Dns => {
                let meta = &self.entry.object.metadata;
                let wanted = service::distribution(self.view, meta, "");
                service::prefer(&mut balancing, wanted, say);
            }
        }
        balancing
    }

    fn hostname(&self, host: &str, field: &str, say: &mut Say<'_>) -> Option<Hostname> {
        let host = normal(host);
        let mut wrong = |text: String| {
            say.say(Severity::Error, field.to_owned(), text);
            None
        };
        let named = host.strip_prefix("*.").unwrap_or(&host);
        if named.contains('*') {
            return wrong(format!(
                "{host:?}: a * may only stand for whole labels at the beginning, as in *.example.com"
            ));
        }
        let label = |label: &str| {
            !label.is_empty()
                && label
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'))
        };
        if named.is_empty() || host.len() > 253 || !named.split('.').all(label) {
            return wrong(format!(
                "{:?} is not a host name",
                host.escape_debug().to_string()
            ));
        }
        let suffix = format!(".svc.{}", self.settings.mesh.cluster_domain);
        let domain =
            format!(".{named}").ends_with(&suffix[4..]) || suffix.ends_with(&format!(".{named}"));
        if host != *named && domain {
            return wrong(format!(
                "{host} would cover names of the cluster's own services"
            ));
        }
        if let Some(owner) = host
            .strip_suffix(&suffix)
            .map(|rest| rest.rsplit('.').next().unwrap_or(rest))
            && owner != self.entry.object.metadata.namespace
        {
            return wrong(format!("{host} belongs to namespace {owner}"));
        }
        if host != *named && !self.wildcard(field, say) {
            return None;
        }
        Some(Hostname::new(host))
    }

    /// How far layer 4 can honour a host with a *; whether it is served.
    fn wildcard(&self, field: &str, say: &mut Say<'_>) -> bool {
        let spec = &self.entry.object.spec;
        let nowhere = spec.endpoints.is_empty() && spec.workload_selector.is_none();
        let (severity, text) = if self.resolution == Resolution::Dns && nowhere {
            (
                Severity::Error,
                "a host with * cannot be resolved; it needs endpoints, and is not served without",
            )
        } else if !spec.addresses.is_empty() {
            (
                Severity::Info,
                "connections are told by their address alone: whatever goes to one of the addresses counts, \
                 by whatever name it was dialed",
            )
        } else if self.resolution == Resolution::Static {
            (
                Severity::Info,
                "every name below is answered with the endpoints' addresses",
            )
        } else {
            (
                Severity::Error,
                "a host with * and without addresses cannot be told at layer 4; it is not served",
            )
        };
        say.say(severity, field.to_owned(), text.to_owned());
        severity < Severity::Error
    }

    fn wants_automatic(&self, host: &Hostname) -> bool {
        wants_automatic(&self.entry.object, host.as_str())
    }

    /// Addresses of our own making, for a service that clients know by name only.
    fn automatic(
        &self,
        host: &Hostname,
        claims: &mut Claims,
        say: &mut Say<'_>,
    ) -> Vec<NetworkAddress> {
        let namespace = &self.entry.object.metadata.namespace;
        let (v4, v6) = automatic::candidates(namespace, host.as_str());
        let address = |ip: IpAddr| NetworkAddress {
            network: self.settings.network.clone(),
            ip,
        };
        let mut own = Vec::new();
        for candidates in [v4, vec![v6]] {
            let free = candidates
                .into_iter()
                .map(address)
                .find(|address| !claims.contains_key(address));
            match free {
                Some(free) => {
                    claims.insert(free.clone(), say.object.clone());
                    own.push(free);
                }
                None => say.say(
                    Severity::Error,
                    "spec.addresses".to_owned(),
                    format!("no address could be found for {host}; give it one"),
                ),
            }
        }
        own
    }

    fn addresses(&self, claims: &mut Claims, say: &mut Say<'_>) -> Addresses {
        let (mut vips, mut ranges) = (Vec::new(), Vec::new());
        let network = &self.settings.network;
        for (i, text) in self.entry.object.spec.addresses.iter().enumerate() {
            let field = format!("spec.addresses[{i}]");
            let Some(found) = matches::network(text) else {
                let text = format!("{text:?} is neither an address nor a CIDR block");
                say.say(Severity::Error, field, text);
                continue;
            };
            if found.prefix_len() != found.max_prefix_len() {
                ranges.push((network.clone(), found));
                continue;
            }
            let address = NetworkAddress {
                network: network.clone(),
                ip: found.addr(),
            };
            let owner = self.drafts.by_address.get(&address);
            match owner.map(|owner| &self.drafts.all[*owner]) {
                Some(owner) if owner.pod.is_some() => {
                    let text = format!("{} is the address of {}", address.ip, owner.object);
                    say.say(Severity::Error, field, text);
                }
                _ => say.claim_ip(self.settings, claims, &mut vips, &field, address.ip),
            }
        }
        (vips, ranges)
    }
}

/// How endpoints are found; `None` when this version cannot.
fn resolution(entry: &Entry<ServiceEntry>, say: &mut Say<'_>) -> Option<Resolution> {
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
    match spec.resolution.as_str() {
        "STATIC" => Some(Resolution::Static),
        "DNS" | "DNS_ROUND_ROBIN" => Some(Resolution::Dns),
        "" | "NONE" => {
            if spec.addresses.is_empty() {
                let text = "without addresses, resolution NONE matches no connection at layer 4"
                    .to_owned();
                say.say(Severity::Warning, "spec.addresses".to_owned(), text);
            }
            Some(Resolution::None)
        }
        "DYNAMIC_DNS" => {
            let text = "DYNAMIC_DNS needs layer 7, which knows the name of each request: the entry is not in force, \
                        and its hosts are destinations outside the mesh"
                .to_owned();
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
pub(crate) fn virtual_address(text: &str) -> Option<IpAddr> {
    let network = matches::network(text)?;
    (network.prefix_len() == network.max_prefix_len()).then(|| network.addr())
}

/// Whether a host is known by name only, so that it needs an address of our own making.
pub(crate) fn wants_automatic(entry: &ServiceEntry, host: &str) -> bool {
    matches!(entry.spec.resolution.as_str(), "DNS" | "DNS_ROUND_ROBIN")
        && entry.spec.addresses.is_empty()
        && !host.starts_with('*')
        && entry.metadata.label(AUTOMATIC) != Some("false")
}

type Addresses = (Vec<NetworkAddress>, Vec<(NetworkId, ipnet::IpNet)>);

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
