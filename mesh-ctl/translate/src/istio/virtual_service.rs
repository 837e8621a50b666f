//! VirtualService to sets of rules.
//!
//! Invariants: virtual services of one host and one scope are merged, the oldest first, rules that let everything in
//! last. One outside its host's namespace holds for clients of its own namespace only. Among patterns the most specific
//! decides alone.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use mesh_k8s::{
    Kind, ObjectRef,
    networking::{
        VirtualService,
        virtual_service::{HttpDirectResponse, HttpRoute, VirtualServiceSpec},
    },
};
use mesh_model::{
    resilience::Destination,
    route::{
        http::{Backend, Filters, Match, PathMatch, Rule, Selector},
        stream::{StreamAction, StreamRule},
    },
};

use super::{
    delegate, http_match,
    http_rule::{Around, refusing},
    in_force::{self, Found, Host},
    stream_rule::Wire,
};
use crate::{
    settings::{Settings, age},
    status::{InForce, Reports},
    traffic::{
        export::Export,
        hosts::{Hosts, Pattern},
        reader::Reader,
        routes::{Api, Set, Sets},
    },
    view::{ClusterView, Entry, Key},
};

/// The gateway that stands for every client in the mesh.
const MESH: &str = "mesh";

/// Whether clients in the mesh are meant.
pub(crate) fn is_for_mesh(wire: &VirtualService) -> bool {
    mean_mesh(&wire.spec.gateways)
}

/// Whether gateways, of a whole object or of one condition, mean clients in the mesh.
pub(crate) fn mean_mesh(gateways: &[String]) -> bool {
    gateways.is_empty() || gateways.iter().any(|gateway| gateway == MESH)
}

/// What virtual services are read beside.
pub(crate) struct Beside<'b, 'a> {
    pub(crate) view: &'b ClusterView,
    pub(crate) settings: &'b Settings,
    pub(crate) hosts: &'b Hosts<'b, 'a>,
    /// How services' endpoints are used, by index.
    pub(crate) uses: &'b HashMap<usize, Destination>,
}

/// Reads all of them, and adds what they say of services. Returns the labels by which rules select clients.
pub(crate) fn collect(
    beside: &Beside<'_, '_>,
    sets: &mut Sets,
    reports: &mut Reports,
) -> BTreeSet<Labels> {
    let mut entries: Vec<_> = beside.view.virtual_services.values().collect();
    entries.sort_by_cached_key(|entry| age(&entry.object.metadata));
    let delegates = delegates(beside.view);
    let mut read: Vec<Read<'_>> = entries
        .into_iter()
        .map(|entry| beside.read(entry, &delegates, sets))
        .collect();
    let claims = claims(&read);
    note_merging(&mut read, &claims, beside.hosts);
    for ((service, clients, producer), by_pattern) in &claims {
        let Some((_, indices)) = by_pattern
            .iter()
            .max_by_key(|(pattern, _)| pattern.weight())
        else {
            continue;
        };
        let rules = merge(indices.iter().map(|i| read[*i].rules.as_slice()));
        let streams = streams(beside, *service, indices.iter().map(|i| &read[*i]));
        sets.entry(*service).or_default().push(Set {
            clients: clients.clone(),
            producer: *producer,
            api: Api::Istio,
            ports: Vec::new(),
            rules,
            streams,
            by: Vec::new(),
        });
    }
    let mut selectors = BTreeSet::new();
    for one in read {
        let matches = one.rules.iter().flat_map(|rule| &rule.matches);
        selectors.extend(matches.filter_map(|one| one.source.as_ref()).map(labels_of));
        let matches = one.streams.iter().flat_map(|rule| &rule.matches);
        selectors.extend(matches.filter_map(|one| one.source.as_ref()).map(labels_of));
        // What was said since its hosts were looked at counts as well.
        let in_force = match one.in_force {
            InForce::Not(reason, text) => InForce::Not(reason, text),
            _ if one.partly() == InForce::Partly => InForce::Partly,
            in_force => in_force,
        };
        let object = ObjectRef::of::<VirtualService>(&one.entry.object.metadata);
        let origin = &one.entry.origin;
        reports.say_all(&object, origin, one.reader.messages);
        reports.in_force(&object, origin, in_force);
    }
    selectors
}

