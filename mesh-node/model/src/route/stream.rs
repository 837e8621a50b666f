//! What becomes of a connection to a service that carries no HTTP: rules for TCP, and for TLS by the name that is asked for.
//!
//! Invariants: as with requests, the first set that speaks of the client and the port decides, and in it the first rule
//! that matches; a set in which none does refuses; a rule that could not be understood refuses at its place. Nothing
//! is read of a connection unless a rule that could match asks for a name.

use std::{net::IpAddr, sync::Arc};

use ipnet::IpNet;

use super::http::{Backend, RouteSet, Routes, Selector};
use crate::{mesh::knows_features, name::Namespace, reason::Reason};

/// A rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StreamRule {
    /// What it is called, as an HTTP rule is.
    pub name: Arc<str>,
    /// Any of these; none means every connection.
    pub matches: Box<[StreamMatch]>,
    /// What becomes of the connection.
    pub action: StreamAction,
}

/// What becomes of a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StreamAction {
    /// It goes to one of these, by weight; of their filters none is looked at. Without weight it is refused.
    Forward(Box<[Backend]>),
    /// It is refused: the rule could not be understood, for this reason.
    Invalid(Arc<str>),
}

/// What a connection must be like.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StreamMatch {
    /// The service's port that was addressed.
    pub port: Option<u16>,
    /// Names that TLS asks for, any of them; `*.example.com` is any below. When there are any it must be TLS.
    pub hosts: Box<[Arc<str>]>,
    /// Networks of the address that was dialed, any of them.
    pub networks: Box<[IpNet]>,
    /// The client's labels.
    pub source: Option<Selector>,
    /// The client's namespace.
    pub source_namespace: Option<Namespace>,
}

/// A connection, as far as rules look at it.
#[derive(Clone, Copy, Debug)]
pub struct Connecting<'a> {
    /// The client's namespace; `None` for a client that is nobody of the mesh.
    pub namespace: Option<&'a Namespace>,
    /// The client's [`crate::mesh::WorkloadExtra::groups`].
    pub groups: &'a [Arc<str>],
    /// The service's port that was addressed.
    pub port: u16,
    /// The address that was dialed.
    pub dialed: IpAddr,
    /// The name that TLS asks for; `None` when it is no TLS or asks for none.
    pub sni: Option<&'a str>,
}

/// What rules say of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FoundStream<'a> {
    /// A rule decides.
    Rule(&'a StreamRule),
    /// Rules speak of the client and port, and none matches: it is refused.
    NoRule,
    /// Nothing speaks of this client and port: it goes to the service itself.
    Unrouted,
    /// Nobody may decide.
    Refused(Reason),
}

impl Routes {
    /// The rule for a connection.
    pub fn find_stream(&self, asked: &Connecting<'_>) -> FoundStream<'_> {
        if !knows_features(&self.features) {
            return FoundStream::Refused(Reason::RouteInvalid);
        }
        let Some(set) = self.stream_set(asked) else {
            return FoundStream::Unrouted;
        };
        let found = set.streams.iter().find(|rule| rule.holds(asked));
        found.map_or(FoundStream::NoRule, FoundStream::Rule)
    }

    /// Whether a name that TLS asks for would make a difference.
    pub fn wants_name(&self, asked: &Connecting<'_>) -> bool {
        let by_name = |rule: &StreamRule| {
            let matches = rule.matches.iter();
            let mut named = matches.filter(|m| !m.hosts.is_empty());
            named.any(|m| m.holds_but_name(asked))
        };
        let set = self.stream_set(asked);
        set.is_some_and(|set| set.streams.iter().any(by_name))
    }

    fn stream_set(&self, asked: &Connecting<'_>) -> Option<&RouteSet> {
        let speaks = |set: &&RouteSet| set.speaks_to(asked.namespace, asked.port);
        self.sets
            .iter()
            .filter(|set| !set.streams.is_empty())
            .find(speaks)
    }
}

impl StreamRule {
    /// Whether it is for a connection.
    pub fn holds(&self, asked: &Connecting<'_>) -> bool {
        self.matches.is_empty() || self.matches.iter().any(|m| m.holds(asked))
    }
}

impl StreamMatch {
    fn holds(&self, asked: &Connecting<'_>) -> bool {
        let named = |sni: &str| self.hosts.iter().any(|host| covers(host, sni));
        self.holds_but_name(asked) && (self.hosts.is_empty() || asked.sni.is_some_and(named))
    }

    fn holds_but_name(&self, asked: &Connecting<'_>) -> bool {
        let dialed = asked.dialed.to_canonical();
        let namespace = self.source_namespace.as_ref();
        self.port.is_none_or(|port| port == asked.port)
            && (self.networks.is_empty() || self.networks.iter().any(|n| n.contains(&dialed)))
            && namespace.is_none_or(|n| asked.namespace == Some(n))
            && self.source.as_ref().is_none_or(|s| s.selects(asked.groups))
    }
}

/// Whether a name is that host, or below it where it is `*.` and a host. Names know no case (RFC 4343).
fn covers(host: &str, name: &str) -> bool {
    let name = name.trim_end_matches('.');
    match host.strip_prefix('*') {
        Some("") => true,
        Some(below) => {
            let at = name.len().checked_sub(below.len());
            at.is_some_and(|at| {
                at > 0
                    && name
                        .get(at..)
                        .is_some_and(|end| end.eq_ignore_ascii_case(below))
            })
        }
        None => host.eq_ignore_ascii_case(name),
    }
}
