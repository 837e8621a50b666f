//! NetworkPolicy: which ones let applications' ports through and not the port of the mesh's tunnels.
//!
//! Invariants: nothing is made of a NetworkPolicy, it stays the network plugin's; what is said of one depends on the
//! policies of its namespace and on whether that namespace is enrolled; of the pods that there are only where some are
//! enrolled by their own labels in a namespace that is not.
//!
//! A flow between nodes reaches the server's pod as TCP to [`HBONE_PORT`], from the client's own address; on one node
//! it may arrive at the port that the client dialed. A rule that names other ports only makes a service work by where
//! its pods happen to be.

use std::collections::{BTreeMap, BTreeSet};

use mesh_k8s::{
    ObjectRef,
    network::{NetworkPolicy, Peer, PolicyPort, Rule, Selector},
    text::IntOrString,
};
use mesh_model::{mesh::TunnelBlocker, name::Namespace};

use crate::{
    core::{enrolment, pod},
    settings::Settings,
    status::{Reports, Severity},
    view::{ClusterView, Entry},
};

/// Where tunnels end, in every enrolled pod.
const HBONE_PORT: u16 = 15008;
/// Names are asked of cluster DNS, which is no member of the mesh by default.
const DNS_PORT: u16 = 53;

/// Which way connections go.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    In,
    Out,
}

impl Way {
    fn field(self) -> &'static str {
        match self {
            Self::In => "ingress",
            Self::Out => "egress",
        }
    }

    fn rules(self, policy: &NetworkPolicy) -> &[Rule] {
        match self {
            Self::In => &policy.spec.ingress,
            Self::Out => &policy.spec.egress,
        }
    }

    fn peers(self, rule: &Rule) -> &[Peer] {
        match self {
            Self::In => &rule.from,
            Self::Out => &rule.to,
        }
    }

    /// Whether the policy isolates its pods this way. Source: Kubernetes API, `policyTypes`.
    fn isolates(self, policy: &NetworkPolicy) -> bool {
        let types = &policy.spec.policy_types;
        match self {
            Self::In => types.is_empty() || types.iter().any(|t| t == "Ingress"),
            Self::Out if types.is_empty() => !policy.spec.egress.is_empty(),
            Self::Out => types.iter().any(|t| t == "Egress"),
        }
    }
}

/// A rule that stands in the way.
struct Obstacle<'v> {
    entry: &'v Entry<NetworkPolicy>,
    way: Way,
    /// The rule's place.
    index: usize,
}

/// The policies that nodes are told of: what does not fit is said of the policies themselves all the same.
const MOST_TOLD: usize = 256;

/// The policies of enrolled pods that stand in the way of tunnels, for errors to name.
pub(crate) fn blockers(view: &ClusterView, settings: &Settings) -> Box<[TunnelBlocker]> {
    let all: BTreeSet<TunnelBlocker> = obstacles(view, settings).iter().map(blocker).collect();
    all.into_iter().take(MOST_TOLD).collect()
}

fn blocker(obstacle: &Obstacle<'_>) -> TunnelBlocker {
    let meta = &obstacle.entry.object.metadata;
    TunnelBlocker {
        namespace: Namespace::new(meta.namespace.as_str()),
        name: meta.name.as_str().into(),
        ingress: obstacle.way == Way::In,
    }
}

/// Says which policies of enrolled pods stand in the way of tunnels.
pub(crate) fn check(view: &ClusterView, settings: &Settings, reports: &mut Reports) {
    for Obstacle { entry, way, index } in obstacles(view, settings) {
        let object = ObjectRef::of::<NetworkPolicy>(&entry.object.metadata);
        let text = match way {
            Way::In => format!(
                "lets ports in, but not TCP {HBONE_PORT}, at which enrolled pods take connections from other nodes: \
                 those time out, and on one node they work; allow TCP {HBONE_PORT} from the same peers, \
                 which leads to every port of a pod, and have an AuthorizationPolicy choose among them"
            ),
            Way::Out => format!(
                "lets ports out, but not TCP {HBONE_PORT}, by which enrolled pods on other nodes are reached: \
                 such connections time out, and on one node they work; allow TCP {HBONE_PORT} to the same peers"
            ),
        };
        let field = format!("spec.{}[{index}].ports", way.field());
        reports.say(&object, &entry.origin, Severity::Warning, field, text);
    }
}

