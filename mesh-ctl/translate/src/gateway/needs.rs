//! Which services need a waypoint, because of what is said of their requests, or of where connections to them go.
//!
//! Invariants: only who names a service by its whole name causes one: rules for `*`, and rules for gateways alone, never
//! do, nor does what a connection alone can honour. Whoever causes one is named.

use std::collections::{BTreeMap, BTreeSet};

use mesh_k8s::{
    Kind, ObjectRef,
    gateway::{ParentReference, TcpRoute, TlsRoute},
    networking::{
        DestinationRule, VirtualService,
        destination_rule::{
            ClientTlsSettings, ConnectionPoolSettings, LoadBalancerSettings, OutlierDetection,
            PortTrafficPolicy, TrafficPolicy,
        },
    },
};

use super::routes;
use crate::{
    core::{
        service::ServiceDraft,
        way::{has_address, may_speak_http},
    },
    istio::virtual_service::{is_for_mesh, mean_mesh},
    settings::Settings,
    traffic::{
        export::Export,
        hosts::{Hosts, Pattern},
        reader::Reader,
    },
    view::ClusterView,
};

/// The objects because of which services need one, by the services' index.
pub(crate) type Needs = BTreeMap<usize, BTreeSet<ObjectRef>>;

/// What each service needs one for.
pub(crate) fn of(view: &ClusterView, settings: &Settings, services: &[ServiceDraft<'_>]) -> Needs {
    let mut finding = Finding {
        settings,
        hosts: Hosts::of(services),
        needs: Needs::new(),
    };
    for entry in view.virtual_services.values() {
        finding.virtual_service(&entry.object);
    }
    for entry in view.destination_rules.values() {
        finding.destination_rule(&entry.object);
    }
    for entry in view.http_routes.values() {
        let route = &entry.object;
        finding.route(&**route, &route.spec.parent_refs);
    }
    for entry in view.grpc_routes.values() {
        let route = &entry.object;
        finding.route(&**route, &route.spec.parent_refs);
    }
    for entry in view.tcp_routes.values() {
        let route = &entry.object;
        finding.route(&**route, &route.spec.parent_refs);
    }
    for entry in view.tls_routes.values() {
        let route = &entry.object;
        finding.route(&**route, &route.spec.parent_refs);
    }
    finding.needs
}

struct Finding<'f, 'a> {
    settings: &'f Settings,
    hosts: Hosts<'f, 'a>,
    needs: Needs,
}

impl Finding<'_, '_> {
    /// `by_connection` says that it is about connections of any protocol, and not about requests alone.
    fn need(&mut self, service: usize, because: ObjectRef, by_connection: bool) {
        let draft = self.hosts.get(service);
        if has_address(draft) && (by_connection || may_speak_http(draft)) {
            self.needs.entry(service).or_default().insert(because);
        }
    }

    fn virtual_service(&mut self, wire: &VirtualService) {
        let own = wire.metadata.namespace.as_str();
        let export = export(own, &wire.spec.export_to);
        let by_connection = leads_connections(wire);
        for host in virtual_service(self.settings, wire) {
            let Some(service) = self.hosts.find(own, &host) else {
                continue;
            };
            let owner = self.hosts.get(service).service.name.namespace.as_str();
            let anybody = match owner == own {
                true => export != Export::Only(BTreeSet::new()),
                false => export.reaches(own),
            };
            if anybody {
                let because = ObjectRef::of::<VirtualService>(&wire.metadata);
                self.need(service, because, by_connection);
            }
        }
    }

    fn destination_rule(&mut self, wire: &DestinationRule) {
        let own = wire.metadata.namespace.as_str();
        let Some((host, by_connection)) = destination_rule(self.settings, wire) else {
            return;
        };
        for service in self.hosts.named(&Pattern::Exact(host)) {
            let owner = &self.hosts.get(service).service.name.namespace;
            if owner.as_str() == own || self.settings.is_root(own) {
                let because = ObjectRef::of::<DestinationRule>(&wire.metadata);
                self.need(service, because, by_connection);
            }
        }
    }

    fn route<K: Kind>(&mut self, route: &K, parents: &[ParentReference]) {
        let meta = route.metadata();
        let by_connection = [TcpRoute::KIND, TlsRoute::KIND].contains(&K::KIND);
        for parent in parents.iter().filter(|parent| routes::is_service(parent)) {
            let namespace = routes::parent_namespace(parent, &meta.namespace);
            let host = self.settings.hostname(namespace, &parent.name);
            let Some(service) = self.hosts.service(namespace, host.as_str()) else {
                continue;
            };
            if routes::port(self.hosts.get(service), parent).is_ok() {
                self.need(service, ObjectRef::of::<K>(meta), by_connection);
            }
        }
    }
}

fn export(own: &str, list: &[String]) -> Export {
    Export::read(own, list, &mut Reader::default())
}

/// Whether a condition, or the whole of a rule without one, is for clients of the mesh.
fn in_mesh<'m>(mut matches: impl ExactSizeIterator<Item = &'m [String]>) -> bool {
    matches.len() == 0 || matches.any(mean_mesh)
}

