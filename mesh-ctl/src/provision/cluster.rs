//! The leader makes waypoints in the cluster, step by step, from what it sees there.
//!
//! Invariants: one request at a time, each with a bound, none where nothing differs; only objects with our labels are taken
//! away. A waypoint's service is made when a pod is ready and used from when it has an endpoint. What nobody wants any more
//! goes in the order in which nobody is refused: after a while the pods, and after the last of them the service.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use kube::{
    Api, Client,
    api::{ApiResource, DeleteParams, DynamicObject, Patch, PatchParams},
    core::GroupVersionKind,
};
use mesh_k8s::{Kind as _, ObjectRef, gateway::Gateway};
use mesh_translate::{Wanted, WantedBy};
use serde_json::{Map, Value};
use tokio::{
    sync::watch,
    time::{Instant, interval, timeout},
};
use tracing::{debug, info, warn};

use super::{
    List,
    objects::{self, Install, KINDS, Kind},
    scene::{Made, Scene},
};
use crate::{FIELD_MANAGER, ca::Authority, view::View};

/// How often what is there is compared with what is wanted.
const LOOK: Duration = Duration::from_secs(1);
/// How long the API server may take for one request.
const DEADLINE: Duration = Duration::from_secs(5);
/// What was written is written again after so long, in case somebody changed it.
const AGAIN: Duration = Duration::from_secs(60);
/// How long the installation's settings, and a Gateway's parameters, count as fresh.
const FRESH: Duration = Duration::from_secs(10);
/// How long a waypoint serves on that nobody wants any more.
const LINGER: Duration = Duration::from_secs(10);
/// The node proxies' DaemonSet, whose image and settings waypoints have too.
const NODE: &str = "warren-node";

/// Why waypoints are not as they should be, by the object whose author is told.
pub type Troubles = BTreeMap<ObjectRef, String>;

/// Makes what is wanted while this replica leads. Ends when nobody says any more what is wanted.
pub async fn keep(
    client: Client,
    authority: Arc<Authority>,
    view: Arc<RwLock<View>>,
    mut wanted: watch::Receiver<List>,
    mut leads: watch::Receiver<bool>,
    told: watch::Sender<Troubles>,
) {
    // Where the installation is, the node proxies' DaemonSet is too.
    let namespace = client.default_namespace().to_owned();
    let mut keeper = Keeper::new(client, namespace);
    let mut ticks = interval(LOOK);
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            changed = wanted.changed() => if changed.is_err() { return },
            changed = leads.changed() => if changed.is_err() { return },
        }
        if !*leads.borrow_and_update() {
            // Another makes them meanwhile.
            keeper.forget();
            continue;
        }
        let Some(list) = wanted.borrow_and_update().clone() else {
            continue;
        };
        let troubles = keeper.look(&list, &view, &authority.roots()).await;
        told.send_if_modified(|before| {
            let other = *before != troubles;
            *before = troubles;
            other
        });
    }
}

/// What was made, and what is remembered of it.
struct Keeper {
    client: Client,
    /// The installation's namespace.
    namespace: String,
    /// What was written last, and when.
    written: HashMap<(Kind, String, String), (Value, Instant)>,
    node: Option<(Value, Instant)>,
    /// What ConfigMaps said last that could be understood.
    parameters: HashMap<(String, String), (Map<String, Value>, Instant)>,
    /// Since when waypoints that are there are not wanted.
    unwanted: HashMap<(String, String), Instant>,
    /// What was last said to be wrong.
    trouble: String,
}

impl Keeper {
    fn new(client: Client, namespace: String) -> Self {
        Self {
            client,
            namespace,
            written: HashMap::new(),
            node: None,
            parameters: HashMap::new(),
            unwanted: HashMap::new(),
            trouble: String::new(),
        }
    }

    fn forget(&mut self) {
        *self = Self::new(self.client.clone(), std::mem::take(&mut self.namespace));
    }

