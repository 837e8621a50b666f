//! Gateways of a waypoint's class, and who goes through which.
//!
//! Invariants: a waypoint that was asked for and cannot be used stays asked for, by a name that nobody has: requests are
//! refused, never let past it. The object's own label decides over its namespace's, ours over Istio's. A waypoint's own
//! service and pods never go through one.

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

use super::allowed;
use crate::{
    core::{draft::Drafts, service::ServiceDraft},
    istio::presence::IstioPresence,
    status::{InForce, Reports, Severity},
    view::{ClusterView, Entry, Key, Origin},
};

/// The class of our waypoints.
pub(crate) const CLASS: &str = "warren-waypoint";
/// Istio's class, which is ours where Istio does not run.
const ISTIO_CLASS: &str = "istio-waypoint";
/// Which waypoint an object's requests go through; `none` for none.
pub(crate) const USE: &str = "warren.dev/use-waypoint";
const ISTIO_USE: &str = "istio.io/use-waypoint";
/// What a waypoint is for: `service` (when nothing is said), `workload`, `all` or `none`.
const FOR: &str = "istio.io/waypoint-for";
/// That an object must not be reached past its waypoint.
const REQUIRE: &str = "warren.dev/require-waypoint";
/// The gateway that a pod is a part of.
pub(crate) const GATEWAY_NAME: &str = "gateway.networking.k8s.io/gateway-name";
/// The port of a waypoint's HBONE listener.
const HBONE_PORT: u16 = 15008;

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

/// What a waypoint is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Purpose {
    services: bool,
    workloads: bool,
}

/// A waypoint of ours.
struct Waypoint<'v> {
    entry: &'v Entry<Gateway>,
    purpose: Purpose,
    address: Option<GatewayAddress>,
    required: bool,
}

/// Says of services and workloads which waypoint they have, and of gateways whether they are there.
pub(crate) fn apply(
    view: &ClusterView,
    ours: &BTreeSet<Key>,
    services: &mut [ServiceDraft<'_>],
    drafts: &mut Drafts<'_>,
    reports: &mut Reports,
) {
    let waypoints: BTreeMap<&Key, Waypoint<'_>> = ours
        .iter()
        .map(|key| {
            let entry = &view.gateways[key];
            let waypoint = waypoint(view, entry, key, services, drafts, reports);
            (key, waypoint)
        })
        .collect();
    let mut choosing = Choosing {
        view,
        waypoints,
        reports,
    };
    let mut guarded: BTreeSet<ServiceName> = BTreeSet::new();
    for draft in services.iter_mut() {
        if choosing.service(draft) {
            guarded.insert(draft.service.name.clone());
        }
    }
    choosing.workloads(drafts);
    for draft in &mut drafts.all {
        draft.extra.guarded |= draft.services.keys().any(|name| guarded.contains(name));
    }
}

fn waypoint<'v>(
    view: &ClusterView,
    entry: &'v Entry<Gateway>,
    key: &Key,
    services: &[ServiceDraft<'_>],
    drafts: &Drafts<'_>,
    reports: &mut Reports,
) -> Waypoint<'v> {
    let meta = &entry.object.metadata;
    let object = ObjectRef::of::<Gateway>(meta);
    let mut say = |severity, field: &str, text: String| {
        reports.say(&object, &entry.origin, severity, field, text);
    };
    let purpose = purpose(view, &entry.object, &mut say);
    let service = services.iter().find(|draft| {
        *draft.object.kind == *Service::KIND
            && draft.object.namespace == key.namespace
            && draft.object.name == key.name
    });
    let is_part = |pod: &Pod| {
        pod.metadata.namespace == *key.namespace
            && pod.metadata.label(GATEWAY_NAME) == Some(&*key.name)
    };
    let mut pods: Vec<_> = drafts
        .all
        .iter()
        .filter(|draft| draft.pod.is_some_and(is_part))
        .collect();
    pods.sort_by_key(|draft| (!draft.workload.healthy, draft.workload.uid.clone()));
    let by_pod = pods.first().and_then(|draft| {
        let ip = *draft.workload.addresses.first()?;
        let network = draft.workload.network.clone();
        Some(GatewayDestination::Address(NetworkAddress { network, ip }))
    });
    let by_service = service.map(|draft| GatewayDestination::Hostname(draft.service.name.clone()));
    if let Some(draft) = service
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
    let label = format!("{GATEWAY_NAME}: {}", key.name);
    let in_force = match (
        pods.is_empty(),
        pods.iter().any(|draft| draft.workload.healthy),
    ) {
        (true, _) => InForce::Not(
            "NoPods",
            format!("no pod of its namespace is labelled {label}"),
        ),
        (false, false) => InForce::Not("NotReady", format!("no pod labelled {label} is ready")),
        (false, true) => InForce::Wholly,
    };
    reports.in_force(&object, &entry.origin, in_force);
    let address = by_service.or(by_pod).map(|destination| GatewayAddress {
        destination,
        hbone_port: HBONE_PORT,
    });
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
    waypoints: BTreeMap<&'c Key, Waypoint<'c>>,
    reports: &'c mut Reports,
}