/// Whether a virtual service leads connections of the mesh's clients.
pub(crate) fn leads_connections(wire: &VirtualService) -> bool {
    let spec = &wire.spec;
    let mut tls = spec.tls.iter();
    let mut tcp = spec.tcp.iter();
    is_for_mesh(wire)
        && (tls.any(|rule| in_mesh(rule.matches.iter().map(|one| &*one.gateways)))
            || tcp.any(|rule| in_mesh(rule.matches.iter().map(|one| &*one.gateways))))
}

/// The hosts whose services need a waypoint because of a virtual service.
pub(crate) fn virtual_service(settings: &Settings, wire: &VirtualService) -> Vec<String> {
    let mut http = wire.spec.http.iter();
    let leads_requests = is_for_mesh(wire)
        && http.any(|rule| in_mesh(rule.matches.iter().map(|one| &*one.gateways)));
    if !leads_requests && !leads_connections(wire) {
        return Vec::new();
    }
    let own = wire.metadata.namespace.as_str();
    let exact = |host: &String| match Pattern::read(settings, own, host) {
        Ok(Pattern::Exact(host)) => Some(host),
        Ok(Pattern::Below(_)) | Err(_) => None,
    };
    wire.spec.hosts.iter().filter_map(exact).collect()
}

/// The host whose services need a waypoint because of a destination rule, and whether those need it, too, whose
/// connections carry no requests.
pub(crate) fn destination_rule(
    settings: &Settings,
    wire: &DestinationRule,
) -> Option<(String, bool)> {
    let DestinationRule { metadata, spec } = wire;
    let own = metadata.namespace.as_str();
    let nobody = export(own, &spec.export_to) == Export::Only(BTreeSet::new());
    if nobody || spec.workload_selector.is_some() {
        return None;
    }
    let Ok(Pattern::Exact(host)) = Pattern::read(settings, own, &spec.host) else {
        return None;
    };
    let by_connection = match lacks(spec.traffic_policy.as_ref()?) {
        Lacking::Nothing => return None,
        Lacking::Requests => false,
        Lacking::Connections => true,
    };
    Some((host, by_connection))
}

/// What of a policy node proxies cannot keep to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Lacking {
    /// They keep to all of it.
    Nothing,
    /// What it says of requests.
    Requests,
    /// What it says of connections, whatever these carry.
    Connections,
}

fn lacks(policy: &TrafficPolicy) -> Lacking {
    let TrafficPolicy {
        load_balancer,
        connection_pool,
        outlier_detection,
        tls,
        port_level_settings,
        tunnel: _,
        proxy_protocol,
        retry_budget,
    } = policy;
    let budget = match retry_budget {
        Some(_) => Lacking::Requests,
        None => Lacking::Nothing,
    };
    // The header has to come before the bytes of a tunnel that the node proxy does not look into.
    let header = match proxy_protocol {
        Some(_) => Lacking::Connections,
        None => Lacking::Nothing,
    };
    let of_port = |port: &PortTrafficPolicy| {
        part(
            &port.load_balancer,
            &port.connection_pool,
            &port.outlier_detection,
            &port.tls,
        )
    };
    let own = part(load_balancer, connection_pool, outlier_detection, tls);
    let ports = port_level_settings.iter().map(of_port);
    ports.chain([own, budget, header]).max().unwrap_or(own)
}

