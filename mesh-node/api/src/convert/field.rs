//! Fields that several messages share: names, addresses, ports, and the error that says which field is bad.

use std::{net::IpAddr, sync::Arc};

use ipnet::IpNet;
use mesh_model::{
    mesh::{GatewayAddress, GatewayDestination},
    name::{Hostname, Namespace, NetworkAddress, NetworkId, PolicyName, ServiceName},
    resilience::Share,
};

use crate::workload as wire;

/// What is wrong with a field.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// The resource's type is not one of ours.
    #[error("the type is not known")]
    UnknownType,
    /// The resource is larger than anything legitimate.
    #[error("{0} bytes are more than the {max} that are accepted", max = super::MAX_BODY)]
    TooLarge(usize),
    /// There are more values in it than anything legitimate has.
    #[error("more than {0} values")]
    TooMany(usize),
    /// The bytes are not the message they should be.
    #[error("cannot be decoded: {0}")]
    Malformed(String),
    /// The message has fields that this build does not know.
    #[error("has fields that this build does not know")]
    UnknownFields,
    /// A field that must be there is not.
    #[error("is missing")]
    Missing,
    /// A number that names no known value.
    #[error("{0} is not a known value")]
    UnknownValue(i32),
    /// An address of a length that no address has.
    #[error("an address has 4 or 16 bytes, not {0}")]
    AddressLength(usize),
    /// A prefix longer than its address.
    #[error("prefix length {0} is longer than the address")]
    PrefixLength(u32),
    /// A number that is no port.
    #[error("{0} is not a port")]
    Port(u32),
    /// A text that is not the name it should be.
    #[error("{0:?} is not a valid name here")]
    Name(String),
    /// A name that disagrees with the resource's.
    #[error("{0:?} disagrees with the resource's name")]
    NameMismatch(String),
    /// A number outside what it may be.
    #[error("{0} is out of range")]
    OutOfRange(u64),
    /// An extension that this build does not have.
    #[error("needs the extension {0:?}, which this build does not have")]
    Extension(String),
}

/// A problem and the path of the field that has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Bad {
    pub field: String,
    pub problem: Problem,
}

impl Bad {
    pub fn new(field: impl Into<String>, problem: Problem) -> Self {
        Self {
            field: field.into(),
            problem,
        }
    }

    /// The same problem, seen from one level further out.
    pub fn within(mut self, outer: impl std::fmt::Display) -> Self {
        self.field = if self.field.is_empty() {
            outer.to_string()
        } else {
            format!("{outer}.{}", self.field)
        };
        self
    }
}

/// Converts every element of a list; the first bad one fails the list, by its index.
pub(super) fn all<A, B>(
    field: &str,
    items: impl IntoIterator<Item = A>,
    convert: impl Fn(A) -> Result<B, Bad>,
) -> Result<Box<[B]>, Bad> {
    items
        .into_iter()
        .enumerate()
        .map(|(i, item)| convert(item).map_err(|b| b.within(format_args!("{field}[{i}]"))))
        .collect()
}

/// Converts what is there; a problem is seen from within the field.
pub(super) fn within<A, B>(
    field: &str,
    value: Option<A>,
    convert: impl FnOnce(A) -> Result<B, Bad>,
) -> Result<Option<B>, Bad> {
    value
        .map(|v| convert(v).map_err(|b| b.within(field)))
        .transpose()
}

/// What has to be there.
pub(super) fn need<T>(field: &str, value: Option<T>) -> Result<T, Bad> {
    value.ok_or_else(|| Bad::new(field, Problem::Missing))
}

/// The feature, which no build has, of what was not understood: whoever has to act on it refuses, and says why.
pub(super) fn not_understood(bad: &Bad) -> Arc<str> {
    let colon = if bad.field.is_empty() { "" } else { ": " };
    format!(
        "warren.dev/not-understood: {}{colon}{}",
        bad.field, bad.problem
    )
    .into()
}

/// Parts per million.
pub(super) fn share(field: &str, parts: u32) -> Result<Share, Bad> {
    let share = Share::per_million(parts);
    if share.parts() == parts {
        Ok(share)
    } else {
        Err(Bad::new(field, Problem::OutOfRange(parts.into())))
    }
}

/// Lengths of time.
pub(super) mod duration {
    use std::time::Duration;

    use super::{Bad, Problem, need};

    pub fn wire(d: Duration) -> prost_types::Duration {
        prost_types::Duration {
            seconds: i64::try_from(d.as_secs()).unwrap_or(i64::MAX),
            nanos: d.subsec_nanos().cast_signed(),
        }
    }

    pub fn read(d: prost_types::Duration) -> Result<Duration, Bad> {
        Duration::try_from(d).map_err(|e| Bad::new("", Problem::Malformed(e.to_string())))
    }

    pub fn needed(field: &str, d: Option<prost_types::Duration>) -> Result<Duration, Bad> {
        read(need(field, d)?).map_err(|b| b.within(field))
    }
}

pub(super) fn opt_text(text: &Option<Arc<str>>) -> Option<String> {
    text.as_deref().map(str::to_owned)
}

pub(super) fn ip(field: &str, bytes: &[u8]) -> Result<IpAddr, Bad> {
    let ip = if let Ok(v4) = <[u8; 4]>::try_from(bytes) {
        IpAddr::from(v4)
    } else if let Ok(v6) = <[u8; 16]>::try_from(bytes) {
        IpAddr::from(v6).to_canonical()
    } else {
        return Err(Bad::new(field, Problem::AddressLength(bytes.len())));
    };
    Ok(ip)
}

