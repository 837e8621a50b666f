//! The head of a request: where it goes, in one form for policies and routes.
//!
//! Invariant: there is exactly one authority and one path; what a server behind could read in another way is refused.

use std::{net::SocketAddr, sync::Arc};

use http::{HeaderMap, Uri, Version, header, request::Parts};
use mesh_model::{
    authz::{Egress, Target},
    mesh::{Service, Workload},
    name::{Namespace, ServiceName},
    route::http::path,
};

use crate::exchange::Local;

/// What a request is addressed to.
pub(super) enum Addressed {
    /// A port of a service.
    Service(Arc<Service>, u16),
    /// A workload itself, at this address of it.
    Workload(Arc<Workload>, SocketAddr),
}

impl Addressed {
    /// What a flow is addressed to; nothing where that is outside the mesh.
    pub fn of(flow: &Egress) -> Option<Self> {
        match &flow.target {
            Target::Service(service, port) => Some(Self::Service(service.clone(), *port)),
            Target::Workload(workload, _) => Some(Self::Workload(workload.clone(), flow.original)),
            Target::External => None,
        }
    }

    /// The service, where it is one.
    pub fn service(&self) -> Option<&ServiceName> {
        match self {
            Self::Service(service, _) => Some(&service.name),
            Self::Workload(..) => None,
        }
    }

    /// The namespace that it belongs to.
    pub fn namespace(&self) -> &Namespace {
        match self {
            Self::Service(service, _) => &service.name.namespace,
            Self::Workload(workload, _) => &workload.namespace,
        }
    }

    /// The port.
    pub fn port(&self) -> u16 {
        match self {
            Self::Service(_, port) => *port,
            Self::Workload(_, address) => address.port(),
        }
    }

    /// Its host and port.
    pub fn name(&self) -> String {
        match self {
            Self::Service(service, port) => format!("{}:{port}", service.name.hostname),
            Self::Workload(_, address) => address.to_string(),
        }
    }

    /// The same as a client of HTTP writes it.
    fn authority(&self) -> String {
        let mut name = self.name();
        if self.port() == 80 {
            name.truncate(name.len() - ":80".len());
        }
        name
    }
}

/// Where a request goes.
pub(super) struct Head {
    /// The authority, as it was sent.
    pub authority: String,
    /// The path, normalised.
    pub path: String,
    /// The query, as it was sent.
    pub query: Option<String>,
}

impl Head {
    /// Reads it. What was addressed stands for the authority that a request of HTTP/1.0 need not have.
    pub fn read(parts: &Parts, addressed: &Addressed) -> Result<Self, Local> {
        let silent = parts.version == Version::HTTP_10 && !parts.headers.contains_key(header::HOST);
        let authority = match silent && parts.uri.authority().is_none() {
            true => addressed.authority(),
            false => authority(parts).ok_or(Local::MALFORMED)?.to_owned(),
        };
        let path = path::normalise(parts.uri.path()).map_err(|error| {
            tracing::debug!(%error, path = %parts.uri.path().escape_debug(), "a request was refused");
            Local::MALFORMED
        })?;
        Ok(Self {
            authority,
            path: path.into_owned(),
            query: parts.uri.query().map(str::to_owned),
        })
    }

    /// Path and query, as they go on where nothing is rewritten.
    pub fn target(&self) -> String {
        match &self.query {
            Some(query) => format!("{}?{query}", self.path),
            None => self.path.clone(),
        }
    }
}

/// The authority: of an absolute target, else the one `host`; none when it is missing, repeated or contradicts.
pub(super) fn authority(parts: &Parts) -> Option<&str> {
    let mut hosts = parts.headers.get_all(header::HOST).iter();
    let host = match (hosts.next(), hosts.next()) {
        (Some(host), None) => Some(host.to_str().ok()?),
        (None, _) => None,
        (Some(_), Some(_)) => return None,
    };
    let authority = match (parts.uri.authority(), host) {
        (Some(authority), Some(host)) => {
            let same = authority.as_str().eq_ignore_ascii_case(host);
            same.then_some(host)?
        }
        (Some(authority), None) => authority.as_str(),
        (None, Some(host)) => host,
        (None, None) => return None,
    };
    // Who a request is for is nobody's password.
    (!authority.is_empty() && !authority.contains('@')).then_some(authority)
}

/// The target of a request to an endpoint, and its `host` where HTTP/1 is spoken.
pub(super) fn target(
    h2: bool,
    authority: &str,
    target: &str,
    headers: &mut HeaderMap,
) -> Result<Uri, Local> {
    let malformed = |_| Local::MALFORMED;
    headers.remove(header::HOST);
    if h2 {
        let uri = Uri::builder()
            .scheme("http")
            .authority(authority)
            .path_and_query(target);
        return uri.build().map_err(|_| Local::MALFORMED);
    }
    let host = http::HeaderValue::try_from(authority).map_err(|_| Local::MALFORMED)?;
    headers.insert(header::HOST, host);
    Uri::try_from(target).map_err(malformed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_one_authority() {
        let check = |uri: &str, hosts: &[&str], expect: Option<&str>| {
            let mut request = http::Request::builder().uri(uri);
            for host in hosts {
                request = request.header("host", *host);
            }
            let (parts, ()) = request.body(()).expect("a request").into_parts();
            assert_eq!(authority(&parts), expect, "{uri} {hosts:?}");
        };
        check("/", &["a"], Some("a"));
        check("/", &["a:80"], Some("a:80"));
        check("http://a/", &[], Some("a"));
        check("http://a/", &["A"], Some("A"));
        check("/", &[], None);
        check("/", &[""], None);
        check("/", &["a", "a"], None);
        check("http://a/", &["b"], None);
        check("/", &["user@a"], None);
    }
}
