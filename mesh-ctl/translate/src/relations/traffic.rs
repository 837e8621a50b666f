//! The relations of what becomes of requests: rules, destinations, gateways, and services as they see them.

use std::collections::BTreeSet;

use mesh_k8s::{
    Kind, ObjectMeta, ObjectRef,
    apps::{DaemonSet, Deployment},
    core::Pod,
    gateway::{
        BackendRef, Gateway, GatewayClass, GrpcRoute, HttpRoute, ParentReference, RouteFilter,
        TcpRoute, TlsRoute,
    },
    networking::{DestinationRule, VirtualService},
};

use super::{Notes, Subject, whole};
use crate::{
    gateway::{needs, routes, rules, waypoint},
    istio::{delegate, destination_rule, presence, virtual_service},
    traffic::hosts::{Pattern, suffixes},
    view::{ClusterView, Entry, Key},
    wanted::GATEWAY_NAME,
};

impl Notes<'_> {
    /// Objects of the kinds that this file knows.
    pub(super) fn traffic(&mut self, view: &ClusterView, object: &ObjectRef, key: &Key) {
        match &*object.kind {
            VirtualService::KIND => {
                let entry = view.virtual_services.get(key);
                entry.into_iter().for_each(|e| self.virtual_service(e));
            }
            DestinationRule::KIND => {
                let entry = view.destination_rules.get(key);
                entry.into_iter().for_each(|e| self.destination_rule(e));
            }
            HttpRoute::KIND => {
                let entry = view.http_routes.get(key);
                entry.into_iter().for_each(|e| {
                    let HttpRoute { metadata, spec } = &*e.object;
                    let rules = spec.rules.iter().flatten();
                    let parts = rules.map(|rule| (&rule.backend_refs, &rule.filters[..]));
                    self.route(e, &metadata.namespace, &spec.parent_refs, parts);
                });
            }
            GrpcRoute::KIND => {
                let entry = view.grpc_routes.get(key);
                entry.into_iter().for_each(|e| {
                    let GrpcRoute { metadata, spec } = &*e.object;
                    let rules = spec.rules.iter().flatten();
                    let parts = rules.map(|rule| (&rule.backend_refs, &rule.filters[..]));
                    self.route(e, &metadata.namespace, &spec.parent_refs, parts);
                });
            }
            TcpRoute::KIND => {
                let entry = view.tcp_routes.get(key);
                entry.into_iter().for_each(|e| {
                    let TcpRoute { metadata, spec } = &*e.object;
                    let parts = spec.rules.iter().map(|rule| (&rule.backend_refs, &[][..]));
                    self.route(e, &metadata.namespace, &spec.parent_refs, parts);
                });
            }
            TlsRoute::KIND => {
                let entry = view.tls_routes.get(key);
                entry.into_iter().for_each(|e| {
                    let TlsRoute { metadata, spec } = &*e.object;
                    let parts = spec.rules.iter().map(|rule| (&rule.backend_refs, &[][..]));
                    self.route(e, &metadata.namespace, &spec.parent_refs, parts);
                });
            }
            Gateway::KIND => {
                let entry = view.gateways.get(key);
                entry.into_iter().for_each(|e| self.gateway(e));
            }
            GatewayClass::KIND => {
                let entry = view.gateway_classes.get(key);
                entry
                    .into_iter()
                    .for_each(|e| self.tell(Subject::Class(&key.name), whole(e)));
            }
            Deployment::KIND => {
                let entry = view.deployments.get(key);
                let part = entry.filter(|e| presence::is_part(&e.object.spec.template.metadata));
                part.into_iter()
                    .for_each(|e| self.tell(Subject::Istio, whole(e)));
            }
            DaemonSet::KIND => {
                let entry = view.daemon_sets.get(key);
                let part = entry.filter(|e| presence::is_part(&e.object.spec.template.metadata));
                part.into_iter()
                    .for_each(|e| self.tell(Subject::Istio, whole(e)));
            }
            _ => {}
        }
    }

    /// A service by its host name: rules and destinations are for it.
    pub(super) fn host<K>(&mut self, host: &str, entry: &Entry<K>) {
        self.tell(Subject::Hostname(host), whole(entry));
        // Others of the same name may be the ones that are meant.
        self.ask(Subject::Hostname(host));
        self.ask_deeply(Subject::Needs(host));
        self.ask(Subject::Routes(host));
        self.ask(Subject::Uses(host));
        for suffix in suffixes(host) {
            self.tell(Subject::HostsBelow(suffix), whole(entry));
            self.ask(Subject::RoutesBelow(suffix));
            self.ask(Subject::UsesBelow(suffix));
        }
    }

    /// The waypoint that labels name.
    pub(super) fn goes_through(&mut self, meta: &ObjectMeta, own: &str) {
        let choice = waypoint::choice(meta, own);
        if let Some(Key { namespace, name }) = choice.and_then(|choice| choice.gateway) {
            self.ask_deeply(Subject::Waypoint(&namespace, &name));
        }
    }

    /// The account of pods, of which only labels about waypoints matter.
    pub(super) fn account(&mut self, meta: &ObjectMeta) {
        let told = waypoint::labels(meta);
        if told.iter().any(Option::is_some) {
            self.tell(Subject::Account(&meta.namespace, &meta.name), told);
            self.goes_through(meta, &meta.namespace);
        }
    }

    pub(super) fn pod_of_gateway(&mut self, entry: &Entry<Pod>) {
        let meta = &entry.object.metadata;
        self.goes_through(meta, &meta.namespace);
        self.ask_deeply(Subject::Account(
            &meta.namespace,
            entry.object.spec.account(),
        ));
        if let Some(name) = meta.label(GATEWAY_NAME) {
            self.tell(Subject::Waypoint(&meta.namespace, name), whole(entry));
            self.ask(Subject::Waypoint(&meta.namespace, name));
        }
    }

    fn gateway(&mut self, entry: &Entry<Gateway>) {
        let Gateway { metadata, spec, .. } = &*entry.object;
        let subject = Subject::Waypoint(&metadata.namespace, &metadata.name);
        self.tell(subject, whole(entry));
        if waypoint::may_be_ours(&entry.object) {
            self.ask(Subject::Waypoint(&metadata.namespace, &metadata.name));
            self.ask_deeply(Subject::Class(&spec.gateway_class_name));
        }
        if waypoint::is_istios(&entry.object) {
            self.ask_deeply(Subject::Istio);
        }
    }

    /// A route of the Gateway API: backends and filters of its rules.
    fn route<'w, K>(
        &mut self,
        entry: &Entry<K>,
        own: &str,
        parents: &[ParentReference],
        parts: impl Iterator<Item = (&'w Vec<BackendRef>, &'w [RouteFilter])>,
    ) {
        for parent in parents.iter().filter(|parent| routes::is_service(parent)) {
            let namespace = routes::parent_namespace(parent, own);
            let host = self.settings.hostname(namespace, &parent.name);
            self.tell(Subject::Routes(host.as_str()), whole(entry));
            self.ask(Subject::Routes(host.as_str()));
            self.ask(Subject::Hostname(host.as_str()));
            let part = (parent.port, parent.section_name.as_str());
            self.tell(Subject::Needs(host.as_str()), part);
        }
        let backends = parts.flat_map(|(backends, filters)| {
            let mirrors = filters
                .iter()
                .filter_map(|filter| filter.request_mirror.as_ref());
            backends
                .iter()
                .chain(mirrors.map(|mirror| &mirror.backend_ref))
        });
        for host in rules::backend_hosts(self.settings, own, backends) {
            self.ask_deeply(Subject::Hostname(&host));
        }
    }

    fn virtual_service(&mut self, entry: &Entry<VirtualService>) {
        let VirtualService { metadata, spec } = &*entry.object;
        let own = metadata.namespace.as_str();
        self.tell(Subject::Delegate(own, &metadata.name), whole(entry));
        self.ask(Subject::Delegating(own, &metadata.name));
        let patterns = spec.hosts.iter();
        for pattern in patterns.filter_map(|host| Pattern::read(self.settings, own, host).ok()) {
            match &pattern {
                Pattern::Exact(host) => {
                    self.tell(Subject::Routes(host), whole(entry));
                    self.ask(Subject::Routes(host));
                    self.ask(Subject::Hostname(host));
                }
                Pattern::Below(suffix) => {
                    self.tell(Subject::RoutesBelow(suffix), whole(entry));
                    self.ask(Subject::HostsBelow(suffix));
                }
            }
        }
        for host in needs::virtual_service(self.settings, &entry.object) {
            self.tell(Subject::Needs(&host), &spec.export_to);
        }
        for labels in virtual_service::selectors(&entry.object) {
            self.selector(None, labels, whole(entry));
        }
        let mut backends = BTreeSet::new();
        for rule in &spec.http {
            if let Some(to) = &rule.delegate {
                let Key { namespace, name } = delegate::key(own, to);
                self.tell(Subject::Delegating(&namespace, &name), ());
                self.ask_deeply(Subject::Delegate(&namespace, &name));
            }
            let routes = rule.route.iter().map(|to| &to.destination);
            let mirrors = rule.mirrors.iter().map(|to| &to.destination);
            let all = routes.chain(mirrors).chain(&rule.mirror);
            backends.extend(all.map(|to| to.host.as_str()));
        }
        for host in backends {
            // Whether the service and the subset are there is told to the author; where it is decides where requests go.
            if let Ok(Pattern::Exact(host)) = Pattern::read(self.settings, own, host) {
                self.ask_deeply(Subject::Hostname(&host));
                self.uses(&host);
            }
        }
    }

    fn destination_rule(&mut self, entry: &Entry<DestinationRule>) {
        let DestinationRule { metadata, spec } = &*entry.object;
        let pattern = Pattern::read(self.settings, &metadata.namespace, &spec.host);
        match &pattern {
            Ok(Pattern::Exact(host)) => {
                self.tell(Subject::Uses(host), whole(entry));
                self.ask(Subject::Hostname(host));
                self.uses(host);
            }
            Ok(Pattern::Below(suffix)) => {
                self.tell(Subject::UsesBelow(suffix), whole(entry));
                self.ask(Subject::UsesBelow(suffix));
                self.ask(Subject::HostsBelow(suffix));
            }
            Err(_) => {}
        }
        if let Some((host, by_connection)) = needs::destination_rule(self.settings, &entry.object) {
            self.tell(Subject::Needs(&host), by_connection);
        }
        let (values, keys) = destination_rule::compared(&entry.object);
        for labels in &values {
            self.selector(None, labels, ());
        }
        for key in keys {
            self.tell(Subject::Compared(key), ());
        }
        for (namespace, labels) in destination_rule::selectors(self.settings, &entry.object) {
            self.selector(namespace.as_deref(), labels, whole(entry));
        }
    }

    /// Asks how a host's endpoints are used.
    fn uses(&mut self, host: &str) {
        self.ask(Subject::Uses(host));
        for suffix in suffixes(host) {
            self.ask(Subject::UsesBelow(suffix));
        }
    }
}