pub(super) fn ip_bytes(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}

/// A prefix; one that lies wholly among the IPv4-mapped addresses becomes an IPv4 prefix.
pub(super) fn net(bytes: &[u8], length: u32) -> Result<IpNet, Bad> {
    let canonical = ip("address", bytes)?;
    let too_long = || Bad::new("length", Problem::PrefixLength(length));
    let (ip, length) = match (bytes.len(), canonical) {
        (16, IpAddr::V4(_)) if length >= 96 => (canonical, length - 96),
        (16, IpAddr::V4(v4)) => (IpAddr::V6(v4.to_ipv6_mapped()), length),
        _ => (canonical, length),
    };
    IpNet::new(ip, u8::try_from(length).map_err(|_| too_long())?).map_err(|_| too_long())
}

pub(super) fn port(field: &str, number: u32) -> Result<u16, Bad> {
    u16::try_from(number).map_err(|_| Bad::new(field, Problem::Port(number)))
}

/// A port that may not be 0.
pub(super) fn real_port(field: &str, number: u32) -> Result<u16, Bad> {
    match port(field, number)? {
        0 => Err(Bad::new(field, Problem::Port(0))),
        p => Ok(p),
    }
}

/// Decodes an enum's number.
pub(super) fn known<E: TryFrom<i32>>(field: &str, number: i32) -> Result<E, Bad> {
    E::try_from(number).map_err(|_| Bad::new(field, Problem::UnknownValue(number)))
}

/// A name without slashes, spaces or control characters.
pub(super) fn label<'a>(field: &str, text: &'a str) -> Result<&'a str, Bad> {
    let ok = !text.is_empty()
        && text.len() <= 253
        && text.bytes().all(|b| b.is_ascii_graphic() && b != b'/');
    if ok {
        Ok(text)
    } else {
        Err(Bad::new(field, Problem::Name(text.to_owned())))
    }
}

pub(super) fn namespace(field: &str, text: &str) -> Result<Namespace, Bad> {
    label(field, text).map(Namespace::from)
}

/// A host name: lower case, no dot at the end.
pub(super) fn hostname(field: &str, text: &str) -> Result<Hostname, Bad> {
    let bad = || Bad::new(field, Problem::Name(text.to_owned()));
    label(field, text)?;
    if text.ends_with('.') || text.bytes().any(|b| b.is_ascii_uppercase()) {
        return Err(bad());
    }
    Ok(Hostname::from(text))
}

/// `namespace/hostname`.
pub(super) fn service_name(field: &str, text: &str) -> Result<ServiceName, Bad> {
    let (ns, host) = text
        .split_once('/')
        .ok_or_else(|| Bad::new(field, Problem::Name(text.to_owned())))?;
    Ok(ServiceName {
        namespace: namespace(field, ns)?,
        hostname: hostname(field, host)?,
    })
}

/// `namespace/name`.
pub(super) fn policy_name(field: &str, text: &str) -> Result<PolicyName, Bad> {
    let (ns, name) = text
        .split_once('/')
        .ok_or_else(|| Bad::new(field, Problem::Name(text.to_owned())))?;
    Ok(PolicyName {
        namespace: namespace(field, ns)?,
        name: label(field, name)?.into(),
    })
}

pub(super) fn texts(list: Vec<String>) -> Box<[Arc<str>]> {
    list.into_iter().map(Arc::from).collect()
}

pub(super) fn strings(list: &[Arc<str>]) -> Vec<String> {
    list.iter().map(|t| t.to_string()).collect()
}

pub(super) fn network_address(address: &NetworkAddress) -> wire::NetworkAddress {
    wire::NetworkAddress {
        network: address.network.to_string(),
        address: ip_bytes(address.ip),
        length: None,
    }
}

pub(super) fn gateway_wire(gateway: &GatewayAddress) -> wire::GatewayAddress {
    use wire::gateway_address::Destination;
    let destination = match &gateway.destination {
        GatewayDestination::Hostname(name) => Destination::Hostname(wire::NamespacedHostname {
            namespace: name.namespace.to_string(),
            hostname: name.hostname.to_string(),
        }),
        GatewayDestination::Address(address) => Destination::Address(network_address(address)),
    };
    wire::GatewayAddress {
        destination: Some(destination),
        hbone_mtls_port: gateway.hbone_port.into(),
    }
}

pub(super) fn gateway(wire: wire::GatewayAddress) -> Result<GatewayAddress, Bad> {
    use wire::gateway_address::Destination;
    let destination = match wire
        .destination
        .ok_or_else(|| Bad::new("destination", Problem::Missing))?
    {
        Destination::Hostname(name) => GatewayDestination::Hostname(ServiceName {
            namespace: namespace("hostname.namespace", &name.namespace)?,
            hostname: hostname("hostname.hostname", &name.hostname)?,
        }),
        Destination::Address(a) => GatewayDestination::Address(NetworkAddress {
            network: NetworkId::from(a.network.as_str()),
            ip: ip("address.address", &a.address)?,
        }),
    };
    Ok(GatewayAddress {
        destination,
        hbone_port: real_port("hbone_mtls_port", wire.hbone_mtls_port)?,
    })
}
