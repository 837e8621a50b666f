//! DestinationRule to destinations.
//!
//! Invariants: the rules of a service's own namespace decide, else those of the mesh's root namespaces; among them the
//! most specific pattern; several of one pattern are merged, the oldest first: its traffic policy, everybody's subsets.
//! What cannot be understood and would have protected something makes the destination refuse.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use mesh_k8s::{
    ObjectRef,
    networking::{DestinationRule, destination_rule::TrafficPolicy as Wire},
};
use mesh_model::{
    resilience::{Destination, Subset, TrafficPolicy},
    route::http::Selector,
};

use super::{
    connections, http_match,
    traffic_policy::{self, Parts},
};
use crate::{
    core::{
        service::ServiceDraft,
        way::{self, Served, Way},
    },
    gateway::needs,
    settings::{Settings, age},
    status::{InForce, Reports},
    traffic::{
        export::Export,
        hosts::{Hosts, Pattern, suffixes},
        reader::Reader,
    },
    view::{ClusterView, Entry},
};

/// Reads all rules; what they say of each service, by its index.
pub(crate) fn collect(
    view: &ClusterView,
    settings: &Settings,
    hosts: &Hosts<'_, '_>,
    reports: &mut Reports,
) -> HashMap<usize, Destination> {
    let mut entries: Vec<_> = view.destination_rules.values().collect();
    entries.sort_by_cached_key(|entry| age(&entry.object.metadata));
    let mut read: Vec<Read<'_>> = entries
        .into_iter()
        .map(|entry| Read::of(settings, entry))
        .collect();
    let mut groups: Groups = HashMap::new();
    for (index, one) in read
        .iter()
        .enumerate()
        .filter(|(_, one)| one.refused.is_none())
    {
        if let Some(pattern) = &one.pattern {
            let namespace = one.entry.object.metadata.namespace.clone();
            groups
                .entry((namespace, pattern.clone()))
                .or_default()
                .push(index);
        }
    }
    let merged: HashMap<&GroupKey, Merged> = groups
        .iter()
        .map(|(key, indices)| (key, merge(&mut read, indices)))
        .collect();
    let mut uses = HashMap::new();
    for service in hosts.all() {
        if let Some(key) = pick(settings, hosts, &groups, service) {
            let name = hosts.get(service).service.name.clone();
            uses.insert(service, merged[key].of(name));
        }
    }
    for one in &mut read {
        let concerns = one.key().is_some_and(|key| {
            let merged = merged.get(&key);
            merged.is_some_and(Merged::concerns_connections)
        });
        let in_force = in_force(settings, hosts, &groups, one, concerns);
        let object = ObjectRef::of::<DestinationRule>(&one.entry.object.metadata);
        reports.say_all(
            &object,
            &one.entry.origin,
            std::mem::take(&mut one.reader.messages),
        );
        reports.in_force(&object, &one.entry.origin, in_force);
    }
    uses
}

type GroupKey = (String, Pattern);
/// Rules by namespace and pattern, as indices, the oldest first.
type Groups = HashMap<GroupKey, Vec<usize>>;

/// A rule that was read.
struct Read<'v> {
    entry: &'v Entry<DestinationRule>,
    pattern: Option<Pattern>,
    reader: Reader,
    /// Why it holds for nobody.
    refused: Option<InForce>,
}

impl<'v> Read<'v> {
    fn of(settings: &Settings, entry: &'v Entry<DestinationRule>) -> Self {
        let DestinationRule { metadata, spec } = &*entry.object;
        let mut reader = Reader {
            refused: Some("requests to the host"),
            ..Reader::default()
        };
        let pattern = Pattern::read(settings, &metadata.namespace, &spec.host);
        let pattern = pattern.map_err(|text| reader.error("spec.host", text)).ok();
        let export = Export::read(&metadata.namespace, &spec.export_to, &mut reader);
        let refused = if pattern.is_none() {
            Some(InForce::Not("Invalid", "has no host".to_owned()))
        } else if export == Export::Only(BTreeSet::new()) {
            Some(InForce::Not(
                "NotExported",
                "exportTo names nobody".to_owned(),
            ))
        } else if spec.workload_selector.is_some() {
            let text = "rules for some clients only are not honoured";
            reader.warn("spec.workloadSelector", text);
            Some(InForce::Not("Unsupported", text.to_owned()))
        } else {
            None
        };
        if refused.is_none() && export != Export::Everyone {
            let text = "is not honoured: who keeps to the rule acts for clients of all namespaces, and for all of them it holds";
            reader.warn("spec.exportTo", text);
        }
        Self {
            entry,
            pattern,
            reader,
            refused,
        }
    }

