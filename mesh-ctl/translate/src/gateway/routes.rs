//! The Gateway API's routes to sets of rules.
//!
//! Invariants: only services are parents here. A route in the service's namespace is for every client, one elsewhere for
//! clients of its own namespace. On one port gRPC routes keep HTTP routes out, both TLS routes, and all of them TCP routes;
//! routes of one kind are merged by how specific their matches are, then by age, name and order, except that of TCP
//! routes, which have no matches, the oldest keeps the others out.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use mesh_k8s::{
    Kind, ObjectRef,
    core::Service,
    gateway::{GrpcRoute, HttpRoute, ParentReference, StreamRouteRule, TcpRoute, TlsRoute},
};
use mesh_model::route::{http::Rule, stream::StreamRule};

use super::{
    fate::{Decided, Fate},
    parents,
    rules::{ANSWERED, Around, Rank},
    stream_rules,
};
use crate::{
    core::{service::ServiceDraft, way},
    settings::{Settings, age},
    status::{InForce, Reports},
    traffic::{
        hosts::Hosts,
        reader::Reader,
        routes::{Api, Set, Sets},
    },
    view::{ClusterView, Entry, Origin},
};

/// Which kind a route is of. The order is that of precedence.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Class {
    Grpc,
    Http,
    Tls,
    Tcp,
}

impl Class {
    /// Whether it tells connections apart by name; `None` when it is about requests.
    fn is_by_name(self) -> Option<bool> {
        match self {
            Self::Grpc | Self::Http => None,
            Self::Tls => Some(true),
            Self::Tcp => Some(false),
        }
    }

    /// Whether it is about requests alone.
    pub(super) fn is_by_request(self) -> bool {
        self.is_by_name().is_none()
    }
}

/// A route that was read.
pub(super) struct Read<'v> {
    pub(super) class: Class,
    object: ObjectRef,
    origin: &'v Origin,
    age: (bool, String, String, String),
    complete: bool,
    pub(super) reader: Reader,
    rules: Vec<(Rank, Rule)>,
    streams: Vec<(Rank, StreamRule)>,
    pub(super) parents: Vec<Parent>,
    /// Parents that it cannot be attached to, and why.
    pub(super) strangers: Vec<(ParentReference, String)>,
    /// Whether any parent is a service.
    concerned: bool,
}

/// A service that a route is attached to.
pub(super) struct Parent {
    field: String,
    pub(super) reference: ParentReference,
    pub(super) service: usize,
    pub(super) port: Option<u16>,
}

/// A service, and the namespace whose clients are meant.
type Scope = (usize, Option<String>);
/// A route, as an index, and the port it is attached to.
type Attached = (usize, Option<u16>);

/// Whether a reference means a service.
pub(crate) fn is_service(parent: &ParentReference) -> bool {
    matches!(parent.group.as_deref(), Some("" | "core"))
        && parent.kind.as_deref() == Some(Service::KIND)
}

/// The namespace of a parent, of a route of namespace `own`.
pub(crate) fn parent_namespace<'a>(parent: &'a ParentReference, own: &'a str) -> &'a str {
    match parent.namespace.as_str() {
        "" => own,
        namespace => namespace,
    }
}