fn obstacles<'v>(view: &'v ClusterView, settings: &Settings) -> Vec<Obstacle<'v>> {
    let mut by_namespace: BTreeMap<&str, Vec<&Entry<NetworkPolicy>>> = BTreeMap::new();
    for entry in view.network_policies.values() {
        let namespace = entry.object.metadata.namespace.as_str();
        by_namespace.entry(namespace).or_default().push(entry);
    }
    let whole = |namespace: &str| enrolment::of_namespace(view, namespace, &settings.honour);
    // Where a namespace is enrolled its policies are: with what its pods come and go by, nothing is said and unsaid.
    let parts = by_namespace.keys().any(|namespace| !whole(namespace));
    let alone = match parts {
        true => enrolled_alone(view, settings),
        false => Alone::new(),
    };
    let mut found = Vec::new();
    for (namespace, entries) in by_namespace {
        let enrolled = whole(namespace);
        let pods = alone.get(namespace);
        if !enrolled && pods.is_none() {
            continue;
        }
        let siblings: Vec<&NetworkPolicy> = entries.iter().map(|entry| &*entry.object).collect();
        for entry in entries {
            let selector = &entry.object.spec.pod_selector;
            let concerned = |pods: &Vec<Labels<'_>>| pods.iter().any(|pod| selects(selector, pod));
            if !enrolled && !pods.is_some_and(concerned) {
                continue;
            }
            for way in [Way::In, Way::Out] {
                if way.isolates(&entry.object) {
                    found.extend(in_the_way(way, entry, &siblings));
                }
            }
        }
    }
    found
}

type Labels<'v> = &'v BTreeMap<String, String>;
/// The labels of pods by namespace.
type Alone<'v> = BTreeMap<&'v str, Vec<Labels<'v>>>;

/// The pods that are enrolled by their own labels.
fn enrolled_alone<'v>(view: &'v ClusterView, settings: &Settings) -> Alone<'v> {
    let mut alone = Alone::new();
    for entry in view.pods.values() {
        let pod = &*entry.object;
        if pod::is_placed(pod) && enrolment::by_itself(pod, &settings.honour) {
            let meta = &pod.metadata;
            let of_namespace = alone.entry(meta.namespace.as_str()).or_default();
            of_namespace.push(&meta.labels);
        }
    }
    alone
}

/// Whether a selector selects what has these labels. Source: Kubernetes API, LabelSelector.
fn selects(selector: &Selector, labels: Labels<'_>) -> bool {
    let mut equal = selector.match_labels.iter();
    let mut conditions = selector.match_expressions.iter();
    equal.all(|(key, value)| labels.get(key) == Some(value))
        && conditions.all(|condition| {
            let value = labels.get(&condition.key);
            let listed = value.is_some_and(|value| condition.values.contains(value));
            match condition.operator.as_str() {
                "In" => listed,
                "NotIn" => !listed,
                "Exists" => value.is_some(),
                "DoesNotExist" => value.is_none(),
                // The API server takes no other; whoever wrote one hears of it rather than not.
                _ => true,
            }
        })
}

fn in_the_way<'v>(
    way: Way,
    entry: &'v Entry<NetworkPolicy>,
    siblings: &[&NetworkPolicy],
) -> Vec<Obstacle<'v>> {
    let stands = |rule: &Rule| {
        let concerned = rule.ports.iter().any(|p| names_application(way, p))
            && way.peers(rule).iter().all(may_be_pods);
        concerned && !is_opened(way, &entry.object, rule, siblings)
    };
    let rules = way.rules(&entry.object).iter().enumerate();
    rules
        .filter(|(_, rule)| stands(rule))
        .map(|(index, _)| Obstacle { entry, way, index })
        .collect()
}

/// Whether connections of an application can be meant: TCP, and not the asking for names.
fn names_application(way: Way, port: &PolicyPort) -> bool {
    let dns = way == Way::Out && number(port) == Some(DNS_PORT) && port.end_port.is_none();
    is_tcp(port) && !dns
}

/// Addresses are given for what is outside the cluster: pods have no lasting ones.
fn may_be_pods(peer: &Peer) -> bool {
    peer.ip_block.is_none()
}

/// Whether some rule opens the tunnels' port for the same pods and the same peers.
fn is_opened(way: Way, policy: &NetworkPolicy, rule: &Rule, siblings: &[&NetworkPolicy]) -> bool {
    siblings
        .iter()
        .filter(|other| {
            let selector = &other.spec.pod_selector;
            way.isolates(other)
                && (*selector == policy.spec.pod_selector || *selector == Selector::default())
        })
        .flat_map(|other| way.rules(other))
        .any(|other| {
            let peers = way.peers(other);
            (peers.is_empty() || way.peers(rule) == peers)
                && (other.ports.is_empty() || other.ports.iter().any(opens_tunnels))
        })
}

fn opens_tunnels(port: &PolicyPort) -> bool {
    let range = |first: u16| match port.end_port {
        None => first == HBONE_PORT,
        Some(last) => first <= HBONE_PORT && i32::from(HBONE_PORT) <= last,
    };
    is_tcp(port)
        && match &port.port {
            None => true,
            Some(_) => number(port).is_some_and(range),
        }
}

fn is_tcp(port: &PolicyPort) -> bool {
    matches!(&*port.protocol, "" | "TCP")
}

/// The port as a number; `None` when it has a name, is none, or means all.
fn number(port: &PolicyPort) -> Option<u16> {
    match port.port.as_ref()? {
        IntOrString::Int(n) => u16::try_from(*n).ok(),
        IntOrString::Text(_) => None,
    }
}