    fn key(&self) -> Option<GroupKey> {
        let namespace = self.entry.object.metadata.namespace.clone();
        Some((namespace, self.pattern.clone()?))
    }

    fn name(&self) -> String {
        let meta = &self.entry.object.metadata;
        format!("{}/{}", meta.namespace, meta.name)
    }
}

/// The rules that decide for a service.
fn pick<'g>(
    settings: &Settings,
    hosts: &Hosts<'_, '_>,
    groups: &'g Groups,
    service: usize,
) -> Option<&'g GroupKey> {
    let name = &hosts.get(service).service.name;
    let own = name.namespace.as_str();
    let roots = settings.roots.iter().map(|root| root.as_str());
    std::iter::once(own).chain(roots).find_map(|namespace| {
        let host = name.hostname.as_str();
        let exact = std::iter::once(Pattern::Exact(host.to_owned()));
        let below = suffixes(host).map(|suffix| Pattern::Below(suffix.to_owned()));
        exact.chain(below).find_map(|pattern| {
            let found = groups.get_key_value(&(namespace.to_owned(), pattern));
            found.map(|(key, _)| key)
        })
    })
}

/// What several rules of one pattern say together.
struct Merged {
    by: Arc<str>,
    policy: Arc<TrafficPolicy>,
    ports: Box<[(u16, Arc<TrafficPolicy>)]>,
    subsets: Box<[Subset]>,
    features: Box<[Arc<str>]>,
}

impl Merged {
    /// Whether it says anything that node proxies keep to.
    fn concerns_connections(&self) -> bool {
        let ports = self.ports.iter().map(|(_, policy)| policy);
        let mut policies = ports.chain([&self.policy]);
        policies.any(|policy| policy.concerns_connections())
    }

    fn of(&self, service: mesh_model::name::ServiceName) -> Destination {
        Destination {
            service,
            by: Arc::clone(&self.by),
            policy: Arc::clone(&self.policy),
            ports: self.ports.clone(),
            subsets: self.subsets.clone(),
            features: self.features.clone(),
        }
    }
}

