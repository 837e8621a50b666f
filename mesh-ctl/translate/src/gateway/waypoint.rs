//! Gateways of a waypoint's class, and who goes through which.
//!
//! Invariants: a waypoint that was asked for and cannot be used stays asked for, by a name that nobody has: requests are
//! refused, never let past it. One that is being made is not asked for yet, except by who restricts. The object's own label
//! decides over its account's and that over its namespace's, ours over Istio's. A waypoint's own service and pods never go through one.

use std::collections::{BTreeMap, BTreeSet};

use mesh_k8s::{
    Kind, ObjectMeta, ObjectRef,
    core::{Pod, Service},
    gateway::Gateway,
    networking::ServiceEntry,
};
use mesh_model::{
    mesh::{Enrolment, GatewayAddress, GatewayDestination, workload::TunnelProtocol},
    name::{Namespace, NetworkAddress, ServiceName},
};

use super::{allowed, listeners, needs};
use crate::{
    core::{
        draft::{Draft, Drafts, parse_ip},
        enrolment,
        service::ServiceDraft,
        way::{Lack, UNUSABLE, Way},
    },
    istio::presence::IstioPresence,
    settings::Settings,
    status::{InForce, Reports, Severity},
    view::{ClusterView, Entry, Key, Origin},
    wanted::{self, GATEWAY_NAME, Purpose, Want, Wanted, WantedBy},
};

/// The class of our waypoints.
pub(crate) const CLASS: &str = "warren-waypoint";
/// Istio's class, which is ours where Istio does not run.
const ISTIO_CLASS: &str = "istio-waypoint";
/// Which waypoint an object's requests go through; `none` for none.
pub(crate) const USE: &str = "warren.dev/use-waypoint";
const ISTIO_USE: &str = "istio.io/use-waypoint";
/// What a waypoint is for: `service` (when nothing is said), `workload`, `all` or `none`.
pub(crate) const FOR: &str = "istio.io/waypoint-for";
/// That an object must not be reached past its waypoint.
const REQUIRE: &str = "warren.dev/require-waypoint";
/// The port of a waypoint's HBONE listener.
pub(super) const HBONE_PORT: u16 = 15008;

/// A waypoint by name, as a label of an object asks for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Choice {
    /// The gateway; none when the label says so.
    pub(crate) gateway: Option<Key>,
    /// The label.
    label: &'static str,
}

/// What an object's labels ask for; `None` when they are silent.
pub(crate) fn choice(meta: &ObjectMeta, own: &str) -> Option<Choice> {
    let (label, name) = [USE, ISTIO_USE]
        .into_iter()
        .find_map(|label| Some((label, meta.label(label)?)))?;
    let namespace = meta.label(&format!("{label}-namespace")).unwrap_or(own);
    let gateway = (!matches!(name, "none" | "")).then(|| Key::new(namespace, name));
    Some(Choice { gateway, label })
}

/// Everything that an object's labels and annotations say about waypoints.
pub(crate) fn labels(meta: &ObjectMeta) -> [Option<&str>; 6] {
    [
        meta.label(USE),
        meta.label(ISTIO_USE),
        meta.label("warren.dev/use-waypoint-namespace"),
        meta.label("istio.io/use-waypoint-namespace"),
        meta.label(REQUIRE),
        meta.annotation(REQUIRE),
    ]
}

/// Whether a gateway's class can be ours.
pub(crate) fn may_be_ours(gateway: &Gateway) -> bool {
    matches!(
        gateway.spec.gateway_class_name.as_str(),
        CLASS | ISTIO_CLASS
    )
}

/// Whether a class is Istio's unless it is away.
pub(crate) fn is_istios(gateway: &Gateway) -> bool {
    gateway.spec.gateway_class_name == ISTIO_CLASS
}

/// The gateways that are waypoints of ours.
pub(crate) fn ours(view: &ClusterView) -> BTreeSet<Key> {
    let istio = IstioPresence::of(view).is_some();
    let is_ours = |gateway: &Gateway| may_be_ours(gateway) && !(istio && is_istios(gateway));
    let all = view
        .gateways
        .iter()
        .filter(|(_, entry)| is_ours(&entry.object));
    all.map(|(key, _)| key.clone()).collect()
}

