//! Every object that the controller reads, as one value; what it cannot read keeps its name.

use std::{borrow::Cow, fmt, sync::Arc};

use serde::{Serialize, de::DeserializeOwned};

use crate::{
    apps::{DaemonSet, Deployment},
    core::{EndpointSlice, Namespace, Node, Pod, Service, ServiceAccount},
    gateway::{Gateway, GatewayClass, GrpcRoute, HttpRoute, ReferenceGrant, TcpRoute, TlsRoute},
    meta::ObjectMeta,
    network::NetworkPolicy,
    networking::{DestinationRule, ServiceEntry, VirtualService, WorkloadEntry},
    security::{AuthorizationPolicy, PeerAuthentication},
    telemetry::Telemetry,
    warren::MeshConfig,
};

/// A kind of object that has a type here.
pub trait Kind: DeserializeOwned + Into<Object> {
    /// The kind's name.
    const KIND: &'static str;
    /// The API group; empty for the core group.
    const GROUP: &'static str;
    /// The versions of the group that are known to have this shape.
    const VERSIONS: &'static [&'static str];
    /// Whether objects of this kind live in a namespace.
    const NAMESPACED: bool = true;
    /// Fields that exist and are deliberately not read; whatever lies below them is no surprise.
    const UNREAD: &'static [&'static str];

    /// The object's metadata.
    fn metadata(&self) -> &ObjectMeta;
}

/// What tells a kind apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KindInfo {
    /// The kind's name.
    pub kind: &'static str,
    /// The API group; empty for the core group.
    pub group: &'static str,
    /// The versions of the group that are known to have this shape, the preferred one first.
    pub versions: &'static [&'static str],
}

/// The name of one object.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub struct ObjectRef {
    /// Its kind, such as `AuthorizationPolicy`; with its group where the name alone means a kind of another group.
    pub kind: Arc<str>,
    /// Its namespace; empty when the kind has none.
    #[serde(skip_serializing_if = "str::is_empty")]
    pub namespace: Arc<str>,
    /// Its name.
    pub name: Arc<str>,
}

impl ObjectRef {
    /// The name of an object of `kind`.
    pub fn new(kind: &str, namespace: &str, name: &str) -> Self {
        Self {
            kind: kind.into(),
            namespace: namespace.into(),
            name: name.into(),
        }
    }

    /// The name of an object whose metadata is at hand.
    pub fn of<K: Kind>(meta: &ObjectMeta) -> Self {
        Self::new(K::KIND, &meta.namespace, &meta.name)
    }
}

impl fmt::Display for ObjectRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &*self.namespace {
            "" => write!(f, "{} {}", self.kind, self.name),
            namespace => write!(f, "{} {}/{}", self.kind, namespace, self.name),
        }
    }
}

/// An object of a kind that has no type here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Other {
    /// Its API version as written.
    pub api_version: String,
    /// Its kind as written.
    pub kind: String,
    /// Its metadata.
    pub metadata: ObjectMeta,
}

impl Other {
    /// Its group; empty for the core group.
    pub fn group(&self) -> &str {
        let parts = self.api_version.split_once('/');
        parts.map_or("", |(group, _)| group)
    }

    /// Whether the object would configure a mesh, so that not honouring it must be said aloud.
    pub fn is_mesh_api(&self) -> bool {
        let group = self.group();
        group == "warren.dev"
            || group.ends_with(".istio.io")
            || group.starts_with("gateway.networking.")
    }
}

