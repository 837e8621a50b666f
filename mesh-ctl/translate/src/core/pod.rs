//! Pods to workloads.

use std::{
    collections::{BTreeMap, HashMap},
    net::IpAddr,
    sync::Arc,
};

use mesh_k8s::{ObjectMeta, ObjectRef, core::Pod};
use mesh_model::{
    mesh::{
        Enrolment, Workload,
        workload::{Canonical, Locality, TunnelProtocol},
    },
    name::{Identity, Namespace, NetworkAddress, NetworkId, NodeName, ServiceAccount, WorkloadUid},
};

use super::{
    draft::{Draft, Drafts, outside, parse_ip},
    enrolment, probes,
};
use crate::{
    settings::Settings,
    status::{InForce, Message, Reports, Severity},
    view::{ClusterView, Entry, Key},
};

/// Istio's label by which a workload says that it ends tunnels itself, and in which protocols.
const TUNNEL_LABEL: &str = "networking.istio.io/tunnel";

/// kubelet's annotation on mirrors of the pods that it reads from files.
const MIRROR: &str = "kubernetes.io/config.mirror";

/// Adds the pods that are placed on a node and have not ended.
pub(crate) fn collect<'a>(
    view: &'a ClusterView,
    settings: &Settings,
    drafts: &mut Drafts<'a>,
    reports: &mut Reports,
) {
    let localities: HashMap<&str, Locality> = view
        .nodes
        .iter()
        .map(|(key, node)| (&*key.name, locality(&node.object.metadata)))
        .collect();
    for (key, entry) in &view.pods {
        let pod = &*entry.object;
        if !is_placed(pod) {
            continue;
        }
        let mut messages = Vec::new();
        let draft = draft(view, entry, settings, &localities, &mut messages);
        reports.say_all(&draft.object, &entry.origin, messages);
        if let Enrolment::Refused(reason) = &draft.extra.enrolment {
            reports.in_force(
                &draft.object,
                &entry.origin,
                InForce::Not("NotEnrolled", reason.to_string()),
            );
        }
        let index = drafts.all.len();
        drafts.by_pod.insert((&key.namespace, &key.name), index);
        if !draft.workload.host_network {
            for ip in &draft.workload.addresses {
                let address = NetworkAddress {
                    network: draft.workload.network.clone(),
                    ip: *ip,
                };
                if let Some(other) = drafts.by_address.insert(address, index) {
                    duplicate(&draft, &drafts.all[other], *ip, reports);
                }
            }
        }
        drafts.all.push(draft);
    }
}

/// Whether a pod is on a node and has not ended.
pub(crate) fn is_placed(pod: &Pod) -> bool {
    !matches!(pod.status.phase.as_str(), "Succeeded" | "Failed") && !pod.spec.node_name.is_empty()
}

/// The network that a pod's addresses belong to.
pub(crate) fn network(pod: &Pod, settings: &Settings) -> NetworkId {
    pod.metadata
        .label("topology.istio.io/network")
        .map_or_else(|| settings.network.clone(), NetworkId::from)
}

fn duplicate(draft: &Draft<'_>, other: &Draft<'_>, ip: IpAddr, reports: &mut Reports) {
    for (this, that) in [(draft, other), (other, draft)] {
        let text = format!(
            "{ip} is also the address of {}: connections to it are refused until one of them is gone",
            that.object
        );
        reports.say(
            &this.object,
            this.origin,
            Severity::Error,
            "status.podIPs",
            text,
        );
    }
}

/// What a workload that nobody here captures speaks by itself: the label says that it ends HBONE on its own.
pub(crate) fn own_tunnel(labels: &BTreeMap<String, String>) -> TunnelProtocol {
    match labels.get(TUNNEL_LABEL) {
        Some(protocols) if protocols.split(',').any(|p| p.trim() == "http") => {
            TunnelProtocol::Hbone
        }
        _ => TunnelProtocol::None,
    }
}

