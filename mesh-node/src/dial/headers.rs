//! The headers of a CONNECT: who the source says it is, and on whose behalf a waypoint dials.
//!
//! Invariants: nothing here but what a waypoint says of its client, and a node of a pod of its own, is ever used to
//! decide, and that only where the peer is known as one; values are percent-encoded, so that a name cannot add a field.

use std::{fmt::Write, net::SocketAddr};

use mesh_model::{
    authz::{Egress, Handed},
    mesh::Workload,
    name::{Identity, ServiceName},
};

use crate::{
    accept::origin::{FORWARDED, NOBODY, RETURN_HEADER, SOURCE_HEADER},
    wire::Headers,
};

/// Whom a waypoint dials for.
#[derive(Clone, Copy, Debug)]
pub struct Behalf<'a> {
    /// The client's identity; none when it is outside the mesh.
    pub identity: Option<&'a Identity>,
    /// The client, where the mesh knows it.
    pub workload: Option<&'a Workload>,
}

/// The headers of an outbound CONNECT.
pub fn outbound(
    flow: &Egress,
    client: SocketAddr,
    behalf: Option<Behalf<'_>>,
    service: Option<&ServiceName>,
) -> Headers {
    let headers = Headers::new().with(FORWARDED, forwarded(client, service));
    let Some(Behalf { identity, workload }) = behalf else {
        return headers.with("baggage", baggage(&flow.source));
    };
    let source = identity.map_or_else(|| NOBODY.to_owned(), Identity::to_string);
    let headers = headers.with(SOURCE_HEADER, source);
    match workload {
        Some(workload) => headers.with("baggage", baggage(workload)),
        None => headers,
    }
}

/// The headers of a CONNECT by which a node hands a client's connection to a waypoint.
pub fn handed(handed: &Handed, client: SocketAddr) -> Headers {
    let arrived = handed.conn.destination;
    let arrived = SocketAddr::new(arrived.ip().to_canonical(), arrived.port());
    Headers::new()
        .with(FORWARDED, forwarded(client, Some(&handed.service.name)))
        .with(RETURN_HEADER, arrived.to_string())
}

fn forwarded(client: SocketAddr, service: Option<&ServiceName>) -> String {
    let mut forwarded = format!("for=\"{client}\"");
    if let Some(service) = service {
        // Writing to a string cannot fail.
        let _ = write!(forwarded, ";host=\"{}\"", service.hostname);
    }
    forwarded
}

/// What a workload says about itself.
pub fn baggage(workload: &Workload) -> String {
    let kind = match &*workload.canonical.workload_type {
        "" => "pod",
        kind => kind,
    };
    let owner = format!("k8s.{kind}.name");
    let named = |text: &str| {
        if text.is_empty() {
            None
        } else {
            Some(text.to_owned())
        }
    };
    let fields = [
        ("k8s.cluster.name", named(workload.cluster.as_str())),
        ("k8s.namespace.name", named(workload.namespace.as_str())),
        (&*owner, named(&workload.canonical.workload_name)),
        ("service.name", named(&workload.canonical.name)),
        ("service.version", named(&workload.canonical.revision)),
        ("cloud.region", named(&workload.locality.region)),
        ("cloud.availability_zone", named(&workload.locality.zone)),
    ];
    let mut text = String::with_capacity(160);
    for (key, value) in fields {
        let Some(value) = value else { continue };
        if !text.is_empty() {
            text.push(',');
        }
        text.push_str(key);
        text.push('=');
        encode(&mut text, &value);
    }
    text
}

fn encode(into: &mut String, value: &str) {
    for byte in value.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~/:".contains(&byte) {
            into.push(char::from(byte));
        } else {
            // Writing to a string cannot fail.
            let _ = write!(into, "%{byte:02X}");
        }
    }
}
