//! Services of Kubernetes to services of the mesh.

use std::{
    collections::{BTreeMap, HashMap},
    net::IpAddr,
    time::Duration,
};

use mesh_k8s::{ObjectMeta, ObjectRef, core::Service as Wire, text::IntOrString};
use mesh_model::{
    mesh::{
        Service, ServiceExtra, ServicePort,
        service::{Balancing, Mode, Scope},
    },
    name::{NetworkAddress, ServiceName},
};

use super::{
    draft::parse_ip,
    probes::is_tcp,
    protocol, visibility,
    way::{Lack, Way},
};
use crate::{
    settings::Settings,
    status::{InForce, Reports, Severity},
    view::{ClusterView, Entry, Key, Origin},
};

/// Session affinity holds for three hours unless said otherwise.
const DEFAULT_AFFINITY: Duration = Duration::from_secs(10_800);

/// Where a port of a service leads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Target {
    Number(u16),
    Name(String),
}

/// A port as endpoints need to know it.
#[derive(Clone, Debug)]
pub(crate) struct PortPlan {
    pub(crate) name: String,
    pub(crate) port: u16,
    pub(crate) target: Target,
}

/// A service in the making.
#[derive(Debug)]
pub(crate) struct ServiceDraft<'a> {
    pub(crate) service: Service,
    pub(crate) extra: ServiceExtra,
    pub(crate) object: ObjectRef,
    pub(crate) ports: Vec<PortPlan>,
    /// Labels of its pods.
    pub(crate) selector: &'a BTreeMap<String, String>,
    /// Whether nobody is to see it: then nobody is told of it.
    pub(crate) hidden: bool,
    /// How its requests come to a waypoint.
    pub(crate) way: Way,
    /// Why it has none, where it has none.
    pub(crate) lack: Lack,
}

/// Who owns which virtual address. The first to claim it keeps it.
pub(crate) type Claims = HashMap<NetworkAddress, ObjectRef>;

/// Adds the services of Kubernetes, the oldest first, so that an address claimed twice stays with the older.
pub(crate) fn collect<'a>(
    view: &'a ClusterView,
    settings: &Settings,
    claims: &mut Claims,
    reports: &mut Reports,
) -> Vec<ServiceDraft<'a>> {
    let mut entries: Vec<_> = view.services.values().collect();
    entries.sort_by_cached_key(|entry| crate::settings::age(&entry.object.metadata));
    entries
        .into_iter()
        .map(|entry| draft(view, entry, settings, claims, reports))
        .collect()
}

fn draft<'a>(
    view: &ClusterView,
    entry: &'a Entry<Wire>,
    settings: &Settings,
    claims: &mut Claims,
    reports: &mut Reports,
) -> ServiceDraft<'a> {
    let wire = &*entry.object;
    let (meta, spec) = (&wire.metadata, &wire.spec);
    let object = ObjectRef::of::<Wire>(meta);
    let mut say = Say {
        object: &object,
        origin: &entry.origin,
        reports,
    };
    let name = ServiceName {
        namespace: meta.namespace.as_str().into(),
        hostname: settings.hostname(&meta.namespace, &meta.name),
    };
    let external_name =
        (spec.kind == "ExternalName").then(|| spec.external_name.trim_end_matches('.').into());
    let headless = spec.cluster_ip.eq_ignore_ascii_case("None")
        || spec.cluster_ips.iter().any(|ip| ip == "None");
    let mut vips = Vec::new();
    if external_name.is_none() && !headless {
        for (i, text) in spec.cluster_ips.iter().enumerate() {
            say.claim(
                settings,
                claims,
                &mut vips,
                &format!("spec.clusterIPs[{i}]"),
                text,
            );
        }
        if !spec.cluster_ip.is_empty() && !spec.cluster_ips.contains(&spec.cluster_ip) {
            say.claim(
                settings,
                claims,
                &mut vips,
                "spec.clusterIP",
                &spec.cluster_ip,
            );
        }
    }
    let (ports, plans) = ports(wire, &mut say);
    let canary = "istio.io/use-waypoint-canary";
    if meta
        .label(canary)
        .is_some_and(|waypoint| waypoint != "none")
    {
        let text = "a second waypoint is not honoured; everything goes through the first";
        let field = format!("metadata.labels[{canary}]");
        say.say(Severity::Warning, field, text.to_owned());
    }
    let list = meta
        .annotation(visibility::ANNOTATION)
        .filter(|list| !list.trim().is_empty());
    let field = format!("metadata.annotations[{}]", visibility::ANNOTATION);
    let list = list.into_iter().flat_map(|list| list.split(','));
    let seen = visibility::read(&meta.namespace, list, &field, &mut say);
    let service = Service {
        name,
        short: meta.name.as_str().into(),
        vips: vips.into(),
        ranges: [].into(),
        ports,
        subject_alt_names: [].into(),
        waypoint: None,
        balancing: balancing(view, wire, &mut say),
        visibility: seen.visibility,
    };
    let affinity = affinity(wire, &mut say);
    let extra = ServiceExtra {
        affinity,
        headless,
        external_name,
        features: seen.features(),
        visible_to: seen.to,
        standby: None,
    };
    ServiceDraft {
        service,
        extra,
        object,
        ports: plans,
        selector: &spec.selector,
        hidden: seen.nobody,
        way: Way::default(),
        lack: Lack::default(),
    }
}

