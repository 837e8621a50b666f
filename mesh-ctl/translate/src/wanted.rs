//! Waypoints that somebody has to make: what a gateway of ours asks for, and what a namespace needs.
//!
//! Invariants: who made a waypoint by hand keeps it: it is not wanted. A waypoint that was made is used from the moment its
//! service says so (see [`ACTIVE`]), and until then what restricts refuses and what only routes waits.

use std::collections::{BTreeMap, BTreeSet};

use mesh_k8s::{ObjectMeta, ObjectRef, gateway::Gateway};
use serde::{Deserialize, Serialize};

use crate::view::{ClusterView, Key};

/// The mesh's own namespace, where waypoints are that namespaces need.
pub const HOME: &str = "warren-system";
/// Label of what is made here, with the value `warren`.
pub const MANAGED_BY: (&str, &str) = ("app.kubernetes.io/managed-by", "warren");
/// Label of what is made for a namespace, with its name.
pub const FOR_NAMESPACE: &str = "warren.dev/waypoint-for-namespace";
/// Annotation of a waypoint's service that was made here: `true` from when it has somebody who is ready.
pub const ACTIVE: &str = "warren.dev/waypoint-active";
/// Label of the pods of a gateway, with its name.
pub const GATEWAY_NAME: &str = "gateway.networking.k8s.io/gateway-name";
/// The longest name of a service.
const LONGEST: usize = 63;

/// A waypoint to be made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Wanted {
    /// Its namespace.
    pub namespace: String,
    /// Its name, and that of each of its objects.
    pub name: String,
    /// Why it is wanted.
    pub origin: WantedBy,
    /// What it is for.
    pub purpose: Purpose,
    /// What its objects carry besides.
    #[serde(default, skip_serializing_if = "Extras::is_empty")]
    pub extras: Extras,
}

/// Why a waypoint is wanted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum WantedBy {
    /// A Gateway of this namespace and name asks for it.
    Gateway,
    /// A namespace has objects that need one.
    #[serde(rename_all = "camelCase")]
    Namespace {
        /// The namespace.
        name: String,
        /// The objects, as `Kind namespace/name`.
        because: Vec<String>,
    },
}

/// What a waypoint is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Purpose {
    /// Traffic to services.
    pub services: bool,
    /// Traffic to workloads by their own addresses.
    pub workloads: bool,
}

/// What the objects of a waypoint carry besides.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Extras {
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Annotations.
    pub annotations: BTreeMap<String, String>,
    /// The ConfigMap of the waypoint's namespace whose keys are merged over what is made.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub parameters: Option<String>,
}

impl Extras {
    fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// What one object contributes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Want {
    /// A gateway: the whole waypoint.
    Gateway(Box<Wanted>),
    /// A service, entry or namespace: that its namespace needs one, and because of whom.
    Namespace(String, BTreeSet<ObjectRef>),
}

/// All waypoints that are wanted, by namespace and name.
pub(crate) fn gather<'w>(wants: impl Iterator<Item = &'w Want>) -> Vec<Wanted> {
    let mut all: BTreeMap<(String, String), Wanted> = BTreeMap::new();
    let mut needs: BTreeMap<&str, BTreeSet<&ObjectRef>> = BTreeMap::new();
    for want in wants {
        match want {
            Want::Gateway(wanted) => {
                let key = (wanted.namespace.clone(), wanted.name.clone());
                all.insert(key, Wanted::clone(wanted));
            }
            Want::Namespace(name, because) => needs.entry(name).or_default().extend(because),
        }
    }
    for (namespace, because) in needs {
        let Key {
            namespace: home,
            name,
        } = key_for(namespace);
        let wanted = Wanted {
            namespace: home.to_string(),
            name: name.to_string(),
            origin: WantedBy::Namespace {
                name: namespace.to_owned(),
                because: because.into_iter().map(ToString::to_string).collect(),
            },
            purpose: Purpose {
                services: true,
                workloads: false,
            },
            extras: Extras::default(),
        };
        // A gateway of that name in the mesh's own namespace is its owner's.
        let key = (wanted.namespace.clone(), wanted.name.clone());
        all.entry(key).or_insert(wanted);
    }
    all.into_values().collect()
}

