//! Rules of TCP and TLS routes, each with how specific it is.
//!
//! Invariants: a TLS route becomes one rule for each of its names, because their places among other routes' rules differ;
//! a rule that cannot be understood keeps its place and refuses; a backend that is not there has its share refused.

use std::{cmp::Reverse, sync::Arc};

use mesh_k8s::gateway::StreamRouteRule;
use mesh_model::{
    mesh::AppProtocol,
    route::stream::{StreamAction, StreamMatch, StreamRule},
};

use super::rules::{Around, Rank};
use crate::{istio::matches::wrong_name, traffic::reader::Reader};

/// What becomes of a backend's share that cannot be used.
pub(super) const REFUSED: &str = "its share of connections is refused";

impl Around<'_, '_> {
    /// A route's rules; `hostnames` are those of a TLS route.
    pub(super) fn streams(
        &self,
        reader: &mut Reader,
        names: impl Fn(usize, &str) -> (String, Arc<str>),
        hostnames: Option<&[String]>,
        wire: &[StreamRouteRule],
    ) -> Vec<(Rank, StreamRule)> {
        reader.invalid = None;
        for (i, host) in hostnames.unwrap_or_default().iter().enumerate() {
            if let Some(text) = wrong_name(host) {
                reader.fail(&format!("spec.hostnames[{i}]"), text);
            }
        }
        let refused = reader.invalid.take();
        let Some((first, others)) = wire.split_first() else {
            reader.error("spec.rules", "is missing: the route says nothing");
            return Vec::new();
        };
        for i in 1..=others.len() {
            let text = "is never looked at: the first rule takes every connection of the route";
            reader.warn(format!("spec.rules[{i}]"), text);
        }
        let (path, name) = names(0, &first.name);
        if first.backend_refs.is_empty() {
            let text = "is missing; connections are refused";
            reader.error(format!("{path}.backendRefs"), text);
        }
        let backends = first.backend_refs.iter().enumerate();
        let backends = backends
            .map(|(i, wire)| self.backend(reader, &format!("{path}.backendRefs[{i}]"), wire));
        let forward = StreamAction::Forward(backends.collect());
        let action = match refused {
            None => forward,
            Some(reason) => StreamAction::Invalid(reason.into()),
        };
        let rule = |matches: Box<[StreamMatch]>| StreamRule {
            name: name.clone(),
            matches,
            action: action.clone(),
        };
        match hostnames {
            None | Some([]) => vec![(Reverse([0; 6]), rule(Box::default()))],
            Some(hosts) => {
                let one = |host: &String| {
                    let exact = usize::from(!host.starts_with('*'));
                    let matched = StreamMatch {
                        hosts: [host.as_str().into()].into(),
                        ..StreamMatch::default()
                    };
                    let rank = Reverse([exact, host.len(), 0, 0, 0, 0]);
                    (rank, rule([matched].into()))
                };
                hosts.iter().map(one).collect()
            }
        }
    }
}

/// Why a route for connections has no, or not the whole, effect on a port that declares this; the second says that it is
/// only good to know.
pub(super) fn misfit(named: bool, protocol: AppProtocol) -> Option<(&'static str, bool)> {
    match (named, protocol) {
        (_, AppProtocol::Http11 | AppProtocol::Http2 | AppProtocol::Grpc) => Some((
            "declares HTTP: its requests are routed by HTTPRoute and GRPCRoute only",
            false,
        )),
        (true, AppProtocol::Tcp) => Some((
            "declares no TLS: connections ask for no name there and are refused; declare it with appProtocol: tls",
            false,
        )),
        (false, AppProtocol::Unknown) => Some((
            "declares no protocol: connections that turn out to carry HTTP are not routed by this; declare it with appProtocol: tcp",
            true,
        )),
        (true, AppProtocol::Tls | AppProtocol::Unknown)
        | (false, AppProtocol::Tcp | AppProtocol::Tls) => None,
    }
}