fn ports(wire: &Wire, say: &mut Say<'_>) -> (Box<[ServicePort]>, Vec<PortPlan>) {
    let (mut ports, mut plans) = (Vec::new(), Vec::new());
    for (i, port) in wire
        .spec
        .ports
        .iter()
        .enumerate()
        .filter(|(_, port)| is_tcp(&port.protocol))
    {
        let target = match &port.target_port {
            None | Some(IntOrString::Int(0)) => Some(Target::Number(port.port)),
            Some(IntOrString::Int(number)) => u16::try_from(*number).ok().map(Target::Number),
            Some(IntOrString::Text(text)) if text.is_empty() => Some(Target::Number(port.port)),
            Some(IntOrString::Text(text)) => match text.parse() {
                Ok(0) => None,
                Ok(number) => Some(Target::Number(number)),
                Err(_) if text.bytes().all(|b| b.is_ascii_digit()) => None,
                Err(_) => Some(Target::Name(text.clone())),
            },
        };
        let Some(target) = target.filter(|_| port.port != 0) else {
            let text =
                "needs a port and a target port between 1 and 65535; this port is not served"
                    .to_owned();
            say.say(Severity::Error, format!("spec.ports[{i}]"), text);
            continue;
        };
        if plans.iter().any(|plan: &PortPlan| plan.port == port.port) {
            let text = format!(
                "port {} is already taken by another of its ports",
                port.port
            );
            say.say(Severity::Error, format!("spec.ports[{i}].port"), text);
            continue;
        }
        ports.push(ServicePort {
            port: port.port,
            target_port: if let Target::Number(number) = target {
                number
            } else {
                0
            },
            protocol: protocol::declared(&port.app_protocol, &port.name, port.port),
        });
        plans.push(PortPlan {
            name: port.name.clone(),
            port: port.port,
            target,
        });
    }
    (ports.into(), plans)
}

fn affinity(wire: &Wire, say: &mut Say<'_>) -> Option<Duration> {
    match wire.spec.session_affinity.as_str() {
        "" | "None" => None,
        "ClientIP" => {
            let config = wire
                .spec
                .session_affinity_config
                .as_ref()
                .and_then(|config| config.client_ip.as_ref());
            let seconds = config
                .and_then(|client| client.timeout_seconds)
                .filter(|seconds| *seconds != 0);
            Some(seconds.map_or(DEFAULT_AFFINITY, |seconds| {
                Duration::from_secs(seconds.into())
            }))
        }
        other => {
            let text = format!("{other:?} is neither None nor ClientIP; taken for None");
            say.say(Severity::Error, "spec.sessionAffinity".to_owned(), text);
            None
        }
    }
}