type Labels = BTreeMap<String, String>;

/// The labels of a canonical form, whose names and values have neither `=` nor `,`.
fn labels_of(selector: &Selector) -> Labels {
    let pairs = selector
        .0
        .split(',')
        .filter_map(|pair| pair.split_once('='));
    pairs
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .collect()
}

/// A virtual service that was read.
pub(super) struct Read<'v> {
    pub(super) entry: &'v Entry<VirtualService>,
    pub(super) reader: Reader,
    pub(super) rules: Vec<Rule>,
    /// Its rules for connections, those for TLS first.
    pub(super) streams: Vec<StreamRule>,
    /// The services that it speaks of: pattern, service, the clients, and whether the service is of its namespace.
    claims: BTreeSet<(Pattern, usize, Option<String>, bool)>,
    in_force: InForce,
}

/// A service and the clients of it that are meant.
type Scope = (usize, Option<String>, bool);
/// Virtual services by scope and pattern, as indices, the oldest first.
type Claims = BTreeMap<Scope, BTreeMap<Pattern, Vec<usize>>>;

fn claims(read: &[Read<'_>]) -> Claims {
    let mut all = Claims::new();
    for (index, one) in read
        .iter()
        .enumerate()
        .filter(|(_, one)| !(one.rules.is_empty() && one.streams.is_empty()))
    {
        for (pattern, service, clients, producer) in &one.claims {
            let by_pattern = all
                .entry((*service, clients.clone(), *producer))
                .or_default();
            by_pattern.entry(pattern.clone()).or_default().push(index);
        }
    }
    // Clients to whom some of the service's own are exported see those for everybody as well.
    let some = all
        .keys()
        .filter(|(_, clients, own)| clients.is_some() && *own);
    for scope in some.cloned().collect::<Vec<_>>() {
        let general = all.get(&(scope.0, None, true)).cloned();
        let by_pattern = all.entry(scope).or_default();
        for (pattern, more) in general.into_iter().flatten() {
            let indices = by_pattern.entry(pattern).or_default();
            indices.extend(more);
            indices.sort_unstable();
            indices.dedup();
        }
    }
    all
}

/// Says to those that are merged behind others that they are.
fn note_merging(read: &mut [Read<'_>], claims: &Claims, hosts: &Hosts<'_, '_>) {
    // The same may hold for several scopes.
    let (mut behind, mut unreached) = (BTreeSet::new(), BTreeSet::new());
    for ((service, _, _), by_pattern) in claims {
        for (pattern, indices) in by_pattern {
            let (Pattern::Exact(_), [first, rest @ ..]) = (pattern, indices.as_slice()) else {
                continue;
            };
            let host = &hosts.get(*service).service.name.hostname;
            let of = |one: &Read<'_>| ObjectRef::of::<VirtualService>(&one.entry.object.metadata);
            let older = of(&read[*first]);
            let mut all = indices
                .iter()
                .filter(|i| read[**i].rules.iter().any(is_catch_all));
            let catching = all.next().map(|i| (*i, of(&read[*i])));
            for index in rest {
                let text = format!(
                    "{host} is also a host of {older}, which is older; its rules come first"
                );
                behind.insert((*index, text));
                if let Some((catcher, name)) = &catching
                    && catcher != index
                    && read[*index].rules.iter().any(is_catch_all)
                {
                    let text = format!(
                        "a rule that lets everything in is never reached for {host}: {name} has an older one"
                    );
                    unreached.insert((*index, text));
                }
            }
        }
    }
    for (index, text) in behind {
        read[index].reader.info("spec.hosts", text);
    }
    for (index, text) in unreached {
        read[index].reader.warn("spec.http", text);
    }
}

/// Rules for connections of several, those for TLS first, in order. What none of them takes goes to the service itself.
fn streams<'r, 'v: 'r>(
    beside: &Beside<'_, '_>,
    service: usize,
    all: impl Iterator<Item = &'r Read<'v>>,
) -> Vec<StreamRule> {
    let rules = all.flat_map(|one| one.streams.iter().cloned());
    let by_name = |rule: &StreamRule| rule.matches.iter().any(|m| !m.hosts.is_empty());
    let (mut rules, plain): (Vec<StreamRule>, Vec<StreamRule>) = rules.partition(by_name);
    rules.extend(plain);
    if !rules.is_empty() {
        let itself = Backend {
            service: beside.hosts.get(service).service.name.clone(),
            port: None,
            subset: None,
            weight: 1,
            filters: Filters::default(),
            invalid: None,
        };
        rules.push(StreamRule {
            name: "default".into(),
            matches: [].into(),
            action: StreamAction::Forward([itself].into()),
        });
    }
    rules
}

/// Rules of several, in order; those that let everything in come last.
fn merge<'r>(all: impl ExactSizeIterator<Item = &'r [Rule]>) -> Vec<Rule> {
    let alone = all.len() == 1;
    let rules = all.flatten().cloned();
    if alone {
        return rules.collect();
    }
    let (last, mut first): (Vec<Rule>, Vec<Rule>) = rules.partition(is_catch_all);
    first.extend(last);
    first
}