fn part(
    balancer: &Option<LoadBalancerSettings>,
    pool: &Option<ConnectionPoolSettings>,
    outlier: &Option<OutlierDetection>,
    tls: &Option<ClientTlsSettings>,
) -> Lacking {
    let answers = outlier.as_ref().is_some_and(|outlier| {
        // Left out it is five.
        outlier.consecutive_5xx_errors != Some(0)
            || outlier.consecutive_gateway_errors.is_some_and(|n| n != 0)
            || !outlier.outlier_detection_http_error_codes.is_empty()
    });
    // Within the mesh TLS is there anyway; to begin it towards others the request has to be at hand.
    let begins = tls.as_ref().is_some_and(|tls| {
        matches!(tls.mode.as_str(), "SIMPLE" | "MUTUAL")
            || (tls.mode == "ISTIO_MUTUAL" && !tls.subject_alt_names.is_empty())
    });
    let requests = answers || begins || pool.as_ref().is_some_and(|pool| pool.http.is_some());
    let balanced = balancer.as_ref().map_or(Lacking::Nothing, balancing);
    match requests {
        true => balanced.max(Lacking::Requests),
        false => balanced,
    }
}

/// A node proxy chooses an endpoint for each connection at random by weight: what is said beyond that is beyond it. Places
/// that come first only because endpoints may be left out are nobody's wish.
fn balancing(wire: &LoadBalancerSettings) -> Lacking {
    let hash = wire.consistent_hash.as_ref();
    let by_request = hash.is_some_and(|hash| {
        hash.http_header_name.is_some()
            || hash.http_cookie.is_some()
            || hash.http_query_parameter_name.is_some()
    });
    let by_source = hash.is_some_and(|hash| hash.use_source_ip == Some(true));
    let by_place = wire
        .locality_lb_setting
        .as_ref()
        .is_some_and(|setting| setting.enabled != Some(false));
    let slowly = (wire.warmup.is_some() || wire.warmup_duration_secs.is_some()) && warms_up(wire);
    if by_source || by_place || slowly || is_in_turn(wire) {
        Lacking::Connections
    } else if by_request {
        Lacking::Requests
    } else {
        Lacking::Nothing
    }
}

/// Whether endpoints are to be taken in turn. The default, by how busy they are, is no wish; at random they are taken
/// anyway; and an endpoint that was dialed by its own address is reached by it anyway.
pub(crate) fn is_in_turn(wire: &LoadBalancerSettings) -> bool {
    wire.simple == "ROUND_ROBIN" && wire.consistent_hash.is_none()
}

/// Whether new endpoints can begin slowly: Envoy's slow start is for these two ways of balancing only.
pub(crate) fn warms_up(wire: &LoadBalancerSettings) -> bool {
    wire.consistent_hash.is_none() && !matches!(wire.simple.as_str(), "RANDOM" | "PASSTHROUGH")
}

/// Whether all that a waypoint is needed for is said of requests.
pub(crate) fn by_request(policy: &TrafficPolicy) -> bool {
    lacks(policy) == Lacking::Requests
}