/// A waypoint of ours.
struct Waypoint<'v> {
    entry: &'v Entry<Gateway>,
    purpose: Purpose,
    /// Where it is; absent as long as it is being made.
    address: Option<GatewayAddress>,
    required: bool,
}

/// Says of services and workloads which waypoint they have, and of gateways whether they are there. Returns what each
/// object wants to be made.
pub(crate) fn apply(
    view: &ClusterView,
    settings: &Settings,
    ours: &BTreeSet<Key>,
    services: &mut [ServiceDraft<'_>],
    drafts: &mut Drafts<'_>,
    reports: &mut Reports,
) -> Vec<(ObjectRef, Want)> {
    let mut wants = Vec::new();
    let waypoints: BTreeMap<&Key, Waypoint<'_>> = ours
        .iter()
        .map(|key| {
            let entry = &view.gateways[key];
            let parts = Parts::of(view, key, services, drafts);
            let waypoint = waypoint(view, entry, &parts, &mut wants, reports);
            (key, waypoint)
        })
        .collect();
    let mut needs = needs::of(view, settings, services);
    let mut choosing = Choosing {
        view,
        settings,
        waypoints,
        wants,
        reports,
    };
    let mut guarded: BTreeSet<ServiceName> = BTreeSet::new();
    for (index, draft) in services.iter_mut().enumerate() {
        if choosing.service(draft, needs.remove(&index).unwrap_or_default()) {
            guarded.insert(draft.service.name.clone());
        }
    }
    choosing.workloads(drafts);
    for draft in &mut drafts.all {
        draft.extra.guarded |= draft.services.keys().any(|name| guarded.contains(name));
    }
    choosing.wants
}

/// What a waypoint consists of.
struct Parts<'p, 'd> {
    key: &'p Key,
    /// The service of its name, and its object.
    service: Option<(&'p ServiceDraft<'d>, &'p Service)>,
    /// Its pods, the ready ones first.
    pods: Vec<&'p Draft<'d>>,
}

impl<'p, 'd> Parts<'p, 'd> {
    fn of(
        view: &'p ClusterView,
        key: &'p Key,
        services: &'p [ServiceDraft<'d>],
        drafts: &'p Drafts<'d>,
    ) -> Self {
        let draft = services.iter().find(|draft| {
            *draft.object.kind == *Service::KIND
                && draft.object.namespace == key.namespace
                && draft.object.name == key.name
        });
        let entry = view.services.get(key);
        let is_part = |pod: &Pod| {
            pod.metadata.namespace == *key.namespace
                && pod.metadata.label(GATEWAY_NAME) == Some(&*key.name)
        };
        let all = drafts.all.iter();
        let mut pods: Vec<_> = all.filter(|draft| draft.pod.is_some_and(is_part)).collect();
        pods.sort_by_key(|draft| (!draft.workload.healthy, draft.workload.uid.clone()));
        Self {
            key,
            service: draft.zip(entry.map(|entry| &*entry.object)),
            pods,
        }
    }

    /// The first of its pods that somebody made by hand.
    fn own_pod(&self) -> Option<&Draft<'d>> {
        let by_hand = |draft: &&&Draft<'d>| {
            let meta = draft.pod.map(|pod| &pod.metadata);
            meta.is_some_and(|meta| !wanted::is_managed(meta))
        };
        self.pods.iter().find(by_hand).copied()
    }

    /// Whether somebody made it by hand.
    fn is_by_hand(&self) -> bool {
        let service = self.service;
        service.is_some_and(|(_, object)| !wanted::is_managed(&object.metadata))
            || self.own_pod().is_some()
    }

    /// Its service, where that is to be used.
    fn used(&self) -> Option<(&'p ServiceDraft<'d>, &'p Service)> {
        let service = self.service?;
        wanted::is_active(&service.1.metadata).then_some(service)
    }

    /// Where it is: its service where that is to be used, else a pod that was made by hand.
    fn address(&self) -> Option<GatewayAddress> {
        let used = self.used();
        let by_pod = || {
            let workload = &self.own_pod()?.workload;
            let ip = *workload.addresses.first()?;
            let network = workload.network.clone();
            Some(GatewayDestination::Address(NetworkAddress { network, ip }))
        };
        let by_service =
            used.map(|(draft, _)| GatewayDestination::Hostname(draft.service.name.clone()));
        let destination = by_service.or_else(by_pod)?;
        Some(GatewayAddress {
            destination,
            hbone_port: HBONE_PORT,
        })
    }

    /// The addresses of its service, else its name; those of a pod that was made by hand.
    fn reached_at(&self) -> Vec<String> {
        if let Some((draft, object)) = self.used() {
            let spec = &object.spec;
            let all = match spec.cluster_ips.as_slice() {
                [] => std::slice::from_ref(&spec.cluster_ip),
                all => all,
            };
            let ips: Vec<String> = all
                .iter()
                .filter_map(|text| Some(parse_ip(text)?.to_string()))
                .collect();
            return match ips.is_empty() {
                true => vec![draft.service.name.hostname.to_string()],
                false => ips,
            };
        }
        let own = self.own_pod().into_iter();
        own.flat_map(|draft| &draft.workload.addresses)
            .map(ToString::to_string)
            .collect()
    }

    fn in_force(&self, there: bool) -> InForce {
        let label = format!("{GATEWAY_NAME}: {}", self.key.name);
        let ready = self.pods.iter().any(|draft| draft.workload.healthy);
        match (self.pods.is_empty(), ready) {
            _ if !there => {
                let text = match (self.pods.is_empty(), ready) {
                    (true, _) => "its pods are being made",
                    (false, false) => "none of its pods is ready yet",
                    (false, true) => "its service is being made",
                };
                InForce::Not("Pending", text.to_owned())
            }
            (true, _) => InForce::Not(
                "NoPods",
                format!("no pod of its namespace is labelled {label}"),
            ),
            (false, false) => InForce::Not("NotReady", format!("no pod labelled {label} is ready")),
            (false, true) => InForce::Wholly,
        }
    }
}

