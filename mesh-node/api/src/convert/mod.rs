//! Model changes to resources and back.
//!
//! Invariants: `decode(encode(x))` is `x`; an error names the resource and the field; a policy that cannot be
//! understood is an invalid policy, never an absent one, and so are routes and destinations, which then refuse;
//! nothing larger than `MAX_BODY` is looked at.

mod address;
mod companion;
mod destination;
mod field;
pub mod foreign;
mod policy;
mod routes;
mod streams;
#[cfg(test)]
mod tests;
mod tracing;

use std::{fmt, sync::Arc};

use bytes::Bytes;
use mesh_model::{mesh::Change, name::WorkloadUid};
use prost::Message;

pub use field::Problem;

use crate::{
    resource::{COMPLETE, Kind, Resource, Update},
    warren, workload,
};
use companion::{Owner, Said};
use field::Bad;

/// The largest resource that is accepted.
pub const MAX_BODY: usize = 4 * 1024 * 1024;

/// A resource that could not be understood.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{type_url} {name:?}: {}{problem}", Path(field))]
pub struct ConvertError {
    /// Its type.
    pub type_url: String,
    /// Its name.
    pub name: String,
    /// The path of the bad field; empty when it is the resource as a whole.
    pub field: String,
    /// What is wrong with it.
    pub problem: Problem,
}

struct Path<'a>(&'a str);

impl fmt::Display for Path<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            Ok(())
        } else {
            write!(f, "{}: ", self.0)
        }
    }
}

/// What a resource was found to say.
#[derive(Debug, Clone, Default)]
pub struct Decoded {
    /// The changes to apply.
    pub changes: Vec<Change>,
    /// The roots to trust, when it is the companion `roots`.
    pub roots: Option<Vec<String>>,
    /// What was not understood. With a policy, routes or a destination there is still a change: one that denies.
    pub error: Option<ConvertError>,
}

/// What a change does to the published resources, for our own nodes. `Complete` is not a resource of its own:
/// the delta server makes the marker of each kind.
pub fn encode(change: &Change) -> Vec<Update> {
    vec![match change {
        Change::Workload(w) => {
            let content = workload::address::Type::Workload(address::encode_workload(w));
            let mut resource = address_resource(w.uid.as_str(), content);
            resource.aliases = w
                .addresses
                .iter()
                .map(|ip| alias(w.network.as_str(), ip))
                .collect();
            Update::Set(resource)
        }
        Change::WorkloadExtra(uid, extra) => Update::Set(companion_resource(
            workload_companion(uid),
            companion::encode_workload(extra),
        )),
        Change::RemoveWorkload(uid) => {
            return vec![
                Update::Remove(Kind::Address, uid.as_str().into()),
                Update::Remove(Kind::Companion, workload_companion(uid)),
            ];
        }
        Change::RemoveWorkloadExtra(uid) => {
            Update::Remove(Kind::Companion, workload_companion(uid))
        }
        Change::Service(s) => {
            let content = workload::address::Type::Service(address::encode_service(s));
            let mut resource = address_resource(&s.name.to_string(), content);
            resource.aliases = s
                .vips
                .iter()
                .map(|a| alias(a.network.as_str(), &a.ip))
                .collect();
            Update::Set(resource)
        }
        Change::ServiceExtra(name, extra) => Update::Set(companion_resource(
            service_companion(name),
            companion::encode_service(extra),
        )),
        Change::RemoveService(name) => {
            return vec![
                Update::Remove(Kind::Address, name.to_string().into()),
                Update::Remove(Kind::Companion, service_companion(name)),
            ];
        }
        Change::RemoveServiceExtra(name) => {
            Update::Remove(Kind::Companion, service_companion(name))
        }
        Change::Policy(p) => Update::Set(Resource::new(
            Kind::Authorization,
            p.name.to_string(),
            policy::encode(p).encode_to_vec(),
        )),
        Change::RemovePolicy(name) => Update::Remove(Kind::Authorization, name.to_string().into()),
        Change::Config(config) => Update::Set(companion_resource(
            companion::MESH.into(),
            companion::encode_mesh(config),
        )),
        Change::Routes(r) => Update::Set(Resource::new(
            Kind::Routes,
            r.service.to_string(),
            routes::encode(r).encode_to_vec(),
        )),
        Change::RemoveRoutes(name) => Update::Remove(Kind::Routes, name.to_string().into()),
        Change::Destination(d) => Update::Set(Resource::new(
            Kind::Destination,
            d.service.to_string(),
            destination::encode(d).encode_to_vec(),
        )),
        Change::RemoveDestination(name) => {
            Update::Remove(Kind::Destination, name.to_string().into())
        }
        Change::Complete => return Vec::new(),
    }]
}

/// The companion that tells nodes which roots to trust.
pub fn encode_roots(pem: &[String]) -> Update {
    let content = warren::companion::Content::Roots(warren::Roots { pem: pem.to_vec() });
    Update::Set(companion_resource(companion::ROOTS.into(), content))
}

/// The changes that a resource stands for. A policy that cannot be understood is a change too: it denies.
pub fn decode(type_url: &str, name: &str, body: &[u8]) -> Result<Vec<Change>, ConvertError> {
    let decoded = decode_resource(type_url, name, Bytes::copy_from_slice(body));
    match decoded.error {
        Some(error) if decoded.changes.is_empty() => Err(error),
        Some(_) | None => Ok(decoded.changes),
    }
}

