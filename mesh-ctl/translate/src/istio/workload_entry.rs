//! WorkloadEntry: workloads that are not pods.

use std::collections::BTreeMap;

use mesh_k8s::{ObjectRef, networking::WorkloadEntry};
use mesh_model::{
    mesh::{Workload, workload::Canonical},
    name::{Identity, Namespace, NetworkAddress, NetworkId, NodeName, ServiceAccount, WorkloadUid},
};

use super::entry_endpoints::Place;
use crate::{
    core::{
        draft::{Draft, Drafts, outside},
        pod::{canonical, locality_of, own_tunnel},
    },
    settings::Settings,
    status::{InForce, Reports, Severity},
    view::{ClusterView, Entry},
};

/// Adds the workload entries, the oldest first; an address that another workload owns stays with it.
pub(crate) fn collect<'a>(
    view: &'a ClusterView,
    settings: &Settings,
    drafts: &mut Drafts<'a>,
    reports: &mut Reports,
) {
    let mut entries: Vec<_> = view.workload_entries.values().collect();
    entries.sort_by_cached_key(|entry| crate::settings::age(&entry.object.metadata));
    for entry in entries {
        let spec = &entry.object.spec;
        let object = ObjectRef::of::<WorkloadEntry>(&entry.object.metadata);
        let mut refuse = |reason, text: String| {
            reports.say(
                &object,
                &entry.origin,
                Severity::Error,
                "spec.address",
                text.clone(),
            );
            reports.in_force(&object, &entry.origin, InForce::Not(reason, text));
        };
        let Some(place) = Place::read(&spec.address) else {
            let text = format!(
                "{:?} is neither an IP address nor a host name; sockets are not served",
                spec.address
            );
            refuse("Unsupported", text);
            continue;
        };
        let network = network(settings, entry);
        let address = place.address().map(|ip| NetworkAddress {
            network: network.clone(),
            ip,
        });
        let owner = address
            .as_ref()
            .and_then(|address| drafts.by_address.get(address));
        if let Some(owner) = owner {
            let text = format!("{} belongs to {}", spec.address, drafts.all[*owner].object);
            refuse("AddressConflict", text);
            continue;
        }
        let Some(identity) = identity(settings, entry) else {
            let text = format!("{:?} is not a service account's name", spec.service_account);
            reports.say(
                &object,
                &entry.origin,
                Severity::Error,
                "spec.serviceAccount",
                text.clone(),
            );
            reports.in_force(&object, &entry.origin, InForce::Not("Invalid", text));
            continue;
        };
        reports.in_force(&object, &entry.origin, InForce::Wholly);
        let index = drafts.all.len();
        if let Some(address) = address {
            drafts.by_address.insert(address, index);
        }
        let mut draft = draft(settings, entry, object, network, identity);
        match place {
            Place::Address(ip) => draft.workload.addresses = [ip].into(),
            Place::Host(host) => draft.workload.hostname = Some(host),
        }
        drafts.all.push(draft);
    }
}

/// The network that an entry's address belongs to.
pub(crate) fn network(settings: &Settings, entry: &Entry<WorkloadEntry>) -> NetworkId {
    match entry.object.spec.network.as_str() {
        "" => settings.network.clone(),
        network => NetworkId::from(network),
    }
}

/// The labels that selectors look at.
pub(crate) fn labels(entry: &WorkloadEntry) -> &BTreeMap<String, String> {
    if entry.spec.labels.is_empty() {
        &entry.metadata.labels
    } else {
        &entry.spec.labels
    }
}

fn identity(settings: &Settings, entry: &Entry<WorkloadEntry>) -> Option<Identity> {
    let account = match entry.object.spec.service_account.as_str() {
        "" => "default",
        account => account,
    };
    let identity = Identity {
        trust_domain: settings.mesh.trust_domain.clone(),
        namespace: Namespace::new(entry.object.metadata.namespace.as_str()),
        service_account: ServiceAccount::from(account),
    };
    (identity.to_string().parse().as_ref() == Ok(&identity)).then_some(identity)
}

fn draft<'a>(
    settings: &Settings,
    entry: &'a Entry<WorkloadEntry>,
    object: ObjectRef,
    network: NetworkId,
    identity: Identity,
) -> Draft<'a> {
    let WorkloadEntry { metadata, spec } = &*entry.object;
    let labels = labels(&entry.object);
    let named = mesh_k8s::ObjectMeta {
        labels: labels.clone(),
        ..metadata.clone()
    };
    let ObjectRef {
        namespace, name, ..
    } = &object;
    let uid = format!(
        "{}/networking.istio.io/WorkloadEntry/{namespace}/{name}",
        settings.cluster
    );
    let workload = Workload {
        uid: WorkloadUid::new(uid),
        name: name.clone(),
        namespace: Namespace::from(&**namespace),
        identity,
        network,
        addresses: [].into(),
        hostname: None,
        node: NodeName::from(""),
        cluster: settings.cluster.clone(),
        protocol: own_tunnel(labels),
        host_network: false,
        healthy: !metadata.is_terminating(),
        locality: locality_of(&spec.locality),
        canonical: Canonical {
            workload_name: name.clone(),
            ..canonical(&named)
        },
        services: [].into(),
        policies: [].into(),
        waypoint: None,
        capacity: spec.weight.unwrap_or(1),
    };
    Draft {
        workload,
        extra: outside(),
        object,
        origin: &entry.origin,
        labels: Some(labels),
        selectable: Some(&metadata.namespace),
        pod: None,
        entry_ports: Some(&spec.ports),
        services: BTreeMap::new(),
        policies: Vec::new(),
    }
}