/// Reads all of them, and adds what they say of services.
pub(crate) fn collect(
    view: &ClusterView,
    settings: &Settings,
    hosts: &Hosts<'_, '_>,
    sets: &mut Sets,
    reports: &mut Reports,
) {
    let mut read = read(view, settings, hosts);
    read.retain(|one| one.concerned);
    read.sort_by(|a, b| (a.class, &a.age).cmp(&(b.class, &b.age)));
    let mut scopes: BTreeMap<Scope, Vec<Attached>> = BTreeMap::new();
    for (index, one) in read.iter().enumerate() {
        for parent in &one.parents {
            let own = hosts.get(parent.service).service.name.namespace.as_str();
            let clients = (own != &*one.object.namespace).then(|| one.object.namespace.to_string());
            let scope = scopes.entry((parent.service, clients)).or_default();
            scope.push((index, parent.port));
        }
    }
    let mut by = BTreeMap::new();
    for ((service, clients), attached) in &scopes {
        let ports: BTreeSet<Option<u16>> = attached.iter().map(|(_, port)| *port).collect();
        for port in ports {
            let here = |(_, own): &&Attached| own.is_none() || *own == port;
            let here: BTreeSet<usize> = attached.iter().filter(here).map(|(i, _)| *i).collect();
            let Some(class) = here.iter().map(|index| read[*index].class).min() else {
                continue;
            };
            let mut rules: Vec<(&Rank, usize, &Rule)> = Vec::new();
            let mut streams: Vec<(&Rank, usize, &StreamRule)> = Vec::new();
            let mut first: Vec<usize> = Vec::new();
            for index in here {
                let one = &read[index];
                // Of TCP routes the first takes everything.
                if one.class != class || (!first.is_empty() && class == Class::Tcp) {
                    continue;
                }
                first.push(index);
                rules.extend(one.rules.iter().map(|(rank, rule)| (rank, index, rule)));
                streams.extend(one.streams.iter().map(|(rank, rule)| (rank, index, rule)));
            }
            // Stable: of one route, its own order decides last.
            rules.sort_by_key(|(rank, index, _)| (**rank, *index));
            streams.sort_by_key(|(rank, index, _)| (**rank, *index));
            sets.entry(*service).or_default().push(Set {
                clients: clients.clone(),
                producer: clients.is_none(),
                api: Api::Gateway,
                ports: port.into_iter().collect(),
                rules: rules.into_iter().map(|(_, _, rule)| rule.clone()).collect(),
                streams: streams
                    .into_iter()
                    .map(|(_, _, rule)| rule.clone())
                    .collect(),
                by: first.iter().map(|i| read[*i].object.clone()).collect(),
            });
            by.insert((*service, clients.clone(), port), first);
        }
    }
    let decided = Decided {
        hosts,
        objects: read.iter().map(|one| one.object.clone()).collect(),
        by,
    };
    for (index, mut one) in read.into_iter().enumerate() {
        let parents = one.parents.iter();
        let fates: Vec<Fate> = parents.map(|parent| decided.fate(index, parent)).collect();
        let in_force = in_force(hosts, &mut one, &fates);
        let parents = parents::statuses(hosts, &one, &fates);
        reports.parents(&one.object, one.origin, parents);
        reports.say_all(&one.object, one.origin, one.reader.messages);
        reports.in_force(&one.object, one.origin, in_force);
    }
}

fn in_force(hosts: &Hosts<'_, '_>, one: &mut Read<'_>, fates: &[Fate]) -> InForce {
    let not = |reason, text: &str| InForce::Not(reason, text.to_owned());
    if one.parents.is_empty() {
        return not("NoMatchingParent", "none of its parents can be attached to");
    }
    let (mut kept_out, mut any, mut found) = (None, false, way::Found::default());
    for (parent, fate) in one.parents.iter().zip(fates) {
        match fate {
            Fate::Everywhere => any = true,
            Fate::Partly(text) => {
                one.reader.warn(parent.field.as_str(), text.as_str());
                any = true;
            }
            Fate::Nowhere(text) => {
                one.reader.warn(parent.field.as_str(), text.as_str());
                kept_out.get_or_insert(text);
            }
        }
        let draft = hosts.get(parent.service);
        if let Some(named) = one.class.is_by_name() {
            misfits(&mut one.reader, parent, draft, named);
        }
        let here = way::served(draft, one.class.is_by_request());
        found.add(here, true, Some((&mut one.reader, parent.field.as_str())));
    }
    if let Some(text) = kept_out.filter(|_| !any) {
        return not("Conflicted", text);
    }
    match found.nothing() {
        Some(nothing) => nothing,
        None if one.reader.is_clean() && one.complete => found.wholly(),
        None => InForce::Partly,
    }
}

