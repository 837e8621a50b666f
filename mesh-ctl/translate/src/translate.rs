//! The translation as one story: settings, workloads, services, who serves what, who may do what.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use mesh_k8s::{Kind, ObjectRef, security::AuthorizationPolicy, warren::MeshConfig};
use mesh_model::{
    mesh::{Change, Enrolment},
    name::{Identity, NodeName, PolicyName},
    resilience::Destination,
    route::http::Routes,
};

use crate::{
    core::{
        draft::Drafts,
        endpoints::{self, ServiceIndex},
        enrolment, network_policy, pod,
        service::{self, Claims, ServiceDraft},
    },
    gateway::{self, classes, waypoint},
    istio::{
        authorization::{self, Governing, Selects},
        destination_rule, entry_endpoints, peer_authentication, service_entry, telemetry,
        virtual_service::{self, Beside},
        workload_entry,
    },
    labels::LabelIndex,
    settings::Settings,
    status::{InForce, Reports, Severity, Status},
    traffic::{
        groups,
        hosts::Hosts,
        routes::{self, Sets},
    },
    unhonoured,
    view::ClusterView,
    wanted::{self, Want, Wanted},
};

/// Everything that a view means.
#[derive(Clone, Debug, Default)]
pub struct Output {
    /// Every resource, ordered by type and name; no removals and no `Complete`.
    pub changes: Vec<Change>,
    /// What is to be said about objects, ordered by object.
    pub statuses: Vec<Status>,
    /// The same in short: one line per message that is not merely informative.
    pub warnings: Vec<String>,
    /// The identities that pods of a node have: what the CA may sign for it.
    pub hosted: BTreeMap<NodeName, BTreeSet<Identity>>,
    /// Waypoints that somebody has to make, by namespace and name.
    pub waypoints: Vec<Wanted>,
}

/// Translates a view.
pub fn translate(view: &ClusterView) -> Output {
    let Owned {
        made,
        statuses,
        wants,
    } = owned(view);
    let mut hosted: BTreeMap<NodeName, BTreeSet<Identity>> = BTreeMap::new();
    let mut changes = Vec::with_capacity(made.len());
    for (_, change) in made {
        // An extra part follows its workload.
        if let (Change::WorkloadExtra(_, extra), Some(Change::Workload(workload))) =
            (&change, changes.last())
            && extra.enrolment == Enrolment::Enrolled
        {
            hosted
                .entry(workload.node.clone())
                .or_default()
                .insert(workload.identity.clone());
        }
        changes.push(change);
    }
    let warnings = statuses.iter().flat_map(warnings).collect();
    Output {
        changes,
        statuses,
        warnings,
        hosted,
        waypoints: wanted::gather(wants.iter().map(|(_, want)| want)),
    }
}

/// What a view means, each part with the object it is made of.
pub(crate) struct Owned {
    /// Resources.
    pub(crate) made: Vec<(ObjectRef, Change)>,
    /// What is to be said.
    pub(crate) statuses: Vec<Status>,
    /// Waypoints that are wanted.
    pub(crate) wants: Vec<(ObjectRef, Want)>,
}

