//! Resources as they are published and held: a kind, a name, a content-hash version and shared bytes.
//!
//! Invariant: equal content has an equal version, and the version of a resource never says anything else.

use std::{fmt, str::FromStr, sync::Arc};

use bytes::Bytes;
use sha2::{Digest, Sha256};

/// The name of the resource that says that a kind has been sent completely.
pub const COMPLETE: &str = "warren.dev/complete";

/// The type of the marker's content.
pub const COMPLETE_TYPE: &str = "type.googleapis.com/warren.v1.Complete";

/// The kinds of resources that are published, in the order in which they are sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// What Istio's types cannot carry. First, so that the mesh's settings are there before what they govern.
    Companion,
    /// Policies. Before addresses, so that a workload finds the policies it names.
    Authorization,
    /// How endpoints of services are used. Before routes, which name subsets.
    Destination,
    /// Rules for requests. Before addresses, so that a service finds its rules.
    Routes,
    /// Workloads and services.
    Address,
}

impl Kind {
    /// All kinds, in the order in which they are sent.
    pub const ALL: [Kind; 5] = [
        Kind::Companion,
        Kind::Authorization,
        Kind::Destination,
        Kind::Routes,
        Kind::Address,
    ];

    /// What a node proxy asks for.
    pub const NODE: &'static [Kind] = &[
        Kind::Companion,
        Kind::Authorization,
        Kind::Destination,
        Kind::Address,
    ];

    /// What a waypoint asks for.
    pub const WAYPOINT: &'static [Kind] = &Self::ALL;

    /// The kind's type URL.
    pub const fn url(self) -> &'static str {
        match self {
            Kind::Companion => "type.googleapis.com/warren.v1.Companion",
            Kind::Authorization => "type.googleapis.com/istio.security.Authorization",
            Kind::Destination => "type.googleapis.com/warren.v1.Destination",
            Kind::Routes => "type.googleapis.com/warren.v1.Routes",
            Kind::Address => "type.googleapis.com/istio.workload.Address",
        }
    }

    /// The kind with this type URL.
    pub fn from_url(url: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|k| k.url() == url)
    }

    /// The kind's number where resources are kept, which never changes.
    pub const fn number(self) -> u8 {
        match self {
            Kind::Companion => 0,
            Kind::Authorization => 1,
            Kind::Address => 2,
            Kind::Destination => 3,
            Kind::Routes => 4,
        }
    }

    /// The kind with this number.
    pub fn from_number(number: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|k| k.number() == number)
    }

    /// Whether its messages are our own, which only our own proxies understand.
    pub const fn is_ours(self) -> bool {
        match self {
            Kind::Companion | Kind::Destination | Kind::Routes => true,
            Kind::Authorization | Kind::Address => false,
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Kind::Companion => "Companion",
            Kind::Authorization => "Authorization",
            Kind::Destination => "Destination",
            Kind::Routes => "Routes",
            Kind::Address => "Address",
        })
    }
}

/// The version of a resource: the first eight bytes of SHA-256 of its encoding, written as 16 hex digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Version(u64);

impl Version {
    /// The version of this content.
    pub fn of(body: &[u8]) -> Self {
        let hash = Sha256::digest(body);
        Self(u64::from_be_bytes(
            hash[..8].try_into().expect("SHA-256 has 32 bytes"),
        ))
    }

    /// The version as a number, for digests.
    pub const fn number(self) -> u64 {
        self.0
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl fmt::Debug for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Version {
    type Err = std::num::ParseIntError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        u64::from_str_radix(text, 16).map(Self)
    }
}

/// A resource, encoded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resource {
    /// Its kind.
    pub kind: Kind,
    /// Its name within the kind.
    pub name: Arc<str>,
    /// Its version.
    pub version: Version,
    /// The encoded message, the content of the `Any` on the wire.
    pub body: Bytes,
    /// Other names under which it can be asked for (`network/address`).
    pub aliases: Box<[Arc<str>]>,
    /// The node that alone needs it; `None` when all do.
    pub node: Option<Arc<str>>,
}

impl Resource {
    /// A resource for everybody, known by its name only.
    pub fn new(kind: Kind, name: impl Into<Arc<str>>, body: impl Into<Bytes>) -> Self {
        let body = body.into();
        Self {
            kind,
            name: name.into(),
            version: Version::of(&body),
            body,
            aliases: Box::default(),
            node: None,
        }
    }
}

/// What a change does to the published resources.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Update {
    /// Adds or replaces one.
    Set(Resource),
    /// Removes one, if it is there.
    Remove(Kind, Arc<str>),
}

impl Update {
    /// The resource's kind and name.
    pub fn key(&self) -> (Kind, &Arc<str>) {
        match self {
            Update::Set(r) => (r.kind, &r.name),
            Update::Remove(kind, name) => (*kind, name),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_keep_their_numbers() {
        // What an earlier build left on disk is read by these.
        let numbered: Vec<(u8, Kind)> = (0..8)
            .filter_map(|n| Some((n, Kind::from_number(n)?)))
            .collect();
        let expect = [
            (0, Kind::Companion),
            (1, Kind::Authorization),
            (2, Kind::Address),
            (3, Kind::Destination),
            (4, Kind::Routes),
        ];
        assert_eq!(numbered, expect);
        assert_eq!(expect.len(), Kind::ALL.len());
        assert!(Kind::NODE.is_sorted() && Kind::WAYPOINT.is_sorted());
    }
}