/// Says at which ports of a service a route for connections has no effect. One for every port need not fit them all.
fn misfits(reader: &mut Reader, parent: &Parent, draft: &ServiceDraft<'_>, named: bool) {
    let ports = draft.service.ports.iter();
    let meant = ports.filter(|port| parent.port.is_none_or(|own| own == port.port));
    let found = meant.map(|port| (port.port, stream_rules::misfit(named, port.protocol)));
    let found: Vec<_> = found.collect();
    let fits = |(_, problem): &(u16, Option<(&str, bool)>)| problem.is_none_or(|(_, minor)| minor);
    let some = found.iter().any(fits);
    for (port, problem) in found {
        match problem {
            Some((text, false)) if !some => {
                reader.warn(parent.field.as_str(), format!("port {port} {text}"));
            }
            Some((text, _)) => {
                reader.info(parent.field.as_str(), format!("port {port} {text}"));
            }
            None => {}
        }
    }
}

fn read<'v>(view: &'v ClusterView, settings: &Settings, hosts: &Hosts<'_, '_>) -> Vec<Read<'v>> {
    let around = |namespace: &'v str, unknown: &'v [String], fate| Around {
        settings,
        hosts,
        namespace,
        unknown,
        fate,
    };
    let mut all = Vec::new();
    for entry in view.http_routes.values() {
        let HttpRoute { metadata, spec } = &*entry.object;
        let mut one = Read::begin(Class::Http, entry, &spec.parent_refs);
        one.attach(settings, hosts, &spec.parent_refs, &spec.hostnames);
        let around = around(&metadata.namespace, &entry.unknown, ANSWERED);
        let default = [Default::default()];
        let rules = spec.rules.as_deref().unwrap_or(&default);
        for (i, rule) in rules.iter().enumerate() {
            let (path, name) = one.place(i, &rule.name);
            let made = around.http(&mut one.reader, &path, name, rule);
            one.rules.extend(made);
        }
        all.push(one);
    }
    for entry in view.grpc_routes.values() {
        let GrpcRoute { metadata, spec } = &*entry.object;
        let mut one = Read::begin(Class::Grpc, entry, &spec.parent_refs);
        one.attach(settings, hosts, &spec.parent_refs, &spec.hostnames);
        let around = around(&metadata.namespace, &entry.unknown, ANSWERED);
        let default = [Default::default()];
        let rules = spec.rules.as_deref().unwrap_or(&default);
        for (i, rule) in rules.iter().enumerate() {
            let (path, name) = one.place(i, &rule.name);
            let made = around.grpc(&mut one.reader, &path, name, rule);
            one.rules.extend(made);
        }
        all.push(one);
    }
    for entry in view.tls_routes.values() {
        let TlsRoute { metadata, spec } = &*entry.object;
        let mut one = Read::begin(Class::Tls, entry, &spec.parent_refs);
        one.attach(settings, hosts, &spec.parent_refs, &[]);
        let around = around(&metadata.namespace, &entry.unknown, stream_rules::REFUSED);
        let names = Some(&spec.hostnames[..]);
        one.connections(&around, names, &spec.rules);
        all.push(one);
    }
    for entry in view.tcp_routes.values() {
        let TcpRoute { metadata, spec } = &*entry.object;
        let mut one = Read::begin(Class::Tcp, entry, &spec.parent_refs);
        one.attach(settings, hosts, &spec.parent_refs, &[]);
        let around = around(&metadata.namespace, &entry.unknown, stream_rules::REFUSED);
        one.connections(&around, None, &spec.rules);
        all.push(one);
    }
    all
}