/// Translates a view, and tells what is made of whom.
pub(crate) fn owned(view: &ClusterView) -> Owned {
    let mut reports = Reports::default();
    let mut settings = Settings::read(view, &mut reports);
    settings.mesh.enrolled_namespaces = enrolment::namespaces(view, &settings.honour);
    settings.mesh.tunnel_blockers = network_policy::blockers(view, &settings);
    settings.mesh.tracing = telemetry::rules(view, &settings);
    notices(view, &mut reports);
    pod::check_namespaces(view, &mut reports);

    let mut drafts = Drafts::default();
    pod::collect(view, &settings, &mut drafts, &mut reports);
    workload_entry::collect(view, &settings, &mut drafts, &mut reports);
    let mut labels = LabelIndex::default();
    let labelled = drafts
        .all
        .iter()
        .map(|draft| (draft.labels, draft.namespace()))
        .collect::<Vec<_>>();
    for (index, (own, namespace)) in labelled.into_iter().enumerate() {
        if let (Some(own), Some(namespace)) = (own, namespace) {
            labels.insert(index, namespace, own);
        }
    }

    let mut claims = Claims::default();
    let mut services = service::collect(view, &settings, &mut claims, &mut reports);
    let kubernetes: Vec<_> = services
        .iter()
        .map(|service| service.object.clone())
        .collect();
    let index: ServiceIndex<'_> = kubernetes
        .iter()
        .enumerate()
        .map(|(index, object)| ((&*object.namespace, &*object.name), index))
        .collect();
    let sliced = endpoints::join(
        view,
        &settings,
        &services,
        &index,
        &mut drafts,
        &mut reports,
    );
    endpoints::join_by_label(&services, &sliced, &labels, &mut drafts);
    let entries = service_entry::collect(
        view,
        &settings,
        &drafts,
        &mut claims,
        &mut services,
        &mut reports,
    );
    entry_endpoints::join(
        &entries,
        &settings,
        &services,
        &labels,
        &mut drafts,
        &mut reports,
    );

    classes::report(view, &mut reports);
    let ours = waypoint::ours(view);
    let wants = waypoint::apply(
        view,
        &settings,
        &ours,
        &mut services,
        &mut drafts,
        &mut reports,
    );
    let traffic = traffic(view, &settings, &services, &mut reports);
    groups::apply(&traffic.selectors, &traffic.compared, &labels, &mut drafts);

    let policies = authorization::collect(view, &settings, &services, &mut reports);
    govern(&policies, &services, &labels, &mut drafts);
    peer_authentication::apply(view, &settings, &labels, &mut drafts.all, &mut reports);
    network_policy::check(view, &settings, &mut reports);
    telemetry::check(view, &settings, &mut reports);
    broken(view, &mut reports);
    Owned {
        made: output(settings, services, traffic, policies, drafts),
        statuses: reports.finish(),
        wants,
    }
}

/// What becomes of requests.
struct Traffic {
    /// Rules by service, as an index.
    routes: BTreeMap<usize, Routes>,
    /// How endpoints are used, by service.
    uses: HashMap<usize, Destination>,
    /// The selectors that both use.
    selectors: BTreeSet<groups::Selecting>,
    /// Labels whose values are compared.
    compared: BTreeSet<String>,
}