fn draft<'a>(
    view: &ClusterView,
    entry: &'a Entry<Pod>,
    settings: &Settings,
    localities: &HashMap<&str, Locality>,
    messages: &mut Vec<Message>,
) -> Draft<'a> {
    let pod = &*entry.object;
    let meta = &pod.metadata;
    let (identity, enrolment) = match identity(pod, settings, messages) {
        Ok(identity) => (
            identity,
            enrolment::decide(view, pod, &settings.honour, messages),
        ),
        Err((identity, reason)) => (identity, Enrolment::Refused(reason)),
    };
    let protocol = if enrolment == Enrolment::Enrolled {
        TunnelProtocol::Hbone
    } else {
        own_tunnel(&meta.labels)
    };
    let workload = Workload {
        uid: WorkloadUid::new(format!(
            "{}//Pod/{}/{}",
            settings.cluster, meta.namespace, meta.name
        )),
        name: meta.name.as_str().into(),
        namespace: Namespace::new(meta.namespace.as_str()),
        identity,
        network: network(pod, settings),
        addresses: addresses(pod, messages),
        hostname: None,
        node: NodeName::new(pod.spec.node_name.as_str()),
        cluster: settings.cluster.clone(),
        protocol,
        host_network: pod.spec.host_network,
        healthy: is_healthy(pod),
        locality: localities
            .get(pod.spec.node_name.as_str())
            .cloned()
            .unwrap_or_default(),
        canonical: canonical(meta),
        services: [].into(),
        policies: [].into(),
        waypoint: None,
        capacity: 1,
    };
    let mut extra = outside();
    extra.enrolment = enrolment;
    extra.probe_ports = probes::ports(pod);
    extra.cut_existing = enrolment::is_true(meta, enrolment::CUT_EXISTING);
    extra.allow_forwarded = enrolment::is_true(meta, enrolment::ALLOW_FORWARDED);
    extra.pod_uid = uid(meta);
    Draft {
        workload,
        extra,
        object: ObjectRef::of::<Pod>(meta),
        origin: &entry.origin,
        labels: Some(&meta.labels),
        selectable: Some(&meta.namespace),
        pod: Some(pod),
        entry_ports: None,
        services: Default::default(),
        policies: Vec::new(),
    }
}

/// The uid that kubelet knows a pod by. Of a pod that kubelet reads from a file the API has a mirror with a uid of its
/// own; the mirror's annotation names the pod's.
fn uid(meta: &ObjectMeta) -> Option<Arc<str>> {
    let uid = meta.annotation(MIRROR).unwrap_or(&meta.uid);
    (!uid.is_empty()).then(|| uid.into())
}

/// Who the pod is. A service account whose name would make another identity is replaced by none, and the pod refused.
fn identity(
    pod: &Pod,
    settings: &Settings,
    messages: &mut Vec<Message>,
) -> Result<Identity, (Identity, Arc<str>)> {
    let spec = &pod.spec;
    let account = [&spec.service_account_name, &spec.service_account]
        .into_iter()
        .find(|name| !name.is_empty());
    let account = account.map_or("default", String::as_str);
    let identity = |account: &str| Identity {
        trust_domain: settings.mesh.trust_domain.clone(),
        namespace: Namespace::new(pod.metadata.namespace.as_str()),
        service_account: ServiceAccount::from(account),
    };
    let wanted = identity(account);
    if wanted.to_string().parse().as_ref() == Ok(&wanted) {
        return Ok(wanted);
    }
    let text = format!(
        "{:?} is not a service account's name",
        account.escape_debug().to_string()
    );
    messages.push(Message {
        severity: Severity::Error,
        field: "spec.serviceAccountName".to_owned(),
        text: format!("{text}; the pod is not enrolled"),
    });
    Err((identity(""), text.into()))
}