impl<'v> Read<'v> {
    /// A route of which only the object has been looked at.
    fn begin<K: Kind>(class: Class, entry: &'v Entry<K>, parents: &[ParentReference]) -> Self {
        let metadata = entry.object.metadata();
        Self {
            class,
            object: ObjectRef::of::<K>(metadata),
            origin: &entry.origin,
            age: age(metadata),
            complete: entry.unknown.is_empty(),
            reader: Reader::default(),
            rules: Vec::new(),
            streams: Vec::new(),
            parents: Vec::new(),
            strangers: Vec::new(),
            concerned: parents.iter().any(is_service),
        }
    }

    /// Where a rule stands, and what it is called.
    fn place(&self, index: usize, name: &str) -> (String, Arc<str>) {
        let ObjectRef {
            kind,
            namespace,
            name: own,
        } = &self.object;
        let label = match name {
            "" => index.to_string(),
            name => name.to_owned(),
        };
        let name = format!("{kind}/{namespace}/{own}#{label}");
        (format!("spec.rules[{index}]"), name.into())
    }

    /// Reads the rules of a route for connections.
    fn connections(
        &mut self,
        around: &Around<'_, '_>,
        hostnames: Option<&[String]>,
        rules: &[StreamRouteRule],
    ) {
        let mut reader = std::mem::take(&mut self.reader);
        let place = |index: usize, name: &str| self.place(index, name);
        self.streams = around.streams(&mut reader, place, hostnames, rules);
        self.reader = reader;
    }

    /// Finds the services that it is attached to.
    fn attach(
        &mut self,
        settings: &Settings,
        hosts: &Hosts<'_, '_>,
        parents: &[ParentReference],
        hostnames: &[String],
    ) {
        let own = self.object.namespace.to_string();
        let services = parents
            .iter()
            .enumerate()
            .filter(|(_, parent)| is_service(parent));
        for (i, parent) in services {
            let field = format!("spec.parentRefs[{i}]");
            let namespace = parent_namespace(parent, &own);
            let host = settings.hostname(namespace, &parent.name);
            let name = format!("Service {namespace}/{}", parent.name);
            match attached(hosts, hosts.service(namespace, host.as_str()), parent) {
                Ok((service, port)) => self.parents.push(Parent {
                    field,
                    reference: parent.clone(),
                    service,
                    port,
                }),
                Err(why) => {
                    let text = format!("{name} {why}");
                    self.reader.error(field, text.as_str());
                    self.strangers.push((parent.clone(), text));
                }
            }
        }
        if self.concerned && !hostnames.is_empty() {
            let text = "mean nothing to a service: every request to it is looked at";
            self.reader.info("spec.hostnames", text);
        }
    }
}

/// The service and the port of it, when a route can be attached to it.
fn attached(
    hosts: &Hosts<'_, '_>,
    service: Option<usize>,
    parent: &ParentReference,
) -> Result<(usize, Option<u16>), String> {
    let service = service.ok_or("is not known")?;
    let draft = hosts.get(service);
    if draft.extra.headless || draft.extra.external_name.is_some() {
        return Err("has no address of its own, which a parent needs".to_owned());
    }
    Ok((service, port(draft, parent)?))
}

/// The port of a service that a parent means, by its number or its name (`sectionName`), which have to agree; `None` when
/// it means all of them.
pub(crate) fn port(
    draft: &ServiceDraft<'_>,
    parent: &ParentReference,
) -> Result<Option<u16>, String> {
    let section = parent.section_name.as_str();
    let named = draft.ports.iter().find(|port| port.name == section);
    match (parent.port, section, named) {
        (None, "", _) => Ok(None),
        (Some(port), "", _) => match draft.service.ports.iter().any(|known| known.port == port) {
            true => Ok(Some(port)),
            false => Err(format!("has no port {port}")),
        },
        (_, _, None) => Err(format!("has no port of name {section:?}")),
        (Some(port), _, Some(named)) if named.port != port => {
            Err(format!("has no port {port} of name {section:?}"))
        }
        (_, _, Some(named)) => Ok(Some(named.port)),
    }
}