fn merge(read: &mut [Read<'_>], indices: &[usize]) -> Merged {
    let deciding = indices
        .iter()
        .find(|i| read[**i].entry.object.spec.traffic_policy.is_some());
    let deciding = *deciding.unwrap_or(&indices[0]);
    let mut reason = None;
    let mut refuse = |one: &mut Read<'_>| {
        if let Some(text) = one.reader.invalid.take() {
            reason.get_or_insert(format!("{}: {text}", one.name()));
        }
    };
    let entry = read[deciding].entry;
    let top = entry.object.spec.traffic_policy.as_ref();
    warn_of_tunnel(&mut read[deciding].reader, "spec.trafficPolicy", top);
    let base = |port: Option<u16>| match top {
        Some(wire) => Parts::default().under("spec.trafficPolicy", wire, port),
        None => Parts::default(),
    };
    let policy = Arc::new(base(None).read(&mut read[deciding].reader));
    let numbers = ports(&mut read[deciding].reader, "spec.trafficPolicy", top);
    let mut own = Vec::new();
    for port in &numbers {
        let policy = base(Some(*port)).read(&mut read[deciding].reader);
        own.push((*port, Arc::new(policy)));
    }
    refuse(&mut read[deciding]);
    let mut subsets: BTreeMap<String, (Subset, String)> = BTreeMap::new();
    for index in indices {
        let one = &mut read[*index];
        let name = one.name();
        if *index != deciding && one.entry.object.spec.traffic_policy.is_some() {
            let text = "not in force: an older rule for this host decides; subsets count";
            one.reader.warn("spec.trafficPolicy", text);
        }
        for (i, wire) in one.entry.object.spec.subsets.iter().enumerate() {
            let path = format!("spec.subsets[{i}]");
            if let Some((_, by)) = subsets.get(&wire.name) {
                let text = format!("{:?} is already a subset, by {by}", wire.name);
                one.reader.error(format!("{path}.name"), text);
                continue;
            }
            let path = format!("{path}.trafficPolicy");
            warn_of_tunnel(&mut one.reader, &path, wire.traffic_policy.as_ref());
            let mut numbers = numbers.clone();
            let own_ports = ports(&mut one.reader, &path, wire.traffic_policy.as_ref());
            numbers.extend(&own_ports);
            numbers.sort_unstable();
            numbers.dedup();
            let parts = |port: Option<u16>| match &wire.traffic_policy {
                Some(wire) => base(port).under(&path, wire, port),
                None => base(port),
            };
            // What the top says was told where it stands.
            let mut aside = Reader::default();
            let reader = if wire.traffic_policy.is_some() && *index == deciding {
                &mut one.reader
            } else {
                &mut aside
            };
            let policy = Arc::new(parts(None).read(reader));
            let own = numbers
                .iter()
                .map(|port| (*port, Arc::new(parts(Some(*port)).read(reader))));
            let subset = Subset {
                name: wire.name.as_str().into(),
                selector: Selector(http_match::group(&wire.labels)),
                policy,
                ports: own.collect(),
            };
            let hidden = aside.invalid.take();
            one.reader.invalid = one.reader.invalid.take().or(hidden);
            if *index != deciding
                && let Some(policy) = &wire.traffic_policy
            {
                for port in own_ports.into_iter().map(Some).chain([None]) {
                    let own = Parts::default().under(&path, policy, port);
                    own.read(&mut one.reader);
                }
            }
            if !http_match::are_labels(&wire.labels) {
                let text = "are not labels".to_owned();
                one.reader.fail(&format!("spec.subsets[{i}].labels"), text);
            }
            subsets.insert(wire.name.clone(), (subset, name.clone()));
        }
        refuse(one);
    }
    let features = reason.map(|text| Arc::from(format!("invalid: {text}")));
    Merged {
        by: read[deciding].name().into(),
        policy,
        ports: own.into(),
        subsets: subsets.into_values().map(|(subset, _)| subset).collect(),
        features: features.into_iter().collect(),
    }
}

/// Says of a tunnel that there is none.
fn warn_of_tunnel(reader: &mut Reader, path: &str, wire: Option<&Wire>) {
    if wire.is_some_and(|policy| policy.tunnel.is_some()) {
        let text = "is not honoured; connections go to the endpoints themselves";
        reader.warn(format!("{path}.tunnel"), text);
    }
}

/// The ports that have settings of their own.
fn ports(reader: &mut Reader, path: &str, wire: Option<&Wire>) -> Vec<u16> {
    let mut ports = Vec::new();
    let settings = wire.into_iter().flat_map(|wire| &wire.port_level_settings);
    for (i, own) in settings.enumerate() {
        let number = own.port.map_or(0, |port| port.number);
        match u16::try_from(number) {
            Ok(port) if port != 0 && !ports.contains(&port) => ports.push(port),
            _ => {
                let text = format!("{number} is no port, or given twice; it is left out");
                reader.error(format!("{path}.portLevelSettings[{i}].port"), text);
            }
        }
    }
    ports.sort_unstable();
    ports
}

