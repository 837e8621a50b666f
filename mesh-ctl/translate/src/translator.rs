//! Translation that keeps up with changes: only what a change can have an effect on is translated again.
//!
//! Invariants: after every refresh what is held is exactly what `translate` makes of the whole view. It is the same
//! translation, run over the part of the view that the affected objects depend on, of which only their own
//! results are taken.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    hash::RandomState,
    sync::Arc,
};

use mesh_k8s::{
    Kind, Object, ObjectRef, core::Namespace, network::NetworkPolicy, telemetry::Telemetry,
    warren::MeshConfig,
};
use mesh_model::{
    mesh::{Change, Enrolment, Tracing, TunnelBlocker},
    name::{self, Identity, NodeName, PolicyName, ServiceName, WorkloadUid},
};

use crate::{
    core::{enrolment, network_policy},
    istio::telemetry,
    relations::{Reader, Relations},
    settings::Settings,
    status::Status,
    translate::{Owned, owned},
    view::{Broken, ClusterView, Origin},
    wanted::{self, Want, Wanted},
};

type Id = Arc<ObjectRef>;

/// A view with what was made of it.
#[derive(Debug)]
pub struct Translator {
    view: ClusterView,
    settings: Settings,
    /// The enrolled namespaces of the whole view, the NetworkPolicies in the way of tunnels and the rules of spans, which
    /// no part of it knows.
    enrolled: Box<[name::Namespace]>,
    blockers: Box<[TunnelBlocker]>,
    tracing: Box<[Arc<Tracing>]>,
    hasher: RandomState,
    index: Index,
    made: HashMap<ObjectRef, Box<[Change]>>,
    statuses: BTreeMap<ObjectRef, Status>,
    hosted: BTreeMap<NodeName, BTreeMap<Identity, usize>>,
    /// Which waypoints objects want to be made, and all of them together as last told.
    wants: BTreeMap<ObjectRef, Vec<Want>>,
    waypoints: Vec<Wanted>,
    /// Objects that changed since the last refresh, and the subjects about which they tell something else.
    changed: HashSet<ObjectRef>,
    subjects: HashSet<u64>,
    /// Whether everything is to be translated, because settings changed or nothing was translated yet.
    all: bool,
}

/// What a refresh found.
#[derive(Debug, Default)]
pub struct Refreshed {
    /// Resources that are new or different; removals last.
    pub changes: Vec<Change>,
    /// Statuses that are new or different; `None` where nothing is to be said any more.
    pub statuses: BTreeMap<ObjectRef, Option<Status>>,
    /// Nodes on which other identities have pods now, with all of those.
    pub hosted: BTreeMap<NodeName, BTreeSet<Identity>>,
    /// All waypoints that somebody has to make, when they are others than before.
    pub waypoints: Option<Vec<Wanted>>,
    /// How many objects were translated again.
    pub translated: usize,
}

/// Who asks and who tells, by subject.
#[derive(Debug, Default)]
struct Index {
    names: HashSet<Id>,
    askers: HashMap<u64, Vec<(Id, bool)>>,
    tellers: HashMap<u64, Vec<Id>>,
}

impl Default for Translator {
    fn default() -> Self {
        Self {
            view: ClusterView::default(),
            settings: Settings::default(),
            enrolled: Box::default(),
            blockers: Box::default(),
            tracing: Box::default(),
            hasher: RandomState::new(),
            index: Index::default(),
            made: HashMap::new(),
            statuses: BTreeMap::new(),
            hosted: BTreeMap::new(),
            wants: BTreeMap::new(),
            waypoints: Vec::new(),
            changed: HashSet::new(),
            subjects: HashSet::new(),
            all: true,
        }
    }
}

impl Translator {
    /// Adds or replaces an object.
    pub fn apply(&mut self, object: Object, origin: Origin, unknown: Arc<[String]>) {
        let reference = object.reference();
        self.touch(&reference, |view| view.apply(object, origin, unknown));
    }

    /// Removes an object.
    pub fn remove(&mut self, object: &ObjectRef) {
        self.touch(object, |view| view.remove(object));
    }

    /// Notes that an object could not be read.
    pub fn set_broken(&mut self, object: &ObjectRef, broken: Broken) {
        self.touch(object, |view| view.set_broken(object.clone(), broken));
    }

    /// The objects.
    pub fn view(&self) -> &ClusterView {
        &self.view
    }

