//! Rules for connections that carry no HTTP.
//!
//! Invariant: what is not understood of one is not understood of all the service's rules, which then refuse.

use std::sync::Arc;

use mesh_model::route::{
    http::Selector,
    stream::{StreamAction, StreamMatch, StreamRule},
};

use super::{
    field::{Bad, Problem, all, namespace, need, port, strings, texts},
    routes::{backend, backend_wire},
};
use crate::warren as wire;

pub(super) fn encode(rule: &StreamRule) -> wire::StreamRule {
    use wire::stream_rule::Action;
    let action = match &rule.action {
        StreamAction::Forward(backends) => Action::Forward(wire::Forward {
            backends: backends.iter().map(backend_wire).collect(),
        }),
        StreamAction::Invalid(reason) => Action::Invalid(wire::Invalid {
            reason: reason.to_string(),
        }),
    };
    let matched = |m: &StreamMatch| wire::StreamMatch {
        port: m.port.map(u32::from),
        hosts: strings(&m.hosts),
        networks: m.networks.iter().map(ToString::to_string).collect(),
        source: m.source.as_ref().map(|s| s.0.to_string()),
        source_namespace: m.source_namespace.as_ref().map(ToString::to_string),
    };
    wire::StreamRule {
        name: rule.name.to_string(),
        matches: rule.matches.iter().map(matched).collect(),
        action: Some(action),
    }
}

pub(super) fn decode(rule: wire::StreamRule) -> Result<StreamRule, Bad> {
    use wire::stream_rule::Action;
    let action = match need("action", rule.action)? {
        Action::Forward(f) => {
            let backends = all("backends", f.backends, backend);
            StreamAction::Forward(backends.map_err(|b| b.within("forward"))?)
        }
        Action::Invalid(i) => StreamAction::Invalid(i.reason.into()),
    };
    Ok(StreamRule {
        name: rule.name.into(),
        matches: all("matches", rule.matches, one_match)?,
        action,
    })
}

fn one_match(m: wire::StreamMatch) -> Result<StreamMatch, Bad> {
    let network = |text: String| {
        text.parse()
            .map_err(|_| Bad::new("", Problem::Malformed(format!("{text:?} is no network"))))
    };
    let source_namespace = m.source_namespace;
    Ok(StreamMatch {
        port: m.port.map(|p| port("port", p)).transpose()?,
        hosts: texts(m.hosts),
        networks: all("networks", m.networks, network)?,
        source: m.source.map(|s| Selector(Arc::from(s))),
        source_namespace: source_namespace
            .map(|n| namespace("source_namespace", &n))
            .transpose()?,
    })
}