fn waypoint<'v>(
    view: &ClusterView,
    entry: &'v Entry<Gateway>,
    parts: &Parts<'_, '_>,
    wants: &mut Vec<(ObjectRef, Want)>,
    reports: &mut Reports,
) -> Waypoint<'v> {
    let meta = &entry.object.metadata;
    let object = ObjectRef::of::<Gateway>(meta);
    let mut say = |severity, field: &str, text: String| {
        reports.say(&object, &entry.origin, severity, field, text);
    };
    let purpose = purpose(view, &entry.object, &mut say);
    if let Some((draft, _)) = parts.service
        && !draft
            .service
            .ports
            .iter()
            .any(|port| port.port == HBONE_PORT)
    {
        let text = format!(
            "{} has no port {HBONE_PORT}: the waypoint is not reached",
            draft.object
        );
        say(Severity::Warning, "", text);
    }
    let address = parts.address();
    if !parts.is_by_hand() {
        let (extras, wrong) = wanted::extras(&entry.object);
        if let Some(text) = wrong {
            let field = "spec.infrastructure.parametersRef";
            say(Severity::Error, field, text);
        }
        let wanted = Wanted {
            namespace: meta.namespace.clone(),
            name: meta.name.clone(),
            origin: WantedBy::Gateway,
            purpose,
            extras,
        };
        wants.push((object.clone(), Want::Gateway(Box::new(wanted))));
    }
    let in_force = parts.in_force(address.is_some());
    let listeners = listeners::statuses(&entry.object.spec.listeners, &in_force);
    reports.listeners(&object, &entry.origin, listeners);
    reports.in_force(&object, &entry.origin, in_force);
    reports.reached_at(&object, &entry.origin, parts.reached_at());
    Waypoint {
        entry,
        purpose,
        address,
        required: requires(meta),
    }
}