/// The waypoint that is made for a namespace.
pub(crate) fn key_for(namespace: &str) -> Key {
    let name = format!("waypoint-{namespace}");
    if name.len() <= LONGEST {
        return Key::new(HOME, &name);
    }
    let hash = name.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    let cut: String = name.chars().take(LONGEST - 17).collect();
    Key::new(HOME, &format!("{cut}-{hash:016x}"))
}

/// Whether an object was made here.
pub(crate) fn is_managed(meta: &ObjectMeta) -> bool {
    meta.label(MANAGED_BY.0) == Some(MANAGED_BY.1)
}

/// Whether a waypoint's service is to be used: one that was made by hand always is.
pub(crate) fn is_active(meta: &ObjectMeta) -> bool {
    !is_managed(meta) || meta.annotation(ACTIVE) == Some("true")
}

/// The namespace that an object in the mesh's own namespace was made for.
pub(crate) fn made_for(meta: &ObjectMeta) -> Option<&str> {
    meta.label(FOR_NAMESPACE)
        .filter(|_| meta.namespace == HOME && is_managed(meta))
}

/// Whether the waypoint that is made for a namespace is to be used.
pub(crate) fn serves(view: &ClusterView, namespace: &str) -> bool {
    let service = view.services.get(&key_for(namespace));
    service.is_some_and(|entry| {
        let meta = &entry.object.metadata;
        made_for(meta) == Some(namespace) && is_active(meta)
    })
}

/// What a gateway says of the objects that are made for it, and what of that is not understood.
pub(crate) fn extras(gateway: &Gateway) -> (Extras, Option<String>) {
    let Some(infrastructure) = &gateway.spec.infrastructure else {
        return Default::default();
    };
    let reference = infrastructure.parameters_ref.as_ref();
    let is_map = |r: &&mesh_k8s::gateway::ParametersReference| {
        matches!(r.group.as_str(), "" | "core") && r.kind == "ConfigMap"
    };
    let wrong = reference.filter(|r| !is_map(r)).map(|r| {
        format!(
            "{:?} of group {:?} is not read; name a ConfigMap",
            r.kind, r.group
        )
    });
    let extras = Extras {
        labels: infrastructure.labels.clone(),
        annotations: infrastructure.annotations.clone(),
        parameters: reference.filter(is_map).map(|r| r.name.clone()),
    };
    (extras, wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_fit_and_stay_apart() {
        assert_eq!(&*key_for("shop").name, "waypoint-shop");
        let long = |end: char| format!("{}{end}", "n".repeat(62));
        let (a, b) = (key_for(&long('a')), key_for(&long('b')));
        assert_eq!((a.name.len(), b.name.len()), (63, 63));
        assert_ne!(a, b);
        assert_eq!(key_for(&"n".repeat(54)).name.len(), 63);
    }

    #[test]
    fn what_services_need_is_one_waypoint_for_their_namespace() {
        let rule = |name: &str| ObjectRef::new("VirtualService", "shop", name);
        let wants = [
            Want::Namespace("shop".to_owned(), BTreeSet::from([rule("b")])),
            Want::Namespace("shop".to_owned(), BTreeSet::from([rule("a"), rule("b")])),
        ];
        let all = gather(wants.iter());
        let [one] = all.as_slice() else {
            panic!("{all:?}")
        };
        assert_eq!(
            (one.namespace.as_str(), one.name.as_str()),
            (HOME, "waypoint-shop")
        );
        let WantedBy::Namespace { name, because } = &one.origin else {
            panic!("{one:?}")
        };
        assert_eq!(name, "shop");
        assert_eq!(because, &["VirtualService shop/a", "VirtualService shop/b"]);
        let text = serde_json::to_string(one).expect("writes");
        let read: Wanted = serde_json::from_str(&text).expect("reads");
        assert_eq!(read, *one);
    }
}