/// A pod's addresses, none twice.
pub(crate) fn addresses(pod: &Pod, messages: &mut Vec<Message>) -> Box<[IpAddr]> {
    let status = &pod.status;
    let mut addresses: Vec<IpAddr> = Vec::new();
    let listed = status
        .pod_ips
        .iter()
        .enumerate()
        .map(|(i, ip)| (format!("status.podIPs[{i}].ip"), &ip.ip));
    for (field, text) in listed.chain([("status.podIP".to_owned(), &status.pod_ip)]) {
        match parse_ip(text) {
            Some(ip) if !addresses.contains(&ip) => addresses.push(ip),
            Some(_) => {}
            None if text.is_empty() => {}
            None => messages.push(Message {
                severity: Severity::Error,
                field,
                text: format!("{text:?} is not an IP address"),
            }),
        }
    }
    addresses.into()
}

fn is_healthy(pod: &Pod) -> bool {
    let ready = pod
        .status
        .conditions
        .iter()
        .find(|condition| condition.kind == "Ready");
    !pod.metadata.is_terminating()
        && ready.map_or(pod.status.phase == "Running", |ready| {
            ready.status == "True"
        })
}

fn locality(meta: &ObjectMeta) -> Locality {
    let label = |key: &str| meta.label(key).unwrap_or_default().into();
    Locality {
        region: label("topology.kubernetes.io/region"),
        zone: label("topology.kubernetes.io/zone"),
        subzone: label("topology.istio.io/subzone"),
    }
}

/// `region/zone/subzone` as Istio's own kinds write it.
pub(crate) fn locality_of(text: &str) -> Locality {
    let mut parts = text.splitn(3, '/').map(Into::into);
    let mut part = || parts.next().unwrap_or_default();
    Locality {
        region: part(),
        zone: part(),
        subzone: part(),
    }
}

/// Names for telemetry.
pub(crate) fn canonical(meta: &ObjectMeta) -> Canonical {
    let (owner, kind) = owner(meta);
    let owner = meta
        .label("service.istio.io/workload-name")
        .map_or(owner, str::to_owned);
    let first = |keys: [&str; 3]| {
        keys.into_iter()
            .find_map(|key| meta.label(key).filter(|value| !value.is_empty()))
    };
    let name = first([
        "service.istio.io/canonical-name",
        "app.kubernetes.io/name",
        "app",
    ]);
    let revision = first([
        "service.istio.io/canonical-revision",
        "app.kubernetes.io/version",
        "version",
    ]);
    Canonical {
        name: name.unwrap_or(&owner).into(),
        revision: revision.unwrap_or("latest").into(),
        workload_name: owner.as_str().into(),
        workload_type: kind.into(),
    }
}

/// The name and kind of what made the pod; a ReplicaSet or dated Job stands for what made it in turn.
fn owner(meta: &ObjectMeta) -> (String, &'static str) {
    let Some(owner) = meta
        .owner_references
        .iter()
        .find(|owner| owner.controller)
        .or(meta.owner_references.first())
    else {
        return (meta.name.clone(), "pod");
    };
    let stem = |suffix: &str| {
        owner
            .name
            .strip_suffix(suffix)
            .and_then(|stem| stem.strip_suffix('-'))
    };
    match owner.kind.as_str() {
        "ReplicaSet" => {
            let deployment = meta.label("pod-template-hash").and_then(stem);
            (deployment.unwrap_or(&owner.name).to_owned(), "deployment")
        }
        "Deployment" => (owner.name.clone(), "deployment"),
        "CronJob" => (owner.name.clone(), "cronjob"),
        "Job" => match owner.name.rsplit_once('-') {
            Some((cron, minute))
                if minute.len() == 8 && minute.bytes().all(|b| b.is_ascii_digit()) =>
            {
                (cron.to_owned(), "cronjob")
            }
            _ => (owner.name.clone(), "job"),
        },
        _ => (owner.name.clone(), "pod"),
    }
}

/// Reports what is odd about namespaces' labels.
pub(crate) fn check_namespaces(view: &ClusterView, reports: &mut Reports) {
    for (Key { name, .. }, entry) in &view.namespaces {
        if let Some(message) = enrolment::odd_namespace_label(&entry.object.metadata) {
            let object = ObjectRef::new("Namespace", "", name);
            reports.say_all(&object, &entry.origin, vec![message]);
        }
    }
}
