//! Which rule decides about a request, and which backend takes it.
//!
//! Invariants: nothing is allocated for a request unless a header is repeated or a query is percent-encoded; features
//! that this build does not know refuse before anything is matched.

use std::{borrow::Cow, sync::Arc};

use http::{HeaderMap, header::HOST};

use super::{
    Backend, HeaderMatch, Match, PathMatch, QueryMatch, RouteSet, Routes, Rule, Selector, Text,
    path::{decoded, parameter},
};
use crate::{mesh::knows_features, name::Namespace, reason::Reason};

/// A request, as far as rules look at it.
#[derive(Clone, Copy, Debug)]
pub struct Asked<'a> {
    /// The client's namespace; `None` for a client that is nobody of the mesh.
    pub namespace: Option<&'a Namespace>,
    /// The client's [`crate::mesh::WorkloadExtra::groups`].
    pub groups: &'a [Arc<str>],
    /// The service's port that was addressed.
    pub port: u16,
    /// The method.
    pub method: &'a str,
    /// The scheme, `http` or `https`.
    pub scheme: &'a str,
    /// The authority, with the port if it was sent with one.
    pub authority: &'a str,
    /// The path, normalised ([`super::path::normalise`]), without the query.
    pub path: &'a str,
    /// The query, without the question mark, as it was sent.
    pub query: Option<&'a str>,
    /// The headers. `host` is read from the authority.
    pub headers: &'a HeaderMap,
}

/// What rules say of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found<'a> {
    /// A rule decides.
    Rule {
        /// The rule.
        rule: &'a Rule,
        /// How many bytes of the path the match's prefix covered; all of them where the match was no prefix.
        covered: usize,
    },
    /// Rules speak of the client and port, and none matches: 404.
    NoRule,
    /// Nothing speaks of this client and port: the request goes to the service itself.
    Unrouted,
    /// Nobody may decide.
    Refused(Reason),
}

impl Routes {
    /// The rule for a request.
    pub fn find(&self, asked: &Asked<'_>) -> Found<'_> {
        if !knows_features(&self.features) {
            return Found::Refused(Reason::RouteInvalid);
        }
        // A set of rules for connections only says nothing of requests.
        let mut sets = self.sets.iter().filter(|s| s.is_for_requests());
        let Some(set) = sets.find(|s| s.speaks_of(asked)) else {
            return Found::Unrouted;
        };
        set.rules
            .iter()
            .find_map(|rule| {
                let covered = rule.covers(asked)?;
                Some(Found::Rule { rule, covered })
            })
            .unwrap_or(Found::NoRule)
    }
}

impl RouteSet {
    /// Whether it is for this client and port.
    pub fn speaks_of(&self, asked: &Asked<'_>) -> bool {
        self.speaks_to(asked.namespace, asked.port)
    }

    /// Whether it is for a client of a namespace and this port.
    pub(crate) fn speaks_to(&self, namespace: Option<&Namespace>, port: u16) -> bool {
        let client = self.clients.as_ref();
        client.is_none_or(|c| namespace == Some(c))
            && (self.ports.is_empty() || self.ports.contains(&port))
    }

    /// Whether it says anything of requests.
    pub(super) fn is_for_requests(&self) -> bool {
        !self.rules.is_empty() || self.streams.is_empty()
    }
}

impl Rule {
    /// What the first match that holds covers of the path; `None` when none holds.
    pub fn covers(&self, asked: &Asked<'_>) -> Option<usize> {
        if self.matches.is_empty() {
            return Some(asked.path.len());
        }
        self.matches.iter().find_map(|m| m.covers(asked))
    }
}

impl Match {
    /// How many bytes of the path its prefix covers, the whole path where it has none; `None` when it does not hold.
    pub fn covers(&self, asked: &Asked<'_>) -> Option<usize> {
        self.check(asked).ok()
    }