    /// Goes one step for each waypoint. Returns what could not be done.
    async fn look(&mut self, list: &[Wanted], view: &Arc<RwLock<View>>, roots: &str) -> Troubles {
        let scene = {
            let view = view.read().unwrap_or_else(PoisonError::into_inner);
            Scene::of(view.cluster(), list)
        };
        let mut troubles = Troubles::new();
        let mut last = String::new();
        let mut tell = |wanted: &Wanted, trouble: String| {
            for object in blamed(wanted) {
                troubles.insert(object, trouble.clone());
            }
            last = trouble;
        };
        if !list.is_empty() {
            match self.install(roots.to_owned()).await {
                Ok(install) => {
                    for wanted in list {
                        let made = scene.made(&wanted.namespace, &wanted.name);
                        if let Err(trouble) = self.provide(wanted, &made, &install).await {
                            tell(wanted, trouble);
                        }
                    }
                }
                Err(trouble) => list.iter().for_each(|w| tell(w, trouble.clone())),
            }
        }
        if let Err(trouble) = self.withdraw(list, &scene).await {
            last = trouble;
        }
        if last != self.trouble {
            match last.as_str() {
                "" => info!("waypoints are as they are wanted again"),
                last => warn!("a waypoint could not be made: {last}"),
            }
            self.trouble = last;
        }
        troubles
    }

    /// What the node proxies' DaemonSet says.
    async fn install(&mut self, roots: String) -> Result<Install, String> {
        let fresh = |at: &Instant| at.elapsed() < FRESH;
        if !self.node.as_ref().is_some_and(|(_, at)| fresh(at)) {
            let api = api(
                &self.client,
                ("apps/v1", "DaemonSet", "daemonsets"),
                &self.namespace,
            );
            let found = bounded(api.get_opt(NODE)).await;
            match (found, &mut self.node) {
                (Ok(Some(found)), node) => {
                    let value = serde_json::to_value(found).map_err(|e| e.to_string())?;
                    *node = Some((value, Instant::now()));
                }
                // What it said last will do meanwhile.
                (_, Some(_)) => {}
                (Ok(None), None) => {
                    return Err(format!(
                        "DaemonSet {}/{NODE}, whose image waypoints run, is not there",
                        self.namespace
                    ));
                }
                (Err(error), None) => return Err(format!("DaemonSet {NODE}: {error}")),
            }
        }
        let node = self.node.as_ref().map_or(&Value::Null, |(node, _)| node);
        Install::of(node, roots).ok_or_else(|| format!("DaemonSet {NODE} has no container `node`"))
    }

    async fn provide(
        &mut self,
        wanted: &Wanted,
        made: &Made,
        install: &Install,
    ) -> Result<(), String> {
        let place = (wanted.namespace.clone(), wanted.name.clone());
        self.unwanted.remove(&place);
        let owner = match (&wanted.origin, &made.gateway) {
            (WantedBy::Namespace { .. }, _) => None,
            (WantedBy::Gateway, Some(uid)) => Some((wanted.name.clone(), uid.clone())),
            // It went meanwhile.
            (WantedBy::Gateway, None) => return Ok(()),
        };
        let said = self.said(wanted).await?;
        let active = made.active || made.endpoint;
        for kind in KINDS {
            if kind == Kind::Service && !made.service && !made.ready {
                continue;
            }
            let object = objects::object(kind, wanted, install, owner.as_ref(), active, &said);
            let missing = match kind {
                Kind::Account => !made.account,
                Kind::Deployment => !made.deployment,
                Kind::Service => !made.service,
                Kind::Budget | Kind::Autoscaler => false,
            };
            self.write(kind, wanted, object, missing).await?;
        }
        Ok(())
    }

    /// What a Gateway's parameters say; what was understood last, as long as they cannot be read.
    async fn said(&mut self, wanted: &Wanted) -> Result<Map<String, Value>, String> {
        let Some(name) = &wanted.extras.parameters else {
            return Ok(Map::new());
        };
        let place = (wanted.namespace.clone(), name.clone());
        if let Some((said, at)) = self.parameters.get(&place)
            && at.elapsed() < FRESH
        {
            return Ok(said.clone());
        }
        let api = api(
            &self.client,
            ("v1", "ConfigMap", "configmaps"),
            &wanted.namespace,
        );
        let what = format!("spec.infrastructure.parametersRef: ConfigMap {name}");
        let found = bounded(api.get_opt(name)).await;
        let found = found.map_err(|error| format!("{what}: {error}"))?;
        let map = found.ok_or_else(|| format!("{what} is not there; nothing is changed"))?;
        let said = objects::parameters(&map.data["data"])
            .map_err(|error| format!("{what}: {error}; nothing is changed"))?;
        self.parameters
            .insert(place, (said.clone(), Instant::now()));
        Ok(said)
    }

