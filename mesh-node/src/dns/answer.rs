//! What the mesh says about a name.
//!
//! Invariants: pure; a name that the mesh does not serve is `Foreign`, never "does not exist"; names are
//! taken as asked, search lists are never expanded.

use std::net::IpAddr;

use mesh_model::{
    mesh::{Mesh, Service, Workload},
    name::{Namespace, NetworkId, ServiceName},
};

/// The longest list of addresses in an answer.
const MOST: usize = 64;

/// Which addresses are asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asked {
    /// IPv4.
    A,
    /// IPv6.
    Aaaa,
    /// Something that a name of the mesh does not have (HTTPS, SVCB).
    Nothing,
}

impl Asked {
    fn takes(self, ip: IpAddr) -> bool {
        match self {
            Asked::A => ip.is_ipv4(),
            Asked::Aaaa => ip.is_ipv6(),
            Asked::Nothing => false,
        }
    }
}

/// What the mesh says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// These addresses; none: the name exists and has none of that family.
    Addresses(Vec<IpAddr>),
    /// Another name.
    Alias(String),
    /// The mesh does not serve the name.
    Foreign,
}

/// Who asks.
#[derive(Clone, Copy, Debug)]
pub struct Asker<'a> {
    /// Its namespace: its own service wins where several have the name.
    pub namespace: &'a Namespace,
    /// The network that it is in.
    pub network: &'a NetworkId,
    /// Randomness, to spread clients over the addresses of a headless service.
    pub seed: u64,
}

/// Looks a name up: lower case, without a trailing dot.
pub fn answer(mesh: &Mesh, asker: Asker<'_>, name: &str, asked: Asked) -> Answer {
    if let Some(service) = find(mesh, asker, name) {
        return of_service(mesh, asker, service, asked);
    }
    let Some((first, rest)) = name.split_once('.') else {
        return Answer::Foreign;
    };
    // A pod of a headless service, by its own name.
    if let Some(service) = find(mesh, asker, rest).filter(|s| is_headless(mesh, &s.name)) {
        let pod = mesh
            .endpoints(&service.name)
            .iter()
            .find(|w| *w.name == *first);
        return pod.map_or(Answer::Foreign, |w| {
            Answer::Addresses(addresses([w], asked))
        });
    }
    // A ServiceEntry for a whole domain.
    let mut parent = rest;
    loop {
        if let Some(service) = find(mesh, asker, &format!("*.{parent}")) {
            return of_service(mesh, asker, service, asked);
        }
        match parent.split_once('.') {
            Some((_, next)) => parent = next,
            None => return Answer::Foreign,
        }
    }
}

fn find<'a>(mesh: &'a Mesh, asker: Asker<'_>, name: &str) -> Option<&'a Service> {
    let all = mesh.services_named(name);
    let seen = || {
        all.iter()
            .filter_map(|name| mesh.service(name))
            .filter(|s| mesh.sees(asker.namespace, s))
    };
    let own = seen().find(|s| s.name.namespace == *asker.namespace);
    own.or_else(|| seen().min_by(|a, b| a.name.namespace.cmp(&b.name.namespace)))
        .map(|s| &**s)
}

fn is_headless(mesh: &Mesh, name: &ServiceName) -> bool {
    mesh.service_extra(name).is_some_and(|e| e.headless)
}

fn of_service(mesh: &Mesh, asker: Asker<'_>, service: &Service, asked: Asked) -> Answer {
    let extra = mesh.service_extra(&service.name);
    if let Some(target) = extra.and_then(|e| e.external_name.as_ref()) {
        return Answer::Alias(target.trim_end_matches('.').to_ascii_lowercase());
    }
    let here = |network: &NetworkId| network == asker.network || network.as_str().is_empty();
    let vips: Vec<IpAddr> = service
        .vips
        .iter()
        .filter(|v| here(&v.network))
        .map(|v| v.ip)
        .collect();
    if !vips.is_empty() {
        return Answer::Addresses(
            vips.into_iter()
                .filter(|ip| asked.takes(*ip))
                .take(MOST)
                .collect(),
        );
    }
    if !is_headless(mesh, &service.name) {
        return Answer::Foreign;
    }
    let ready = mesh
        .endpoints(&service.name)
        .iter()
        .filter(|w| w.healthy || service.balancing.allow_unhealthy);
    let mut found = addresses(ready.filter(|w| here(&w.network)), asked);
    if !found.is_empty() {
        let turn = usize::try_from(asker.seed % found.len() as u64).unwrap_or(0);
        found.rotate_left(turn);
        found.truncate(MOST);
    }
    Answer::Addresses(found)
}

fn addresses<'a>(
    workloads: impl IntoIterator<Item = &'a std::sync::Arc<Workload>>,
    asked: Asked,
) -> Vec<IpAddr> {
    workloads
        .into_iter()
        .flat_map(|w| w.addresses.iter().copied())
        .filter(|ip| asked.takes(*ip))
        .collect()
}

#[cfg(test)]
#[path = "answer_tests.rs"]
pub(super) mod tests;