macro_rules! objects {
    ($($kind:ident),+ $(,)?) => {
        /// Any object.
        #[derive(Clone, Debug)]
        pub enum Object {
            $(#[doc = concat!("A ", stringify!($kind), ".")] $kind(Arc<$kind>),)+
            /// Something else.
            Other(Arc<Other>),
        }

        impl Object {
            /// The object's metadata.
            pub fn metadata(&self) -> &ObjectMeta {
                match self {
                    $(Self::$kind(object) => Kind::metadata(&**object),)+
                    Self::Other(object) => &object.metadata,
                }
            }

            /// The object's kind.
            pub fn kind(&self) -> &str {
                match self {
                    $(Self::$kind(_) => $kind::KIND,)+
                    Self::Other(object) => &object.kind,
                }
            }

            /// Reads an object of a kind that has a type; `None` when it has none.
            pub(crate) fn typed(group: &str, kind: &str) -> Option<&'static dyn crate::read::Reader> {
                match (group, kind) {
                    $(($kind::GROUP, $kind::KIND) => Some(&crate::read::Typed::<$kind>(std::marker::PhantomData)),)+
                    _ => None,
                }
            }
        }

        /// Every kind that has a type.
        pub const KINDS: &[KindInfo] = &[$(KindInfo {
            kind: $kind::KIND,
            group: $kind::GROUP,
            versions: $kind::VERSIONS,
        }),+];

        $(impl From<$kind> for Object {
            fn from(object: $kind) -> Self {
                Self::$kind(Arc::new(object))
            }
        })+
    };
}

objects! {
    Namespace, Node, Pod, Service, EndpointSlice, ServiceAccount, Deployment, DaemonSet,
    NetworkPolicy, AuthorizationPolicy, PeerAuthentication, ServiceEntry, WorkloadEntry, VirtualService,
    DestinationRule, Telemetry, Gateway, GatewayClass, HttpRoute, GrpcRoute, TcpRoute, TlsRoute, ReferenceGrant, MeshConfig,
}

/// Kinds that would configure a mesh and are not honoured, so that their objects are looked at by name alone: whoever wrote
/// one has to be told. Each belongs to a namespace.
pub const UNHONOURED: &[KindInfo] = &[
    KindInfo {
        kind: "RequestAuthentication",
        group: "security.istio.io",
        versions: &["v1", "v1beta1"],
    },
    KindInfo {
        kind: "Sidecar",
        group: "networking.istio.io",
        versions: &["v1", "v1beta1", "v1alpha3"],
    },
    KindInfo {
        kind: "EnvoyFilter",
        group: "networking.istio.io",
        versions: &["v1alpha3"],
    },
    KindInfo {
        kind: "ProxyConfig",
        group: "networking.istio.io",
        versions: &["v1beta1"],
    },
    KindInfo {
        kind: "WorkloadGroup",
        group: "networking.istio.io",
        versions: &["v1", "v1beta1", "v1alpha3"],
    },
    KindInfo {
        kind: "Gateway",
        group: "networking.istio.io",
        versions: &["v1", "v1beta1", "v1alpha3"],
    },
    KindInfo {
        kind: "WasmPlugin",
        group: "extensions.istio.io",
        versions: &["v1alpha1"],
    },
];

/// The kind that an [`ObjectRef`] means by a name, when objects of it are read.
pub fn kind_of(name: &str) -> Option<&'static KindInfo> {
    let mut all = KINDS.iter().chain(UNHONOURED);
    all.find(|known| name_of(known.group, known.kind) == name)
}

impl Object {
    /// The object's name.
    pub fn reference(&self) -> ObjectRef {
        let meta = self.metadata();
        let kind = match self {
            Self::Other(object) => name_of(object.group(), &object.kind),
            typed => Cow::Borrowed(typed.kind()),
        };
        ObjectRef::new(&kind, &meta.namespace, &meta.name)
    }
}

/// What a kind is called in an [`ObjectRef`]: two groups may have kinds of one name, such as `Gateway`, of which at most
/// one has a type.
pub(crate) fn name_of<'k>(group: &str, kind: &'k str) -> Cow<'k, str> {
    let others = |known: &KindInfo| known.kind == kind && known.group != group;
    match KINDS.iter().any(others) {
        true => Cow::Owned(format!("{kind}.{group}")),
        false => Cow::Borrowed(kind),
    }
}
