//! HTTPRoute and GRPCRoute to sets of rules.
//!
//! Invariants: only services are parents here. A route in the service's namespace is for every client, one elsewhere for
//! clients of its own namespace. On one port gRPC routes keep HTTP routes out; routes of one kind are merged by how
//! specific their matches are, then by age, name and order.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use mesh_k8s::{
    Kind, ObjectRef,
    core::Service,
    gateway::{GrpcRoute, HttpRoute, ParentReference},
};
use mesh_model::route::http::Rule;

use super::{
    parents,
    rules::{Around, Rank},
};
use crate::{
    core::service::Way,
    istio::virtual_service::no_waypoint,
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
enum Class {
    Grpc,
    Http,
}

/// A route that was read.
pub(super) struct Read<'v> {
    class: Class,
    object: ObjectRef,
    origin: &'v Origin,
    age: (bool, String, String, String),
    complete: bool,
    pub(super) reader: Reader,
    rules: Vec<(Rank, Rule)>,
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
    port: Option<u16>,
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
    let mut lost: BTreeSet<(usize, usize)> = BTreeSet::new();
    let mut won: BTreeSet<(usize, usize)> = BTreeSet::new();
    for ((service, clients), attached) in &scopes {
        let ports: BTreeSet<Option<u16>> = attached.iter().map(|(_, port)| *port).collect();
        for port in ports {
            let here = |(_, own): &&Attached| own.is_none() || *own == port;
            let here: BTreeSet<usize> = attached.iter().filter(here).map(|(i, _)| *i).collect();
            let Some(class) = here.iter().map(|index| read[*index].class).min() else {
                continue;
            };
            let mut rules: Vec<(&Rank, usize, &Rule)> = Vec::new();
            for index in here {
                if read[index].class == class {
                    won.insert((index, *service));
                    rules.extend(
                        read[index]
                            .rules
                            .iter()
                            .map(|(rank, rule)| (rank, index, rule)),
                    );
                } else {
                    lost.insert((index, *service));
                }
            }
            // Stable: of one route, its own order decides last.
            rules.sort_by_key(|(rank, index, _)| (**rank, *index));
            sets.entry(*service).or_default().push(Set {
                clients: clients.clone(),
                producer: clients.is_none(),
                api: Api::Gateway,
                ports: port.into_iter().collect(),
                rules: rules.into_iter().map(|(_, _, rule)| rule.clone()).collect(),
                streams: Vec::new(),
            });
        }
    }
    for (index, mut one) in read.into_iter().enumerate() {
        let fate = |service| {
            let at = (index, service);
            (won.contains(&at), lost.contains(&at))
        };
        let in_force = in_force(hosts, &mut one, fate);
        let parents = parents::statuses(hosts, &one, |service| fate(service).1);
        reports.parents(&one.object, one.origin, parents);
        reports.say_all(&one.object, one.origin, one.reader.messages);
        reports.in_force(&one.object, one.origin, in_force);
    }
}

fn in_force(
    hosts: &Hosts<'_, '_>,
    one: &mut Read<'_>,
    fate: impl Fn(usize) -> (bool, bool),
) -> InForce {
    let not = |reason, text: &str| InForce::Not(reason, text.to_owned());
    if one.parents.is_empty() {
        return not("NoMatchingParent", "none of its parents can be attached to");
    }
    let (mut any, mut served, mut without, mut pending) = (false, false, None, None);
    let mut made = None;
    for parent in &one.parents {
        let (won, lost) = fate(parent.service);
        if lost {
            let text = "a GRPCRoute of the same service and port keeps this route out there";
            one.reader.warn(parent.field.as_str(), text);
        }
        any |= won;
        let draft = hosts.get(parent.service);
        match &draft.way {
            Way::Pending(text) => {
                one.reader.info(parent.field.as_str(), text.clone());
                pending.get_or_insert_with(|| text.clone());
            }
            Way::Made(text) => {
                one.reader.info(parent.field.as_str(), text.clone());
                made.get_or_insert_with(|| text.clone());
                served = true;
            }
            Way::AsChosen if draft.service.waypoint.is_some() => served = true,
            Way::AsChosen => {
                let text = no_waypoint(&draft.object, draft.service.name.hostname.as_str());
                one.reader.warn(parent.field.as_str(), text.clone());
                without.get_or_insert(text);
            }
        }
    }
    match (pending, without) {
        _ if !any => not("Conflicted", "a GRPCRoute decides for its services"),
        (Some(text), _) if !served => InForce::Not("Pending", text),
        (None, Some(text)) if !served => InForce::Not("NoWaypoint", text),
        _ if one.reader.is_clean() && one.complete => made.map_or(InForce::Wholly, InForce::By),
        _ => InForce::Partly,
    }
}

fn read<'v>(view: &'v ClusterView, settings: &Settings, hosts: &Hosts<'_, '_>) -> Vec<Read<'v>> {
    let mut all = Vec::new();
    for entry in view.http_routes.values() {
        let HttpRoute { metadata, spec } = &*entry.object;
        let mut one = Read::begin(Class::Http, entry, &spec.parent_refs);
        one.attach(settings, hosts, &spec.parent_refs, &spec.hostnames);
        let around = Around {
            settings,
            hosts,
            namespace: &metadata.namespace,
            unknown: &entry.unknown,
        };
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
        let around = Around {
            settings,
            hosts,
            namespace: &metadata.namespace,
            unknown: &entry.unknown,
        };
        let default = [Default::default()];
        let rules = spec.rules.as_deref().unwrap_or(&default);
        for (i, rule) in rules.iter().enumerate() {
            let (path, name) = one.place(i, &rule.name);
            let made = around.grpc(&mut one.reader, &path, name, rule);
            one.rules.extend(made);
        }
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
            match attached(hosts, hosts.service(namespace, host.as_str()), parent.port) {
                Ok(service) => self.parents.push(Parent {
                    field,
                    reference: parent.clone(),
                    service,
                    port: parent.port,
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

/// The service, when a route can be attached to it.
fn attached(
    hosts: &Hosts<'_, '_>,
    service: Option<usize>,
    port: Option<u16>,
) -> Result<usize, String> {
    let service = service.ok_or("is not known")?;
    let draft = hosts.get(service);
    if draft.extra.headless || draft.extra.external_name.is_some() {
        return Err("has no address of its own, which a parent needs".to_owned());
    }
    match port {
        Some(port) if !draft.service.ports.iter().any(|known| known.port == port) => {
            Err(format!("has no port {port}"))
        }
        _ => Ok(service),
    }
}