fn in_force(
    settings: &Settings,
    hosts: &Hosts<'_, '_>,
    groups: &Groups,
    one: &mut Read<'_>,
    concerns_connections: bool,
) -> InForce {
    if let Some(refused) = &one.refused {
        return refused.clone();
    }
    let Some(pattern) = one.pattern.clone() else {
        return InForce::Wholly;
    };
    let own = one.entry.object.metadata.namespace.clone();
    let services = hosts.named(&pattern);
    let not = |reason, text| InForce::Not(reason, text);
    if services.is_empty() {
        let text = format!("{} is no service", one.entry.object.spec.host);
        return not("NoSuchHost", text);
    }
    let mine = |service: &usize| {
        let owner = hosts.get(*service).service.name.namespace.as_str();
        owner == own || settings.is_root(&own)
    };
    if !services.iter().any(mine) {
        let owner = &hosts.get(services[0]).service.name.namespace;
        let text = format!(
            "the host belongs to namespace {owner}: rules for it are honoured there and in the mesh's root namespace, for all clients alike; Istio would look here first for clients of namespace {own}, which this version does not"
        );
        return not("NotOwner", text);
    }
    if let Pattern::Exact(_) = pattern {
        let key = (own.clone(), pattern.clone());
        let decides = |service: &usize| pick(settings, hosts, groups, *service) == Some(&key);
        if !services.iter().any(decides) {
            let text = "another rule decides for the host, in its own namespace";
            return not("Conflicted", text.to_owned());
        }
    }
    let owned = services.iter().filter(|service| mine(service));
    let owned: Vec<&ServiceDraft<'_>> = owned.map(|service| hosts.get(*service)).collect();
    if let Pattern::Exact(_) = pattern {
        for draft in &owned {
            match way::served(draft, false) {
                Served::Made(text) | Served::Pending(text) => one.reader.info("spec.host", text),
                Served::Refused(text) => one.reader.warn("spec.host", text),
                Served::Chosen | Served::Not(_) => {}
            }
        }
    }
    let with = |draft: &&ServiceDraft<'_>| {
        matches!(way::served(draft, false), Served::Chosen | Served::Made(_))
    };
    if !owned.iter().any(with) {
        let waits = owned.iter().find_map(|draft| match &draft.way {
            Way::Pending(text) => Some(text.clone()),
            Way::AsChosen | Way::Made(_) | Way::Refused(_) => None,
        });
        if let Some(text) = waits {
            return not("Pending", text);
        }
        let refused = owned.iter().map(|draft| match way::served(draft, false) {
            Served::Refused(text) => Some(text),
            Served::Chosen | Served::Made(_) | Served::Pending(_) | Served::Not(_) => None,
        });
        if let Some(Some(text)) = refused.reduce(|a, b| a.filter(|_| b.is_some())) {
            return not(way::UNUSABLE, text);
        }
        let spec = &one.entry.object.spec;
        let policy = spec.traffic_policy.as_ref();
        let alone = spec.subsets.is_empty() && policy.is_some_and(needs::none);
        if (concerns_connections || alone) && owned.iter().any(|draft| way::has_address(draft)) {
            connections::without_waypoint(&mut one.reader, spec);
            return match one.reader.is_clean() && one.entry.unknown.is_empty() {
                true => InForce::By(connections::KEPT.to_owned()),
                false => InForce::Partly,
            };
        }
        let by_request = policy.is_some_and(needs::by_request);
        let without = owned.iter().map(|draft| way::served(draft, by_request));
        let mut without = without.filter_map(|served| match served {
            Served::Not(text) => Some(text),
            Served::Chosen | Served::Made(_) | Served::Pending(_) | Served::Refused(_) => None,
        });
        if let Some(text) = without.next() {
            return not("NoWaypoint", text);
        }
    }
    let made = owned.iter().find_map(|draft| match &draft.way {
        Way::Made(text) => Some(text.clone()),
        Way::AsChosen | Way::Pending(_) | Way::Refused(_) => None,
    });
    match one.reader.is_clean() && one.entry.unknown.is_empty() {
        true => made.map_or(InForce::Wholly, InForce::By),
        false => InForce::Partly,
    }
}

/// Labels that clients and endpoints are compared by: those of one value, and those of any.
pub(crate) fn compared(wire: &DestinationRule) -> (Vec<BTreeMap<String, String>>, Vec<&str>) {
    let (mut values, mut keys) = (Vec::new(), Vec::new());
    let subsets = wire.spec.subsets.iter();
    let subsets = subsets.filter_map(|subset| subset.traffic_policy.as_ref());
    for policy in wire.spec.traffic_policy.iter().chain(subsets) {
        for (key, value) in traffic_policy::compared(policy) {
            match value {
                Some(value) => values.push(BTreeMap::from([(key.to_owned(), value.to_owned())])),
                None => keys.push(key),
            }
        }
    }
    (values, keys)
}

/// Labels of its subsets, each with the namespace whose workloads are meant where the host tells it.
pub(crate) fn selectors<'w>(
    settings: &Settings,
    wire: &'w DestinationRule,
) -> Vec<(Option<String>, &'w BTreeMap<String, String>)> {
    let pattern = Pattern::read(settings, &wire.metadata.namespace, &wire.spec.host);
    let Ok(pattern) = pattern else {
        return Vec::new();
    };
    let namespace = pattern.namespace(settings);
    let subsets = wire.spec.subsets.iter().map(|subset| &subset.labels);
    subsets
        .filter(|labels| !labels.is_empty() && http_match::are_labels(labels))
        .map(|labels| (namespace.clone(), labels))
        .collect()
}