fn balancing(view: &ClusterView, wire: &Wire, say: &mut Say<'_>) -> Balancing {
    let (meta, spec) = (&wire.metadata, &wire.spec);
    let mut balancing = Balancing {
        allow_unhealthy: spec.publish_not_ready_addresses,
        ..Balancing::default()
    };
    match spec.internal_traffic_policy.as_str() {
        "" | "Cluster" => {}
        "Local" => {
            balancing.preference = [Scope::Node].into();
            balancing.mode = Mode::Strict;
            return balancing;
        }
        other => {
            let text = format!("{other:?} is neither Cluster nor Local; taken for Cluster");
            say.say(
                Severity::Error,
                "spec.internalTrafficPolicy".to_owned(),
                text,
            );
        }
    }
    prefer(
        &mut balancing,
        distribution(view, meta, &spec.traffic_distribution),
        say,
    );
    balancing
}

/// Sets the preference that a distribution asks for.
pub(crate) fn prefer(balancing: &mut Balancing, (field, value): (&str, &str), say: &mut Say<'_>) {
    if let Some(preference) = scopes(value) {
        balancing.mode = if preference.is_empty() {
            Mode::Unspecified
        } else {
            Mode::Failover
        };
        balancing.preference = preference.into();
    } else {
        let known = "PreferClose, PreferSameZone, PreferSameNode and Any";
        say.say(
            Severity::Error,
            field.to_owned(),
            format!("{value:?} is not known; known are {known}"),
        );
    }
}

/// The wanted distribution and the field that says so: the spec's, else the service's annotation, else the namespace's.
pub(crate) fn distribution<'a>(
    view: &'a ClusterView,
    meta: &'a ObjectMeta,
    spec: &'a str,
) -> (&'static str, &'a str) {
    const ANNOTATION: &str = "networking.istio.io/traffic-distribution";
    if !spec.is_empty() {
        return ("spec.trafficDistribution", spec);
    }
    let namespace = view.namespaces.get(&Key::new("", &meta.namespace));
    let inherited = || namespace.and_then(|entry| entry.object.metadata.annotation(ANNOTATION));
    let value = meta
        .annotation(ANNOTATION)
        .or_else(inherited)
        .unwrap_or_default();
    (
        "metadata.annotations[networking.istio.io/traffic-distribution]",
        value,
    )
}

fn scopes(distribution: &str) -> Option<Vec<Scope>> {
    use Scope::{Network, Node, Region, Subzone, Zone};
    Some(match distribution {
        "" | "Any" => Vec::new(),
        "PreferClose" => vec![Network, Region, Zone, Subzone],
        "PreferSameZone" => vec![Network, Region, Zone],
        "PreferSameNode" => vec![Network, Region, Zone, Subzone, Node],
        _ => return None,
    })
}

/// Says things about one object.
pub(crate) struct Say<'r> {
    pub(crate) object: &'r ObjectRef,
    pub(crate) origin: &'r Origin,
    pub(crate) reports: &'r mut Reports,
}

impl Say<'_> {
    pub(crate) fn say(&mut self, severity: Severity, field: String, text: String) {
        self.reports
            .say(self.object, self.origin, severity, field, text);
    }

    pub(crate) fn in_force(&mut self, in_force: InForce) {
        self.reports.in_force(self.object, self.origin, in_force);
    }

    /// Claims a virtual address for the object; one that another object owns is named and left to it.
    pub(crate) fn claim(
        &mut self,
        settings: &Settings,
        claims: &mut Claims,
        vips: &mut Vec<NetworkAddress>,
        field: &str,
        text: &str,
    ) {
        let Some(ip) = parse_ip(text) else {
            if !text.is_empty() {
                self.say(
                    Severity::Error,
                    field.to_owned(),
                    format!("{text:?} is not an IP address"),
                );
            }
            return;
        };
        self.claim_ip(settings, claims, vips, field, ip);
    }

    pub(crate) fn claim_ip(
        &mut self,
        settings: &Settings,
        claims: &mut Claims,
        vips: &mut Vec<NetworkAddress>,
        field: &str,
        ip: IpAddr,
    ) {
        let address = NetworkAddress {
            network: settings.network.clone(),
            ip,
        };
        if vips.contains(&address) {
            return;
        }
        if let Some(owner) = claims.get(&address) {
            let text = format!("{ip} belongs to {owner}; this service is not reached by it");
            self.say(Severity::Error, field.to_owned(), text);
            return;
        }
        claims.insert(address.clone(), self.object.clone());
        vips.push(address);
    }
}