/// A waypoint that was chosen.
struct Chosen {
    address: GatewayAddress,
    purpose: Purpose,
    required: bool,
    /// Whether its namespace chose, not the object itself.
    inherited: bool,
}

impl Choosing<'_> {
    /// Sets a service's waypoint; whether its endpoints must not be reached past it.
    fn service(&mut self, draft: &mut ServiceDraft<'_>) -> bool {
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
        let required = requires(meta) || self.namespace_requires(&object.namespace);
        let Some(chosen) = self.chosen(&object, origin, meta) else {
            if required {
                let text =
                    format!("asks for a waypoint, and {USE} names none: its pods refuse everybody");
                let field = format!("metadata.labels[{REQUIRE}]");
                self.reports
                    .say(&object, origin, Severity::Warning, field, text);
            }
            return required;
        };
        if !chosen.purpose.services {
            if !chosen.inherited {
                let text = format!("the waypoint is not for services ({FOR})");
                let field = format!("metadata.labels[{USE}]");
                self.reports
                    .say(&object, origin, Severity::Warning, field, text);
            }
            return required;
        }
        draft.service.waypoint = Some(chosen.address);
        required || chosen.required
    }

    fn workloads(&mut self, drafts: &mut Drafts<'_>) {
        for draft in &mut drafts.all {
            let Some(pod) = draft.pod else { continue };
            let meta = &pod.metadata;
            let part = meta
                .label(GATEWAY_NAME)
                .map(|name| Key::new(&meta.namespace, name));
            if part.is_some_and(|key| self.waypoints.contains_key(&key)) {
                // It ends tunnels itself.
                draft.workload.protocol = TunnelProtocol::Hbone;
                draft.extra.enrolment = Enrolment::Out;
                continue;
            }
            let object = draft.object.clone();
            draft.extra.guarded |= requires(meta);
            let Some(chosen) = self.chosen(&object, draft.origin, meta) else {
                continue;
            };
            if chosen.purpose.workloads {
                draft.workload.waypoint = Some(chosen.address);
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

    /// The waypoint that an object has by its own label, else by its namespace's.
    fn chosen(&mut self, object: &ObjectRef, origin: &Origin, meta: &ObjectMeta) -> Option<Chosen> {
        let own = choice(meta, &meta.namespace);
        let inherited = own.is_none();
        let choice = match own {
            Some(own) => own,
            None => {
                let namespace = self.view.namespaces.get(&Key::new("", &meta.namespace))?;
                choice(&namespace.object.metadata, &meta.namespace)?
            }
        };
        let key = choice.gateway?;
        let found = self.usable(&key, &meta.namespace);
        let wrong = match found {
            Ok(chosen) => {
                return Some(Chosen {
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
            return None;
        }
        let field = match inherited {
            true => String::new(),
            false => format!("metadata.labels[{}]", choice.label),
        };
        // Once for each service is enough: pods of a namespace are too many.
        if !inherited || *object.kind != *Pod::KIND {
            self.reports
                .say(object, origin, Severity::Warning, field, wrong);
        }
        Some(Chosen {
            address: nowhere(&key),
            // What it would have been for is not known: whoever asked for it is refused.
            purpose: Purpose {
                services: true,
                workloads: !inherited && *object.kind == *Pod::KIND,
            },
            required: false,
            inherited,
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
        let Some(address) = waypoint.address.clone() else {
            return Err(format!(
                "{name} has neither a service of its name nor a pod labelled {GATEWAY_NAME}: {}; until it has, requests are refused",
                key.name
            ));
        };
        Ok(Chosen {
            address,
            purpose: waypoint.purpose,
            required: waypoint.required,
            inherited: false,
        })
    }
}