fn traffic(
    view: &ClusterView,
    settings: &Settings,
    services: &[ServiceDraft<'_>],
    reports: &mut Reports,
) -> Traffic {
    let hosts = Hosts::of(services);
    let uses = destination_rule::collect(view, settings, &hosts, reports);
    let beside = Beside {
        view,
        settings,
        hosts: &hosts,
        uses: &uses,
    };
    let mut sets = Sets::new();
    gateway::routes::collect(view, settings, &hosts, &mut sets, reports);
    let clients = virtual_service::collect(&beside, &mut sets, reports);
    let mut selectors: BTreeSet<groups::Selecting> =
        clients.into_iter().map(|labels| (None, labels)).collect();
    let mut compared = BTreeSet::new();
    for entry in view.destination_rules.values() {
        let (values, keys) = destination_rule::compared(&entry.object);
        selectors.extend(values.into_iter().map(|labels| (None, labels)));
        compared.extend(keys.into_iter().map(str::to_owned));
        let subsets = destination_rule::selectors(settings, &entry.object);
        let owned = subsets.into_iter();
        selectors.extend(owned.map(|(namespace, labels)| (namespace, labels.clone())));
    }
    Traffic {
        routes: routes::assemble(services, sets),
        uses,
        selectors,
        compared,
    }
}

/// What was noticed when objects were read, and kinds that are not honoured.
fn notices(view: &ClusterView, reports: &mut Reports) {
    for (object, origin, unknown) in view.notices() {
        // Policies say for themselves what an unknown field of their spec means.
        let policy = matches!(&*object.kind, "AuthorizationPolicy" | "PeerAuthentication");
        for path in unknown
            .iter()
            .filter(|path| !(policy && path.starts_with("spec.")))
        {
            reports.say(
                &object,
                origin,
                Severity::Warning,
                path.as_str(),
                "is not known to this version and not honoured",
            );
        }
    }
    for (object, entry) in view
        .others
        .iter()
        .filter(|(_, entry)| entry.object.is_mesh_api())
    {
        unhonoured::report(object, entry, reports);
    }
}

/// Objects that could not be read.
fn broken(view: &ClusterView, reports: &mut Reports) {
    for (object, broken) in &view.broken {
        reports.say(
            object,
            &broken.origin,
            Severity::Error,
            broken.field.as_str(),
            broken.message.as_str(),
        );
        let (reason, text) = match (view.holds(object), &*object.kind) {
            (true, _) => (
                "LastGoodVersion",
                "the last version that could be read stays in force",
            ),
            (false, "AuthorizationPolicy") => (
                "Invalid",
                "refuses every connection to what it seems to govern",
            ),
            (false, "PeerAuthentication") => ("Invalid", "taken for STRICT"),
            (false, _) => ("Invalid", "no version of it could be read"),
        };
        reports.in_force(
            object,
            &broken.origin,
            InForce::Not(reason, text.to_owned()),
        );
    }
}

/// Hands policies with a selector to what they select.
fn govern(
    policies: &[Governing],
    services: &[ServiceDraft<'_>],
    labels: &LabelIndex<'_>,
    drafts: &mut Drafts<'_>,
) {
    for Governing { policy, selects } in policies {
        match selects {
            Selects::ByScope => {}
            Selects::Labels {
                namespace,
                labels: wanted,
            } => {
                for index in labels.select(namespace.as_deref(), wanted) {
                    drafts.all[index].policies.push(policy.name.clone());
                }
            }
            Selects::Services(targets) => {
                for target in targets {
                    let name = &services[*target].service.name;
                    let members = drafts
                        .all
                        .iter_mut()
                        .filter(|draft| draft.services.contains_key(name));
                    members.for_each(|draft| draft.policies.push(policy.name.clone()));
                }
            }
        }
    }
}

fn output(
    settings: Settings,
    services: Vec<ServiceDraft<'_>>,
    mut traffic: Traffic,
    policies: Vec<Governing>,
    mut drafts: Drafts<'_>,
) -> Vec<(ObjectRef, Change)> {
    let mesh = ObjectRef::new(MeshConfig::KIND, "", "mesh");
    let mut changes = vec![(mesh, Change::Config(settings.mesh))];
    let mut services: Vec<_> = services.into_iter().enumerate().collect();
    services.sort_by(|(_, a), (_, b)| a.service.name.cmp(&b.service.name));
    let shown = services.into_iter().filter(|(_, draft)| !draft.hidden);
    for (index, draft) in shown {
        let ServiceDraft {
            service,
            extra,
            object,
            ..
        } = draft;
        let name = service.name.clone();
        changes.push((object.clone(), Change::Service(service)));
        changes.push((object.clone(), Change::ServiceExtra(name, extra)));
        let routes = traffic.routes.remove(&index).map(Change::Routes);
        let uses = traffic.uses.remove(&index).map(Change::Destination);
        let both = routes.into_iter().chain(uses);
        changes.extend(both.map(|change| (object.clone(), change)));
    }
    changes.extend(policies.into_iter().map(|Governing { policy, .. }| {
        let PolicyName { namespace, name } = &policy.name;
        let object = ObjectRef::new(AuthorizationPolicy::KIND, namespace.as_str(), name);
        (object, Change::Policy(policy))
    }));
    drafts
        .all
        .sort_by(|a, b| a.workload.uid.cmp(&b.workload.uid));
    for draft in drafts.all {
        let object = draft.object.clone();
        let (workload, extra) = draft.finish();
        let uid = workload.uid.clone();
        changes.push((object.clone(), Change::Workload(workload)));
        changes.push((object, Change::WorkloadExtra(uid, extra)));
    }
    changes
}

/// The messages of a status that are not merely informative, one line each.
pub fn warnings(status: &Status) -> impl Iterator<Item = String> {
    let grave = status
        .messages
        .iter()
        .filter(|message| message.severity >= Severity::Warning);
    grave.map(|message| {
        let object: &ObjectRef = &status.object;
        let at = if message.field.is_empty() {
            String::new()
        } else {
            format!("{}: ", message.field)
        };
        format!("{}: {object}: {at}{}", status.origin, message.text)
    })
}