/// Whether a rule lets every request in.
fn is_catch_all(rule: &Rule) -> bool {
    let everything = |one: &Match| {
        let bare = Match {
            path: None,
            ignore_case: false,
            ..one.clone()
        };
        let path = match &one.path {
            None => true,
            Some(PathMatch::Prefix(text)) => &**text == "/",
            Some(PathMatch::Regex(pattern)) => pattern.as_str() == ".*",
            Some(PathMatch::Exact(_) | PathMatch::Segments(_)) => false,
        };
        path && bare == Match::default()
    };
    rule.matches.is_empty() || rule.matches.iter().any(everything)
}

/// Who hands requests to which virtual service.
fn delegates(view: &ClusterView) -> BTreeSet<Key> {
    let roots = view.virtual_services.values().map(|entry| &entry.object);
    let handed = roots.flat_map(|root| {
        let own = root.metadata.namespace.as_str();
        let all = root
            .spec
            .http
            .iter()
            .filter_map(|rule| rule.delegate.as_ref());
        all.map(move |to| delegate::key(own, to))
    });
    handed.collect()
}

impl Beside<'_, '_> {
    fn read<'v>(
        &self,
        entry: &'v Entry<VirtualService>,
        delegates: &BTreeSet<Key>,
        sets: &Sets,
    ) -> Read<'v> {
        let VirtualService { metadata, spec } = &*entry.object;
        let mut reader = Reader::default();
        let export = Export::read(&metadata.namespace, &spec.export_to, &mut reader);
        let rules = self.rules(entry, &mut reader);
        let streams = self.streams(entry, &mut reader);
        let mut one = Read {
            entry,
            reader,
            rules,
            streams,
            claims: BTreeSet::new(),
            in_force: InForce::Wholly,
        };
        if spec.hosts.is_empty() {
            let key = Key::new(&metadata.namespace, &metadata.name);
            one.in_force = match delegates.contains(&key) {
                true => one.partly(),
                false => {
                    let text = "has no hosts, and no other virtual service delegates to it";
                    InForce::Not("NotReferenced", text.to_owned())
                }
            };
            return one;
        }
        let found = self.claim(&mut one, &export, sets);
        one.in_force = in_force::of(&one, &export, found);
        one
    }

    /// Finds the services that it speaks of, and for whose clients.
    fn claim(&self, one: &mut Read<'_>, export: &Export, sets: &Sets) -> Found {
        let VirtualService { metadata, spec } = &*one.entry.object;
        let own = metadata.namespace.as_str();
        let mut found = Found::default();
        if !is_for_mesh(&one.entry.object) {
            return found;
        }
        for (i, _) in spec.gateways.iter().enumerate().filter(|(_, g)| *g != MESH) {
            one.reader
                .info(format!("spec.gateways[{i}]"), http_match::LEFT);
        }
        for (i, host) in spec.hosts.iter().enumerate() {
            let field = format!("spec.hosts[{i}]");
            let pattern = match Pattern::read(self.settings, own, host) {
                Ok(pattern) => pattern,
                Err(text) => {
                    one.reader.error(field, text);
                    continue;
                }
            };
            let services = self.hosts.matching(own, &pattern);
            if let (Pattern::Exact(host), []) = (&pattern, services.as_slice()) {
                let text = format!("{host} is no service that namespace {own} sees");
                one.reader.warn(field.clone(), text);
            }
            for service in services {
                let producer = self.is_own(own, service);
                let clients = clients(own, producer, export);
                let host = Host {
                    field: &field,
                    exact: matches!(pattern, Pattern::Exact(_)),
                    draft: self.hosts.get(service),
                    clients: &clients,
                    producer,
                    sets: sets.get(&service).map_or(&[], Vec::as_slice),
                };
                found.host(one, export, &host);
                for clients in clients {
                    let claim = (pattern.clone(), service, clients, producer);
                    one.claims.insert(claim);
                }
            }
        }
        found
    }

    fn is_own(&self, namespace: &str, service: usize) -> bool {
        self.hosts.get(service).service.name.namespace.as_str() == namespace
    }

    /// The rules, those of delegates in the place of what hands over to them.
    fn rules(&self, entry: &Entry<VirtualService>, reader: &mut Reader) -> Vec<Rule> {
        let VirtualService { metadata, spec } = &*entry.object;
        let around = self.around(&metadata.namespace, &entry.unknown);
        let mut rules = Vec::new();
        for (i, wire) in spec.http.iter().enumerate() {
            let path = format!("spec.http[{i}]");
            let name = rule_name(&entry.object, wire, i);
            if wire.delegate.is_some() {
                rules.extend(self.delegated(&around, reader, &path, &name, entry, wire));
            } else {
                rules.extend(around.rule(reader, &path, name, wire));
                Around::warn_of_idle(reader, &path, wire);
            }
        }
        let mut before = rules
            .iter()
            .enumerate()
            .filter(|(_, rule)| is_catch_all(rule));
        if let Some((at, rule)) = before.next()
            && at + 1 < rules.len()
        {
            let text = format!(
                "rules behind {} are never reached: it lets everything in",
                rule.name
            );
            reader.warn("spec.http", text);
        }
        rules
    }

    /// The rules for connections.
    fn streams(&self, entry: &Entry<VirtualService>, reader: &mut Reader) -> Vec<StreamRule> {
        let VirtualService { metadata, spec } = &*entry.object;
        let around = self.around(&metadata.namespace, &entry.unknown);
        let name = |label: String| -> Arc<str> {
            let VirtualService { metadata, .. } = &*entry.object;
            let kind = VirtualService::KIND;
            format!("{kind}/{}/{}#{label}", metadata.namespace, metadata.name).into()
        };
        let mut rules = Vec::new();
        for (i, rule) in spec.tls.iter().enumerate() {
            let wire = rule.matches.iter().map(|m| Wire {
                hosts: &m.sni_hosts,
                networks: &m.destination_subnets,
                port: m.port,
                labels: &m.source_labels,
                gateways: &m.gateways,
                namespace: &m.source_namespace,
                source: "",
            });
            let (path, matches) = (format!("spec.tls[{i}]"), (wire.collect(), true));
            let name = name(format!("tls-{i}"));
            rules.extend(around.stream(reader, &path, name, matches, &rule.route));
        }
        for (i, rule) in spec.tcp.iter().enumerate() {
            let wire = rule.matches.iter().map(|m| Wire {
                hosts: &[],
                networks: &m.destination_subnets,
                port: m.port,
                labels: &m.source_labels,
                gateways: &m.gateways,
                namespace: &m.source_namespace,
                source: &m.source_subnet,
            });
            let (path, matches) = (format!("spec.tcp[{i}]"), (wire.collect(), false));
            let name = name(format!("tcp-{i}"));
            rules.extend(around.stream(reader, &path, name, matches, &rule.route));
        }
        rules
    }

    fn around<'r>(&'r self, namespace: &'r str, unknown: &'r [String]) -> Around<'r, 'r> {
        Around {
            settings: self.settings,
            hosts: self.hosts,
            uses: self.uses,
            namespace,
            unknown,
        }
    }

    fn delegated(
        &self,
        around: &Around<'_, '_>,
        reader: &mut Reader,
        path: &str,
        name: &Arc<str>,
        entry: &Entry<VirtualService>,
        wire: &HttpRoute,
    ) -> Vec<Rule> {
        let VirtualService { metadata, spec } = &*entry.object;
        let Some(to) = &wire.delegate else {
            return Vec::new();
        };
        let field = format!("{path}.delegate");
        // What it says besides is read for what is to be said of that, with an answer that stands for the delegate's.
        let alone = HttpRoute {
            delegate: None,
            route: Vec::new(),
            redirect: None,
            direct_response: Some(HttpDirectResponse {
                status: 200,
                body: None,
            }),
            ..wire.clone()
        };
        let Some(own) = around.rule(reader, path, Arc::clone(name), &alone) else {
            return Vec::new();
        };
        let beside =
            !wire.route.is_empty() || wire.redirect.is_some() || wire.direct_response.is_some();
        let found = match (spec.hosts.is_empty(), beside) {
            (true, _) => Err("a delegate cannot delegate".to_owned()),
            (_, true) => Err("cannot stand beside route, redirect or directResponse".to_owned()),
            (false, false) => delegate::find(self.view, &metadata.namespace, to),
        };
        let leaf = match found {
            Ok(leaf) => leaf,
            Err(text) => {
                reader.fail(&field, text);
                let reason = reader.invalid.take().unwrap_or_default();
                return vec![refusing(own.name, own.matches, reason)];
            }
        };
        self.leaves(reader, &field, name, wire, leaf)
    }

    /// The rules of a delegate. What there is to say of them is said at the delegate.
    fn leaves(
        &self,
        reader: &mut Reader,
        field: &str,
        name: &str,
        root: &HttpRoute,
        leaf: &Entry<VirtualService>,
    ) -> Vec<Rule> {
        let around = self.around(&leaf.object.metadata.namespace, &leaf.unknown);
        let mut rules = Vec::new();
        for (i, wire) in leaf.object.spec.http.iter().enumerate() {
            let label = label(wire, i);
            let path = format!("spec.http[{i}]");
            let Some(merged) = delegate::merged(root, wire) else {
                let text = format!(
                    "rule {label} of the delegate never applies: its conditions are not within these"
                );
                reader.warn(field, text);
                continue;
            };
            let name = format!("{name}-{label}").into();
            rules.extend(around.rule(&mut Reader::default(), &path, name, &merged));
        }
        rules
    }
}

