//! The objects of a cluster as plain maps, one per kind, each with where it came from.

use std::{collections::BTreeMap, fmt, sync::Arc};

use mesh_k8s::{
    Kind, Object, ObjectRef, Other,
    apps::{DaemonSet, Deployment},
    core::{EndpointSlice, Namespace, Node, Pod, Service, ServiceAccount},
    gateway::{Gateway, GatewayClass, GrpcRoute, HttpRoute, ReferenceGrant, TcpRoute, TlsRoute},
    network::NetworkPolicy,
    networking::{DestinationRule, ServiceEntry, VirtualService, WorkloadEntry},
    security::{AuthorizationPolicy, PeerAuthentication},
    telemetry::Telemetry,
    warren::MeshConfig,
};
use serde::Serialize;

/// The name of an object within its kind.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key {
    /// Its namespace; empty when the kind has none.
    pub namespace: Arc<str>,
    /// Its name.
    pub name: Arc<str>,
}

impl Key {
    /// The key of `namespace/name`.
    pub fn new(namespace: &str, name: &str) -> Self {
        Self {
            namespace: namespace.into(),
            name: name.into(),
        }
    }
}

/// Where an object was read.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Origin {
    /// The file; empty when it came from a cluster.
    #[serde(skip_serializing_if = "str::is_empty")]
    pub file: Arc<str>,
    /// The line at which its document begins, counted from 1; 0 when there is none.
    #[serde(skip_serializing_if = "is_zero")]
    pub line: u32,
}

fn is_zero(line: &u32) -> bool {
    *line == 0
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&*self.file, self.line) {
            ("", _) => f.write_str("cluster"),
            (file, 0) => f.write_str(file),
            (file, line) => write!(f, "{file}:{line}"),
        }
    }
}

/// An object with what was noticed when it was read.
#[derive(Clone, Debug)]
pub struct Entry<K> {
    /// The object.
    pub object: Arc<K>,
    /// Where it was read.
    pub origin: Origin,
    /// Paths of fields that no type knows, and an unfamiliar version as `apiVersion`.
    pub unknown: Arc<[String]>,
}

/// An object that could not be read, or not in its newest version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Broken {
    /// Where it was read.
    pub origin: Origin,
    /// The field that is wrong; empty when the document is no object.
    pub field: String,
    /// What is wrong with it.
    pub message: String,
    /// The labels that its selector asks for, as far as they could be read.
    pub selector: Option<BTreeMap<String, String>>,
}

/// Objects of one kind.
pub type Kinds<K> = BTreeMap<Key, Entry<K>>;

