//! Sets of rules, from whichever kind they come, to the routes of a service.
//!
//! Invariant: what a client's own namespace says comes before what the service's namespace says; of both, the Gateway
//! API's routes before virtual services, what is for some clients before what is for all; a port's own before that of every
//! port.

use std::collections::BTreeMap;

use mesh_k8s::ObjectRef;
use mesh_model::route::{
    http::{RouteSet, Routes, Rule},
    stream::StreamRule,
};

use crate::core::service::ServiceDraft;

/// Which kinds a set comes from. The order is that of looking.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Api {
    /// The Gateway API's routes.
    Gateway,
    /// Virtual services.
    Istio,
}

/// Rules for some clients and ports of a service.
#[derive(Clone, Debug)]
pub(crate) struct Set {
    /// The namespace whose clients it is for; everybody's when absent.
    pub(crate) clients: Option<String>,
    /// Whether the service's own namespace says so.
    pub(crate) producer: bool,
    pub(crate) api: Api,
    /// The service's ports; all when empty.
    pub(crate) ports: Vec<u16>,
    pub(crate) rules: Vec<Rule>,
    pub(crate) streams: Vec<StreamRule>,
    /// The routes of the Gateway API that it is made of.
    pub(crate) by: Vec<ObjectRef>,
}

impl Set {
    /// Whether it says anything of requests, or else of connections that carry none.
    fn is_for(&self, requests: bool) -> bool {
        match requests {
            true => !self.rules.is_empty() || self.streams.is_empty(),
            false => !self.streams.is_empty(),
        }
    }
}

/// The routes of the Gateway API that decide at a port of a service before any virtual service of such a scope, for all
/// clients that are meant; the sets are the service's.
pub(crate) fn before<'s>(
    sets: &'s [Set],
    (clients, producer): (Option<&str>, bool),
    port: u16,
    requests: bool,
) -> Option<&'s [ObjectRef]> {
    let earlier = sets.iter().filter(|set| {
        let whose = set.clients.is_none() || set.clients.as_deref() == clients;
        set.api == Api::Gateway && whose && set.producer <= producer && set.is_for(requests)
    });
    let mut here = earlier.filter(|set| set.ports.is_empty() || set.ports.contains(&port));
    let first = here.by_ref().min_by(|a, b| order(a).cmp(&order(b)))?;
    Some(&first.by)
}

/// Objects by name, and what they do.
pub(crate) fn named(objects: &[ObjectRef], one_does: &str, several_do: &str) -> String {
    let names: Vec<String> = objects.iter().map(ToString::to_string).collect();
    let does = match objects {
        [_] => one_does,
        _ => several_do,
    };
    format!("{} {does}", names.join(" and "))
}

/// Sets by service, as an index.
pub(crate) type Sets = BTreeMap<usize, Vec<Set>>;

/// The routes of each service that has any.
pub(crate) fn assemble(services: &[ServiceDraft<'_>], sets: Sets) -> BTreeMap<usize, Routes> {
    let routes = sets.into_iter().map(|(index, mut sets)| {
        sets.sort_by(|a, b| order(a).cmp(&order(b)));
        let sets = sets.into_iter().map(|set| RouteSet {
            clients: set.clients.map(|namespace| namespace.as_str().into()),
            ports: set.ports.into(),
            rules: set.rules.into(),
            streams: set.streams.into(),
        });
        let routes = Routes {
            service: services[index].service.name.clone(),
            sets: sets.collect(),
            features: [].into(),
        };
        (index, routes)
    });
    routes.collect()
}

type Order<'s> = (bool, Api, bool, Option<&'s str>, bool, &'s [u16]);

fn order(set: &Set) -> Order<'_> {
    let clients = set.clients.as_deref();
    let any_port = set.ports.is_empty();
    (
        set.producer,
        set.api,
        clients.is_none(),
        clients,
        any_port,
        &set.ports,
    )
}
