//! The mesh's settings: the one `MeshConfig` object, checked, with defaults for what it leaves out.

use mesh_k8s::{Kind, ObjectRef, warren, warren::HonourIstioLabels};
use mesh_model::{
    mesh::{MeshConfig, SameNode},
    name::{ClusterId, Hostname, Identity, Namespace, NetworkId, TrustDomain},
};

use crate::{
    istio::providers::Providers,
    status::{InForce, Reports, Severity},
    view::{ClusterView, Entry, Origin},
};

/// The effective settings of a mesh.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// What nodes are told.
    pub mesh: MeshConfig,
    /// Namespaces whose policies hold for the whole mesh.
    pub roots: Vec<Namespace>,
    /// The name of this cluster.
    pub cluster: ClusterId,
    /// The name of this cluster's network.
    pub network: NetworkId,
    /// Which of Istio's enrolment labels count.
    pub honour: HonourIstioLabels,
    /// Whether a namespace whose objects need a waypoint gets one.
    pub automatic_waypoints: bool,
    /// Where spans may go.
    pub(crate) tracing: Providers,
}

impl Settings {
    /// The settings that a view asks for.
    pub fn of(view: &ClusterView) -> Self {
        Self::read(view, &mut Reports::default())
    }

    pub(crate) fn read(view: &ClusterView, reports: &mut Reports) -> Self {
        let mut by_age: Vec<_> = view.mesh_configs.values().collect();
        by_age.sort_by_key(|entry| age(&entry.object.metadata));
        let mut settings = Self::default();
        let Some((first, rest)) = by_age.split_first() else {
            return settings;
        };
        for other in rest {
            let object = ObjectRef::of::<warren::MeshConfig>(&other.object.metadata);
            let text = format!(
                "{} is older and in force",
                ObjectRef::of::<warren::MeshConfig>(first.object.metadata())
            );
            reports.in_force(&object, &other.origin, InForce::Not("Conflicted", text));
        }
        settings.take(first, reports);
        settings
    }

    fn take(&mut self, entry: &Entry<warren::MeshConfig>, reports: &mut Reports) {
        let object = ObjectRef::of::<warren::MeshConfig>(&entry.object.metadata);
        let origin: &Origin = &entry.origin;
        reports.in_force(&object, origin, InForce::Wholly);
        let mut wrong = |field: &str, text: String| {
            reports.say(
                &object,
                origin,
                Severity::Error,
                format!("spec.{field}"),
                text,
            )
        };
        let spec = &entry.object.spec;
        if !spec.trust_domain.is_empty() {
            match format!("spiffe://{}/ns/a/sa/b", spec.trust_domain).parse::<Identity>() {
                Ok(identity) => self.mesh.trust_domain = identity.trust_domain,
                Err(_) => wrong(
                    "trustDomain",
                    format!("{:?} is not a trust domain", spec.trust_domain),
                ),
            }
        }
        if !spec.root_namespace.is_empty() {
            self.mesh.root_namespace = Namespace::new(spec.root_namespace.as_str());
            self.roots = vec![self.mesh.root_namespace.clone()];
        }
        if !spec.cluster_domain.is_empty() {
            self.mesh.cluster_domain = Hostname::new(
                spec.cluster_domain
                    .trim_end_matches('.')
                    .to_ascii_lowercase(),
            );
        }
        match spec.outbound_traffic_policy.as_str() {
            "" | "ALLOW_ANY" => {}
            "REGISTRY_ONLY" => self.mesh.registry_only = true,
            other => {
                self.mesh.registry_only = true;
                wrong(
                    "outboundTrafficPolicy",
                    format!(
                        "{other:?} is neither ALLOW_ANY nor REGISTRY_ONLY; taken for REGISTRY_ONLY"
                    ),
                );
            }
        }
        match spec.same_node.as_str() {
            "" | "auto" => {}
            "tunnel" => self.mesh.same_node = SameNode::Tunnel,
            "direct" => self.mesh.same_node = SameNode::Direct,
            other => wrong(
                "sameNode",
                format!("{other:?} is none of auto, tunnel, direct; taken for auto"),
            ),
        }
        match spec.waypoint.as_str() {
            "" | "auto" => {}
            "manual" => self.automatic_waypoints = false,
            other => wrong(
                "waypoint",
                format!("{other:?} is neither auto nor manual; taken for auto"),
            ),
        }
        if !spec.cluster_id.is_empty() {
            match spec.cluster_id.contains('/') {
                false => self.cluster = ClusterId::new(spec.cluster_id.as_str()),
                true => wrong("clusterId", "must not contain '/'".to_owned()),
            }
        }
        self.network = NetworkId::new(spec.network.as_str());
        self.honour = spec.honour_istio_labels.clone();
        self.tracing = Providers::read(spec, &self.mesh.cluster_domain, wrong);
    }

    /// Whether policies of a namespace hold for the whole mesh.
    pub(crate) fn is_root(&self, namespace: &str) -> bool {
        self.roots.iter().any(|root| root.as_str() == namespace)
    }

    /// The host name of a Kubernetes service.
    pub(crate) fn hostname(&self, namespace: &str, name: &str) -> Hostname {
        Hostname::new(format!(
            "{name}.{namespace}.svc.{}",
            self.mesh.cluster_domain
        ))
    }
}

impl Default for Settings {
    fn default() -> Self {
        let mesh = MeshConfig {
            trust_domain: TrustDomain::from("cluster.local"),
            root_namespace: Namespace::from("warren-system"),
            cluster_domain: Hostname::from("cluster.local"),
            registry_only: false,
            same_node: SameNode::Auto,
            enrolled_namespaces: Box::new([]),
            tunnel_blockers: Box::new([]),
            tracing: Box::new([]),
        };
        Self {
            roots: vec![mesh.root_namespace.clone(), Namespace::from("istio-system")],
            mesh,
            cluster: ClusterId::from("Kubernetes"),
            network: NetworkId::from(""),
            honour: HonourIstioLabels::default(),
            automatic_waypoints: true,
            tracing: Providers::default(),
        }
    }
}

/// Orders objects by age, then by name; without a time of creation an object counts as youngest.
pub(crate) fn age(meta: &mesh_k8s::ObjectMeta) -> (bool, String, String, String) {
    let time = &meta.creation_timestamp;
    (
        time.is_empty(),
        time.clone(),
        meta.namespace.clone(),
        meta.name.clone(),
    )
}
