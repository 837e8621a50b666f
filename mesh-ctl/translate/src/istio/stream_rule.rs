//! Rules of a virtual service for connections that carry no HTTP: `tls` by the name that is asked for, then `tcp`.
//!
//! Invariant: a rule that cannot be understood keeps its place and refuses.

use std::{collections::BTreeMap, sync::Arc};

use ipnet::IpNet;
use mesh_k8s::networking::virtual_service::RouteDestination;
use mesh_model::route::{
    http::{Backend, Filters},
    stream::{StreamAction, StreamMatch, StreamRule},
};

use super::{
    http_match,
    http_rule::Around,
    matches::{network, wrong_name},
};
use crate::traffic::reader::Reader;

/// What rules of both kinds ask of a connection.
pub(super) struct Wire<'w> {
    pub(super) hosts: &'w [String],
    pub(super) networks: &'w [String],
    pub(super) port: u32,
    pub(super) labels: &'w BTreeMap<String, String>,
    pub(super) gateways: &'w [String],
    pub(super) namespace: &'w str,
    /// A condition on the client's address, which is not looked at.
    pub(super) source: &'w str,
}

impl Around<'_, '_> {
    /// Reads a rule at a path; `None` when it is for gateways only. `named` says that it is one by names.
    pub(super) fn stream(
        &self,
        reader: &mut Reader,
        path: &str,
        name: Arc<str>,
        (matches, named): (Vec<Wire<'_>>, bool),
        route: &[RouteDestination],
    ) -> Option<StreamRule> {
        reader.invalid = None;
        let beside = format!("{path}.match[");
        if let Some(field) = self.unknown.iter().find(|f| f.starts_with(&beside)) {
            let text = "is not a condition that this version knows";
            reader.fail(field, text.to_owned());
        }
        if named && matches.is_empty() {
            let text = "is missing: a rule for TLS is one for names";
            reader.fail(&format!("{path}.match"), text.to_owned());
        }
        let mut found = Vec::new();
        let all = matches.len();
        for (i, one) in matches.into_iter().enumerate() {
            let path = format!("{path}.match[{i}]");
            if http_match::is_for_mesh(reader, &path, one.gateways) {
                found.push(connection(reader, &path, &one, named));
            }
        }
        if all > 0 && found.is_empty() {
            return None;
        }
        let backends = self.destinations(reader, path, route);
        Some(StreamRule {
            name,
            matches: found.into(),
            action: match reader.invalid.take() {
                None => StreamAction::Forward(backends.into()),
                Some(reason) => StreamAction::Invalid(reason.into()),
            },
        })
    }

    fn destinations(
        &self,
        reader: &mut Reader,
        path: &str,
        route: &[RouteDestination],
    ) -> Vec<Backend> {
        if route.is_empty() {
            reader.fail(&format!("{path}.route"), "is missing".to_owned());
        }
        let mut backends = Vec::new();
        for (i, to) in route.iter().enumerate() {
            let path = format!("{path}.route[{i}]");
            let weight = match u32::try_from(to.weight) {
                Ok(0) if route.len() == 1 => 100,
                Ok(weight) => weight,
                Err(_) => {
                    let text = format!("{} is less than 0", to.weight);
                    reader.fail(&format!("{path}.weight"), text);
                    0
                }
            };
            let field = format!("{path}.destination");
            let filters = Filters::default();
            backends.extend(self.backend(reader, &field, &to.destination, weight, filters));
        }
        if !backends.is_empty() && backends.iter().all(|b| b.weight == 0) {
            let text = "the weights of its destinations are all 0".to_owned();
            reader.fail(&format!("{path}.route"), text);
        }
        backends
    }
}

fn connection(reader: &mut Reader, path: &str, wire: &Wire<'_>, named: bool) -> StreamMatch {
    let field = |name: &str| format!("{path}.{name}");
    if named && wire.hosts.is_empty() {
        reader.fail(&field("sniHosts"), "is missing".to_owned());
    }
    for (i, host) in wire.hosts.iter().enumerate() {
        if let Some(text) = wrong_name(host) {
            reader.fail(&format!("{path}.sniHosts[{i}]"), text);
        }
    }
    if !wire.source.is_empty() {
        let text = "is not looked at by this version; write sourceLabels or sourceNamespace";
        reader.fail(&field("sourceSubnet"), text.to_owned());
    }
    let mut networks: Vec<IpNet> = Vec::new();
    for (i, text) in wire.networks.iter().enumerate() {
        let network = network(text).ok_or_else(|| format!("{text:?} is no network"));
        networks.extend(reader.need(&format!("{path}.destinationSubnets[{i}]"), network));
    }
    if !http_match::are_labels(wire.labels) {
        reader.fail(&field("sourceLabels"), "are not labels".to_owned());
    }
    StreamMatch {
        port: http_match::port(reader, &field("port"), wire.port),
        hosts: wire.hosts.iter().map(|host| host.as_str().into()).collect(),
        networks: networks.into(),
        source: http_match::selector(wire.labels).filter(|_| http_match::are_labels(wire.labels)),
        source_namespace: (!wire.namespace.is_empty()).then(|| wire.namespace.into()),
    }
}