    fn reader(&self) -> Reader<'_> {
        Reader {
            view: &self.view,
            settings: &self.settings,
            hasher: &self.hasher,
        }
    }

    fn touch(&mut self, object: &ObjectRef, change: impl FnOnce(&mut ClusterView)) {
        self.changed.insert(object.clone());
        self.all |= *object.kind == *MeshConfig::KIND;
        if self.all {
            return change(&mut self.view);
        }
        // The version before lives until both are compared: fingerprints may be addresses.
        let before_view = self.view.part([object]);
        let before = self.reader().of(object);
        change(&mut self.view);
        let after = self.reader().of(object);
        drop(before_view);
        self.subjects.extend(before.differing(&after));
        let there = self.view.knows(object);
        self.index.replace(object, &before, &after, there);
    }

    /// Translates what the changes since the last time can have an effect on.
    pub fn refresh(&mut self) -> Refreshed {
        let lists = [Namespace::KIND, NetworkPolicy::KIND, Telemetry::KIND];
        let mut listed = self.changed.iter().any(|o| lists.contains(&&*o.kind));
        let focus: HashSet<ObjectRef> = if std::mem::take(&mut self.all) {
            self.rebuild();
            listed = true;
            self.view
                .objects()
                .chain(self.made.keys().cloned())
                .chain(self.statuses.keys().cloned())
                .collect()
        } else {
            self.affected()
        };
        // What is said of network policies may depend on pods that are enrolled by themselves.
        listed |= focus.iter().any(|o| *o.kind == *NetworkPolicy::KIND);
        if listed {
            self.enrolled = enrolment::namespaces(&self.view, &self.settings.honour);
            self.blockers = network_policy::blockers(&self.view, &self.settings);
            self.tracing = telemetry::rules(&self.view, &self.settings);
        }
        self.changed.clear();
        self.subjects.clear();
        let part = self.view.part(self.inputs(&focus).iter());
        let Owned {
            made,
            statuses,
            wants,
        } = owned(&part);
        let mut by_owner: HashMap<ObjectRef, Vec<Change>> = HashMap::new();
        for (owner, mut change) in made {
            if let Change::Config(config) = &mut change {
                config.enrolled_namespaces.clone_from(&self.enrolled);
                config.tunnel_blockers.clone_from(&self.blockers);
                config.tracing.clone_from(&self.tracing);
            }
            if focus.contains(&owner) || *owner.kind == *MeshConfig::KIND {
                by_owner.entry(owner).or_default().push(change);
            }
        }
        let mut refreshed = Refreshed {
            translated: focus.len(),
            ..Refreshed::default()
        };
        let said = statuses
            .into_iter()
            .filter(|status| focus.contains(&status.object));
        self.say(
            &focus,
            said.map(|status| (status.object.clone(), status)).collect(),
            &mut refreshed,
        );
        self.take(&focus, by_owner, &mut refreshed);
        self.want(&focus, wants, &mut refreshed);
        refreshed
    }

    fn rebuild(&mut self) {
        self.settings = Settings::of(&self.view);
        let mut index = Index::default();
        for object in self.view.objects() {
            let relations = self.reader().of(&object);
            index.replace(&object, &Relations::default(), &relations, true);
        }
        self.index = index;
    }

    /// The changed objects, and all for which something they ask about has changed.
    fn affected(&self) -> HashSet<ObjectRef> {
        let mut focus = self.changed.clone();
        let (mut seen, mut deeply) = (self.subjects.clone(), HashSet::new());
        let mut left: Vec<u64> = self.subjects.iter().copied().collect();
        while let Some(subject) = left.pop() {
            for (asker, deep) in self.index.askers.get(&subject).into_iter().flatten() {
                focus.insert(ObjectRef::clone(asker));
                // What this one tells may be different now too.
                if *deep && deeply.insert(asker.clone()) {
                    left.extend(
                        self.reader()
                            .of(asker)
                            .told()
                            .into_iter()
                            .filter(|subject| seen.insert(*subject)),
                    );
                }
            }
        }
        focus
    }

    /// What the translation of these objects depends on.
    fn inputs(&self, focus: &HashSet<ObjectRef>) -> HashSet<ObjectRef> {
        let asks = focus
            .iter()
            .flat_map(|object| self.reader().of(object).asks);
        self.answering(focus.clone(), asks.map(|(subject, _)| subject))
    }

    /// Adds the objects that tell of these subjects, and of what those ask deeply about.
    fn answering(
        &self,
        mut inputs: HashSet<ObjectRef>,
        subjects: impl Iterator<Item = u64>,
    ) -> HashSet<ObjectRef> {
        let mut seen: HashSet<u64> = HashSet::new();
        let mut left: Vec<u64> = subjects.filter(|subject| seen.insert(*subject)).collect();
        while let Some(subject) = left.pop() {
            for teller in self.index.tellers.get(&subject).into_iter().flatten() {
                if inputs.insert(ObjectRef::clone(teller)) {
                    let asks = self.reader().of(teller).asks;
                    let deep = asks
                        .into_iter()
                        .filter(|(_, deep)| *deep)
                        .map(|(subject, _)| subject);
                    left.extend(deep.filter(|subject| seen.insert(*subject)));
                }
            }
        }
        inputs
    }

    /// What would be said about an object if `change` were made to it, among everything that was there at the last
    /// refresh; nothing is changed. `None` when nothing would be said.
    pub fn would_say(
        &self,
        object: &ObjectRef,
        change: impl Fn(&mut ClusterView),
    ) -> Option<Status> {
        let mut alone = self.view.part([object]);
        change(&mut alone);
        let reader = Reader {
            view: &alone,
            ..self.reader()
        };
        let asks = reader.of(object).asks.into_iter();
        let inputs = self.answering(
            HashSet::from([object.clone()]),
            asks.map(|(subject, _)| subject),
        );
        let mut part = self.view.part(inputs.iter());
        change(&mut part);
        let Owned { statuses, .. } = owned(&part);
        statuses.into_iter().find(|status| status.object == *object)
    }

    /// Replaces what these objects want to be made.
    fn want(
        &mut self,
        focus: &HashSet<ObjectRef>,
        new: Vec<(ObjectRef, Want)>,
        refreshed: &mut Refreshed,
    ) {
        let before = self.wants.len();
        self.wants.retain(|owner, _| !focus.contains(owner));
        let dropped = self.wants.len() != before;
        let mut fresh = new
            .into_iter()
            .filter(|(owner, _)| focus.contains(owner))
            .peekable();
        if !dropped && fresh.peek().is_none() {
            return;
        }
        for (owner, want) in fresh {
            self.wants.entry(owner).or_default().push(want);
        }
        let all = wanted::gather(self.wants.values().flatten());
        if all != self.waypoints {
            self.waypoints.clone_from(&all);
            refreshed.waypoints = Some(all);
        }
    }

    fn say(
        &mut self,
        focus: &HashSet<ObjectRef>,
        mut new: HashMap<ObjectRef, Status>,
        refreshed: &mut Refreshed,
    ) {
        for object in focus {
            let status = new.remove(object);
            if self.statuses.get(object) == status.as_ref() {
                continue;
            }
            match &status {
                Some(status) => self.statuses.insert(object.clone(), status.clone()),
                None => self.statuses.remove(object),
            };
            refreshed.statuses.insert(object.clone(), status);
        }
    }

    /// Replaces what was made of these objects, and says what is different.
    fn take(
        &mut self,
        focus: &HashSet<ObjectRef>,
        mut new: HashMap<ObjectRef, Vec<Change>>,
        refreshed: &mut Refreshed,
    ) {
        let mut before: HashMap<Resource, Change> = HashMap::new();
        let mut nodes = BTreeSet::new();
        let owners: BTreeSet<ObjectRef> =
            focus.iter().cloned().chain(new.keys().cloned()).collect();
        // Settings first, the rest by object.
        let (mesh, rest): (Vec<_>, Vec<_>) = owners
            .into_iter()
            .partition(|owner| *owner.kind == *MeshConfig::KIND);
        let owners: Vec<ObjectRef> = mesh.into_iter().chain(rest).collect();
        for owner in &owners {
            let old = self.made.remove(owner).unwrap_or_default();
            for (node, identity) in placed(&old) {
                self.unhost(&node, &identity);
                nodes.insert(node);
            }
            before.extend(
                old.into_iter()
                    .filter_map(|change| Some((resource(&change)?, change))),
            );
        }
        for owner in owners {
            let Some(made) = new.remove(&owner) else {
                continue;
            };
            for (node, identity) in placed(&made) {
                *self
                    .hosted
                    .entry(node.clone())
                    .or_default()
                    .entry(identity)
                    .or_default() += 1;
                nodes.insert(node);
            }
            for change in &made {
                if resource(change)
                    .and_then(|resource| before.remove(&resource))
                    .as_ref()
                    != Some(change)
                {
                    refreshed.changes.push(change.clone());
                }
            }
            self.made.insert(owner, made.into());
        }
        refreshed
            .changes
            .extend(removals(before.into_keys().collect()));
        for node in nodes {
            let identities = self
                .hosted
                .get(&node)
                .map(|all| all.keys().cloned().collect());
            refreshed
                .hosted
                .insert(node, identities.unwrap_or_default());
        }
    }

    fn unhost(&mut self, node: &NodeName, identity: &Identity) {
        let Some(identities) = self.hosted.get_mut(node) else {
            return;
        };
        if let Some(count) = identities.get_mut(identity) {
            *count -= 1;
            if *count == 0 {
                identities.remove(identity);
            }
        }
        if identities.is_empty() {
            self.hosted.remove(node);
        }
    }
}