impl Read<'_> {
    pub(super) fn partly(&self) -> InForce {
        match self.reader.is_clean() && self.entry.unknown.is_empty() {
            true => InForce::Wholly,
            false => InForce::Partly,
        }
    }
}

/// The clients that are meant: everybody's, or those of each of these namespaces.
fn clients(own: &str, producer: bool, export: &Export) -> Vec<Option<String>> {
    match (producer, export) {
        (true, Export::Everyone) => vec![None],
        (true, Export::Only(only)) => only.iter().cloned().map(Some).collect(),
        (false, export) if export.reaches(own) => vec![Some(own.to_owned())],
        (false, _) => Vec::new(),
    }
}

fn label(wire: &HttpRoute, index: usize) -> String {
    match wire.name.as_str() {
        "" => index.to_string(),
        name => name.to_owned(),
    }
}

fn rule_name(wire: &VirtualService, rule: &HttpRoute, index: usize) -> Arc<str> {
    let meta = &wire.metadata;
    let (kind, label) = (VirtualService::KIND, label(rule, index));
    format!("{kind}/{}/{}#{label}", meta.namespace, meta.name).into()
}

/// Labels by which its rules select clients.
pub(crate) fn selectors(wire: &VirtualService) -> impl Iterator<Item = &BTreeMap<String, String>> {
    let VirtualServiceSpec { http, tls, tcp, .. } = &wire.spec;
    let http = http.iter().flat_map(|rule| &rule.matches);
    let tls = tls.iter().flat_map(|rule| &rule.matches);
    let tcp = tcp.iter().flat_map(|rule| &rule.matches);
    http.map(|one| &one.source_labels)
        .chain(tls.map(|one| &one.source_labels))
        .chain(tcp.map(|one| &one.source_labels))
        .filter(|labels| http_match::selector(labels).is_some())
}
