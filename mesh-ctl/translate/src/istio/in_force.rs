//! How far a virtual service is in force: what is said of each of its hosts, and of all of them together.
//!
//! Invariants: only of hosts that are written by their whole name something is said one by one. Ports that its rules could
//! never speak of are nobody's to take; where routes of the Gateway API take all the others, it is not in force there.

use std::collections::BTreeSet;

use mesh_k8s::networking::VirtualService;

use super::virtual_service::{Read, is_for_mesh};
use crate::{
    core::{
        service::ServiceDraft,
        way::{self, may_carry},
    },
    gateway::needs,
    status::InForce,
    traffic::{
        export::Export,
        routes::{Set, before, named},
    },
};

/// One service that a host of it means.
pub(super) struct Host<'h, 'a> {
    /// The host's field.
    pub(super) field: &'h str,
    /// Whether it is written by its whole name.
    pub(super) exact: bool,
    pub(super) draft: &'h ServiceDraft<'a>,
    /// The clients that are meant.
    pub(super) clients: &'h [Option<String>],
    /// Whether the service is of the virtual service's namespace.
    pub(super) producer: bool,
    /// What routes of the Gateway API say of the service.
    pub(super) sets: &'h [Set],
}

/// What was found of a virtual service's hosts.
#[derive(Default)]
pub(super) struct Found {
    /// Whether they are any service.
    any: bool,
    /// Of the waypoints of these; nothing holds where routes of the Gateway API leave nothing.
    ways: way::Found,
    /// Whether routes of the Gateway API leave it nothing of a service.
    taken: bool,
}

impl Found {
    /// Adds a service, and says what keeps the rules from it.
    pub(super) fn host(&mut self, one: &mut Read<'_>, export: &Export, host: &Host<'_, '_>) {
        self.any = true;
        let taken = host.exact && taken(one, host);
        self.taken |= taken;
        let by_request = !needs::leads_connections(&one.entry.object);
        let say = host.exact.then_some((&mut one.reader, host.field));
        self.ways
            .add(way::served(host.draft, by_request), !taken, say);
        if host.exact && !host.producer {
            note_owner(one, export, host);
        }
    }
}

/// Says that rules for a service of another namespace are for clients of one's own.
fn note_owner(one: &mut Read<'_>, export: &Export, host: &Host<'_, '_>) {
    let own = one.entry.object.metadata.namespace.as_str();
    let wider = match export {
        Export::Everyone => true,
        Export::Only(only) => only.iter().any(|namespace| namespace != own),
    };
    let name = &host.draft.service.name;
    let text = format!(
        "{} belongs to namespace {}: only clients of namespace {own} are affected",
        name.hostname, name.namespace
    );
    match wider {
        true => one.reader.info(host.field, text),
        false if !export.reaches(own) => one.reader.warn(host.field, "nobody is affected"),
        false => {}
    }
}

/// Says at which ports of a service routes of the Gateway API come before the rules. Whether that leaves them nothing.
fn taken(one: &mut Read<'_>, host: &Host<'_, '_>) -> bool {
    let (mut any, mut left) = (false, false);
    for port in &host.draft.service.ports {
        for requests in [true, false] {
            if !may_carry(port.protocol, requests) || !speaks_of(one, port.port, requests) {
                continue;
            }
            let Some(by) = first(host, port.port, requests) else {
                left = true;
                continue;
            };
            any = true;
            let what = match requests {
                true => "requests",
                false => "connections that carry no HTTP",
            };
            let text = format!(
                "{} first for {what} on port {} of {}: no virtual service is looked at there",
                named(by, "comes", "come"),
                port.port,
                host.draft.service.name.hostname,
            );
            one.reader.warn(host.field, text);
        }
    }
    any && !left
}

/// The routes that come first at a port for all clients that are meant.
fn first<'h>(host: &Host<'h, '_>, port: u16, requests: bool) -> Option<&'h [mesh_k8s::ObjectRef]> {
    let of = |clients: &Option<String>| {
        before(
            host.sets,
            (clients.as_deref(), host.producer),
            port,
            requests,
        )
    };
    let mut by = host.clients.iter().map(of);
    let first = by.next()??;
    by.all(|by| by.is_some()).then_some(first)
}

/// Whether any rule could hold at a port.
fn speaks_of(one: &Read<'_>, port: u16, requests: bool) -> bool {
    let here = |own: Option<u16>| own.is_none_or(|own| own == port);
    match requests {
        true => one
            .rules
            .iter()
            .any(|rule| rule.matches.is_empty() || rule.matches.iter().any(|m| here(m.port))),
        false => one
            .streams
            .iter()
            .any(|rule| rule.matches.is_empty() || rule.matches.iter().any(|m| here(m.port))),
    }
}

/// How far it is in force.
pub(super) fn of(one: &Read<'_>, export: &Export, found: Found) -> InForce {
    let VirtualService { metadata, spec } = &*one.entry.object;
    let not = |reason, text: String| InForce::Not(reason, text);
    if !is_for_mesh(&one.entry.object) {
        let text = "is for gateways only, which this version does not provide";
        return not("NoGateway", text.to_owned());
    }
    if *export == Export::Only(BTreeSet::new()) {
        return not("NotExported", "exportTo names nobody".to_owned());
    }
    if spec.http.is_empty() && spec.tls.is_empty() && spec.tcp.is_empty() {
        return not("NoRules", "has no rules".to_owned());
    }
    if one.rules.is_empty() && one.streams.is_empty() {
        return match one.reader.is_clean() {
            true => not("NoGateway", "its rules are for gateways only".to_owned()),
            false => not(
                "NoRules",
                "none of its rules holds for any request here".to_owned(),
            ),
        };
    }
    if !found.any {
        let namespace = &metadata.namespace;
        let text = format!("none of its hosts is a service that namespace {namespace} sees");
        return not("NoSuchHost", text);
    }
    if let Some(nothing) = found.ways.nothing() {
        return nothing;
    }
    if found.taken && !found.ways.is_served() {
        let text = "routes of the Gateway API come first wherever its rules could hold";
        return not("Conflicted", text.to_owned());
    }
    match one.partly() {
        InForce::Wholly => found.ways.wholly(),
        partly => partly,
    }
}