fn purpose(
    view: &ClusterView,
    gateway: &Gateway,
    say: &mut impl FnMut(Severity, &str, String),
) -> Purpose {
    let class = Key::new("", &gateway.spec.gateway_class_name);
    let class = view.gateway_classes.get(&class);
    let by_class = || class.and_then(|entry| entry.object.metadata.label(FOR));
    let value = gateway.metadata.label(FOR).or_else(by_class);
    let (services, workloads) = match value {
        None | Some("service") => (true, false),
        Some("workload") => (false, true),
        Some("all") => (true, true),
        Some("none") => (false, false),
        Some(other) => {
            let text = format!("{other:?} is none of service, workload, all, none; taken for all");
            say(Severity::Error, &format!("metadata.labels[{FOR}]"), text);
            (true, true)
        }
    };
    Purpose {
        services,
        workloads,
    }
}

fn requires(meta: &ObjectMeta) -> bool {
    let value = meta.label(REQUIRE).or_else(|| meta.annotation(REQUIRE));
    value.is_some_and(|value| value != "false")
}

/// A name that nobody has.
fn nowhere(key: &Key) -> GatewayAddress {
    let hostname = format!("{}.{}.waypoint.invalid", key.name, key.namespace);
    GatewayAddress {
        destination: GatewayDestination::Hostname(ServiceName {
            namespace: Namespace::from(&*key.namespace),
            hostname: hostname.as_str().into(),
        }),
        hbone_port: HBONE_PORT,
    }
}

struct Choosing<'c> {
    view: &'c ClusterView,
    settings: &'c Settings,
    waypoints: BTreeMap<&'c Key, Waypoint<'c>>,
    wants: Vec<(ObjectRef, Want)>,
    reports: &'c mut Reports,
}

/// What labels choose.
enum Selection {
    /// They are silent.
    Silent,
    /// None, or one that is left to others.
    Nothing,
    /// A waypoint.
    Waypoint(Chosen),
}

/// A waypoint that was chosen.
struct Chosen {
    key: Key,
    /// Where it is; absent as long as it is being made.
    address: Option<GatewayAddress>,
    purpose: Purpose,
    required: bool,
    /// Whether its namespace chose, not the object itself.
    inherited: bool,
    /// Why it cannot be used.
    wrong: Option<String>,
}

