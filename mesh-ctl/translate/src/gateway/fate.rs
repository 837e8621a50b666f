//! What becomes of a route at its parents beside other routes of the same services and ports.
//!
//! Invariant: a route is kept out of a parent where others come first on all of the ports that it is for there; where they
//! do on some, it is in force on the rest, and the ports are named. Source: GEP-1426, precedence of the kinds of routes.

use std::collections::BTreeMap;

use mesh_k8s::ObjectRef;

use super::routes::Parent;
use crate::traffic::{hosts::Hosts, routes::named};

/// Who decides about what goes to services.
pub(super) struct Decided<'d, 'a> {
    pub(super) hosts: &'d Hosts<'d, 'a>,
    /// The routes.
    pub(super) objects: Vec<ObjectRef>,
    /// Those that come first, as indices, by the service, the namespace whose clients are meant, and the port; without a
    /// port: on all that have no entry of their own.
    pub(super) by: BTreeMap<(usize, Option<String>, Option<u16>), Vec<usize>>,
}

/// What becomes of a route at one of its parents.
pub(super) enum Fate {
    /// It is in force on all ports that it is for.
    Everywhere,
    /// Others come first on some of them: which, and where.
    Partly(String),
    /// Others come first on all of them: which, and where.
    Nowhere(String),
}

impl Decided<'_, '_> {
    /// The fate of a route, as an index.
    pub(super) fn fate(&self, route: usize, parent: &Parent) -> Fate {
        let draft = self.hosts.get(parent.service);
        let own = draft.service.name.namespace.as_str();
        let namespace = &*self.objects[route].namespace;
        let clients = (own != namespace).then(|| namespace.to_owned());
        let by = |port| self.by.get(&(parent.service, clients.clone(), port));
        let ports: Vec<u16> = match parent.port {
            Some(port) => vec![port],
            None => draft.service.ports.iter().map(|port| port.port).collect(),
        };
        let lost = ports.iter().filter_map(|port| {
            let by = by(Some(*port)).or_else(|| by(None))?;
            let named = by.iter().map(|other| self.objects[*other].clone());
            (!by.contains(&route)).then(|| (*port, named.collect()))
        });
        let lost: Vec<(u16, Vec<ObjectRef>)> = lost.collect();
        if lost.is_empty() {
            return Fate::Everywhere;
        }
        let nowhere = lost.len() == ports.len();
        let each = lost.iter().map(|(port, by)| match nowhere {
            true => {
                let keep = named(by, "keeps", "keep");
                format!("{keep} this route out of port {port}")
            }
            false => {
                let come = named(by, "comes", "come");
                format!("{come} first on port {port}")
            }
        });
        let each = each.collect::<Vec<_>>().join(", ");
        match nowhere {
            true => Fate::Nowhere(each),
            false => Fate::Partly(format!("{each}; this route holds on the others")),
        }
    }
}
