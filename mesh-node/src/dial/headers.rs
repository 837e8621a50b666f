//! The headers of a CONNECT: who the source says it is, and on whose behalf a waypoint dials.
//!
//! Invariants: nothing here but what a waypoint says of its client is ever used to decide, and that only where the
//! waypoint is known as one; values are percent-encoded, so that a name cannot add a field.

use std::{fmt::Write, net::SocketAddr};

use mesh_model::{
    authz::Egress,
    mesh::Workload,
    name::{Identity, ServiceName},
};

use crate::{
    accept::origin::{FORWARDED, SOURCE_HEADER},
    wire::Headers,
};

/// Whom a waypoint dials for.
#[derive(Clone, Copy, Debug)]
pub struct Behalf<'a> {
    /// The client's identity.
    pub identity: &'a Identity,
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
    let mut forwarded = format!("for=\"{client}\"");
    if let Some(service) = service {
        // Writing to a string cannot fail.
        let _ = write!(forwarded, ";host=\"{}\"", service.hostname);
    }
    let headers = Headers::new().with(FORWARDED, forwarded);
    let Some(Behalf { identity, workload }) = behalf else {
        return headers.with("baggage", baggage(&flow.source));
    };
    let headers = headers.with(SOURCE_HEADER, identity.to_string());
    match workload {
        Some(workload) => headers.with("baggage", baggage(workload)),
        None => headers,
    }
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