macro_rules! view {
    ($($(#[$doc:meta])* $field:ident: $kind:ident),+ $(,)?) => {
        /// Everything that is known of a cluster.
        #[derive(Clone, Debug, Default)]
        pub struct ClusterView {
            $($(#[$doc])* pub $field: Kinds<$kind>,)+
            /// Objects of kinds that have no type.
            pub others: BTreeMap<ObjectRef, Entry<Other>>,
            /// Objects that could not be read; where the kind's map has one too, that is the last good version.
            pub broken: BTreeMap<ObjectRef, Broken>,
        }

        impl ClusterView {
            /// Adds or replaces an object; it is no longer broken then.
            pub fn apply(&mut self, object: Object, origin: Origin, unknown: Arc<[String]>) {
                let reference = object.reference();
                self.broken.remove(&reference);
                let key = Key { namespace: reference.namespace.clone(), name: reference.name.clone() };
                match object {
                    $(Object::$kind(object) => {
                        self.$field.insert(key, Entry { object, origin, unknown });
                    })+
                    Object::Other(object) => {
                        self.others.insert(reference, Entry { object, origin, unknown });
                    }
                }
            }

            /// Removes an object and whatever was said of it.
            pub fn remove(&mut self, reference: &ObjectRef) {
                self.broken.remove(reference);
                let key = Key { namespace: reference.namespace.clone(), name: reference.name.clone() };
                match &*reference.kind {
                    $($kind::KIND => {
                        self.$field.remove(&key);
                    })+
                    _ => {
                        self.others.remove(reference);
                    }
                }
            }

            /// Whether an object of that name is held in a readable version.
            pub fn holds(&self, reference: &ObjectRef) -> bool {
                let key = Key { namespace: reference.namespace.clone(), name: reference.name.clone() };
                match &*reference.kind {
                    $($kind::KIND => self.$field.contains_key(&key),)+
                    _ => self.others.contains_key(reference),
                }
            }

            /// Whether anything is known of an object of that name.
            pub fn knows(&self, reference: &ObjectRef) -> bool {
                self.holds(reference) || self.broken.contains_key(reference)
            }

            /// The names of all objects, those included that could not be read.
            pub fn objects(&self) -> impl Iterator<Item = ObjectRef> {
                std::iter::empty()
                    $(.chain(self.$field.keys().map(|key| ObjectRef::new($kind::KIND, &key.namespace, &key.name))))+
                    .chain(self.others.keys().cloned())
                    .chain(self.broken.keys().filter(|object| !self.holds(object)).cloned())
            }

            /// The view of some of the objects only, under the same settings.
            pub fn part<'r>(&self, objects: impl IntoIterator<Item = &'r ObjectRef>) -> ClusterView {
                let mut part = ClusterView {
                    mesh_configs: self.mesh_configs.clone(),
                    ..ClusterView::default()
                };
                for reference in objects {
                    let key = Key { namespace: reference.namespace.clone(), name: reference.name.clone() };
                    match &*reference.kind {
                        $($kind::KIND => {
                            if let Some((key, entry)) = self.$field.get_key_value(&key) {
                                part.$field.insert(key.clone(), entry.clone());
                            }
                        })+
                        _ => {
                            if let Some(entry) = self.others.get(reference) {
                                part.others.insert(reference.clone(), entry.clone());
                            }
                        }
                    }
                    if let Some(broken) = self.broken.get(reference) {
                        part.broken.insert(reference.clone(), broken.clone());
                    }
                }
                part
            }

            /// What was noticed about the objects when they were read: name, origin, unknown fields.
            pub(crate) fn notices(&self) -> impl Iterator<Item = (ObjectRef, &Origin, &[String])> {
                std::iter::empty()
                    $(.chain(self.$field.iter().filter(|(_, entry)| !entry.unknown.is_empty()).map(|(key, entry)| {
                        (ObjectRef::new($kind::KIND, &key.namespace, &key.name), &entry.origin, &*entry.unknown)
                    })))+
            }
        }
    };
}

view! {
    /// Namespaces.
    namespaces: Namespace,
    /// Nodes.
    nodes: Node,
    /// Pods.
    pods: Pod,
    /// Services.
    services: Service,
    /// Parts of the services' endpoints.
    endpoint_slices: EndpointSlice,
    /// Service accounts.
    service_accounts: ServiceAccount,
    /// Deployments.
    deployments: Deployment,
    /// Daemon sets.
    daemon_sets: DaemonSet,
    /// Network policies.
    network_policies: NetworkPolicy,
    /// Authorization policies.
    authorization_policies: AuthorizationPolicy,
    /// Peer authentications.
    peer_authentications: PeerAuthentication,
    /// Service entries.
    service_entries: ServiceEntry,
    /// Workload entries.
    workload_entries: WorkloadEntry,
    /// Virtual services.
    virtual_services: VirtualService,
    /// Destination rules.
    destination_rules: DestinationRule,
    /// What is told of requests.
    telemetries: Telemetry,
    /// Gateways of the Gateway API.
    gateways: Gateway,
    /// Their classes.
    gateway_classes: GatewayClass,
    /// HTTP routes.
    http_routes: HttpRoute,
    /// gRPC routes.
    grpc_routes: GrpcRoute,
    /// TCP routes.
    tcp_routes: TcpRoute,
    /// TLS routes.
    tls_routes: TlsRoute,
    /// Reference grants.
    reference_grants: ReferenceGrant,
    /// Mesh settings.
    mesh_configs: MeshConfig,
}

impl ClusterView {
    /// Notes that an object could not be read; a version that was read before stays in force.
    pub fn set_broken(&mut self, reference: ObjectRef, broken: Broken) {
        self.broken.insert(reference, broken);
    }
}
