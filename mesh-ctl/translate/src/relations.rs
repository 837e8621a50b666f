//! Who depends on whom: the subjects that an object tells others about, and the subjects it asks about.
//!
//! Invariants: what is made of an object depends on the settings, on the object itself, and on objects that tell of a
//! subject it asks about; of those it asks deeply about, also on what they in turn ask deeply about. A subject is a
//! hash: two that collide cost work, never a wrong result.

use std::{
    hash::{BuildHasher, Hash, RandomState},
    net::IpAddr,
    sync::Arc,
};

use mesh_k8s::{
    Kind, ObjectRef,
    core::{EndpointSlice, Namespace, Node, Pod, Service, ServiceAccount},
    network::NetworkPolicy,
    networking::{ServiceEntry, WorkloadEntry},
    security::{AuthorizationPolicy, PeerAuthentication},
    telemetry::Telemetry,
};
use mesh_model::name::NetworkId;

mod traffic;

use crate::{
    core::{draft::parse_ip, endpoints, enrolment, pod},
    istio::{authorization, automatic, entry_endpoints, service_entry, workload_entry},
    settings::{Settings, age},
    view::{ClusterView, Entry, Key},
    wanted,
};

/// What one object can be about for others.
#[derive(Hash)]
enum Subject<'a> {
    Namespace(&'a str),
    Node(&'a str),
    /// A service or service entry, by kind, namespace and name.
    Service(&'a str, &'a str, &'a str),
    /// The slices of a service.
    Slices(&'a str, &'a str),
    /// The policies attached to a service or service entry.
    Attached(&'a str, &'a str, &'a str),
    /// What slices say of a pod.
    Serving(&'a str, &'a str),
    /// Whose an address is.
    Owner(&'a str, IpAddr),
    /// Who names an address as an endpoint.
    Named(&'a str, IpAddr),
    /// Which service has a virtual address.
    Virtual(IpAddr),
    /// Which service of a namespace has a host name.
    Host(&'a str, &'a str),
    /// Selectors that want a label, in a namespace or everywhere.
    Selected(Option<&'a str>, &'a str, &'a str),
    /// Who compares the values of a label.
    Compared(&'a str),
    /// Peer authentication of a whole namespace.
    Mtls(&'a str),
    /// All peer authentication of a namespace.
    AnyMtls(&'a str),
    /// The network policies of a namespace, and the pods of it that are enrolled by their own labels.
    Network(&'a str),
    Alone(&'a str),
    /// What is told of requests, by the objects of a namespace.
    Told(&'a str),
    /// Services with a host name, in any namespace.
    Hostname(&'a str),
    /// Services with a host name below a suffix.
    HostsBelow(&'a str),
    /// Rules for requests to a host, and to hosts below a suffix.
    Routes(&'a str),
    RoutesBelow(&'a str),
    /// How endpoints of a host, and of hosts below a suffix, are used.
    Uses(&'a str),
    UsesBelow(&'a str),
    /// A virtual service that others delegate to, and who does.
    Delegate(&'a str, &'a str),
    Delegating(&'a str, &'a str),
    /// A gateway, and what it consists of.
    Waypoint(&'a str, &'a str),
    /// Who needs a waypoint for requests to a host.
    Needs(&'a str),
    /// The waypoint that is made for a namespace.
    MadeFor(&'a str),
    /// A service account.
    Account(&'a str, &'a str),
    /// A class of gateways.
    Class(&'a str),
    /// Whether Istio runs.
    Istio,
}

/// What one object tells and asks.
#[derive(Debug, Default)]
pub(crate) struct Relations {
    /// Subjects with a fingerprint of what is told about them; sorted, none twice.
    pub(crate) tells: Vec<(u64, u64)>,
    /// Subjects, and whether what the object tells depends on the answer; sorted, none twice.
    pub(crate) asks: Vec<(u64, bool)>,
}

impl Relations {
    /// The subjects about which two versions of an object tell different things.
    pub(crate) fn differing(&self, other: &Self) -> impl Iterator<Item = u64> {
        let only = |a: &'_ Self, b: &'_ Self| -> Vec<u64> {
            let new = a
                .tells
                .iter()
                .filter(|told| b.tells.binary_search(told).is_err());
            new.map(|(subject, _)| *subject).collect()
        };
        only(self, other).into_iter().chain(only(other, self))
    }

    /// The subjects it tells about, in order.
    pub(crate) fn told(&self) -> Vec<u64> {
        let mut told: Vec<u64> = self.tells.iter().map(|(subject, _)| *subject).collect();
        told.dedup();
        told
    }
}

/// Reads relations out of a view.
pub(crate) struct Reader<'v> {
    pub(crate) view: &'v ClusterView,
    pub(crate) settings: &'v Settings,
    pub(crate) hasher: &'v RandomState,
}

impl Reader<'_> {
    /// The relations of an object as it is in the view; none when it is not there.
    pub(crate) fn of(&self, object: &ObjectRef) -> Relations {
        let key = Key {
            namespace: object.namespace.clone(),
            name: object.name.clone(),
        };
        let mut notes = Notes {
            settings: self.settings,
            hasher: self.hasher,
            found: Relations::default(),
        };
        let view = self.view;
        match &*object.kind {
            Namespace::KIND if view.namespaces.contains_key(&key) => {
                notes.tell(Subject::Namespace(&key.name), whole(&view.namespaces[&key]));
                let meta = &view.namespaces[&key].object.metadata;
                notes.goes_through(meta, &key.name);
            }
            Node::KIND if view.nodes.contains_key(&key) => {
                notes.tell(Subject::Node(&key.name), whole(&view.nodes[&key]));
            }
            ServiceAccount::KIND if view.service_accounts.contains_key(&key) => {
                let meta = &view.service_accounts[&key].object.metadata;
                notes.account(meta);
            }
            Pod::KIND => view
                .pods
                .get(&key)
                .into_iter()
                .for_each(|entry| notes.pod(entry)),
            Service::KIND => view
                .services
                .get(&key)
                .into_iter()
                .for_each(|entry| notes.service(entry)),
            EndpointSlice::KIND => view
                .endpoint_slices
                .get(&key)
                .into_iter()
                .for_each(|entry| notes.slice(entry)),
            WorkloadEntry::KIND => view
                .workload_entries
                .get(&key)
                .into_iter()
                .for_each(|entry| notes.workload_entry(entry)),
            ServiceEntry::KIND => view
                .service_entries
                .get(&key)
                .into_iter()
                .for_each(|entry| notes.service_entry(entry)),
            NetworkPolicy::KIND => view
                .network_policies
                .get(&key)
                .into_iter()
                .for_each(|entry| notes.network_policy(entry)),
            Telemetry::KIND => view
                .telemetries
                .get(&key)
                .into_iter()
                .for_each(|entry| notes.telemetry(entry)),
            AuthorizationPolicy::KIND => notes.policy(view, object, &key),
            PeerAuthentication::KIND => notes.peer_authentication(view, object, &key),
            _ => notes.traffic(view, object, &key),
        }
        notes.done()
    }
}

/// A fingerprint of an object in this version. Compared only while both versions live.
pub(crate) fn whole<K>(entry: &Entry<K>) -> usize {
    Arc::as_ptr(&entry.object).addr()
}

struct Notes<'v> {
    settings: &'v Settings,
    hasher: &'v RandomState,
    found: Relations,
}

impl Notes<'_> {
    fn done(self) -> Relations {
        let mut found = self.found;
        found.tells.sort_unstable();
        found.tells.dedup();
        // Of a subject asked about both ways, the deep way stays.
        found
            .asks
            .sort_unstable_by_key(|(subject, deep)| (*subject, !*deep));
        found.asks.dedup_by_key(|(subject, _)| *subject);
        found
    }

    fn tell(&mut self, subject: Subject<'_>, content: impl Hash) {
        let told = (self.hasher.hash_one(subject), self.hasher.hash_one(content));
        self.found.tells.push(told);
    }

    fn ask(&mut self, subject: Subject<'_>) {
        self.found.asks.push((self.hasher.hash_one(subject), false));
    }

    fn ask_deeply(&mut self, subject: Subject<'_>) {
        self.found.asks.push((self.hasher.hash_one(subject), true));
    }

    /// A thing with labels asks for every selector that could want it, and for whoever compares one of them.
    fn selectable(&mut self, namespace: &str, labels: &std::collections::BTreeMap<String, String>) {
        for (key, value) in labels {
            self.ask(Subject::Selected(Some(namespace), key, value));
            self.ask(Subject::Selected(None, key, value));
            self.ask(Subject::Compared(key));
        }
    }

    /// A selector can only want what has its first label.
    fn selector(
        &mut self,
        namespace: Option<&str>,
        labels: &std::collections::BTreeMap<String, String>,
        content: impl Hash,
    ) {
        if let Some((key, value)) = labels.first_key_value() {
            self.tell(Subject::Selected(namespace, key, value), content);
        }
    }

    /// What a workload of a namespace accepts.
    fn accepting(&mut self, namespace: &str) {
        self.ask(Subject::Mtls(namespace));
        for root in &self.settings.roots {
            let subject = Subject::Mtls(root.as_str());
            self.found.asks.push((self.hasher.hash_one(subject), false));
        }
    }

    /// A workload asks who else has its address and who names it.
    fn address(&mut self, network: &NetworkId, ip: IpAddr) {
        self.ask(Subject::Owner(network.as_str(), ip));
        self.ask(Subject::Named(network.as_str(), ip));
    }

    /// An endpoint by address belongs to whoever owns the address, or to the first that names it.
    fn endpoint(&mut self, network: &NetworkId, ip: IpAddr, content: impl Hash) {
        self.tell(Subject::Named(network.as_str(), ip), content);
        self.address(network, ip);
    }

    fn pod(&mut self, entry: &Entry<Pod>) {
        let meta = &entry.object.metadata;
        if !pod::is_placed(&entry.object) {
            return;
        }
        self.ask(Subject::Namespace(&meta.namespace));
        self.pod_of_gateway(entry);
        self.ask(Subject::Node(&entry.object.spec.node_name));
        self.ask(Subject::Serving(&meta.namespace, &meta.name));
        self.selectable(&meta.namespace, &meta.labels);
        self.accepting(&meta.namespace);
        if enrolment::by_itself(&entry.object, &self.settings.honour) {
            self.tell(Subject::Alone(&meta.namespace), &meta.labels);
        }
        if entry.object.spec.host_network {
            return;
        }
        let network = pod::network(&entry.object, self.settings);
        for ip in pod::addresses(&entry.object, &mut Vec::new()) {
            self.tell(
                Subject::Owner(network.as_str(), ip),
                (&meta.namespace, &meta.name),
            );
            self.address(&network, ip);
        }
    }

    fn workload_entry(&mut self, entry: &Entry<WorkloadEntry>) {
        let meta = &entry.object.metadata;
        self.selectable(&meta.namespace, workload_entry::labels(&entry.object));
        self.accepting(&meta.namespace);
        if let Some(ip) = parse_ip(&entry.object.spec.address) {
            let network = workload_entry::network(self.settings, entry);
            self.tell(Subject::Owner(network.as_str(), ip), whole(entry));
            self.address(&network, ip);
        }
    }

    fn service(&mut self, entry: &Entry<Service>) {
        let (meta, spec) = (&entry.object.metadata, &entry.object.spec);
        let hostname = self.settings.hostname(&meta.namespace, &meta.name);
        self.tell(
            Subject::Service(Service::KIND, &meta.namespace, &meta.name),
            whole(entry),
        );
        self.tell(Subject::Host(&meta.namespace, hostname.as_str()), age(meta));
        self.selector(Some(&meta.namespace), &spec.selector, whole(entry));
        for ip in spec
            .cluster_ips
            .iter()
            .chain([&spec.cluster_ip])
            .filter_map(|text| parse_ip(text))
        {
            self.tell(Subject::Virtual(ip), age(meta));
            self.ask_deeply(Subject::Virtual(ip));
        }
        self.tell(Subject::Waypoint(&meta.namespace, &meta.name), whole(entry));
        // Its own gateway's service goes through none.
        self.ask_deeply(Subject::Waypoint(&meta.namespace, &meta.name));
        self.host(hostname.as_str(), entry);
        self.goes_through(meta, &meta.namespace);
        self.ask_deeply(Subject::MadeFor(&meta.namespace));
        if let Some(namespace) = wanted::made_for(meta) {
            self.tell(Subject::MadeFor(namespace), wanted::is_active(meta));
        }
        self.ask_deeply(Subject::Namespace(&meta.namespace));
        self.ask_deeply(Subject::Slices(&meta.namespace, &meta.name));
        self.ask_deeply(Subject::Attached(
            Service::KIND,
            &meta.namespace,
            &meta.name,
        ));
    }

    fn slice(&mut self, entry: &Entry<EndpointSlice>) {
        let meta = &entry.object.metadata;
        let Some(owner) = meta.label(endpoints::SERVICE_NAME) else {
            return;
        };
        let namespace = meta.namespace.as_str();
        // Those that are ending serve while nobody is ready.
        self.tell(
            Subject::Slices(namespace, owner),
            endpoints::has_ready(&entry.object),
        );
        self.ask_deeply(Subject::Service(Service::KIND, namespace, owner));
        self.accepting(namespace);
        let ports: Vec<_> = entry
            .object
            .ports
            .iter()
            .map(|port| (&port.name, port.port, &port.protocol))
            .collect();
        for endpoint in &entry.object.endpoints {
            match endpoints::pod_of(&entry.object, endpoint) {
                Some((namespace, name)) => {
                    self.tell(
                        Subject::Serving(namespace, name),
                        (
                            owner,
                            &ports,
                            &entry.object.address_type,
                            endpoints::is_ending(endpoint),
                        ),
                    );
                }
                None => {
                    let network = self.settings.network.clone();
                    for ip in endpoint.addresses.iter().filter_map(|text| parse_ip(text)) {
                        self.endpoint(&network, ip, whole(entry));
                    }
                }
            }
        }
    }

    fn service_entry(&mut self, entry: &Entry<ServiceEntry>) {
        let (meta, spec) = (&entry.object.metadata, &entry.object.spec);
        self.tell(
            Subject::Service(ServiceEntry::KIND, &meta.namespace, &meta.name),
            whole(entry),
        );
        self.ask_deeply(Subject::Attached(
            ServiceEntry::KIND,
            &meta.namespace,
            &meta.name,
        ));
        self.ask_deeply(Subject::Namespace(&meta.namespace));
        self.ask_deeply(Subject::MadeFor(&meta.namespace));
        self.goes_through(meta, &meta.namespace);
        for host in &spec.hosts {
            let host = service_entry::normal(host);
            self.host(&host, entry);
            self.tell(Subject::Host(&meta.namespace, &host), whole(entry));
            self.ask_deeply(Subject::Host(&meta.namespace, &host));
            if service_entry::wants_automatic(&entry.object, &host) {
                // Which of these it takes depends on who else has them, and decides who else gets them.
                let (v4, v6) = automatic::candidates(&meta.namespace, &host);
                for ip in v4.into_iter().chain([v6]) {
                    self.tell(Subject::Virtual(ip), whole(entry));
                    self.ask_deeply(Subject::Virtual(ip));
                }
            }
        }
        let network = self.settings.network.clone();
        for ip in spec
            .addresses
            .iter()
            .filter_map(|text| service_entry::virtual_address(text))
        {
            self.tell(Subject::Virtual(ip), whole(entry));
            // Without any address it goes through no waypoint, which is told to whose rules are for it.
            self.ask_deeply(Subject::Virtual(ip));
            self.ask_deeply(Subject::Owner(network.as_str(), ip));
        }
        for endpoint in &spec.endpoints {
            if let Some(ip) = parse_ip(&endpoint.address) {
                self.endpoint(
                    &entry_endpoints::network(self.settings, endpoint),
                    ip,
                    whole(entry),
                );
            }
        }
        if let Some(selector) = &spec.workload_selector {
            self.selector(Some(&meta.namespace), &selector.labels, whole(entry));
        }
        self.accepting(&meta.namespace);
    }

    /// Workloads know a policy by name only; what its rules say concerns nobody else.
    fn policy(&mut self, view: &ClusterView, object: &ObjectRef, key: &Key) {
        let entry = view.authorization_policies.get(key);
        let broken = view.broken.get(object);
        let labels = match entry {
            Some(entry) => entry
                .object
                .spec
                .selector
                .as_ref()
                .map(|selector| &selector.match_labels),
            None => broken.and_then(|broken| broken.selector.as_ref()),
        };
        let namespace = (!self.settings.is_root(&key.namespace)).then_some(&*key.namespace);
        let attached: Vec<_> = entry
            .into_iter()
            .flat_map(|entry| authorization::targets(&entry.object))
            .collect();
        if let Some(labels) = labels {
            let targets: Vec<_> = attached
                .iter()
                .map(|(_, target)| (&target.kind, &target.namespace, &target.name))
                .collect();
            self.selector(namespace, labels, (labels, &targets));
        }
        for (_, target) in attached {
            let namespace = authorization::target_namespace(target, &key.namespace);
            self.tell(
                Subject::Attached(&target.kind, namespace, &target.name),
                labels.is_some(),
            );
            self.ask(Subject::Service(&target.kind, namespace, &target.name));
        }
    }

    /// What is said of one depends on the others of its namespace.
    fn network_policy(&mut self, entry: &Entry<NetworkPolicy>) {
        let namespace = &entry.object.metadata.namespace;
        self.tell(Subject::Network(namespace), whole(entry));
        self.ask(Subject::Network(namespace));
        self.ask(Subject::Alone(namespace));
        self.ask(Subject::Namespace(namespace));
    }

    /// Of those for a whole namespace one holds; of those for the mesh, in whichever root.
    fn telemetry(&mut self, entry: &Entry<Telemetry>) {
        let namespace = &entry.object.metadata.namespace;
        self.tell(Subject::Told(namespace), whole(entry));
        self.ask(Subject::Told(namespace));
        if self.settings.is_root(namespace) {
            for root in &self.settings.roots {
                let subject = Subject::Told(root.as_str());
                self.found.asks.push((self.hasher.hash_one(subject), false));
            }
        }
    }

    fn peer_authentication(&mut self, view: &ClusterView, object: &ObjectRef, key: &Key) {
        let (labels, content) = match (view.peer_authentications.get(key), view.broken.get(object))
        {
            (Some(entry), _) => (
                entry
                    .object
                    .spec
                    .selector
                    .as_ref()
                    .map(|selector| &selector.match_labels),
                whole(entry),
            ),
            (None, Some(broken)) => (broken.selector.as_ref(), 0),
            (None, None) => return,
        };
        match labels.filter(|labels| !labels.is_empty()) {
            Some(labels) => self.selector(Some(&key.namespace), labels, (labels, content)),
            None => self.tell(Subject::Mtls(&key.namespace), content),
        }
        self.tell(Subject::AnyMtls(&key.namespace), content);
        self.ask(Subject::AnyMtls(&key.namespace));
        if self.settings.is_root(&key.namespace) {
            for root in &self.settings.roots {
                let subject = Subject::AnyMtls(root.as_str());
                self.found.asks.push((self.hasher.hash_one(subject), false));
            }
        }
    }
}