/// Where enrolled workloads are among these changes.
fn placed(changes: &[Change]) -> Vec<(NodeName, Identity)> {
    let enrolled = changes.iter().any(|change| {
        matches!(change, Change::WorkloadExtra(_, extra) if extra.enrolment == Enrolment::Enrolled)
    });
    // An object that can be enrolled is one workload.
    let place = |change: &Change| match change {
        Change::Workload(workload) if enrolled => {
            Some((workload.node.clone(), workload.identity.clone()))
        }
        _ => None,
    };
    changes.iter().filter_map(place).collect()
}

impl Index {
    /// Replaces an object's relations.
    fn replace(&mut self, object: &ObjectRef, before: &Relations, after: &Relations, there: bool) {
        let id = match self.names.get(object) {
            Some(id) => id.clone(),
            None => Arc::new(object.clone()),
        };
        if before.asks != after.asks {
            for (subject, _) in &before.asks {
                remove(&mut self.askers, *subject, |(other, _)| {
                    Arc::ptr_eq(other, &id)
                });
            }
            for (subject, deep) in &after.asks {
                self.askers
                    .entry(*subject)
                    .or_default()
                    .push((id.clone(), *deep));
            }
        }
        let (old, new) = (before.told(), after.told());
        if old != new {
            for subject in &old {
                remove(&mut self.tellers, *subject, |other| Arc::ptr_eq(other, &id));
            }
            for subject in &new {
                self.tellers.entry(*subject).or_default().push(id.clone());
            }
        }
        if there {
            self.names.insert(id);
        } else {
            self.names.remove(object);
        }
    }
}