    /// As `covers`, with the first condition that does not hold, in the order from cheap to costly.
    pub(super) fn check(&self, asked: &Asked<'_>) -> Result<usize, Condition<'_>> {
        let text = |want: &Option<Text>, is: &str| want.as_ref().is_none_or(|t| t.matches(is));
        if self.port.is_some_and(|p| p != asked.port) {
            return Err(Condition::Port);
        }
        let namespace = self.source_namespace.as_ref();
        if namespace.is_some_and(|n| asked.namespace != Some(n)) {
            return Err(Condition::SourceNamespace);
        }
        let source = self.source.as_ref();
        if source.is_some_and(|s| !s.selects(asked.groups)) {
            return Err(Condition::Source);
        }
        if !text(&self.method, asked.method) {
            return Err(Condition::Method);
        }
        if !text(&self.scheme, asked.scheme) {
            return Err(Condition::Scheme);
        }
        if !text(&self.authority, asked.authority) {
            return Err(Condition::Authority);
        }
        let covered = match &self.path {
            None => asked.path.len(),
            Some(path) => path
                .covered(asked.path, self.ignore_case)
                .ok_or(Condition::Path)?,
        };
        if let Some(header) = self.headers.iter().find(|h| !h.holds(asked)) {
            return Err(Condition::Header(header));
        }
        match self.query.iter().find(|q| !q.holds(asked.query)) {
            Some(query) => Err(Condition::Query(query)),
            None => Ok(covered),
        }
    }
}

/// A condition of a match.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Condition<'a> {
    Port,
    SourceNamespace,
    Source,
    Method,
    Scheme,
    Authority,
    Path,
    Header(&'a HeaderMatch),
    Query(&'a QueryMatch),
}

impl Selector {
    /// Whether it is among the selectors that select a workload. One without labels selects every workload, and none
    /// lists it.
    pub fn selects(&self, groups: &[Arc<str>]) -> bool {
        self.0.is_empty() || groups.contains(&self.0)
    }
}

impl PathMatch {
    /// How many bytes of a path it covers; `None` when it does not match.
    pub fn covered(&self, path: &str, ignore_case: bool) -> Option<usize> {
        let same = |a: &str, b: &str| {
            if ignore_case {
                a.eq_ignore_ascii_case(b)
            } else {
                a == b
            }
        };
        let begins = |prefix: &str| {
            let head = path.get(..prefix.len());
            head.is_some_and(|head| same(head, prefix))
        };
        match self {
            PathMatch::Exact(text) => same(path, text).then_some(path.len()),
            PathMatch::Prefix(prefix) => begins(prefix).then_some(prefix.len()),
            PathMatch::Segments(prefix) => {
                let prefix = prefix.trim_end_matches('/');
                let rest = path.as_bytes().get(prefix.len());
                (begins(prefix) && rest.is_none_or(|b| *b == b'/')).then_some(prefix.len())
            }
            PathMatch::Regex(pattern) => pattern.matches(path).then_some(path.len()),
        }
    }
}

impl Text {
    /// Whether a text is like that.
    pub fn matches(&self, text: &str) -> bool {
        match self {
            Text::Exact(want) => **want == *text,
            Text::Prefix(want) => text.starts_with(&**want),
            Text::Regex(pattern) => pattern.matches(text),
            Text::Present => true,
        }
    }

    /// The same for bytes that need not be text. An expression sees what is no UTF-8 as U+FFFD.
    fn matches_bytes(&self, bytes: &[u8]) -> bool {
        match self {
            Text::Exact(want) => want.as_bytes() == bytes,
            Text::Prefix(want) => bytes.starts_with(want.as_bytes()),
            Text::Regex(pattern) => pattern.matches(&String::from_utf8_lossy(bytes)),
            Text::Present => true,
        }
    }
}

impl HeaderMatch {
    /// Whether the request's headers are as it asks.
    fn holds(&self, asked: &Asked<'_>) -> bool {
        let is = if self.name == HOST {
            self.value.matches(asked.authority)
        } else {
            joined(asked.headers, &self.name).is_some_and(|v| self.value.matches_bytes(&v))
        };
        is != self.negated
    }
}

/// A header's values, joined by commas; `None` when there is none.
fn joined<'a>(headers: &'a HeaderMap, name: &http::HeaderName) -> Option<Cow<'a, [u8]>> {
    let mut values = headers.get_all(name).iter();
    let first = values.next()?.as_bytes();
    let mut all = Cow::Borrowed(first);
    for value in values {
        let all = all.to_mut();
        all.push(b',');
        all.extend_from_slice(value.as_bytes());
    }
    Some(all)
}

impl QueryMatch {
    /// Whether the query is as it asks.
    fn holds(&self, query: Option<&str>) -> bool {
        let value = query.and_then(|q| parameter(q, &self.name));
        value.is_some_and(|v| self.value.matches_bytes(&decoded(v)))
    }
}

/// The backend that a draw (uniform over all of `u64`) falls to, by weight; `None` when no backend has any.
pub fn choose(backends: &[Backend], draw: u64) -> Option<&Backend> {
    let sum: u64 = backends.iter().map(|b| u64::from(b.weight)).sum();
    // The high part of draw * sum is uniform over 0..sum.
    let mut at = ((u128::from(draw) * u128::from(sum)) >> 64) as u64;
    backends.iter().find(|b| {
        let weight = u64::from(b.weight);
        let here = at < weight;
        at = at.saturating_sub(weight);
        here
    })
}