/// Like `decode`, and also says what was not understood of a policy, and what the companion `roots` says.
pub fn decode_resource(type_url: &str, name: &str, body: Bytes) -> Decoded {
    decode_inner(type_url, name, body).unwrap_or_else(|bad| Decoded {
        error: Some(bad.of(type_url, name)),
        ..Decoded::default()
    })
}

fn decode_inner(type_url: &str, name: &str, body: Bytes) -> Result<Decoded, Bad> {
    let kind = Kind::from_url(type_url).ok_or_else(|| Bad::new("", Problem::UnknownType))?;
    if name == COMPLETE {
        return Ok(Decoded::default());
    }
    let too_large = (body.len() > MAX_BODY).then(|| Bad::new("", Problem::TooLarge(body.len())));
    // What is too large is not looked at, and what decides is there all the same.
    let looked_at = if too_large.is_some() { &[] } else { &body[..] };
    let decided = match kind {
        Kind::Authorization => {
            let (policy, bad) = policy::decode(name, looked_at)?;
            Some((Change::Policy(policy), bad))
        }
        Kind::Routes => {
            let (routes, bad) = routes::decode(name, looked_at)?;
            Some((Change::Routes(routes), bad))
        }
        Kind::Destination => {
            let (destination, bad) = destination::decode(name, looked_at)?;
            Some((Change::Destination(destination), bad))
        }
        Kind::Companion | Kind::Address => None,
    };
    if let Some((change, bad)) = decided {
        return Ok(Decoded {
            changes: vec![change],
            error: too_large.or(bad).map(|b| b.of(type_url, name)),
            ..Decoded::default()
        });
    }
    if let Some(bad) = too_large {
        return Err(bad);
    }
    let malformed = |e: prost::DecodeError| Bad::new("", Problem::Malformed(e.to_string()));
    let mut roots = None;
    let change = if kind == Kind::Address {
        match workload::Address::decode(body).map_err(malformed)?.r#type {
            Some(workload::address::Type::Workload(w)) => {
                Some(Change::Workload(address::decode_workload(name, w)?))
            }
            Some(workload::address::Type::Service(s)) => {
                Some(Change::Service(address::decode_service(name, s)?))
            }
            None => return Err(Bad::new("type", Problem::Missing)),
        }
    } else {
        match companion::decode(
            name,
            warren::Companion::decode(body).map_err(malformed)?.content,
        )? {
            Said::Workload(uid, extra) => Some(Change::WorkloadExtra(uid, extra)),
            Said::Service(service, extra) => Some(Change::ServiceExtra(service, extra)),
            Said::Mesh(config) => Some(Change::Config(config)),
            Said::Roots(pem) => {
                roots = Some(pem);
                None
            }
        }
    };
    Ok(Decoded {
        changes: change.into_iter().collect(),
        roots,
        error: None,
    })
}

/// The change that the removal of a resource stands for; none for names that stand for nothing in the model.
pub fn removed(kind: Kind, name: &str) -> Option<Change> {
    match kind {
        Kind::Authorization => field::policy_name("", name).ok().map(Change::RemovePolicy),
        Kind::Address if address::is_uid(name) => {
            Some(Change::RemoveWorkload(WorkloadUid::from(name)))
        }
        Kind::Address => field::service_name("", name)
            .ok()
            .map(Change::RemoveService),
        Kind::Routes => field::service_name("", name).ok().map(Change::RemoveRoutes),
        Kind::Destination => field::service_name("", name)
            .ok()
            .map(Change::RemoveDestination),
        Kind::Companion => match companion::owner(name).ok()? {
            Owner::Workload(uid) => Some(Change::RemoveWorkloadExtra(uid)),
            Owner::Service(service) => Some(Change::RemoveServiceExtra(service)),
            // The mesh goes on with the settings it had.
            Owner::Mesh | Owner::Roots => None,
        },
    }
}

impl Bad {
    fn of(self, type_url: &str, name: &str) -> ConvertError {
        ConvertError {
            type_url: type_url.to_owned(),
            name: name.to_owned(),
            field: self.field,
            problem: self.problem,
        }
    }
}

fn address_resource(name: &str, content: workload::address::Type) -> Resource {
    Resource::new(
        Kind::Address,
        name,
        workload::Address {
            r#type: Some(content),
        }
        .encode_to_vec(),
    )
}

fn companion_resource(name: Arc<str>, content: warren::companion::Content) -> Resource {
    Resource::new(
        Kind::Companion,
        name,
        warren::Companion {
            content: Some(content),
        }
        .encode_to_vec(),
    )
}

fn workload_companion(uid: &WorkloadUid) -> Arc<str> {
    format!("{}{uid}", companion::WORKLOAD).into()
}

fn service_companion(name: &mesh_model::name::ServiceName) -> Arc<str> {
    format!("{}{name}", companion::SERVICE).into()
}

/// The other name of an address resource: `network/address`.
pub fn alias(network: &str, ip: &std::net::IpAddr) -> Arc<str> {
    format!("{network}/{}", ip.to_canonical()).into()
}