    /// Writes an object where it is another than before, is missing, or was not looked at for long.
    async fn write(
        &mut self,
        kind: Kind,
        wanted: &Wanted,
        object: Value,
        missing: bool,
    ) -> Result<(), String> {
        let place = (kind, wanted.namespace.clone(), wanted.name.clone());
        if let Some((before, at)) = self.written.get(&place) {
            let patience = if missing { LOOK * 5 } else { AGAIN };
            if *before == object && at.elapsed() < patience {
                return Ok(());
            }
        }
        let api = api(&self.client, kind.api(), &wanted.namespace);
        let params = PatchParams::apply(FIELD_MANAGER).force();
        let patch = Patch::Apply(object.clone());
        let (_, name, plural) = kind.api();
        bounded(api.patch(&wanted.name, &params, &patch))
            .await
            .map_err(|error| format!("{name} {}/{}: {error}; the roles of warren-controller have to allow create and patch on {plural}", wanted.namespace, wanted.name))?;
        if !self.written.contains_key(&place) {
            info!(
                kind = name,
                namespace = wanted.namespace,
                name = wanted.name,
                "a part of a waypoint was written"
            );
        }
        self.written.insert(place, (object, Instant::now()));
        Ok(())
    }

    /// Takes away what nobody wants any more.
    async fn withdraw(&mut self, list: &[Wanted], scene: &Scene) -> Result<(), String> {
        let wanted = |(namespace, name): &(String, String)| {
            list.iter()
                .any(|w| w.namespace == *namespace && w.name == *name)
        };
        self.unwanted
            .retain(|place, _| scene.all.contains_key(place));
        for (place, made) in scene.all.iter().filter(|(place, _)| !wanted(place)) {
            let since = *self
                .unwanted
                .entry(place.clone())
                .or_insert_with(Instant::now);
            if since.elapsed() < LINGER {
                continue;
            }
            let (namespace, name) = place;
            let kinds: &[Kind] = match (made.deployment, made.pods) {
                (true, _) => &[Kind::Autoscaler, Kind::Budget, Kind::Deployment],
                // Its pods serve what they have; whoever goes to the service goes to them.
                (false, 1..) => &[],
                (false, 0) => &[Kind::Service, Kind::Account],
            };
            for kind in kinds {
                self.written
                    .remove(&(*kind, namespace.clone(), name.clone()));
                let api = api(&self.client, kind.api(), namespace);
                let params = DeleteParams::default();
                match bounded(api.delete(name, &params)).await {
                    Ok(_) => debug!(
                        ?kind,
                        namespace, name, "a part of a waypoint was taken away"
                    ),
                    Err(error) if error.is_absent() => {}
                    Err(error) => {
                        return Err(format!("{} {namespace}/{name}: {error}", kind.api().1));
                    }
                }
            }
            if !kinds.is_empty() {
                info!(
                    namespace,
                    name, "a waypoint goes that nobody needs any more"
                );
            }
        }
        Ok(())
    }
}

/// Whose author is told when a waypoint cannot be made.
fn blamed(wanted: &Wanted) -> Vec<ObjectRef> {
    match &wanted.origin {
        WantedBy::Gateway => {
            vec![ObjectRef::new(
                Gateway::KIND,
                &wanted.namespace,
                &wanted.name,
            )]
        }
        WantedBy::Namespace { because, .. } => {
            because.iter().filter_map(|text| named(text)).collect()
        }
    }
}

/// An object by what it is called in a list of waypoints.
fn named(text: &str) -> Option<ObjectRef> {
    let (kind, name) = text.split_once(' ')?;
    let (namespace, name) = name.split_once('/').unwrap_or(("", name));
    Some(ObjectRef::new(kind, namespace, name))
}

fn api(
    client: &Client,
    (version, kind, plural): (&str, &str, &str),
    namespace: &str,
) -> Api<DynamicObject> {
    let (group, version) = version.split_once('/').unwrap_or(("", version));
    let kind = GroupVersionKind::gvk(group, version, kind);
    let resource = ApiResource::from_gvk_with_plural(&kind, plural);
    Api::namespaced_with(client.clone(), namespace, &resource)
}

/// Why a request did not succeed.
#[derive(Debug, thiserror::Error)]
enum Failed {
    #[error("{0}")]
    Refused(kube::Error),
    #[error("no answer in time")]
    Late,
}

impl Failed {
    fn is_absent(&self) -> bool {
        matches!(self, Self::Refused(kube::Error::Api(status)) if status.code == 404)
    }
}

async fn bounded<T>(request: impl Future<Output = kube::Result<T>>) -> Result<T, Failed> {
    match timeout(DEADLINE, request).await {
        Ok(answer) => answer.map_err(Failed::Refused),
        Err(_) => Err(Failed::Late),
    }
}

#[cfg(test)]
mod tests;