/// Whether node proxies keep to all of a policy.
pub(crate) fn none(policy: &TrafficPolicy) -> bool {
    lacks(policy) == Lacking::Nothing
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn what_node_proxies_keep_to_needs_no_waypoint() {
        use Lacking::{Connections, Nothing, Requests};
        let check = |policy: Value, expect: Lacking| {
            let wire: TrafficPolicy = serde_json::from_value(policy.clone()).expect("a policy");
            assert_eq!(lacks(&wire), expect, "{policy}");
        };
        check(json!({}), Nothing);
        check(json!({"tls": {"mode": "ISTIO_MUTUAL"}}), Nothing);
        check(json!({"tls": {"mode": "DISABLE"}}), Nothing);
        check(json!({"tls": {"mode": "SIMPLE"}}), Requests);
        let named = json!({"mode": "ISTIO_MUTUAL", "subjectAltNames": ["spiffe://mesh/ns/a/sa/b"]});
        check(json!({"tls": named}), Requests);
        let pool = |of: &str, what: &str| json!({"connectionPool": {of: {what: 1}}});
        check(pool("tcp", "maxConnections"), Nothing);
        check(pool("http", "http1MaxPendingRequests"), Requests);
        let outlier = |what: Value| json!({"outlierDetection": what});
        check(outlier(json!({"consecutive5xxErrors": 1})), Requests);
        check(outlier(json!({})), Requests);
        check(
            outlier(json!({"consecutive5xxErrors": 0, "consecutiveLocalOriginFailures": 3})),
            Nothing,
        );
        // That those nearby come first then is left to whoever keeps to it anyway.
        check(
            json!({"loadBalancer": {}, "outlierDetection": {"consecutive5xxErrors": 0}}),
            Nothing,
        );
        check(
            json!({"portLevelSettings": [{"port": {"number": 80}, "tls": {"mode": "MUTUAL"}}]}),
            Requests,
        );
        check(json!({"retryBudget": {}}), Requests);
        check(json!({"proxyProtocol": {}}), Connections);
    }

    #[test]
    fn balancing_that_is_more_than_chance_needs_a_waypoint() {
        use Lacking::{Connections, Nothing, Requests};
        let check = |balancer: Value, expect: Lacking| {
            let whole = json!({"loadBalancer": balancer});
            let wire: TrafficPolicy = serde_json::from_value(whole).expect("a policy");
            assert_eq!(lacks(&wire), expect, "{balancer}");
            let port =
                json!({"portLevelSettings": [{"port": {"number": 80}, "loadBalancer": balancer}]});
            let wire: TrafficPolicy = serde_json::from_value(port).expect("a policy");
            assert_eq!(lacks(&wire), expect, "for one port: {balancer}");
        };
        check(json!({}), Nothing);
        for simple in ["", "UNSPECIFIED", "LEAST_REQUEST", "RANDOM", "PASSTHROUGH"] {
            check(json!({"simple": simple}), Nothing);
        }
        check(json!({"simple": "ROUND_ROBIN"}), Connections);
        let hash = |by: Value| json!({"consistentHash": by});
        check(hash(json!({"httpHeaderName": "x"})), Requests);
        check(hash(json!({"httpCookie": {"name": "x"}})), Requests);
        check(hash(json!({"httpQueryParameterName": "x"})), Requests);
        check(hash(json!({"useSourceIp": true})), Connections);
        check(hash(json!({"useSourceIp": false})), Nothing);
        check(json!({"localityLbSetting": {}}), Connections);
        check(json!({"localityLbSetting": {"enabled": false}}), Nothing);
        check(json!({"warmup": {"duration": "10s"}}), Connections);
        check(json!({"warmupDurationSecs": "10s"}), Connections);
        check(
            json!({"simple": "RANDOM", "warmup": {"duration": "10s"}}),
            Nothing,
        );
    }

    #[test]
    fn only_rules_for_clients_of_the_mesh_and_whole_names_cause_one() {
        let settings = Settings::default();
        let check = |spec: Value, expect: &[&str]| {
            let wire = json!({"metadata": {"name": "v", "namespace": "shop"}, "spec": spec});
            let wire: VirtualService = serde_json::from_value(wire.clone()).expect("reads");
            assert_eq!(virtual_service(&settings, &wire), expect, "{spec}");
        };
        let rule = json!([{"route": [{"destination": {"host": "a"}}]}]);
        let a = "a.shop.svc.cluster.local";
        check(json!({"hosts": ["a"], "http": rule}), &[a]);
        check(json!({"hosts": ["a"]}), &[]);
        check(
            json!({"hosts": ["a"], "gateways": ["edge"], "http": rule}),
            &[],
        );
        check(
            json!({"hosts": ["a"], "gateways": ["edge", "mesh"], "http": rule}),
            &[a],
        );
        check(
            json!({"hosts": ["*", "*.shop.svc.cluster.local", "a"], "http": rule}),
            &[a],
        );
        check(json!({"hosts": ["a"], "tcp": rule}), &[a]);
        let named = json!([{"match": [{"sniHosts": ["a"]}], "route": []}]);
        check(json!({"hosts": ["a"], "tls": named}), &[a]);
        check(
            json!({"hosts": ["a"], "gateways": ["edge"], "tcp": rule}),
            &[],
        );
        let edge = json!([{"match": [{"gateways": ["edge"]}], "route": []}]);
        check(
            json!({"hosts": ["a"], "gateways": ["edge", "mesh"], "tcp": edge}),
            &[],
        );
        check(
            json!({"hosts": ["a"], "gateways": ["edge", "mesh"], "http": edge}),
            &[],
        );
    }
}