fn remove<T>(lists: &mut HashMap<u64, Vec<T>>, subject: u64, is: impl Fn(&T) -> bool) {
    if let Some(list) = lists.get_mut(&subject) {
        if let Some(at) = list.iter().position(is) {
            list.swap_remove(at);
        }
        if list.is_empty() {
            lists.remove(&subject);
        }
    }
}

/// The name of a resource.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Resource {
    Config,
    Policy(PolicyName),
    Service(ServiceName),
    ServiceExtra(ServiceName),
    Routes(ServiceName),
    Destination(ServiceName),
    Workload(WorkloadUid),
    WorkloadExtra(WorkloadUid),
}

fn resource(change: &Change) -> Option<Resource> {
    Some(match change {
        Change::Config(_) => Resource::Config,
        Change::Policy(policy) => Resource::Policy(policy.name.clone()),
        Change::Service(service) => Resource::Service(service.name.clone()),
        Change::ServiceExtra(name, _) => Resource::ServiceExtra(name.clone()),
        Change::Routes(routes) => Resource::Routes(routes.service.clone()),
        Change::Destination(to) => Resource::Destination(to.service.clone()),
        Change::Workload(workload) => Resource::Workload(workload.uid.clone()),
        Change::WorkloadExtra(uid, _) => Resource::WorkloadExtra(uid.clone()),
        // A translation says what there is: it removes nothing and completes nothing.
        Change::RemoveWorkload(_)
        | Change::RemoveWorkloadExtra(_)
        | Change::RemoveService(_)
        | Change::RemoveServiceExtra(_)
        | Change::RemovePolicy(_)
        | Change::RemoveRoutes(_)
        | Change::RemoveDestination(_)
        | Change::Complete => return None,
    })
}

fn removals(gone: BTreeSet<Resource>) -> Vec<Change> {
    let removal = |resource: &Resource| {
        // A removed workload or service takes what belongs to it along.
        Some(match resource {
            Resource::Config => return None,
            Resource::Policy(name) => Change::RemovePolicy(name.clone()),
            Resource::Service(name) => Change::RemoveService(name.clone()),
            Resource::ServiceExtra(name) if gone.contains(&Resource::Service(name.clone())) => {
                return None;
            }
            Resource::ServiceExtra(name) => Change::RemoveServiceExtra(name.clone()),
            Resource::Routes(name) => Change::RemoveRoutes(name.clone()),
            Resource::Destination(name) => Change::RemoveDestination(name.clone()),
            Resource::Workload(uid) => Change::RemoveWorkload(uid.clone()),
            Resource::WorkloadExtra(uid) if gone.contains(&Resource::Workload(uid.clone())) => {
                return None;
            }
            Resource::WorkloadExtra(uid) => Change::RemoveWorkloadExtra(uid.clone()),
        })
    };
    gone.iter().filter_map(removal).collect()
}