impl Choosing<'_> {
    /// Sets a service's waypoint; whether its endpoints must not be reached past it.
    fn service(&mut self, draft: &mut ServiceDraft<'_>, because: BTreeSet<ObjectRef>) -> bool {
        let object = draft.object.clone();
        let key = Key::new(&object.namespace, &object.name);
        let service = (*object.kind == *Service::KIND && !self.waypoints.contains_key(&key))
            .then(|| self.view.services.get(&key));
        let entry =
            (*object.kind == *ServiceEntry::KIND).then(|| self.view.service_entries.get(&key));
        let (meta, origin) = match (service.flatten(), entry.flatten()) {
            (Some(entry), _) => (&entry.object.metadata, &entry.origin),
            (None, Some(entry)) => (&entry.object.metadata, &entry.origin),
            (None, None) => return false,
        };
        if wanted::made_for(meta).is_some() {
            return false;
        }
        let required = requires(meta) || self.namespace_requires(&object.namespace);
        let chosen = match self.selection(&object, origin, meta, None) {
            Selection::Waypoint(chosen) => chosen,
            Selection::Silent if self.automatic(draft, &because, required) => return required,
            Selection::Silent | Selection::Nothing => {
                if required {
                    let text = format!(
                        "asks for a waypoint, and {USE} names none: its pods refuse everybody"
                    );
                    self.refuse(draft, origin, REQUIRE, text);
                }
                return required;
            }
        };
        let field = format!("metadata.labels[{USE}]");
        if !chosen.purpose.services {
            let text = format!("the waypoint is not for services ({FOR})");
            if required {
                let text = format!(
                    "{text}, and has to be gone through: requests to the service are refused"
                );
                self.refuse(draft, origin, USE, text);
            } else if !chosen.inherited {
                self.reports
                    .say(&object, origin, Severity::Warning, field, text);
            }
            draft.lack = Lack::NotForServices(chosen.key);
            return required;
        }
        if let Some(wrong) = &chosen.wrong {
            draft.way = Way::Refused(wrong.clone());
        }
        let guards = required || chosen.required || chosen.purpose.workloads;
        if chosen.address.is_none() {
            let Key { namespace, name } = &chosen.key;
            let text = pending(&format!("Gateway {namespace}/{name}"), guards);
            if !chosen.inherited {
                self.reports
                    .say(&object, origin, Severity::Info, field, text.clone());
            }
            if guards && !chosen.inherited {
                let waits = InForce::Not("Pending", text.clone());
                self.reports.in_force(&object, origin, waits);
            }
            draft.way = Way::Pending(text);
        }
        let refused = || guards.then(|| nowhere(&chosen.key));
        draft.service.waypoint = chosen.address.clone().or_else(refused);
        required || chosen.required
    }

    /// Says of a service that everybody is refused because of one of its labels, and why.
    fn refuse(&mut self, draft: &mut ServiceDraft<'_>, origin: &Origin, label: &str, text: String) {
        let object = &draft.object;
        let field = format!("metadata.labels[{label}]");
        self.reports
            .say(object, origin, Severity::Warning, field, text.as_str());
        let not = InForce::Not(UNUSABLE, text.clone());
        self.reports.in_force(object, origin, not);
        draft.way = Way::Refused(text);
    }

    /// Lets a service that is silent go through the waypoint that is made for its namespace, when it needs one. Whether
    /// it does.
    fn automatic(
        &mut self,
        draft: &mut ServiceDraft<'_>,
        because: &BTreeSet<ObjectRef>,
        required: bool,
    ) -> bool {
        let namespace = draft.object.namespace.to_string();
        let serves = wanted::serves(self.view, &namespace);
        let key = wanted::key_for(&namespace);
        let service = ServiceName {
            namespace: Namespace::from(&*key.namespace),
            hostname: self.settings.hostname(&key.namespace, &key.name),
        };
        draft.extra.standby = serves.then(|| service.clone());
        let mut because = because.clone();
        if required {
            because.insert(draft.object.clone());
        }
        let enrolled = enrolment::of_namespace(self.view, &namespace, &self.settings.honour);
        if because.is_empty() || !enrolled || !self.settings.automatic_waypoints {
            if !because.is_empty() && !enrolled && self.settings.automatic_waypoints {
                draft.lack = Lack::Outside;
            }
            return false;
        }
        self.wants.push((
            draft.object.clone(),
            Want::Namespace(namespace.clone(), because),
        ));
        let name = format!("waypoint {}/{}", key.namespace, key.name);
        let host = &draft.service.name.hostname;
        draft.way = match serves {
            true => Way::Made(format!(
                "requests to {host} go through {name}, which was made for namespace {namespace}"
            )),
            false => Way::Pending(pending(&name, required)),
        };
        draft.service.waypoint = match (serves, required) {
            (true, _) => Some(GatewayAddress {
                destination: GatewayDestination::Hostname(service),
                hbone_port: HBONE_PORT,
            }),
            (false, true) => Some(nowhere(&key)),
            (false, false) => None,
        };
        true
    }

    fn workloads(&mut self, drafts: &mut Drafts<'_>) {
        for draft in &mut drafts.all {
            let Some(pod) = draft.pod else { continue };
            let meta = &pod.metadata;
            let part = meta
                .label(GATEWAY_NAME)
                .map(|name| Key::new(&meta.namespace, name));
            let of_gateway = part.is_some_and(|key| self.waypoints.contains_key(&key));
            if of_gateway || wanted::made_for(meta).is_some() {
                // It ends tunnels itself.
                draft.workload.protocol = TunnelProtocol::Hbone;
                draft.extra.enrolment = Enrolment::Out;
                continue;
            }
            let object = draft.object.clone();
            draft.extra.guarded |= requires(meta);
            let account = Key::new(&meta.namespace, pod.spec.account());
            let account = self.view.service_accounts.get(&account);
            let account = account.map(|entry| &entry.object.metadata);
            draft.extra.guarded |= account.is_some_and(requires);
            let selection = self.selection(&object, draft.origin, meta, account);
            let Selection::Waypoint(chosen) = selection else {
                continue;
            };
            if chosen.purpose.workloads {
                let address = chosen.address.unwrap_or_else(|| nowhere(&chosen.key));
                draft.workload.waypoint = Some(address);
                draft.extra.guarded = true;
            } else if !chosen.inherited {
                let text = format!("the waypoint is not for workloads ({FOR})");
                let field = format!("metadata.labels[{USE}]");
                self.reports
                    .say(&object, draft.origin, Severity::Warning, field, text);
            }
        }
    }

    fn namespace_requires(&self, namespace: &str) -> bool {
        let entry = self.view.namespaces.get(&Key::new("", namespace));
        entry.is_some_and(|entry| requires(&entry.object.metadata))
    }

    /// What an object chooses by its own label, else by that of the account that it runs as, else by its namespace's.
    fn selection(
        &mut self,
        object: &ObjectRef,
        origin: &Origin,
        meta: &ObjectMeta,
        account: Option<&ObjectMeta>,
    ) -> Selection {
        let own = choice(meta, &meta.namespace);
        let inherited = own.is_none();
        let own = own.or_else(|| choice(account?, &meta.namespace));
        let by_namespace_only = own.is_none();
        let namespace = self.view.namespaces.get(&Key::new("", &meta.namespace));
        let by_namespace =
            || namespace.and_then(|entry| choice(&entry.object.metadata, &meta.namespace));
        let Some(choice) = own.or_else(by_namespace) else {
            return Selection::Silent;
        };
        let Some(key) = choice.gateway else {
            return Selection::Nothing;
        };
        let wrong = match self.usable(&key, &meta.namespace) {
            Ok(chosen) => {
                return Selection::Waypoint(Chosen {
                    inherited,
                    ..chosen
                });
            }
            Err(wrong) => wrong,
        };
        // Istio's label for a gateway that is Istio's is none of ours.
        let theirs = choice.label == ISTIO_USE && self.view.gateways.contains_key(&key);
        if theirs && !self.waypoints.contains_key(&key) {
            let field = format!("metadata.labels[{}]", choice.label);
            let text = format!(
                "Gateway {}/{} is no waypoint of ours; the label is left to others",
                key.namespace, key.name
            );
            self.reports
                .say(object, origin, Severity::Info, field, text);
            return Selection::Nothing;
        }
        let field = match inherited {
            true => String::new(),
            false => format!("metadata.labels[{}]", choice.label),
        };
        // Once for each service is enough: pods of a namespace are too many.
        if !inherited || *object.kind != *Pod::KIND {
            self.reports
                .say(object, origin, Severity::Warning, field, wrong.as_str());
            let not = InForce::Not(UNUSABLE, wrong.clone());
            self.reports.in_force(object, origin, not);
        }
        Selection::Waypoint(Chosen {
            address: Some(nowhere(&key)),
            key,
            // What it would have been for is not known: whoever asked for it is refused.
            purpose: Purpose {
                services: true,
                workloads: !by_namespace_only && *object.kind == *Pod::KIND,
            },
            required: false,
            inherited,
            wrong: Some(wrong),
        })
    }

    fn usable(&self, key: &Key, namespace: &str) -> Result<Chosen, String> {
        let name = format!("Gateway {}/{}", key.namespace, key.name);
        let Some(waypoint) = self.waypoints.get(key) else {
            return Err(match self.view.gateways.get(key) {
                None => format!("{name} is not known; until it is there, requests are refused"),
                Some(entry) => format!(
                    "{name} is of class {:?}, not {CLASS}; requests are refused",
                    entry.object.spec.gateway_class_name
                ),
            });
        };
        if !allowed::namespace(self.view, waypoint.entry, namespace) {
            return Err(format!(
                "{name} does not admit namespace {namespace} (allowedRoutes of its listener); requests are refused"
            ));
        }
        Ok(Chosen {
            key: key.clone(),
            address: waypoint.address.clone(),
            purpose: waypoint.purpose,
            required: waypoint.required,
            inherited: false,
            wrong: None,
        })
    }
}

/// What is said as long as a waypoint is being made.
fn pending(name: &str, guards: bool) -> String {
    let meanwhile = match guards {
        true => "requests are refused",
        false => "requests go on without it",
    };
    format!("waits for {name}, which is being made; until it is ready, {meanwhile}")
}
